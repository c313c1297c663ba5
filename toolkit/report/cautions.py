"""What a reader of the scores must know before believing them: the report's warnings, each with its numbers."""

from typing import Any

Facts = dict[str, Any]
READERS = {"calibrate": "calibration", "recover": "training", "evaluate": "evaluation"}  # stages that read data


def warnings(facts: Facts) -> list[str]:
    """What a reader of the scores must know before believing them."""
    return [
        *_about_selection(facts), *_about_data(facts), *_about_training(facts), *_about_answers(facts),
        *_about_context(facts), *_about_likeness(facts), *_about_versions(facts),
    ]  # fmt: skip


def _about_selection(facts: Facts) -> list[str]:
    idle = [block["kept_unobserved"] for block in facts["blocks"].values() if block["kept_unobserved"]]
    if not idle:
        return []
    cut = facts["pruning"]
    kind = "token" if cut["tokens"] == "all" else f"{cut['tokens']} token"
    where = f"{sum(idle):,} of {cut['keep'] * cut['blocks']:,}, in {len(idle)} of {cut['blocks']} blocks"
    why = "`random` does not look" if cut["criterion"] == "random" else "`keep` is larger than what the task was seen to use"
    return [f"Kept experts that no {kind} of calibration chose: {where} ({why})."]


def _about_data(facts: Facts) -> list[str]:
    said = []
    for stage, section, found in (
        ("Calibration", "calibration", facts["calibration"]),
        ("Training", "finetuning", facts["training"]),
    ):
        if found and found["left_out"]:
            longest = (facts["recipe"] or {}).get(section, {}).get("max_length")
            limit = f"longer than {longest:,} tokens" if longest else "too long"
            of = f" of {found['left_out'] + found['examples']:,}" if found["examples"] is not None else ""
            said.append(f"{stage} left out {found['left_out']:,}{of} examples: they are {limit} ({section}.max_length).")
        if found and found.get("beyond_context"):
            count = f"{found['beyond_context']:,} of {found['examples']:,}"
            said.append(f"{stage} read {count} examples that are longer than the model's context ({section}.max_length).")
    bad: dict[str, int] = {}
    for stage, entry in facts["stages"].items():
        if (what := READERS.get(stage.partition("/")[0])) and entry.get("bad_lines"):
            bad[what] = entry["bad_lines"]
    counts = ", ".join(f"{number:,} ({what})" for what, number in bad.items())
    return [*said, f"Lines of the data that could not be used and are left out: {counts}."] if bad else said


def _about_training(facts: Facts) -> list[str]:
    training = facts["training"] or {}
    losses, said = training.get("loss", []), []
    if repeating := training.get("repeating"):
        said.append(
            f"{repeating:,} questions of the training data are those of the test set or the dev slice, word for word: how well "
            "the recovered model answers new ones, its scores do not tell."
        )
    broken = [step for step, loss in losses if loss is None]
    if not broken:
        return said
    return [
        *said,
        f"The training loss was not finite at {len(broken):,} of {len(losses):,} logged steps, first at step {broken[0]:,}.",
    ]


def _about_answers(facts: Facts) -> list[str]:
    evaluated = {role: found for role, found in facts["models"].items() if found}
    said = []
    dev = [role for role, found in evaluated.items() if found["split"] == "dev"]
    if dev:
        said.append(
            f"The scores of {_list(dev)} are on the dev split (held-out training examples, there to choose settings by), "
            "not on the test set."
        )
    limit = (facts["recipe"] or {}).get("evaluation", {}).get("examples")
    if limit and any(found["n"] == limit for found in evaluated.values()):
        said.append(f"The evaluation stops after the first {limit:,} questions of its split (evaluation.examples).")
    limits = {found["max_new_tokens"] for found in evaluated.values() if found["truncated"] and found["max_new_tokens"]}
    within = f"{limits.pop():,} tokens" if len(limits) == 1 else "the token limit"
    for key, what in (
        ("truncated", f"that did not end within {within}"),
        ("empty", "that are empty"),
        ("unfinished_reasoning", f"of which only reasoning had been written within {within} (evaluation.max_new_tokens)"),
        ("given_up", "whose comparison with the gold answer was given up, counted as wrong"),
    ):
        counts = [f"{found[key]:,} of {found['n']:,} ({role})" for role, found in evaluated.items() if found.get(key)]
        if counts:
            said.append(f"Answers {what}: {', '.join(counts)}.")
    return said


def _about_context(facts: Facts) -> list[str]:
    """Prompts that are longer than what a model can read; all models of a run were mostly asked the same."""
    said = []
    for key, what in (
        ("prompts_beyond_context", "do not fit the model's context of {context:,} tokens"),
        (
            "prompts_without_room",
            "leave less room in the model's context of {context:,} tokens than the {new:,} new ones allowed",
        ),
    ):
        roles: dict[str, list[str]] = {}
        for role, found in facts["models"].items():
            if found and found.get(key):
                words = what.format(context=found["context_length"], new=found["max_new_tokens"])
                roles.setdefault(f"{found[key]:,} of {found['n']:,} prompts {words}", []).append(role)
        said += [f"{count} ({', '.join(named)})." for count, named in roles.items()]
    return said


def _about_likeness(facts: Facts) -> list[str]:
    """Models that were not measured in the same way must not be compared without saying so."""
    said = []
    for keys, what in (
        (("split", "n", "max_new_tokens", "dtype"), "scores"),
        (("device", "ranks", "batch_size"), "speeds and memory"),
    ):
        for key in keys:
            values = {role: found[key] for role, found in facts["models"].items() if found}
            if len({str(value) for value in values.values()}) > 1:
                each = ", ".join(f"{value} ({role})" for role, value in values.items())
                said.append(f"The {what} were not measured alike: {key} is {each}.")
    return said


def _about_versions(facts: Facts) -> list[str]:
    """One line per package (and for the toolkit's commit) that changed between the stages."""
    found: dict[str, dict[str, list[str]]] = {}
    for stage, entry in facts["stages"].items():
        for package, version in {
            **(entry.get("versions") or {}),
            "toolkit commit": (entry.get("git_commit") or "none")[:12],
        }.items():
            found.setdefault(package, {}).setdefault(version, []).append(stage)
    return [
        f"Stages ran with different versions of {package}: "
        + "; ".join(f"{version} ({', '.join(stages)})" for version, stages in by_version.items())
        + "."
        for package, by_version in found.items()
        if len(by_version) > 1
    ]


def _list(words: list[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)

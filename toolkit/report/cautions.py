"""What a reader of the scores must know before believing them: the report's warnings, each with its numbers."""

from collections.abc import Mapping
from typing import Protocol

from toolkit.recipe.roles import Role
from toolkit.recipe.schema import Recipe
from toolkit.report.facts import RunFacts
from toolkit.report.first_task import first_task_warnings
from toolkit.report.fit_facts import fit_warnings
from toolkit.report.off_task_facts import Training, off_task_warnings
from toolkit.report.refit_facts import refit_warnings
from toolkit.runtime.formatting import interval, percent

HARDLY_ANY = 0.05
"""The share of right answers below which, its interval included, a model is said not to do a task."""

COUNTED_ANSWERS = (
    ("truncated", "that did not end within {limit}"),
    ("empty", "that are empty"),
    ("unfinished_reasoning", "of which only reasoning had been written within {limit} (evaluation.max_new_tokens)"),
    ("given_up", "whose comparison with the gold answer was given up, counted as wrong"),
)
COUNTED_PROMPTS = (
    ("prompts_beyond_context", "do not fit the model's context of {context:,} tokens"),
    ("prompts_without_room", "leave less room in the model's context of {context:,} tokens than the {new:,} new ones allowed"),
)
MEASURED_ALIKE = (
    (("split", "n", "max_new_tokens", "dtype"), "scores"),
    (("device", "ranks", "batch_size"), "speeds and memory"),
)
"""Fields of ModelResult that must be the same for all models, and what cannot be compared where they are not."""


def warnings(facts: RunFacts, recipe: Recipe | None, bad_lines: Mapping[str, int]) -> list[str]:
    """One sentence for each thing that makes a number doubtful; `recipe` is the run's, `bad_lines` counts lines of its data that
    could not be used, by what they were read for."""
    return [
        *_about_original(facts, recipe), *fit_warnings(facts.fit), *_about_selection(facts), *_about_width(facts),
        *_about_layers(facts), *refit_warnings(facts.refit), *first_task_warnings(facts.first_task),
        *_about_data(facts, recipe, bad_lines), *_about_training(facts), *_about_skipping(facts),
        *off_task_warnings(facts.off_task, _trainings(facts, recipe)), *_about_choices(facts), *_about_answers(facts, recipe),
        *_about_margin(facts, recipe), *_about_context(facts), *_about_likeness(facts), *_about_versions(facts),
    ]  # fmt: skip


def _about_original(facts: RunFacts, recipe: Recipe | None) -> list[str]:
    original = facts.evaluated.get(Role.ORIGINAL)
    doubt = doubt_of_original(original, has_control=bool(recipe and recipe.control)) if original else None
    return [doubt] if doubt else []


def _about_margin(facts: RunFacts, recipe: Recipe | None) -> list[str]:
    margin = recipe.evaluation.margin if recipe else None
    if margin is None or facts.noninferiority or not facts.evaluated_result or Role.ORIGINAL not in facts.evaluated:
        return []
    end = facts.evaluated_result
    return [
        f"evaluation.margin ({margin:g} points) is not judged: the original and the {end} model did not "
        "answer the same questions."
    ]


class Answered(Protocol):
    """How many questions were answered rightly; `chance`: the share that guessing gets right, where there are choices."""

    @property
    def score(self) -> float: ...
    @property
    def n(self) -> int: ...
    @property
    def interval(self) -> tuple[float, float]: ...
    @property
    def chance(self) -> float | None: ...


def doubt_of_original(original: Answered, has_control: bool) -> str | None:
    """A warning where the original cannot do the task: with choices, where its interval does not lie above chance; else where it
    lies below HARDLY_ANY. None where it can, or the questions are too few to tell."""
    low, high = original.interval
    right = f"{percent(original.score)} of {original.n:,} questions right, 95 % interval {interval(original.interval)}"
    if original.chance is not None:
        shows = low > original.chance
        what = f"The original itself is not told from guessing ({right}; by chance {percent(original.chance)})"
    else:
        shows = high >= HARDLY_ANY
        what = f"The original itself can hardly do the task ({right})"
    if shows:
        return None
    offer = "" if has_control else ", or fine-tune the original as well to see what the task allows (control: true)"
    return (
        f"{what}: what its experts do on these prompts says little about which of them the task needs. Look at its answers "
        "(evaluation/original.predictions.jsonl): perhaps the prompt does not ask for the expected form (task.prompt, "
        f"task.shots){offer}."
    )


def _trainings(facts: RunFacts, recipe: Recipe | None) -> list[Training]:
    method = recipe.finetuning.method if recipe else "fine-tuning"
    start = Role.REFITTED if facts.refit else Role.PRUNED
    made = ((facts.training, start, Role.RECOVERED), (facts.control_training, Role.ORIGINAL, Role.CONTROL))
    return [Training(method, before, after, [loss for _, loss in log.loss]) for log, before, after in made if log]


def _about_choices(facts: RunFacts) -> list[str]:
    """Harness results that nothing was written for."""
    tasks = list(dict.fromkeys(row.task for row in facts.harness if row.is_multiple_choice))
    if not tasks:
        return []
    return [
        f"Multiple choice only: {', '.join(tasks)} (lm-evaluation-harness). The likeliest of given choices survives pruning "
        "better than an answer that must be written: these scores do not tell whether the model still writes well."
    ]


def _about_selection(facts: RunFacts) -> list[str]:
    idle = [block.kept_unobserved for block in facts.blocks.values() if block.kept_unobserved]
    cut = facts.pruning
    if not idle or not cut or (facts.cuts and cut.keep == cut.experts):
        return []
    kind = "token" if cut.tokens == "all" else f"{cut.tokens} token"
    where = f"{sum(idle):,} of {cut.keep * cut.blocks:,}, in {len(idle)} of {cut.blocks} blocks"
    why = "`random` does not look" if cut.criterion == "random" else "`keep` is larger than what the task was seen to use"
    return [f"Kept experts that no {kind} of calibration chose: {where} ({why})."]


def _about_width(facts: RunFacts) -> list[str]:
    width = facts.cuts.width if facts.cuts else None
    if not width or width.criterion in ("random", "magnitude"):  # they do not look at tokens
        return []
    energies = [energy for block in width.blocks.values() for energy in block.energy or ()]
    unseen = energies.count(None)
    if not unseen:
        return []
    return [
        f"No token of calibration reached {unseen:,} of {len(energies):,} kept experts: {width.criterion} knows nothing of their "
        f"channels, and the first {width.keep:,} stay."
    ]


def _about_layers(facts: RunFacts) -> list[str]:
    """Answers that are written suffer where layers are gone; what the dev slice says of it before any recovery."""
    layers = facts.cuts.layers if facts.cuts else None
    if not layers or not layers.written_answers:
        return []
    gone = layers.layers - len(layers.kept)
    text = f"{gone} layer{'s' * (gone > 1)} fewer cost{'s' * (gone == 1)} written answers, arithmetic above all, more than the "
    if answers := layers.dev_answers:
        measured = f"With nothing but layers cut it was right on {answers.after} of {answers.n} dev questions, with all layers on"
        return [f"{text}choice of a label. {measured} {answers.before}."]
    if facts.fit:  # its chosen shape was asked as a whole
        return [f"{text}choice of a label."]
    return [
        f"{text}choice of a label. `layer_criterion: dev_loss` would have said on the dev slice what it costs before recovery."
    ]


def _about_data(facts: RunFacts, recipe: Recipe | None, bad_lines: Mapping[str, int]) -> list[str]:
    lines = []
    for stage, section, read, longest in (
        ("Calibration", "calibration", facts.calibration, recipe and recipe.calibration.max_length),
        ("Training", "finetuning", facts.training, recipe and recipe.finetuning.max_length),
    ):
        if read and read.left_out:
            limit = f"longer than {longest:,} tokens" if longest else "too long"
            whole = f" of {read.left_out + read.examples:,}" if read.examples is not None else ""
            lines.append(f"{stage} left out {read.left_out:,}{whole} examples: they are {limit} ({section}.max_length).")
        if read and read.beyond_context:
            count = f"{read.beyond_context:,} of {read.examples:,}"
            lines.append(f"{stage} read {count} examples that are longer than the model's context ({section}.max_length).")
    counts = ", ".join(f"{number:,} ({purpose})" for purpose, number in bad_lines.items())
    return [*lines, f"Lines of the data that could not be used and are left out: {counts}."] if counts else lines


def _about_training(facts: RunFacts) -> list[str]:
    training, lines = facts.training, []
    if training is None:
        return []
    if training.repeating:
        lines.append(
            f"{training.repeating:,} questions of the training data are those of the test set or the dev slice, word for word: "
            "how well the recovered model answers new ones, its scores do not tell."
        )
    broken = [step for step, loss in training.loss if loss is None]
    if broken:
        logged = f"{len(broken):,} of {len(training.loss):,} logged steps, first at step {broken[0]:,}"
        lines.append(f"The training loss was not finite at {logged}.")
    return lines


def _about_skipping(facts: RunFacts) -> list[str]:
    """Whether skipping makes the model faster at all, where both speeds are of the same machine."""
    skipping = facts.evaluated.get(Role.SKIPPING)
    whole = next((role for role in (Role.RECOVERED, Role.REFITTED, Role.PRUNED) if role in facts.evaluated), None)
    if not skipping or not whole:
        return []
    before = facts.evaluated[whole]
    if any(getattr(skipping, field) != getattr(before, field) for field in ("backend", *MEASURED_ALIKE[1][0])):
        return []
    speed, whole_speed = skipping.tokens_per_second, before.tokens_per_second
    if speed is None or whole_speed is None or speed >= whole_speed:
        return []
    return [
        f"Skipping is not recommended here: {speed:,.1f} tokens/s with it, {whole_speed:,.1f} without ({whole}). What it saves "
        "of the experts' work did not make these answers faster (pruning.skipping: null)."
    ]


def _about_answers(facts: RunFacts, recipe: Recipe | None) -> list[str]:
    evaluated, lines = facts.evaluated, []
    dev = [role for role, result in evaluated.items() if result.split == "dev"]
    if dev:
        lines.append(
            f"The scores of {_list(dev)} are on the dev split (held-out training examples, there to choose settings by), "
            "not on the test set."
        )
    limit = recipe and recipe.evaluation.examples
    if limit and any(result.n == limit for result in evaluated.values()):
        lines.append(f"The evaluation stops after the first {limit:,} questions of its split (evaluation.examples).")
    limits = {result.max_new_tokens for result in evaluated.values() if result.truncated and result.max_new_tokens}
    within = f"{limits.pop():,} tokens" if len(limits) == 1 else "the token limit"
    for field, what in COUNTED_ANSWERS:
        counts = [
            f"{count:,} of {result.n:,} ({role})" for role, result in evaluated.items() if (count := getattr(result, field))
        ]
        if counts:
            lines.append(f"Answers {what.format(limit=within)}: {', '.join(counts)}.")
    return lines


def _about_context(facts: RunFacts) -> list[str]:
    """Prompts that are longer than what a model can read; all models of a run were mostly asked the same."""
    lines = []
    for field, what in COUNTED_PROMPTS:
        roles: dict[str, list[str]] = {}
        for role, result in facts.evaluated.items():
            if count := getattr(result, field):
                which = what.format(context=result.context_length, new=result.max_new_tokens)
                roles.setdefault(f"{count:,} of {result.n:,} prompts {which}", []).append(role)
        lines += [f"{count} ({', '.join(named)})." for count, named in roles.items()]
    return lines


def _about_likeness(facts: RunFacts) -> list[str]:
    """Models that were not measured in the same way must not be compared without a warning."""
    lines = []
    for fields, what in MEASURED_ALIKE:
        for field in fields:
            values = {role: getattr(result, field) for role, result in facts.evaluated.items()}
            if len({str(value) for value in values.values()}) > 1:
                each = ", ".join(f"{value} ({role})" for role, value in values.items())
                lines.append(f"The {what} were not measured alike: {field} is {each}.")
    return lines


def _about_versions(facts: RunFacts) -> list[str]:
    """One line per package (and for the toolkit's commit) that changed between the stages."""
    stages: dict[str, dict[str, list[str]]] = {}  # package -> version -> stages
    for stage, entry in facts.stages.items():
        commit = {"toolkit commit": (entry.get("git_commit") or "none")[:12]}
        for package, version in {**(entry.get("versions") or {}), **commit}.items():
            stages.setdefault(package, {}).setdefault(version, []).append(stage)
    return [
        f"Stages ran with different versions of {package}: "
        + "; ".join(f"{version} ({', '.join(names)})" for version, names in by_version.items())
        + "."
        for package, by_version in stages.items()
        if len(by_version) > 1
    ]


def _list(roles: list[Role]) -> str:
    """ "original, pruned and recovered"."""
    return " and ".join([", ".join(roles[:-1]), roles[-1]] if len(roles) > 1 else roles)

"""The whole recipe in order: what is done already is skipped, what a changed key affects is done again.

(rounds/… ─►) calibrate ─► select ─► prune ─► (answers ─► teacher ─►) recover ─► (control ─►) report
    evaluate/original                 └ evaluate/pruned            └ evaluate/recovered └ evaluate/control
                                                                   └ skip ─► evaluate/skipping (or after prune)

What the original teaches serves every training of a run: with rounds, it is made before the first of them.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rich.markup import escape

from toolkit.distributed import barrier, check_shared, is_main, on_main, say, world_size
from toolkit.errors import ItemsFailed, Mistakes, PollardError
from toolkit.files import explained_full_disk
from toolkit.recipe import Recipe
from toolkit.recipe_file import dump_recipe
from toolkit.run_directory import RunDirectory, fingerprint_of
from toolkit.stages import beside, core, teach
from toolkit.stages.calibration_data import sources_of
from toolkit.stages.checks import check
from toolkit.stages.evaluate import evaluate_stage
from toolkit.stages.fingerprints import Fingerprints, fingerprints_of
from toolkit.stages.full_memory import explained_full_memory
from toolkit.stages.model_limits import trains
from toolkit.stages.rounds import recipe_of_last_round, recipe_of_round, share_what_is_taught
from toolkit.stages.skip import role_that_skips, skip_stage
from toolkit.stages.teach import Taught

Do = Callable[[Recipe, RunDirectory, str], dict[str, Any]]


@dataclass(frozen=True)
class Stage:
    """One step: `fingerprint` covers all that decides its result."""

    name: str
    purpose: str
    fingerprint: str
    run: Do
    scratch: str = ""  # what it needs in the run directory only until it is done


def plan_stages(recipe: Recipe, taught: Taught | None = None) -> list[Stage]:
    """The stages of a recipe with their fingerprints, in order; without those that make what is `taught` already."""
    marks = fingerprints_of(recipe, taught)
    teaching = _teaching(marks.taught) if taught is None and trains(recipe) else []
    early = [
        Stage(f"rounds/{keep}", f"on the way: prune to {keep} experts and recover", mark, _round_stage(keep, marks.taught))
        for keep, mark in marks.rounds.items()
    ]
    trained = f"({recipe.finetuning.method}, ZeRO {recipe.finetuning.zero}, {world_size()} rank{'s' * (world_size() > 1)})"
    planned = [
        *([*teaching, *early] if early else []),  # the original teaches in every round
        *_choosing(recipe, marks),
        *_evaluation(recipe, marks, "original"),
        *_evaluation(recipe, marks, "pruned"),
        *([] if early else teaching),
    ]
    if "recovered" in recipe.evaluation.models:
        how_to, mark = f"fine-tune the pruned model {trained}", marks.models["recovered"]
        planned.append(Stage("recover", how_to, mark, core.recover_stage, scratch="checkpoints/recovered"))
        planned += _evaluation(recipe, marks, "recovered")
    if recipe.pruning.skipping:
        planned += _skipping(recipe, marks)
    if recipe.control:
        how_to, mark = f"fine-tune the original in the same way {trained}", marks.models["control"]
        planned.append(Stage("control", how_to, mark, core.control_stage, scratch="checkpoints/control"))
        planned += _evaluation(recipe, marks, "control")
    everything = fingerprint_of([stage.fingerprint for stage in planned])
    return [*planned, Stage("report", "put it together", everything, core.report_stage)]


def _choosing(recipe: Recipe, marks: Fingerprints) -> list[Stage]:
    """From the original to the pruned model; and what the original says, where that is asked for."""
    watched, pruning = [source.name for source in sources_of(recipe)], recipe.pruning
    searching = f" and search the best sets ({pruning.mode})" if pruning.criterion == "reconstruction" else ""
    watch = f"watch which experts {' + '.join(watched)} use{'s' * (len(watched) == 1)}{searching}"
    choose = f"choose the experts to keep ({pruning.keep}, {pruning.criterion})"
    said = Stage(
        "fidelity/original", "keep what the original model says of the gold answers", marks.said, beside.fidelity_original_stage
    )
    return [
        Stage("calibrate", watch, marks.calibrate, _in_last_round(core.calibrate_stage)),
        Stage("select", choose, marks.select, core.select_stage),
        Stage("prune", "cut the others out of the checkpoint", marks.models["pruned"], _in_last_round(core.prune_stage)),
        *([said] if recipe.evaluation.fidelity else []),
    ]


def _evaluation(recipe: Recipe, marks: Fingerprints, role: str) -> list[Stage]:
    """What is measured of a model, its score last, so that `pollard evaluate` ends with everything."""
    if role not in (*recipe.evaluation.models, "control"):
        return []
    model, measured = marks.models[role], []
    if recipe.evaluation.fidelity and role != "original":
        purpose, do = f"compare what the {role} model says with the original", beside.fidelity_stage(role, marks.said)
        measured.append(Stage(f"fidelity/{role}", purpose, fingerprint_of(model, marks.said), do))
    if recipe.evaluation.harness:
        purpose, do = f"ask the {role} model about other tasks", beside.harness_stage(role)
        measured.append(Stage(f"harness/{role}", purpose, fingerprint_of(model, marks.asked), do))
    purpose = f"answer the {recipe.evaluation.split} questions of {recipe.task.name} with the {role} model"
    do, answers = evaluate_stage(role, model), f"evaluation/{role}.answers"
    return [*measured, Stage(f"evaluate/{role}", purpose, marks.scores_of(role), do, scratch=answers)]


def _skipping(recipe: Recipe, marks: Fingerprints) -> list[Stage]:
    last = role_that_skips(recipe)
    how_to = f"find when a token of the {last} model can do without an expert ({recipe.pruning.skipping})"
    answering = f"answer them once more with the {last} model, skipping experts"
    judged = fingerprint_of(marks.skip, marks.judged)
    return [
        Stage("skip", how_to, marks.skip, skip_stage(last)),
        Stage("evaluate/skipping", answering, judged, evaluate_stage("skipping", None, last)),
    ]


def _teaching(taught: Taught) -> list[Stage]:
    stages_of_it = []
    if taught.answers:
        purpose = "have the original model answer training prompts"
        stages_of_it.append(Stage("answers", purpose, taught.answers, teach.answers_stage))
    if taught.teacher:
        purpose = "keep what the original model says of every completion token"
        stages_of_it.append(Stage("teacher", purpose, taught.teacher, teach.teacher_stage))
    return stages_of_it


def _round_stage(keep: int, taught: Taught) -> Do:
    """A round before the last is a run of its own, in the run directory: its finished stages are skipped like any run's."""

    def stage(recipe: Recipe, directory: RunDirectory, fingerprint: str) -> dict[str, Any]:
        on_main(lambda: share_what_is_taught(directory, keep))
        run(recipe_of_round(recipe, directory, keep), str(directory.rounds), until="recover", taught=taught)
        return {"keep": keep}

    return stage


def _in_last_round(do: Do) -> Do:
    return lambda recipe, directory, fingerprint: do(recipe_of_last_round(recipe, directory), directory, fingerprint)


def run(
    recipe: Recipe, root: str = "runs", fresh: bool = False, until: str | None = None, taught: Taught | None = None
) -> RunDirectory:
    """Runs the recipe on every rank, as far as stage `until` (all stages unless given), skipping what is done.

    `fresh` does everything again. `taught`: what an outer run has made already for this one's training. Raises
    PollardError for what the user can mend; finished stages stay finished. Where a scorer failed on some items, the other
    stages and the report are done before that is raised.
    """
    directory = RunDirectory(recipe.name, root)
    owner = recipe.model.path, recipe.task.name
    mistakes, notes = Mistakes(), []
    mistakes.collect(lambda: on_main(lambda: directory.check_owner(*owner)))
    planned = mistakes.collect(lambda: plan_stages(recipe, taught)) or []
    reasons = on_main(lambda: _reasons(planned, directory, fresh))
    todo = [name for name, reason in reasons.items() if reason]
    if mistakes or todo:
        notes = check(recipe, directory, mistakes)
    on_main(directory.lock)
    try:
        check_shared(directory.path)
        named = [(stage.name, reasons[stage.name]) for stage in planned[: _end(planned, until)]]
        if taught is None and any(reason for _, reason in named):  # a round is part of a run that has said it
            from toolkit.terminal.screens import first_screen  # it counts as the estimates do, which know the pipeline

            first_screen(recipe, directory, named)
            for note in notes:
                say(f"[bold]note[/] {escape(note)}")
        on_main(lambda: directory.open(*owner, dump_recipe(recipe), todo))
        if fresh:
            on_main(directory.forget)
        failed = []
        for stage in planned[: _end(planned, until)]:
            try:
                do_stage(stage, recipe, directory, reasons[stage.name])
            except ItemsFailed as error:
                if not stage.name.startswith("evaluate/"):  # what comes after it needs its result
                    raise
                failed.append(f"{stage.name}: {error}")
                _note_failure(directory, stage.name, error)
        if failed:
            raise PollardError("\n".join(failed))
    finally:
        directory.unlock()
    return directory


def _note_failure(directory: RunDirectory, stage: str, error: ItemsFailed) -> None:
    """Said when it happens and noted in the manifest: hours of other stages may follow."""
    say(f"  [bold red]failed[/]: {escape(str(error))}")
    on_main(lambda: directory.fail(stage, str(error), error.items))


def _end(planned: list[Stage], until: str | None) -> int:
    """How many stages there are up to `until` (`evaluate`: the last evaluation); all of them without it."""
    ends = [number for number, stage in enumerate(planned, start=1) if until in (stage.name, stage.name.partition("/")[0])]
    return max(ends, default=len(planned))


def _reasons(planned: list[Stage], directory: RunDirectory, fresh: bool) -> dict[str, str]:
    """Per stage why it must run; empty where it is done."""
    reasons = {}
    for stage in planned:
        if fresh:
            reasons[stage.name] = "as asked by --fresh"
        elif directory.is_done(stage.name, stage.fingerprint):
            reasons[stage.name] = ""
        elif directory.was_done(stage.name):
            reasons[stage.name] = "what it depends on has changed: done again"
        else:
            reasons[stage.name] = "not done yet"
    return reasons


def do_stage(stage: Stage, recipe: Recipe, directory: RunDirectory, reason: str) -> None:
    """Runs one stage on every rank and writes its entry; without a `reason` it only says that it is done."""
    if not reason:
        say(f"[dim]{stage.name:<20} done already, skipped[/]")
        if stage.name == "report":  # cheap, and what the user came for
            stage.run(recipe, directory, stage.fingerprint)
        return
    say(f"[bold]{stage.name:<20}[/] {stage.purpose} ({reason})")
    started = time.monotonic()
    room = "Stages that are done stay done: make room, and the same command goes on."
    with explained_full_disk(directory.path, lambda: room), explained_full_memory(stage.name, recipe):
        facts = stage.run(recipe, directory, stage.fingerprint)
        barrier()
        seconds = time.monotonic() - started
        if is_main():
            directory.finish(stage.name, stage.fingerprint, seconds, seed=recipe.seed, ranks=world_size(), **facts)
            directory.clear(stage.scratch)
    say(f"  [dim]{seconds:.1f} s[/]")

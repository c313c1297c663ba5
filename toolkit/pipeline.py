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

import torch
from rich.markup import escape

from toolkit.distributed import barrier, check_shared, is_main, on_main, say, world_size
from toolkit.errors import ItemsFailed, PollardError
from toolkit.evaluation.harness import check_harness
from toolkit.files import explained_full_disk
from toolkit.recipe import Recipe
from toolkit.recipe_file import dump_recipe
from toolkit.recovery.training_data import check_training_data
from toolkit.run_directory import RunDirectory, fingerprint_of, fingerprint_of_source
from toolkit.stages import beside, core, teach
from toolkit.stages.calibration_data import check_data, identity_of_data, sources_of
from toolkit.stages.evaluate import evaluate_stage
from toolkit.stages.full_memory import explained_full_memory
from toolkit.stages.rounds import early_rounds, recipe_of_last_round, recipe_of_round, share_what_is_taught
from toolkit.stages.scoring_identity import identity_of_scoring, own_scorer_identity
from toolkit.stages.skip import check_skipping, role_that_skips, skip_stage
from toolkit.stages.teach import Taught
from toolkit.tasks import Task

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
    evaluation = [recipe.evaluation.what_decides(), *([recipe.seed] if recipe.evaluation.temperature else [])]
    model = fingerprint_of(fingerprint_of_source(recipe.model.path), recipe.model.model_dump(exclude={"placement"}))
    task = Task(recipe.task)
    data = {split: fingerprint_of_source(source) for split, source in task.sources().items()}
    settings = recipe.task.model_dump()
    train_data = fingerprint_of(settings, data["train"])
    split = data["train" if recipe.evaluation.split == "dev" else "test"]
    judged = fingerprint_of(settings, split, evaluation, recipe.model.dtype, *identity_of_scoring(task))
    budget = core.budget(recipe)
    # Criteria score what the pruned model will do: with fewer experts per token, calibration is another one
    routing = [budget.experts_per_token] if budget.fewer_active else []
    # The reconstruction search needs the experts' outputs, so it is part of calibration where the criterion asks for it
    how = [*routing, *core.search_of(recipe)]
    watching = [identity_of_data(recipe), recipe.calibration.model_dump(), recipe.seed, *how]
    choosing = recipe.pruning.model_dump(exclude={"schedule", "skipping"})
    teaching: list[Stage] = []
    if taught is None:
        taught = teach.fingerprints(recipe, model, train_data, data["test"])
        teaching = _teaching(taught) if _trains(recipe) else []
    training = [taught, recipe.finetuning.model_dump(), recipe.seed, recipe.model.dtype, *_answering(recipe)]
    before, after = (teaching, []) if early_rounds(recipe) else ([], teaching)  # the original teaches in every round
    watched_model = model  # of the last round; without a schedule it is the only one
    for fewer in early_rounds(recipe):
        watched_model = fingerprint_of(watched_model, watching, choosing | {"keep": fewer}, training)
        purpose = f"on the way: prune to {fewer} experts and recover"
        before.append(Stage(f"rounds/{fewer}", purpose, watched_model, _round_stage(fewer, taught)))
    calibrate = fingerprint_of(watched_model, *watching)
    select = fingerprint_of(calibrate, choosing, recipe.seed)
    prune = fingerprint_of(select)
    recover, control = fingerprint_of(prune, *training), fingerprint_of(model, *training)
    keep, criterion = recipe.pruning.keep, recipe.pruning.criterion
    searching = f" and search the best sets ({recipe.pruning.mode})" if criterion == "reconstruction" else ""
    found = {"original": model, "pruned": prune, "recovered": recover, "control": control}
    asked = beside.harness_fingerprint(recipe)
    said = beside.fidelity_fingerprint(recipe, model, split)

    def evaluation_of(role: str) -> list[Stage]:
        if role not in (*recipe.evaluation.models, "control"):
            return []
        purpose = f"answer the {recipe.evaluation.split} questions of {recipe.task.name} with the {role} model"
        do, answers = evaluate_stage(role, found[role]), f"evaluation/{role}.answers"
        evaluate = Stage(f"evaluate/{role}", purpose, fingerprint_of(found[role], judged), do, scratch=answers)
        return [*measured_beside(role), evaluate]  # in this order, so that `pollard evaluate` ends with them all

    def measured_beside(role: str) -> list[Stage]:
        stages_of_it = []
        if recipe.evaluation.fidelity and role != "original":
            purpose, do = f"compare what the {role} model says with the original", beside.fidelity_stage(role, said)
            stages_of_it.append(Stage(f"fidelity/{role}", purpose, fingerprint_of(found[role], said), do))
        if recipe.evaluation.harness:
            purpose, do = f"ask the {role} model about other tasks", beside.harness_stage(role)
            stages_of_it.append(Stage(f"harness/{role}", purpose, fingerprint_of(found[role], asked), do))
        return stages_of_it

    watched = [source.name for source in sources_of(recipe)]
    before += [
        Stage(
            "calibrate",
            f"watch which experts {' + '.join(watched)} use{'s' * (len(watched) == 1)}{searching}",
            calibrate,
            _in_last_round(core.calibrate_stage),
        ),
        Stage("select", f"choose the experts to keep ({keep}, {criterion})", select, core.select_stage),
        Stage("prune", "cut the others out of the checkpoint", prune, _in_last_round(core.prune_stage)),
        *_keeping(recipe, said),
        *evaluation_of("original"),
        *evaluation_of("pruned"),
        *after,
    ]
    zero = f"{recipe.finetuning.method}, ZeRO {recipe.finetuning.zero}, {world_size()} rank{'s' * (world_size() > 1)}"
    if "recovered" in recipe.evaluation.models:
        how_to = f"fine-tune the pruned model ({zero})"
        before += [
            Stage("recover", how_to, recover, core.recover_stage, scratch="checkpoints/recovered"),
            *evaluation_of("recovered"),
        ]
    if recipe.pruning.skipping:
        last = role_that_skips(recipe)
        watched_once_more = [identity_of_data(recipe), recipe.calibration.model_dump(), recipe.seed, recipe.pruning.skipping]
        skip = fingerprint_of(recover if last == "recovered" else prune, watched_once_more)
        how_to = f"find when a token of the {last} model can do without an expert ({recipe.pruning.skipping})"
        answering = f"answer them once more with the {last} model, skipping experts"
        before += [
            Stage("skip", how_to, skip, skip_stage(last)),
            Stage("evaluate/skipping", answering, fingerprint_of(skip, judged), evaluate_stage("skipping", None, last)),
        ]
    if recipe.control:
        how_to = f"fine-tune the original in the same way ({zero})"
        before += [
            Stage("control", how_to, control, core.control_stage, scratch="checkpoints/control"),
            *evaluation_of("control"),
        ]
    everything = fingerprint_of([stage.fingerprint for stage in before])
    return [*before, Stage("report", "put it together", everything, core.report_stage)]


def _keeping(recipe: Recipe, said: str) -> list[Stage]:
    purpose = "keep what the original model says of the gold answers"
    stage = Stage("fidelity/original", purpose, said, beside.fidelity_original_stage)
    return [stage] if recipe.evaluation.fidelity else []


def _answering(recipe: Recipe) -> list[Any]:
    """What decides the answers by which a checkpoint is selected."""
    if recipe.finetuning.select_by != "dev_accuracy":
        return []
    return [recipe.evaluation.max_new_tokens, *own_scorer_identity(recipe.task)]


def _trains(recipe: Recipe) -> bool:
    return "recovered" in recipe.evaluation.models or recipe.control or bool(recipe.pruning.schedule)


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


def check(recipe: Recipe) -> None:
    """Everything that can be known to be wrong before the first stage starts; raises PollardError."""
    for keep in (*early_rounds(recipe), recipe.pruning.keep):
        core.budget(recipe.model_copy(update={"pruning": recipe.pruning.model_copy(update={"keep": keep})}))
    if recipe.model.dtype in ("bfloat16", "float16") and not torch.cuda.is_available():
        raise PollardError(
            f"model.dtype is {recipe.model.dtype}, but this machine has no GPU: say model.dtype=float32 (or auto)."
        )
    task = Task(recipe.task)
    for split in ("train", recipe.evaluation.split):
        task.examples(split)
    check_data(recipe)
    check_skipping(recipe, core.budget(recipe).experts_per_token)
    if recipe.evaluation.harness:
        check_harness(recipe.evaluation.harness, recipe.evaluation.harness_tasks)
    if _trains(recipe):
        check_training_data(recipe)
        from toolkit.recovery.settings import check_finetuning  # takes seconds; a run that is done needs none of it

        check_finetuning(recipe, RunDirectory(recipe.name).checkpoints)


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
    on_main(lambda: directory.check_owner(*owner))
    planned = plan_stages(recipe, taught)
    reasons = on_main(lambda: _reasons(planned, directory, fresh))
    todo = [name for name, reason in reasons.items() if reason]
    if todo:
        check(recipe)
    on_main(directory.lock)
    try:
        check_shared(directory.path)
        named = [(stage.name, reasons[stage.name]) for stage in planned[: _end(planned, until)]]
        if taught is None and any(reason for _, reason in named):  # a round is part of a run that has said it
            from toolkit.terminal.screens import first_screen  # it counts as the estimates do, which know the pipeline

            first_screen(recipe, directory, named)
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

"""The whole recipe in order: what is done already is skipped, what a changed key affects is done again."""

import time
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from rich.markup import escape

from toolkit.cuts.plan import Plan
from toolkit.pipeline.checks import check
from toolkit.pipeline.rounds import recipe_of_round, share_what_is_taught
from toolkit.pipeline.run_directory import RunDirectory
from toolkit.pipeline.stage import Do, Stage, entries_of, is_settled, made_from, reasons
from toolkit.pipeline.stage_list import stages_of
from toolkit.pipeline.stages.full_memory import explained_full_memory
from toolkit.pipeline.stages.teach import Taught
from toolkit.recipe.evaluation import ROLES
from toolkit.recipe.file import dump_recipe
from toolkit.recipe.schema import Recipe
from toolkit.report import write_report
from toolkit.runtime.distributed import barrier, check_shared, is_main, on_main, say, world_size
from toolkit.runtime.errors import ItemsFailed, Mistakes, PollardError
from toolkit.runtime.files import explain_full_disk, fingerprint_of
from toolkit.runtime.signed_folders import check_target


def plan_stages(recipe: Recipe, taught: Taught | None = None) -> list[Stage]:
    """The stages of a recipe with their fingerprints, in order; without those that make what is `taught` already."""
    return stages_of(recipe, taught, _round_stage)


def _round_stage(keep: int, taught: Taught) -> Do:
    """A round before the last is a run of its own, in the run directory: its finished stages are skipped like any run's."""

    def stage(recipe: Recipe, directory: RunDirectory, fingerprint: str) -> dict[str, Any]:
        on_main(lambda: share_what_is_taught(directory, keep))
        run(recipe_of_round(recipe, directory, keep), str(directory.rounds), until="recover", taught=taught)
        return {"keep": keep}

    return stage


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
    ends = _end(planned, until)
    why = on_main(lambda: reasons(planned, entries_of(planned, directory), fresh))
    if mistakes or any(why.values()):
        notes = check(recipe, directory, mistakes)
    on_main(directory.lock)
    try:
        check_shared(directory.path)
        on_main(lambda: _check_places(planned[:ends], why, directory))
        named = [(stage.name, why[stage.name]) for stage in planned[:ends]]
        if taught is None and any(reason for _, reason in named):  # a round is part of a run that has said it
            from toolkit.cli.screens import first_screen  # it counts as the estimates do, which know the pipeline

            first_screen(recipe, directory, named)
            for note in notes:
                say(f"[bold]note[/] {escape(note)}")
        on_main(lambda: _open(directory, recipe, planned, why, fresh))
        failed = []
        for stage in planned[:ends]:
            try:
                do_stage(stage, recipe, directory, on_main(partial(_why_now, stage, planned, directory, why)), planned)
            except ItemsFailed as error:
                if not stage.name.startswith("evaluate/"):  # what comes after it needs its result
                    raise
                failed.append(f"{stage.name}: {error}")
                _note_failure(directory, stage.name, error)
        if ends < len(planned):
            on_main(lambda: _settle(planned[ends:], planned, directory))
        if failed:
            raise PollardError("\n".join(failed))
    finally:
        directory.unlock()
    return directory


def _check_places(planned: Sequence[Stage], why: dict[str, str], directory: RunDirectory) -> None:
    """Raises PollardError, before hours of work, where a checkpoint that would be replaced is no longer the run's own."""
    mistakes = Mistakes()
    for name in (name for stage in planned if why[stage.name] for name in stage.checkpoints):
        mistakes.collect(partial(check_target, directory.path / name, overwrite=True))
    mistakes.raise_all()


def _open(directory: RunDirectory, recipe: Recipe, planned: list[Stage], why: dict[str, str], fresh: bool) -> None:
    """Marks what is not current, and has the report that lies there say so: nothing may look like this recipe's that is not."""
    todo = {name for name, reason in why.items() if reason} | _no_longer_asked_for(directory, recipe, planned)
    names = [stage.name for stage in planned]
    directory.open(recipe.model.path, recipe.task.name, dump_recipe(recipe), todo, names)
    if fresh:
        directory.begin(*names)
        directory.forget()
    if todo:
        _refresh_report(directory)


def _no_longer_asked_for(directory: RunDirectory, recipe: Recipe, planned: list[Stage]) -> set[str]:
    """The entries of stages that the recipe does not have (a control that is off), where it would make something else of them."""
    names = {stage.name for stage in planned}
    others = {name: entry for name, entry in directory.entries().items() if name not in names and name != "sweep"}
    if not others:
        return set()
    models = recipe.evaluation.model_copy(update={"models": list(ROLES[:3])})
    marks = {
        stage.name: stage.fingerprint for stage in plan_stages(recipe.model_copy(update={"evaluation": models, "control": True}))
    }
    return {name for name, entry in others.items() if marks.get(name) != entry["fingerprint"]}


def _why_now(stage: Stage, planned: list[Stage], directory: RunDirectory, why: dict[str, str]) -> str:
    """Why a stage must be done, when it is its turn: what it was made from may have come out otherwise than before. What
    was stale and is asked for again is current from here on."""
    reason = why[stage.name] or reasons(planned, entries_of(planned, directory))[stage.name]
    if not reason:
        directory.revive(stage.name)
    return reason


def _settle(later: list[Stage], planned: list[Stage], directory: RunDirectory) -> None:
    """Of the stages that were not asked for: what is current again after those that were, and the report without the rest."""
    why = reasons(planned, entries_of(planned, directory))
    for stage in later:
        if not why[stage.name] and is_settled(stage, planned, directory.entries()):
            directory.revive(stage.name)
    _refresh_report(directory)


def _refresh_report(directory: RunDirectory) -> None:
    """Where there is a report, it shows what is current by now."""
    if (directory.path / "report.html").exists():
        with suppress(PollardError):  # a damaged file: stages that are to come may mend it, and the last of them would say so
            write_report(directory.path)


def _note_failure(directory: RunDirectory, stage: str, error: ItemsFailed) -> None:
    """Said when it happens and noted in the manifest: hours of other stages may follow."""
    say(f"  [bold red]failed[/]: {escape(str(error))}")
    on_main(lambda: directory.fail(stage, str(error), error.items))


def _end(planned: list[Stage], until: str | None) -> int:
    """How many stages there are up to `until` (`evaluate`: the last evaluation); all of them without it."""
    ends = [number for number, stage in enumerate(planned, start=1) if until in (stage.name, stage.name.partition("/")[0])]
    return max(ends, default=len(planned))


def do_stage(stage: Stage, recipe: Recipe, directory: RunDirectory, reason: str, planned: Sequence[Stage] = ()) -> None:
    """Runs one stage on every rank and writes its entry; without a `reason` it only says that it is done. `planned`: those
    that it may have been made from."""
    if not reason:
        gone = f": {directory.path / stage.output} was removed, and nothing needs it" if stage.is_gone(directory) else ""
        say(f"[dim]{stage.name:<20} done already, skipped{escape(gone)}[/]")
        if stage.name == "report":  # cheap, and what the user came for
            stage.run(recipe, directory, stage.fingerprint)
        return
    say(f"[bold]{stage.name:<20}[/] {stage.purpose} ({reason})")
    started = time.monotonic()
    room = "Stages that are done stay done: make room, and the same command goes on."
    on_main(lambda: directory.begin(stage.name))
    with explain_full_disk(directory.path, lambda: room), explained_full_memory(stage.name, recipe):
        facts = stage.run(recipe, directory, stage.fingerprint)
        barrier()
        seconds = time.monotonic() - started
        if is_main():
            facts |= _identity(stage, directory, planned)
            directory.finish(stage.name, stage.fingerprint, seconds, seed=recipe.seed, ranks=world_size(), **facts)
            directory.clear(stage.scratch)
    say(f"  [dim]{seconds:.1f} s[/]")


def _identity(stage: Stage, directory: RunDirectory, planned: Sequence[Stage]) -> dict[str, Any]:
    """What the result was made from, and what tells a plan's from others."""
    facts: dict[str, Any] = {"made_from": made_from(stage, planned, directory.done())}
    if stage.result == "by plan":
        plan, trained = (
            Plan.load(directory.plan),
            [made for name, made in facts["made_from"].items() if name.startswith("rounds/")],
        )
        kept = {name: block.kept for name, block in plan.blocks.items()}
        facts["result"] = fingerprint_of(stage.fingerprint, kept, plan.experts_per_token, trained)
    return facts

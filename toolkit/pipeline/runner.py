"""The whole recipe in order: what is done already is skipped, what a changed key affects is done again."""

import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from typing import Any

from rich.markup import escape

from toolkit.cuts.plan import Plan
from toolkit.pipeline.checks import check
from toolkit.pipeline.context import RunContext
from toolkit.pipeline.due import entries_of, is_settled, made_from, reasons
from toolkit.pipeline.first_screen import first_screen
from toolkit.pipeline.full_memory import explained_full_memory
from toolkit.pipeline.manifest import SWEEP
from toolkit.pipeline.run_directory import RunDirectory
from toolkit.pipeline.stage import Stage
from toolkit.pipeline.stage_list import STAGES, stages_of
from toolkit.pipeline.stage_names import FIT_CHOOSE, FIT_MEASURE, FIT_SCORES, FIT_SHAPES
from toolkit.pipeline.sweep_compression import check_writable
from toolkit.pipeline.write_report import write_report
from toolkit.recipe.evaluation import ROLES
from toolkit.recipe.file import dump_recipe
from toolkit.recipe.roles import Role
from toolkit.recipe.schema import Recipe
from toolkit.runtime.distributed import barrier, check_shared, is_main, on_main, say, world_size
from toolkit.runtime.errors import ItemsFailed, Mistakes, PollardError
from toolkit.runtime.files import JsonObject, explain_full_disk, fingerprint_of
from toolkit.runtime.signed_folders import check_target

FIT_STAGES = (FIT_SHAPES, FIT_SCORES, FIT_MEASURE, FIT_CHOOSE)


def plan_stages(recipe: Recipe) -> list[Stage]:
    """The stages of a recipe, in order. Raises PollardError as `stages_of` does."""
    return stages_of(RunContext(recipe))


def run(recipe: Recipe, root: str = "runs", fresh: bool = False, until: str | None = None) -> RunDirectory:
    """Runs the recipe on every rank, as far as stage `until` (all stages unless given), skipping what is done.

    `fresh` does everything again. Raises PollardError for what the user can mend; finished stages stay finished. Where a scorer
    failed on some items, the other stages and the report are done before that is raised.
    """
    return run_context(RunContext(recipe, RunDirectory(recipe.name, root), run_stages=_run_round), fresh, until)


def _run_round(context: RunContext, until: str) -> RunDirectory:
    return run_context(context, until=until)


def run_context(context: RunContext, fresh: bool = False, until: str | None = None) -> RunDirectory:
    """As `run`, for a context; one that another run teaches is a round of that run, which has shown what will happen.

    Where limits are given instead of a shape, the shape is chosen first, by stages that come before all others."""
    if context.asked.pruning.fit is None or until in FIT_STAGES or not (fresh or _shape_is_open(context)):
        return _run_stages(context, fresh, until)
    _run_stages(context, fresh, FIT_STAGES[-1])
    chosen = context.variant(context.asked)
    if chosen.is_provisional:
        raise PollardError(
            f"{chosen.directory.fit_result} has no chosen shape although its stages are done: run the recipe with --fresh.",
            code="fit.not-chosen",
        )
    return _run_stages(chosen, fresh, until, done=FIT_STAGES)


def _shape_is_open(context: RunContext) -> bool:
    """Whether the shape is yet to be chosen, as far as that can be told: what is wrong is reported by who runs the stages."""
    try:
        planned = stages_of(context)
        why = on_main(lambda: reasons(planned, entries_of(planned, context.directory)))
    except PollardError:
        return True
    return context.is_provisional or any(why[name] for name in FIT_STAGES)


def _run_stages(context: RunContext, fresh: bool, until: str | None, done: Collection[str] = ()) -> RunDirectory:
    """`done`: stages that this very command has just done."""
    directory, recipe = context.directory, context.recipe
    mistakes, notes = Mistakes(), []
    mistakes.collect(lambda: on_main(lambda: directory.check_owner(recipe.model.path, recipe.task.name)))
    mistakes.collect(lambda: check_writable(recipe))
    planned = mistakes.collect(lambda: stages_of(context)) or []
    why = on_main(lambda: reasons(planned, entries_of(planned, directory), fresh)) | dict.fromkeys(done, "")
    if mistakes or any(why.values()):
        notes = check(context, mistakes)
    on_main(directory.lock)
    try:
        check_shared(directory.path)
        work = _Work(context, planned, planned[: _end(planned, until)], why)
        on_main(work.check_places)
        if context.teaching is None and any(why[stage.name] for stage in work.asked):
            first_screen(context, work.asked, why)
            for note in notes:
                say(f"[bold]note[/] {escape(note)}")
        on_main(lambda: work.open(fresh and not done))  # what was done a moment ago is not to be forgotten
        work.do()
    finally:
        directory.unlock()
    return directory


def _end(planned: Sequence[Stage], until: str | None) -> int:
    """How many stages there are up to `until`, a stage's name or kind (of a kind with several stages, the last); all of them
    without it."""
    ends = [number for number, stage in enumerate(planned, start=1) if until in (stage.name, stage.kind)]
    return max(ends, default=len(planned))


class _Work:
    """A run that has taken its folder: `planned` are all its stages, `asked` the first of them that are to be done now; `why`
    says of each by its name why it must be done, as far as that was known at the beginning."""

    def __init__(self, context: RunContext, planned: list[Stage], asked: list[Stage], why: dict[str, str]) -> None:
        self.context, self.directory = context, context.directory
        self.planned, self.asked, self.why = planned, asked, why

    def check_places(self) -> None:
        """Raises PollardError, before hours of work, where a checkpoint that would be replaced is no longer the run's own."""
        mistakes = Mistakes()
        for name in (name for stage in self.asked if self.why[stage.name] for name in stage.checkpoints):
            mistakes.collect(partial(check_target, self.directory.path / name, overwrite=True))
        mistakes.raise_all()

    def open(self, fresh: bool) -> None:
        """Marks what is not current, and has the report that lies there say so: nothing may look like this recipe's that is
        not."""
        context, names = self.context, [stage.name for stage in self.planned]
        known = {stage.name: stage for stage in (*self._possible(), *self.planned)}
        todo = {name for name, reason in self.why.items() if reason} | self._no_longer_asked_for(known)
        decided_by = {name: stage.sections for name, stage in known.items()}
        model, text = context.recipe.model.path, dump_recipe(context.asked)
        self.directory.open(model, context.recipe.task.name, text, todo, names, decided_by)
        if fresh:
            self.directory.begin(*names)
            self.directory.forget({folder for slot in STAGES for folder in slot.stage.resumes})
        if todo:
            self._refresh_report()

    def _others(self) -> dict[str, JsonObject]:
        """The entries of stages that the recipe does not have: a control that is off."""
        names = {stage.name for stage in self.planned}
        return {name: entry for name, entry in self.directory.entries().items() if name not in names and name != SWEEP}

    def _possible(self) -> list[Stage]:
        """Where there are such entries, the stages of this recipe with every model."""
        if not self._others():
            return []
        recipe = self.context.recipe
        models = [role for role in ROLES if role is not Role.CONTROL and (role is not Role.REFITTED or recipe.pruning.refit)]
        evaluation = recipe.evaluation.model_copy(update={"models": models})
        return stages_of(self.context.variant(recipe.model_copy(update={"evaluation": evaluation, "control": True})))

    def _no_longer_asked_for(self, known: Mapping[str, Stage]) -> set[str]:
        """Those of such entries of which the recipe would make something else."""
        others = self._others().items()
        return {name for name, entry in others if name not in known or known[name].fingerprint() != entry["fingerprint"]}

    def do(self) -> None:
        """Raises PollardError where items could not be judged, when everything else is done."""
        failed = []
        for stage in self.asked:
            try:
                do_stage(stage, on_main(partial(self._why_now, stage)), self.planned)
            except ItemsFailed as error:
                if any(stage.name in other.needs for other in self.planned):
                    raise
                failed.append(f"{stage.name}: {error}")
                self._note_failure(stage.name, error)
        if len(self.asked) < len(self.planned):
            on_main(self._settle)
        if failed:
            raise PollardError("\n".join(failed), code="evaluation.items-failed")

    def _why_now(self, stage: Stage) -> str:
        """Why a stage must be done, when it is its turn: what it was made from may have come out otherwise than before. What
        was stale and is asked for again is current from here on."""
        reason = self.why[stage.name] or self._reasons()[stage.name]
        if not reason:
            self.directory.revive(stage.name)
        return reason

    def _reasons(self) -> dict[str, str]:
        return reasons(self.planned, entries_of(self.planned, self.directory))

    def _settle(self) -> None:
        """Of the stages that were not asked for: what is current again after those that were, and the report without the rest."""
        why = self._reasons()
        for stage in self.planned[len(self.asked) :]:
            if not why[stage.name] and is_settled(stage, self.planned, self.directory.entries()):
                self.directory.revive(stage.name)
        self._refresh_report()

    def _refresh_report(self) -> None:
        """Where there is a report, it shows what is current by now."""
        if (self.directory.path / "report.html").exists():
            with suppress(PollardError):  # a damaged file: stages to come may mend it, and the last of them would say so
                write_report(self.directory.path)

    def _note_failure(self, stage: str, error: ItemsFailed) -> None:
        """Said when it happens and noted in the manifest: hours of other stages may follow."""
        say(f"  [bold red]failed[/]: {escape(str(error))}")
        on_main(lambda: self.directory.fail(stage, str(error), error.items))


def do_stage(stage: Stage, reason: str, planned: Sequence[Stage] = ()) -> None:
    """Runs one stage on every rank and writes its entry; without a `reason` it only says that it is done. `planned`: those
    that it may have been made from."""
    directory = stage.context.directory
    if not reason:
        gone = f": {directory.path / stage.output} was removed, and nothing needs it" if stage.is_gone(directory) else ""
        say(f"[dim]{stage.name:<20} done already, skipped{escape(gone)}[/]")
        if stage.always_shows:
            stage.run()
        return
    say(f"[bold]{stage.name:<20}[/] {stage.purpose()} ({reason})")
    started = time.monotonic()
    room = "Stages that are done stay done: make room, and the same command goes on."
    on_main(lambda: directory.begin(stage.name))
    with explain_full_disk(directory.path, lambda: room), explained_full_memory(stage.name, stage.smaller):
        facts = stage.run()
        barrier()
        seconds = time.monotonic() - started
        if is_main():
            entry = {"seed": stage.context.recipe.seed, "ranks": world_size()} | asdict(facts)
            entry |= _identity(stage, directory, planned)
            directory.finish(stage.name, stage.fingerprint(), seconds, **entry)
            directory.clear(stage.scratch)
    say(f"  [dim]{seconds:.1f} s[/]")


def _identity(stage: Stage, directory: RunDirectory, planned: Sequence[Stage]) -> Mapping[str, Any]:
    """What the result was made from, and what tells a plan's from others."""
    made = made_from(stage, planned, directory.done())
    if stage.result != "by plan":
        return {"made_from": made}
    plan = Plan.load(directory.plan)
    trained = [made[other.name] for other in planned if other.result == "unique" and other.name in made]
    return {"made_from": made, "result": fingerprint_of(stage.fingerprint(), plan.choice(), plan.experts_per_token, trained)}

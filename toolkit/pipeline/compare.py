"""`pollard compare A B`: any two models of any two runs, where both answered the same questions."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from toolkit.pipeline.run_directory import RunDirectory
from toolkit.pipeline.run_facts import read_answers, read_file
from toolkit.pipeline.run_status import stale_message
from toolkit.pipeline.stage_names import EVALUATE, stage_name
from toolkit.recipe.roles import Role
from toolkit.report.facts import ComparedModel, ModelComparison, ModelPair, ModelResult
from toolkit.report.narrative import verdict
from toolkit.report.paired_questions import Answer, Correctness, compare_paired, correctness, credit_differences
from toolkit.runtime.errors import PollardError

PREFERRED = (
    Role.RECOVERED,
    Role.REFITTED,
    Role.PRUNED,
    Role.CONTROL,
    Role.ORIGINAL,
)  # the model that a run is named for, if none is


class EvaluatedModel(NamedTuple):
    """A model of a run, as it was evaluated."""

    name: str
    result: ModelResult
    correct: Correctness
    answers: Sequence[Answer]

    def compared(self) -> ComparedModel:
        """As a side of the comparison."""
        result = self.result
        return ComparedModel(name=self.name, score=result.score, correct=result.correct, n=result.n, interval=result.interval)


def find_evaluated(where: str, stale: bool = False) -> EvaluatedModel:
    """`where`: a run directory (its recovered model, or what comes nearest), or one of its models: runs/math/pruned. Raises
    PollardError for one that is not evaluated, and, unless `stale`, for one that is not what the run's recipe asks for by now."""
    run, role = _run_and_role(Path(where))
    evaluated = _evaluated_roles(run.entries())
    if not evaluated:
        raise PollardError(
            f"No model of {run.path} is evaluated yet: `pollard evaluate {run.recipe}` does it.", code="compare.nothing-evaluated"
        )
    if role and role not in evaluated:
        raise PollardError(
            f"{run.path} has no finished evaluation of `{role}`. There is: {', '.join(evaluated)}.", code="compare.not-evaluated"
        )
    role = role or next((role for role in PREFERRED if role in evaluated), evaluated[-1])
    stage = stage_name(EVALUATE, Role(role))
    why = run.why_stale(stage)
    if why and not stale:
        message = stale_message(run, str(run.path / role), stage)
        raise PollardError(f"{message}--stale compares it all the same.", code="compare.stale")
    answers = read_answers(run.evaluation / f"{role}.predictions.jsonl")
    result = read_file(run.evaluation / f"{role}.json", ModelResult.model_validate_json)
    if not answers or not result:
        raise PollardError(
            f"The answers of {run.path / role} are gone ({run.evaluation}). Evaluate it again (--fresh).",
            code="compare.no-answers",
        )
    return EvaluatedModel(f"{run.path / role}{f' ({why})' if why else ''}", result, correctness(answers), answers)


def _run_and_role(path: Path) -> tuple[RunDirectory, str]:
    """The role is empty where `path` is a run directory."""
    for folder, role in ((path, ""), (path.parent, path.name)):
        run = RunDirectory(folder.name, folder.parent)
        if run.manifest.exists():
            return run, role
    raise PollardError(
        f"{path} is no run directory (it has no manifest.json), nor a model of one: say runs/NAME/recovered.",
        code="compare.no-run",
    )


def _evaluated_roles(stages: Iterable[str]) -> list[str]:
    """In the manifest's order."""
    return [role for stage in stages for role in Role if stage == stage_name(EVALUATE, role)]


def compare(first: str, second: str, stale: bool = False) -> ModelComparison:
    """The first minus the second. Raises PollardError where the questions are not the same, and for a stale model unless
    `stale`."""
    one, other = find_evaluated(first, stale), find_evaluated(second, stale)
    if one.correct.keys() != other.correct.keys():
        both = len(one.correct.keys() & other.correct.keys())
        raise PollardError(
            f"The two did not answer the same questions: {one.name} answered {len(one.correct):,}, {other.name} "
            f"{len(other.correct):,}, and {both:,} are the same (question and gold). Evaluate both with the same task, "
            "evaluation.split and evaluation.examples.",
            code="compare.other-questions",
        )
    credits = credit_differences(one.answers, other.answers)
    pair = ModelPair.of(one.compared(), other.compared(), compare_paired(one.correct, other.correct), credits)
    return ModelComparison(
        task=one.result.task, split=one.result.split, pair=pair, verdict=verdict(pair, one.name, other.name)
    )  # fmt: skip

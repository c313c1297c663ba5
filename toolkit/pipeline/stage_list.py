"""Every stage, in order. A new one is a file in stages/ and a line here.

(fit/shapes ─► fit/scores ─► fit/measure ─► fit/choose ─►)
(rounds/… ─►) (layers ─►) calibrate ─► select (─► merge) ─► prune (─► refit)
    evaluate/original                                              └ evaluate/pruned └ evaluate/refitted

(─► answers ─► teacher) (─► student/…) ─► recover (─► control) ─► report
                                └ evaluate/recovered └ evaluate/control
                                └ first_task/recovered (of a grown model)
                                └ skip ─► evaluate/skipping (or of the model before)

A model's score comes last of what is measured of it, so that `pollard evaluate` ends with everything.
"""

from toolkit.pipeline.context import RunContext
from toolkit.pipeline.rounds import early_rounds
from toolkit.pipeline.stage import Shown, Slot, Stage
from toolkit.pipeline.stages.answers import Answers
from toolkit.pipeline.stages.calibrate import Calibrate
from toolkit.pipeline.stages.control import Control
from toolkit.pipeline.stages.evaluate import Evaluate
from toolkit.pipeline.stages.evaluate_skipping import EvaluateSkipping
from toolkit.pipeline.stages.fidelity import Fidelity
from toolkit.pipeline.stages.first_task import FirstTask
from toolkit.pipeline.stages.fit_choose import FitChoose
from toolkit.pipeline.stages.fit_measure import FitMeasure
from toolkit.pipeline.stages.fit_scores import FitScores
from toolkit.pipeline.stages.fit_shapes import FitShapes
from toolkit.pipeline.stages.harness import Harness
from toolkit.pipeline.stages.layers import Layers
from toolkit.pipeline.stages.merge import Merge
from toolkit.pipeline.stages.off_task import OffTask, OffTaskReference
from toolkit.pipeline.stages.prune import Prune
from toolkit.pipeline.stages.recover import Recover
from toolkit.pipeline.stages.reference_logits import ReferenceLogits
from toolkit.pipeline.stages.refit import Refit
from toolkit.pipeline.stages.report import Report
from toolkit.pipeline.stages.round import Round
from toolkit.pipeline.stages.select import Select
from toolkit.pipeline.stages.skip import Skip
from toolkit.pipeline.stages.student import StudentAnswers
from toolkit.pipeline.stages.teacher import Teacher
from toolkit.recipe.roles import Role

TEACHING = (Slot(Answers), Slot(Teacher))


def measurements(role: Role) -> tuple[Slot, ...]:
    """What is measured of a model that is compared with the original."""
    return Slot(OffTask, role), Slot(Fidelity, role), Slot(Harness, role), Slot(Evaluate, role)


STAGES: tuple[Slot, ...] = (
    Slot(FitShapes),
    Slot(FitScores),
    Slot(FitMeasure),
    Slot(FitChoose),
    Slot(Round),
    Slot(Layers),
    Slot(Calibrate),
    Slot(Select),
    Slot(Merge),
    Slot(Prune),
    Slot(OffTaskReference, Role.ORIGINAL),
    Slot(ReferenceLogits, Role.ORIGINAL),
    Slot(Harness, Role.ORIGINAL),
    Slot(Evaluate, Role.ORIGINAL),
    *measurements(Role.PRUNED),
    Slot(Refit),
    *measurements(Role.REFITTED),
    *TEACHING,
    Slot(StudentAnswers),  # and of every training the others, in turn
    Slot(Recover),
    Slot(FirstTask, Role.RECOVERED),
    *measurements(Role.RECOVERED),
    Slot(Skip),
    Slot(EvaluateSkipping, Role.SKIPPING),
    Slot(Control),
    *measurements(Role.CONTROL),
    Slot(Report),
)


def stages_of(context: RunContext) -> list[Stage]:
    """The stages that the recipe asks for. Raises PollardError where what decides their results cannot be read."""
    slots = STAGES
    if early_rounds(context.recipe) or context.asked.pruning.fit:  # the original teaches before the first training
        others = [slot for slot in STAGES if slot not in TEACHING]
        first = others.index(Slot(FitChoose))
        slots = (*others[:first], *TEACHING, *others[first:])
    planned: list[Stage] = []
    for slot in slots:
        planned += slot.stage.planned(context, slot.role, planned)
    for stage in planned:
        stage.fingerprint()
    return planned


def shown_on_last_screen() -> list[tuple[Slot, Shown]]:
    """The stages whose results people look for, the most useful first, each with its line."""
    shown = [(slot, slot.stage.last_screen) for slot in STAGES]
    return sorted(((slot, line) for slot, line in shown if line), key=lambda each: each[1].place)

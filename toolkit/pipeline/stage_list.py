"""The stages of a recipe, in order, with what each reads and what it is identified by.

(rounds/… ─►) calibrate ─► select ─► prune ─► (answers ─► teacher ─►) recover ─► (control ─►) report
    evaluate/original                 └ evaluate/pruned            └ evaluate/recovered └ evaluate/control
                                                                   └ skip ─► evaluate/skipping (or after prune)

What the original teaches serves every training of a run: with rounds, it is made before the first of them.
"""

from collections.abc import Callable

from toolkit.pipeline.data_checks import trains
from toolkit.pipeline.fingerprints import Fingerprints, fingerprints_of
from toolkit.pipeline.rounds import recipe_of_last_round
from toolkit.pipeline.stage import Do, Stage
from toolkit.pipeline.stages import core, teach
from toolkit.pipeline.stages import fidelity_harness as beside
from toolkit.pipeline.stages.calibration_data import sources_of
from toolkit.pipeline.stages.evaluate import evaluate_stage
from toolkit.pipeline.stages.skip import role_that_skips, skip_stage
from toolkit.pipeline.stages.teach import Taught
from toolkit.recipe.schema import Recipe
from toolkit.runtime.distributed import world_size
from toolkit.runtime.files import fingerprint_of


def stages_of(recipe: Recipe, taught: Taught | None, do_round: Callable[[int, Taught], Do]) -> list[Stage]:
    """The stages of a recipe with their fingerprints, in order; without those that make what is `taught` already. `do_round`
    gives what a round that keeps so many experts does."""
    marks = fingerprints_of(recipe, taught)
    teaching = _teaching(marks.taught) if taught is None and trains(recipe) else []
    taught_by = tuple(stage.name for stage in teaching)
    trained = f"({recipe.finetuning.method}, ZeRO {recipe.finetuning.zero}, {world_size()} rank{'s' * (world_size() > 1)})"
    early = _early_rounds(marks, taught_by, do_round)
    planned = [
        *([*teaching, *early] if early else []),  # the original teaches in every round
        *_choosing(recipe, marks, tuple(stage.name for stage in early)),
        *_evaluation(recipe, marks, "original"),
        *_evaluation(recipe, marks, "pruned", "prune"),
        *([] if early else teaching),
    ]
    if "recovered" in recipe.evaluation.models:
        how_to, mark = f"fine-tune the pruned model {trained}", marks.models["recovered"]
        planned.append(
            Stage(
                "recover", how_to, mark, core.recover_stage, "checkpoints/recovered", ("prune", *taught_by),
                result="unique", output="recovered", checkpoints=("recovered", "adapter"),
            )
        )  # fmt: skip
        planned += _evaluation(recipe, marks, "recovered", "recover")
    if recipe.pruning.skipping:
        planned += _skipping(recipe, marks)
    if recipe.control:
        how_to, mark = f"fine-tune the original in the same way {trained}", marks.models["control"]
        planned.append(
            Stage(
                "control", how_to, mark, core.control_stage, "checkpoints/control", taught_by,
                result="unique", output="control", checkpoints=("control", "control_adapter"),
            )
        )  # fmt: skip
        planned += _evaluation(recipe, marks, "control", "control")
    everything = fingerprint_of([stage.fingerprint for stage in planned])
    return [*planned, Stage("report", "put it together", everything, core.report_stage)]


def _early_rounds(marks: Fingerprints, taught_by: tuple[str, ...], do_round: Callable[[int, Taught], Do]) -> list[Stage]:
    planned: list[Stage] = []
    for keep, mark in marks.rounds.items():
        purpose, needs = f"on the way: prune to {keep} experts and recover", (*taught_by, *(stage.name for stage in planned[-1:]))
        do, result = do_round(keep, marks.taught), f"rounds/{keep}/recovered"
        planned.append(Stage(f"rounds/{keep}", purpose, mark, do, needs=needs, result="unique", output=result))
    return planned


def _choosing(recipe: Recipe, marks: Fingerprints, rounds: tuple[str, ...]) -> list[Stage]:
    """From the original to the pruned model; and what the original says, where that is asked for."""
    watched, pruning = [source.name for source in sources_of(recipe)], recipe.pruning
    searching = f" and search the best sets ({pruning.mode})" if pruning.criterion == "reconstruction" else ""
    watch = f"watch which experts {' + '.join(watched)} use{'s' * (len(watched) == 1)}{searching}"
    choose = f"choose the experts to keep ({pruning.keep}, {pruning.criterion})"
    cut = "cut the others out of the checkpoint"
    said = Stage(
        "fidelity/original", "keep what the original model says of the gold answers", marks.said, beside.fidelity_original_stage,
        output="fidelity",
    )  # fmt: skip
    return [
        Stage(
            "calibrate", watch, marks.calibrate, _in_last_round(core.calibrate_stage), needs=rounds[-1:], output="calibration"
        ),
        Stage(
            "select", choose, marks.select, core.select_stage, needs=("calibrate", *rounds), result="by plan", output="plan.json"
        ),
        Stage(
            "prune", cut, marks.models["pruned"], _in_last_round(core.prune_stage), needs=("select", *rounds[-1:]),
            result="by plan", output="pruned", checkpoints=("pruned",),
        ),
        *([said] if recipe.evaluation.fidelity else []),
    ]  # fmt: skip


def _evaluation(recipe: Recipe, marks: Fingerprints, role: str, made_by: str = "") -> list[Stage]:
    """What is measured of a model, its score last, so that `pollard evaluate` ends with everything."""
    if role not in (*recipe.evaluation.models, "control"):
        return []
    model, measured = marks.models[role], []
    needs = (made_by,) if made_by else ()
    if recipe.evaluation.fidelity and role != "original":
        purpose, do = f"compare what the {role} model says with the original", beside.fidelity_stage(role, marks.said)
        identity = fingerprint_of(model, marks.said)
        needed, figures = (*needs, "fidelity/original"), f"evaluation/{role}.fidelity.json"
        measured.append(Stage(f"fidelity/{role}", purpose, identity, do, needs=needed, output=figures))
    if recipe.evaluation.harness:
        purpose, do = f"ask the {role} model about other tasks", beside.harness_stage(role)
        identity, figures = fingerprint_of(model, marks.asked), f"evaluation/{role}.harness.json"
        measured.append(Stage(f"harness/{role}", purpose, identity, do, needs=needs, output=figures))
    purpose = f"answer the {recipe.evaluation.split} questions of {recipe.task.name} with the {role} model"
    do, answers = evaluate_stage(role, model), f"evaluation/{role}.answers"
    scores = f"evaluation/{role}.json"
    return [
        *measured,
        Stage(f"evaluate/{role}", purpose, marks.scores_of(role), do, scratch=answers, needs=needs, output=scores),
    ]


def _skipping(recipe: Recipe, marks: Fingerprints) -> list[Stage]:
    last = role_that_skips(recipe)
    made_by = "recover" if last == "recovered" else "prune"
    how_to = f"find when a token of the {last} model can do without an expert ({recipe.pruning.skipping})"
    answering = f"answer them once more with the {last} model, skipping experts"
    judged = fingerprint_of(marks.skip, marks.judged)
    return [
        Stage("skip", how_to, marks.skip, skip_stage(last), needs=(made_by,), inside=made_by, output=last),
        Stage(
            "evaluate/skipping", answering, judged, evaluate_stage("skipping", None, last), needs=("skip", made_by),
            output="evaluation/skipping.json",
        ),
    ]  # fmt: skip


def _teaching(taught: Taught) -> list[Stage]:
    stages_of_it = []
    if taught.answers:
        purpose = "have the original model answer training prompts"
        stages_of_it.append(Stage("answers", purpose, taught.answers, teach.answers_stage, output="answers"))
    if taught.teacher:
        purpose = "keep what the original model says of every completion token"
        needs = tuple(stage.name for stage in stages_of_it)
        stages_of_it.append(Stage("teacher", purpose, taught.teacher, teach.teacher_stage, needs=needs, output="teacher"))
    return stages_of_it


def _in_last_round(do: Do) -> Do:
    return lambda recipe, directory, fingerprint: do(recipe_of_last_round(recipe, directory), directory, fingerprint)

"""Law: what report.json tells of a fit is fit.json, and every shape is counted once."""

import json
import math
from itertools import pairwise
from pathlib import Path

import pytest
from conftest import raises
from fit_cases import DELTAS, TOO_LARGE, answers, fit_case, measured, right, shape, trial
from made_up_run import make_run

from toolkit.cuts.fit_result import AllocationRecord, Answered, FitResult, ShapeRecord
from toolkit.pipeline.run_facts import read_run_facts
from toolkit.report.facts import RunFacts
from toolkit.report.fit_facts import FitFacts, FitShapeFacts, fit_warnings
from toolkit.report.fit_frontier import fit_facts
from toolkit.report.fit_table import rest_lines


def key(shape: ShapeRecord | FitShapeFacts) -> tuple[object, ...]:
    return shape.layers, shape.experts, shape.width, shape.experts_per_token, shape.form


def without_measurements(**changes: object) -> FitResult:
    shapes = [shape.model_copy(update={"measured": None, "trial": None}) for shape in fit_case().shapes]
    return fit_case(shapes=shapes, **({"chosen": None, "reason": ""} | changes))


def test_every_shape_is_listed_or_refused_or_counted_as_another() -> None:
    result = fit_case()
    facts = fit_facts(result)
    assert {key(shape) for shape in facts.shapes} == {key(shape) for shape in result.shapes if shape.measured}
    assert len(facts.shapes) + facts.others + sum(facts.refused.values()) == facts.considered == len(result.shapes)
    assert facts.refused[TOO_LARGE] == 2 and sum(facts.refused.values()) == sum(s.refused is not None for s in result.shapes)
    assert facts.best_other == min(
        s.predicted for s in result.shapes if not (s.measured or s.refused) and s.predicted is not None
    )


def test_the_chosen_shape_is_first_then_trials_by_accuracy_then_the_others_by_loss() -> None:
    result = fit_case()
    facts = fit_facts(result)
    assert facts.choice is not None and key(facts.choice) == key(result.choice)
    assert facts.chosen == 0
    scores = [shape.trial.score for shape in facts.shapes if shape.trial]
    assert scores == sorted(scores, reverse=True) and all(shape.trial for shape in facts.shapes[:3])
    losses = [math.inf if s.measured.delta is None else s.measured.delta for s in facts.shapes[3:] if s.measured]
    assert losses == sorted(losses) and losses[-1] == math.inf


def test_the_choice_stays_first_where_another_did_better() -> None:
    facts = fit_facts(fit_case(chosen=2))
    assert facts.choice and (facts.choice.experts, facts.chosen) == (4, 0) and facts.runner_up is not None
    assert facts.runner_up.difference == pytest.approx(0.80 - 0.86)


@pytest.mark.parametrize("metric", ["accuracy", "fidelity"])
def test_without_trials_the_metric_orders(metric: str) -> None:
    kls = {0.32: 0.3, 0.28: 0.2, 0.41: 0.1}
    shapes = [
        shape(4, n, 256, measured=measured(loss, score, kl=kls[loss]))
        for n, loss, score in ((4, 0.32, 0.9), (5, 0.28, 0.5), (6, 0.41, 0.7))
    ]
    facts = fit_facts(fit_case(shapes=shapes, chosen=None, metric=metric))
    assert [s.experts for s in facts.shapes] == ([4, 6, 5] if metric == "accuracy" else [6, 5, 4])


def test_no_point_of_the_frontier_is_beaten_by_a_smaller_one_and_every_other_is() -> None:
    facts = fit_facts(fit_case())
    points = [(s.bytes, s.measured.score) for s in facts.shapes if s.measured and s.measured.score is not None]
    on_it = [points[i] for i in facts.frontier]
    assert all(small[0] < large[0] and small[1] < large[1] for small, large in pairwise(on_it))
    for place, (size, score) in enumerate(points):
        beaten = any(other <= size and better >= score for i, (other, better) in enumerate(points) if i != place)
        assert beaten == (place not in facts.frontier)


def test_the_size_is_the_one_that_is_limited() -> None:
    limits = ({"bytes": 5, "active": 3}, {"gpu": 9}, {"parameters": 4, "active": 3}, {"active": 3})
    assert [fit_facts(fit_case(limits=each)).size_by for each in limits] == ["bytes", "bytes", "parameters", "active_parameters"]


def test_deltas_are_to_the_original_and_predictions_are_what_the_file_says() -> None:
    result = fit_case()
    facts, before = fit_facts(result), result.original.measured
    found = {key(shape): shape for shape in facts.shapes}
    assert before and before.loss is not None and facts.original.loss == before.loss
    for record in (record for record in result.shapes if record.measured):
        shown = found[key(record)]
        assert shown.measured and record.measured
        assert (shown.measured.delta, shown.predicted) == (record.measured.loss, record.predicted)
        assert (shown.measured.score, shown.measured.interval) == (record.measured.score, record.measured.interval)
        if record.trial and record.trial.loss is not None:
            assert shown.trial and shown.trial.delta == pytest.approx(record.trial.loss - before.loss)


def test_what_is_not_finite_is_no_number_and_says_so() -> None:
    facts = fit_facts(fit_case())
    last = facts.shapes[-1]
    assert last.measured and last.measured.delta is None and last.predicted is None
    assert DELTAS["width"][last.width] is None and facts.predicted_text(last) == "not finite"
    assert fit_facts(fit_case(axes=[])).predicted_text(last) == "–"  # nothing was predicted yet
    infinite = fit_case().shapes[3].model_copy(update={"predicted": math.inf, "measured": measured(math.nan, 0.1), "trial": None})
    text = json.dumps(fit_facts(fit_case(shapes=[infinite], chosen=0)).as_json(), allow_nan=False)
    assert json.loads(text)["shapes"][0]["measured"]["delta"] is None


def test_the_rank_correlation_is_of_orders() -> None:
    def correlation(*losses: float | None) -> object:
        shapes = [shape(4, 8, 250 - n, predicted=n * n / 10, measured=measured(loss)) for n, loss in enumerate(losses, start=1)]
        return fit_facts(fit_case(shapes=shapes, chosen=None)).rank_correlation

    assert correlation(0.4, 0.5, 9.0, 10.0) == 1.0 and correlation(0.9, 0.8, 0.7, None) == -1.0
    assert correlation(0.4, 0.5) is None and correlation(0.4, 0.4, 0.4) is None
    assert correlation(1.0, 2.0, 2.0, 3.0) == pytest.approx(0.9487)  # Spearman's with a tie


def test_before_anything_is_measured_those_that_look_best_are_listed() -> None:
    result = without_measurements()
    facts = fit_facts(result, shown=3)
    predicted = [shape.predicted for shape in facts.shapes]
    assert predicted == sorted(s.predicted for s in result.shapes if s.predicted is not None and not s.refused)[:3]
    assert len(facts.shapes) + facts.others + sum(facts.refused.values()) == facts.considered
    assert facts.chosen is None and facts.runner_up is None and not fit_warnings(facts)
    assert "no shape is chosen yet: 0 measured" in facts.sentence


def test_a_choice_that_nobody_measured_is_listed_all_the_same() -> None:
    facts = fit_facts(without_measurements(chosen=3))
    assert facts.choice and facts.choice.width == 152 and len(facts.shapes) == 1 and not fit_warnings(facts)


def test_a_shape_refused_after_its_measurement_is_listed_and_not_counted_twice() -> None:
    shapes = fit_case().shapes
    shapes[5] = shapes[5].model_copy(update={"refused": "its refit is not finite"})
    facts = fit_facts(fit_case(shapes=shapes))
    assert (
        "its refit is not finite" in [shape.refused for shape in facts.shapes] and "its refit is not finite" not in facts.refused
    )
    assert len(facts.shapes) + facts.others + sum(facts.refused.values()) == facts.considered


def test_the_comparison_counts_questions() -> None:
    found = fit_facts(fit_case()).runner_up
    assert found is not None and found.n == 500 and (found.first, found.second) == (0, 1)
    pairs = list(zip(right(0.86), right(0.82, 30), strict=True))
    assert (found.only_first, found.only_second) == (pairs.count(("1", "0")), pairs.count(("0", "1")))


@pytest.mark.parametrize("second", ["", "1" * 499])
def test_answers_to_other_questions_are_not_compared(second: str) -> None:
    result = fit_case()
    tried = [
        trial(0.4, 0.8).model_copy(update={"right": second}) if s.trial and i != 3 else s.trial
        for i, s in enumerate(result.shapes)
    ]
    shapes = [s.model_copy(update={"trial": t}) for s, t in zip(result.shapes, tried, strict=True)]
    assert fit_facts(fit_case(shapes=shapes)).runner_up is None


def warnings_of(**changes: object) -> list[str]:
    return list(fit_warnings(fit_facts(fit_case(**changes))))


def two(first: float, second: float, shift: int = 0) -> list[ShapeRecord]:
    """The chosen one is the larger."""
    return [
        shape(4, 8, 128, measured=measured(0.5, first), predicted=0.1),
        shape(4, 6, 128, measured=measured(0.6, second, shift), predicted=0.2),
    ]


def test_a_choice_that_is_not_told_from_the_second_is_doubtful() -> None:
    assert not warnings_of(shapes=two(0.9, 0.5), chosen=0)
    [doubt] = warnings_of(shapes=two(0.80, 0.79, shift=40), chosen=0)
    assert "does not tell the shape chosen from the second (4 layers, 6 experts of 128 channels, 2 per token)" in doubt
    assert "+1.0 points on 500 questions" in doubt
    [worse] = warnings_of(shapes=two(0.5, 0.9), chosen=0)
    assert "the second is better" in worse and "−40.0 points" in worse


def test_a_prediction_that_orders_wrongly_is_doubtful() -> None:
    shapes = [shape(4, 8, 128 - n, predicted=-n / 10, measured=measured(0.4 + n / 10)) for n in range(4)]
    [doubt] = warnings_of(shapes=shapes, chosen=0)
    assert "rank correlation -1.00" in doubt and "4 shapes" in doubt


def test_that_the_largest_was_not_chosen_is_told_with_both_results() -> None:
    [said, _] = warnings_of()
    assert said.startswith("The largest shape measured is not the one chosen: 4 layers, 4 experts of 256 channels")
    assert "dev accuracy 80.0 %; chosen (3.36 MiB), dev accuracy 86.0 %" in said  # both after their trials
    losses = [shape(4, 8, 128, measured=measured(0.9), predicted=0.3), shape(4, 6, 128, measured=measured(0.6), predicted=0.2)]
    assert "dev loss +0.9000; chosen" in warnings_of(shapes=losses, chosen=1)[0]


def test_losses_that_are_not_finite_are_counted() -> None:
    assert warnings_of()[-1] == "The dev loss is not finite for 1 of 8 shapes measured (number 8)."


@pytest.mark.parametrize(
    ("limits", "text"),
    [
        ({"bytes": 12 * 2**30}, "12.00 GiB on disk"),
        ({"parameters": 7 * 10**9, "active": 3 * 10**9}, "7.00 B parameters and 3.00 B parameters active per token"),
        ({"gpu": 24 * 2**30, "context": 4096, "batch": 8}, "a GPU of 24.00 GiB (context 4,096, batch 8)"),
        ({"heads": 4}, "heads 4"), ({}, "no size"),
    ],
)  # fmt: skip
def test_limits_are_written_as_people_do(limits: dict[str, int], text: str) -> None:
    assert fit_facts(fit_case(limits=limits)).limit_text == text


def test_a_run_tells_its_fit_when_a_stage_of_it_is_done(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    assert "fit" not in read_run_facts(run.path).as_json()
    fit_case().save(run.fit_result)
    assert read_run_facts(run.path).fit is None  # the entry is what says that it is whole
    run.finish("fit/measure", "fit", 1.0, seed=7, ranks=1)
    report = read_run_facts(run.path)
    assert report.fit == fit_facts(fit_case(seconds={"fit/measure": 1.0}))  # the manifest's
    assert RunFacts.model_validate_json(json.dumps(report.as_json())) == report
    assert report.fit and report.fit.sentence in report.summary and set(fit_warnings(report.fit)) <= set(report.warnings)
    run.fit_result.write_text("{")
    with raises("fit.unreadable", run.fit_result):
        read_run_facts(run.path)


def test_the_facts_are_smaller_than_the_file() -> None:
    shapes = [shape(4, 8, 255 - n, predicted=n / 100) for n in range(200)]
    facts = fit_facts(fit_case(shapes=[*fit_case().shapes, *shapes]))
    text = json.dumps(facts.as_json())
    assert len(text) < 6500 and '"right"' not in text and FitFacts.model_validate_json(text) == facts


def test_an_original_whose_loss_is_not_finite_has_none() -> None:
    original = fit_case().original.model_copy(update={"measured": Answered.model_validate(answers(None, 0.5))})
    facts = fit_facts(fit_case(original=original))
    assert facts.original.loss is None and facts.original.measured and facts.original.measured.delta is None
    assert all(shape.trial is None or shape.trial.delta is None for shape in facts.shapes)


def allocation(numbers: list[int], **about: object) -> AllocationRecord:
    """Of the chosen shape, which keeps 6 in each block."""
    values = {
        "keep": 6, "experts": {f"model.layers.{n}.mlp": number for n, number in enumerate(numbers)},
        "experts_per_token": {f"model.layers.{n}.mlp": 2 for n in range(len(numbers))},
        "uniform": answers(0.58, 0.74), "measured": answers(0.55, 0.76), "difference": 0.02, "interval": (-0.01, 0.05), "p": 0.2,
        "measurements": 40, "not_written": "mixtral reads one number.",
    }  # fmt: skip
    return AllocationRecord.model_validate(values | about)


def test_other_numbers_of_experts_per_block_are_told_with_their_interval() -> None:
    facts = fit_facts(fit_case(allocation=allocation([8, 4, 6, 6])))
    assert facts.allocation is not None and facts.allocation.experts["model.layers.0.mlp"] == 8
    assert (facts.allocation.score, facts.allocation.uniform_score, facts.allocation.n) == (0.76, 0.74, 500)
    assert facts.allocation.sentence == (
        "Other numbers of experts per block at the same size (8, 4, 6, 6 instead of 6 each): loss 0.5500 instead of 0.5800, +2.0 "
        "points of dev accuracy (95 % interval −1.0 to +5.0, p = 0.20), on the examples by whose loss they were chosen. Not "
        "written: mixtral reads one number."
    )
    assert facts.allocation.sentence in rest_lines(facts)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"experts": dict.fromkeys("abcd", 6), "experts_per_token": dict.fromkeys("abcd", 2)}, "none was found better, of 40"),
        ({"measured": answers(None)}, "loss not finite instead of 0.5800"),
        ({"experts_per_token": {"a": 1, "b": 3}}, "each; 1, 3 active)"),
        ({"experts": {str(n): 2 + n % 9 for n in range(48)}}, "(2 to 10 instead of 6 each)"),
    ],
)
def test_an_allocation_claims_no_more_than_its_numbers(changes: dict[str, object], text: str) -> None:
    found = fit_facts(fit_case(allocation=allocation([8, 4], **changes))).allocation
    assert found and text in found.sentence
    undecided = fit_facts(fit_case(allocation=allocation([8, 4], difference=None, interval=None, p=None))).allocation
    assert undecided and "points" not in undecided.sentence


def test_a_shape_that_was_refused_is_no_alternative() -> None:
    shapes = fit_case().shapes
    refused = [shape.model_copy(update={"refused": "too large"}) if i in (2, 4) else shape for i, shape in enumerate(shapes)]
    facts = fit_facts(fit_case(shapes=refused))
    assert [shape.refused for shape in facts.shapes[-2:]] == ["too large"] * 2
    assert facts.runner_up is None  # the second shape has no trial
    assert not {i for i, shape in enumerate(facts.shapes) if shape.refused} & {*facts.frontier}
    assert not [line for line in fit_warnings(facts) if line.startswith("The largest")]

"""Law: what each criterion would have kept is told as its agreement with the plan."""

from pathlib import Path

from made_up_run import BLOCKS, make_run

from toolkit.cuts.plan import Plan
from toolkit.report.blocks import criteria_agreement


def test_agreement_is_the_share_of_the_plans_experts_that_a_criterion_also_keeps(tmp_path: Path) -> None:
    plan = Plan.load(make_run(tmp_path).plan)  # keeps 0, 1 and 1, 3 of 4
    found = criteria_agreement(
        {"reap": {BLOCKS[0]: [0, 1], BLOCKS[1]: [0, 2]}, "ean": {BLOCKS[0]: [1, 2], BLOCKS[1]: [1, 3]}}, plan
    )
    assert found.agreement == {"reap": {BLOCKS[0]: 1.0, BLOCKS[1]: 0.0}, "ean": {BLOCKS[0]: 0.5, BLOCKS[1]: 1.0}}
    assert found.mean == {"reap": 0.5, "ean": 0.75}
    assert found.by_chance == 0.5

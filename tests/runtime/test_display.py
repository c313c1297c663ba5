"""Law: however large an object is, and whatever text it holds, what it shows is small and safe."""

from html.parser import HTMLParser

import pytest
import torch

from toolkit.cuts.block_plan import BlockPlan
from toolkit.cuts.fit_result import FitResult, MeasuredShape, OriginalSize, ShapeRecord
from toolkit.cuts.observed_block import ObservedBlock
from toolkit.cuts.plan import Plan
from toolkit.cuts.statistics import BlockStatistics, ExpertStatistics, StatisticsFacts
from toolkit.cuts.width import WidthCut
from toolkit.evaluation import Item, Scores
from toolkit.runtime.display import LONGEST, MOST_ROWS, Displayed, Overview

BLOCKS = [f"model.layers.{i}.mlp" for i in range(48)]
EVIL = "<script>alert(1)</script> & " * 40


def large_statistics() -> ExpertStatistics:
    parts = ("prompt", "completion")
    vectors = {f"{block}/{name}/{part}": torch.ones(128) for block in BLOCKS for name in ("count", "gate_sum") for part in parts}
    facts = {block: BlockStatistics(128, 8, tokens={"prompt": 100_000, "completion": 20_000}) for block in BLOCKS}
    return ExpertStatistics(vectors, StatisticsFacts(facts, EVIL))


def large_plan() -> Plan:
    blocks = {block: BlockPlan(experts=128, kept=list(range(0, 128, 2)), scores=[1 / 3] * 128) for block in BLOCKS}
    plan = Plan.of_experts(model=EVIL, criterion="reap", keep=64, experts_per_token=8, blocks=blocks)
    plan.cuts.append(WidthCut(criterion="energy", keep=512, channels={block: torch.zeros(64, 512) for block in BLOCKS}))
    return plan


def large_scores() -> Scores:
    return Scores([Item(i, EVIL, EVIL, EVIL, i % 2 == 0, 3, True, error=EVIL if i == 1 else None) for i in range(1000)])


def shape(experts: int, size: int, loss: float | None) -> ShapeRecord:
    measured = None if loss is None else MeasuredShape(loss=loss, score=0.5, n=10)
    return ShapeRecord(
        layers=4, experts=experts, width=64, experts_per_token=2, parameters=size, active_parameters=size, bytes=size,
        measured=measured,
    )  # fmt: skip


def fit_result() -> FitResult:
    original = OriginalSize(layers=4, experts=8, width=64, experts_per_token=2, parameters=9, active_parameters=9, bytes=900)
    shapes = [shape(6, 600, 0.2), shape(4, 400, 0.5), shape(5, 500, 0.7), shape(2, 200, None)]
    return FitResult(fingerprint="", limits={"bytes": 700}, dtype="float32", metric="dev_loss", original=original, shapes=shapes)


class Balanced(HTMLParser):
    """Raises AssertionError for a tag that is not closed, or is none of a fragment's."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.rows = 0
        self.feed(html)
        assert not self.open

    def handle_starttag(self, tag: str, attributes: object) -> None:
        assert tag in {"div", "b", "br", "table", "thead", "tbody", "tr", "th", "td", "small"}
        self.rows += tag == "tr"
        self.open += [tag] * (tag != "br")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


LARGE: list[Displayed] = [large_statistics(), large_plan(), *large_plan().cuts, large_scores(), fit_result()]
LARGE.append(ObservedBlock(large_statistics(), BLOCKS[0]))


@pytest.mark.parametrize("shown", LARGE, ids=lambda shown: type(shown).__name__)
def test_what_is_shown_is_one_line_and_a_small_table(shown: Displayed) -> None:
    assert "\n" not in repr(shown) and str(shown) == repr(shown)
    assert len(repr(shown)) < 400 and "tensor(" not in repr(shown)
    html = shown._repr_html_()
    assert len(html) < 10_000 and "<script" not in html
    assert Balanced(html).rows <= MOST_ROWS + 1


def test_what_is_left_out_is_counted() -> None:
    class Long(Displayed):
        def overview(self) -> Overview:
            return Overview(["long"], ("n",), [(f"{i} " + "x" * 500,) for i in range(100)])

    html = Long()._repr_html_()
    assert f"and {100 - MOST_ROWS} more" in html and "x" * LONGEST not in html and repr(Long()) == "Long(long)"


def test_the_line_says_what_the_object_is() -> None:
    assert repr(large_plan().cuts[0]) == "ExpertsCut(64 of 128 experts by reap)"
    assert "48 blocks of 128 experts, 8 active per token, 120,000 tokens" in repr(large_statistics())
    assert "50.0 % of 1,000 right, 95 % interval 46.9–53.1 %, 1 not judged" in repr(large_scores())


def test_a_fit_shows_its_frontier_and_the_chosen_shape() -> None:
    result = fit_result()
    assert [found.experts for found in result.frontier] == [4, 6]  # 5 is larger than 4 and loses more; 2 was not measured
    assert "none chosen yet" in repr(result)
    result.chosen = 2
    html = result._repr_html_()
    assert html.count("<td>chosen</td>") == 1 and Balanced(html).rows == 1 + 3


@pytest.mark.parametrize("empty", [ExpertStatistics({}, StatisticsFacts({})), Scores([])], ids=["statistics", "scores"])
def test_what_is_empty_or_half_built_is_shown_too(empty: Displayed) -> None:
    assert repr(empty) and Balanced(empty._repr_html_())


def test_statistics_without_counts_are_shown_too() -> None:
    statistics = large_statistics()
    statistics.vectors.clear()
    assert Balanced(statistics._repr_html_()).rows == MOST_ROWS + 1

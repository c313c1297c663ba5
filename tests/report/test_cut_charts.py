"""Law: the drawings of cuts say what the facts say, and nothing leaves its box."""

import json
import re

import pytest
from test_heat import pixels

from toolkit.report.cut_charts import channels_in_common, layer_marks, layer_strip, width_map
from toolkit.report.cut_facts import ChannelFacts, LayersFacts, RemovedLayerFacts, WidthFacts
from toolkit.report.facts import BlockFacts

BLOCKS = {
    "layers.0.mlp": BlockFacts(experts=4, kept=[0, 2]),
    "layers.5.mlp": BlockFacts(experts=4, kept=[1, 3]),
}


def width(energy: list[list[float | None] | None], kept_by: list[int] | None = None) -> WidthFacts:
    found = {name: ChannelFacts(kept_by=kept_by or [2, 4, 2], energy=part) for name, part in zip(BLOCKS, energy, strict=True)}
    return WidthFacts(criterion="energy", keep=4, width=8, blocks=found, mlps={}, criteria=None)


def layers(**changes: object) -> LayersFacts:
    values: dict = dict.fromkeys(LayersFacts.model_fields)
    values |= {"criterion": "dev_loss", "layers": 4, "kept": [0, 1, 3], "scores": [0.5, 0.25, -0.1, None], "refused": {}}
    values |= {"removed": [RemovedLayerFacts(layer=2, loss=0.1)], "criteria": {}}
    return LayersFacts.model_validate(values | changes)


def test_strength_is_what_was_lost_and_the_numbers_say_it_exactly() -> None:
    found = width_map(width([[0.75, 1.0], [None, 0.9375]]), BLOCKS)
    assert found is not None and found.rows == ["0", "5"] and found.experts == 4
    assert json.loads(found.numbers) == {"rows": ["0", "5"], "lost": [[2500, -2, 0, -2], [-2, -1, -2, 625]]}
    strengths = [[pixel[3] for pixel in row] for row in pixels(found.picture)]
    assert strengths == [[255, 0, 0, 0], [0, 0, 0, 128]]  # the root: a quarter of the loss is half as strong
    assert found.least == (0.75, "expert 0 of block 0") and found.mean == pytest.approx((0.75 + 1 + 0.9375) / 3)
    assert found.legend[-1] == (1.0, "25.0 %")


def test_without_observed_energy_there_is_no_map() -> None:
    assert width_map(width([None, None]), BLOCKS) is None
    assert width_map(width([[None, None], [None, None]]), BLOCKS) is None


def test_channels_in_common_are_compared_with_chance() -> None:
    found = channels_in_common(width([None, None], kept_by=[4, 0, 4]))
    assert found is not None and found.experts == 2
    assert found.by_all == (0.5, pytest.approx(0.25)) and found.by_none == (0.5, pytest.approx(0.25))
    bars = re.findall(r"M([\d.]+) 1v-([\d.]+)h.8V1z", found.bars)
    assert [(float(x), float(height)) for x, height in bars] == [(0.1, 1.0), (2.1, 1.0)]
    chance = [tuple(map(float, point.split(","))) for point in found.chance.split()]
    assert [x for x, _ in chance] == [0.5, 1.5, 2.5] and all(0 <= y <= 1 for _, y in chance)


def test_of_one_kept_expert_nothing_is_in_common() -> None:
    assert channels_in_common(width([None, None], kept_by=[4, 4])) is None


def test_a_layers_bar_is_as_high_as_its_score_and_its_title_says_when_it_went() -> None:
    strip = layer_strip(layers())
    assert [(cell.kept, cell.height) for cell in strip.cells] == [(True, 1.0), (True, 0.5), (False, 0.0), (True, 0.0)]
    assert strip.cells[2].title == "layer 2: dropped, number 1, score -0.1"
    assert strip.cells[3].title == "layer 3: kept" and strip.scored


@pytest.mark.parametrize("scores", [None, [0.0, 0.0, 0.0, 0.0], [-1.0, -2.0, None, -3.0]])
def test_without_a_positive_score_there_are_no_bars(scores: list[float | None] | None) -> None:
    strip = layer_strip(layers(scores=scores))
    assert all(cell.height == 0 for cell in strip.cells) and strip.scored == (scores is not None)


def test_many_layers_have_few_labels() -> None:
    ticks = layer_strip(layers(layers=96, kept=list(range(50)), scores=None)).ticks
    assert len(ticks) <= 24 and all(0 < tick.at < 100 for tick in ticks) and ticks[0].label == "0"


def test_marks_stand_in_the_cells_of_their_layers() -> None:
    found = re.findall(r"M([\d.]+) 0h.88v1h-.88z", layer_marks([0, 3]))
    assert [int(float(x)) for x in found] == [0, 3]

"""Law: the pictures of the map are its numbers, and the numbers those of report.json."""

import base64
import json
import re
import struct
import zlib
from pathlib import Path

import pytest
from made_up_run import KEPT, make_large, make_run

from toolkit.pipeline.run_facts import read_run_facts
from toolkit.report.facts import BlockFacts, RunFacts
from toolkit.report.heat import KEPT as BLUE
from toolkit.report.heat import PRUNED as OCHRE
from toolkit.report.heat import HeatMap, heat_map


def map_of(report: RunFacts) -> HeatMap:
    heat = heat_map(report.blocks, report.pruning.tokens if report.pruning else "all")
    assert heat is not None
    return heat


def pixels(url: str) -> list[list[tuple[int, ...]]]:
    """Of a PNG without filters, as `heat` writes them; checks every chunk's checksum."""
    data, at, found = base64.b64decode(url.removeprefix("data:image/png;base64,")), 8, {}
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    while at < len(data):
        (length,), kind = struct.unpack(">I", data[at : at + 4]), data[at + 4 : at + 8]
        found[kind] = data[at + 8 : at + 8 + length]
        assert struct.unpack(">I", data[at + 8 + length : at + 12 + length])[0] == zlib.crc32(kind + found[kind])
        at += 12 + length
    width, height = struct.unpack(">II", found[b"IHDR"][:8])
    lines = zlib.decompress(found[b"IDAT"])
    rows = [lines[y * (4 * width + 1) + 1 : (y + 1) * (4 * width + 1)] for y in range(height)]
    return [[tuple(row[4 * x : 4 * x + 4]) for x in range(width)] for row in rows]


def test_every_expert_is_a_pixel_whose_hue_says_kept_and_whose_strength_its_share(tmp_path: Path) -> None:
    report = read_run_facts(make_run(tmp_path).path)
    heat = map_of(report)
    assert (heat.rows, heat.experts, list(heat.pictures)) == (["0", "1"], 4, ["all", "prompt", "completion"])
    for part, picture in heat.pictures.items():
        drawn = pixels(picture)
        for row, block, kept in zip(drawn, report.blocks.values(), KEPT, strict=True):
            assert [pixel[:3] == BLUE for pixel in row] == [e in kept for e in range(4)]
            assert [pixel[:3] == OCHRE for pixel in row] == [e not in kept for e in range(4)]
            most = 5 / 6  # of the second block's completion tokens; one scale for all three pictures
            for pixel, share in zip(row, block.share[part], strict=True):
                assert abs(pixel[3] - 255 * (share / most) ** 0.5) <= 0.51


def test_the_numbers_to_hover_over_are_those_of_the_report(tmp_path: Path) -> None:
    report = read_run_facts(make_run(tmp_path).path)
    numbers = json.loads(map_of(report).numbers)
    assert numbers["kept"] == ["1100", "0101"]
    for part, rows in numbers["shares"].items():
        assert rows == [[round(1e4 * share) for share in block.share[part]] for block in report.blocks.values()]


def test_a_frame_stands_around_each_kept_expert_and_no_other(tmp_path: Path) -> None:
    outline = map_of(read_run_facts(make_run(tmp_path).path)).outline
    frames = re.findall(r"M([\d.]+) ([\d.]+)h([\d.]+)v([\d.]+)h-([\d.]+)z", outline)
    cells = []
    for x, y, width, height, back in (map(float, frame) for frame in frames):
        assert int(x) <= x < x + width <= int(x) + 1 and int(y) <= y < y + height <= int(y) + 1 and back == width
        cells.append((int(x), int(y)))  # the frame stands inside this cell
    assert cells == [(e, y) for y, kept in enumerate(KEPT) for e in kept]


def test_a_rows_end_says_what_the_kept_took_of_each_kind_of_tokens_and_how_even_the_use_was(tmp_path: Path) -> None:
    blocks = read_run_facts(make_run(tmp_path).path).blocks
    found = heat_map(blocks, "all")
    assert found is not None
    for end, block in zip(found.ends, blocks.values(), strict=True):
        assert block.share is not None and end.kept.keys() == found.pictures.keys()
        assert end.kept["all"] == pytest.approx(block.kept_share, abs=1e-5)
        for part, share in end.kept.items():
            assert share == pytest.approx(sum(block.share[part][expert] for expert in block.kept))
        assert end.bits == block.entropy_bits and 0 <= end.spread <= 1
        assert end.spread == pytest.approx(end.bits / found.most_bits)


def test_a_legend_swatch_stands_for_the_share_that_is_drawn_like_it(tmp_path: Path) -> None:
    assert map_of(read_run_facts(make_run(tmp_path).path)).legend[1] == (0.5, "20.8 %")  # a quarter of the largest, 83.3 %


def test_the_tokens_that_decided_are_shown_first(tmp_path: Path) -> None:
    assert map_of(read_run_facts(make_run(tmp_path, pruning={"keep": 2, "tokens": "prompt"}).path)).tokens == "prompt"


def test_a_kind_of_token_that_was_not_seen_has_no_picture() -> None:
    block = BlockFacts(experts=2, share={"all": [0.5, 0.5], "prompt": None, "completion": [0.5, 0.5]})
    heat = heat_map({"a": block})
    assert heat is not None and list(heat.pictures) == ["all", "completion"]


def test_many_experts_in_many_blocks_still_have_few_labels_and_rows_one_can_see(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    make_large(run)
    heat = map_of(read_run_facts(run.path))
    assert len(heat.ticks) == 16
    assert heat.row_height >= 8 and heat.widths[0] >= 128 * 6
    assert sum(len(picture) for picture in heat.pictures.values()) < 60_000 and len(heat.numbers) < 90_000


def test_without_statistics_there_is_no_map(tmp_path: Path) -> None:
    assert heat_map(read_run_facts(tmp_path).blocks) is None

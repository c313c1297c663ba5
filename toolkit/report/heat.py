"""The map of experts × blocks: pictures of one pixel per expert, and the numbers behind them.

6,000 experts as 6,000 elements, three times over, would be a page of a megabyte. As pictures they are some kilobytes: hue says
kept or not, strength how much of the block's choices the expert took. Shape legend: E experts of a block, L blocks.
"""

import base64
import json
import math
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from toolkit.report.facts import BlockFacts
from toolkit.runtime.formatting import percent

KEPT, PRUNED = (0x2F, 0x7F, 0xC4), (0xC4, 0x8A, 0x4A)  # colours that hold on a light and on a dark ground
MANY = 32  # experts: beyond, a cell has no room for a frame of its own
PARTS = ("all", "prompt", "completion")


class Tick(NamedTuple):
    at: float  # percent
    label: str


@dataclass(frozen=True)
class ExpertMap:
    """Rows are blocks, columns are experts, kept ones framed."""

    rows: list[str]  # labels
    experts: int
    many: bool
    outline: str  # the path around the kept experts
    grid: str  # the path between the cells
    row_height: int  # pixels
    widths: tuple[int, int]  # pixels: least and most
    ticks: list[Tick]
    legend: list[tuple[float, str]]  # strength, and the share it stands for


def expert_map(rows: list[str], experts: int, kept: list[set[int]], most: float) -> ExpertMap:
    """`kept`: per row; `most`: the share that has full strength."""
    every = next(step for step in (1, 2, 4, 8, 16, 32, 64) if experts / step <= 16 or step == 64)
    return ExpertMap(
        rows=rows,
        experts=experts,
        many=experts > MANY,
        outline="".join(_around(expert, y, experts > MANY) for y, row in enumerate(kept) for expert in sorted(row)),
        grid="".join([f"M{x} 0V{len(rows)}" for x in range(1, experts)] + [f"M0 {y}H{experts}" for y in range(1, len(rows))]),
        row_height=max(8, min(30, 432 // len(rows))),
        widths=(experts * (6 if experts > MANY else 20), experts * 72),
        ticks=[Tick(100 * (e + 0.5) / experts, str(e)) for e in range(0, experts, every)],
        legend=[(strength, percent(strength**2 * most)) for strength in (0.25, 0.5, 0.75, 1.0)],
    )


class RowEnd(NamedTuple):
    """The end of a row: by kind of tokens the share of the choices that kept experts took, and the entropy of the experts'
    use in bits, and as a fraction of what it is where all are used alike (None: not known)."""

    kept: dict[str, float]
    spread: float | None
    bits: float | None


@dataclass(frozen=True)
class HeatMap(ExpertMap):
    """Strength is the root of share / largest share: the many small shares of a model with many experts would else look
    alike."""

    tokens: str  # the kind that is shown first: the one that decided
    pictures: dict[str, str]  # kind of tokens -> data: URL
    numbers: str  # JSON for the script: shares in hundredths of a percent, and who is kept
    hues: dict[str, str]  # kept, pruned -> the colour of the pictures
    chosen: bool  # whether any expert was chosen yet
    ends: list[RowEnd]
    most_bits: float  # the entropy where all experts of a block are chosen alike


def heat_map(blocks: Mapping[str, BlockFacts], tokens: str = "all") -> HeatMap | None:
    """None where nothing was observed. `tokens`: the kind (of PARTS) by which the plan was chosen."""
    observed = {name: block.share for name, block in blocks.items() if block.share}
    if not observed:
        return None
    shown = [blocks[name] for name in observed]
    shares = {
        part: [share.get(part) or [0.0] * block.experts for share, block in zip(observed.values(), shown, strict=True)]
        for part in PARTS
        if any(share.get(part) for share in observed.values())
    }
    most = max(max(row) for rows in shares.values() for row in rows) or 1.0
    kept = [set(block.kept or ()) for block in shown]
    experts = max(block.experts for block in shown)
    labels = labels_of(list(observed))
    numbers = {
        "rows": labels,
        "kept": ["".join(str(int(e in row)) for e in range(experts)) for row in kept],
        "shares": {part: [[round(1e4 * share) for share in row] for row in rows] for part, rows in shares.items()},
    }
    return HeatMap(
        **vars(expert_map(labels, experts, kept, most)),
        tokens=tokens if tokens in shares else "all",
        pictures={
            part: picture([[pixel(s / most, e in k) for e, s in enumerate(row)] for row, k in zip(rows, kept, strict=True)])
            for part, rows in shares.items()
        },
        numbers=script_json(numbers),
        hues={what: "#{:02x}{:02x}{:02x}".format(*colour) for what, colour in (("kept", KEPT), ("pruned", PRUNED))},
        chosen=any(kept),
        ends=[
            _row_end(block, {part: sum(rows[y][expert] for expert in kept[y]) for part, rows in shares.items()})
            for y, block in enumerate(shown)
        ],
        most_bits=math.log2(experts) if experts > 1 else 0.0,
    )


def _row_end(block: BlockFacts, kept: dict[str, float]) -> RowEnd:
    most = math.log2(block.experts) if block.experts > 1 else 1.0
    spread = None if block.entropy_bits is None else block.entropy_bits / most
    return RowEnd(kept, spread, block.entropy_bits)


def script_json(numbers: object) -> str:
    """JSON that may stand in a page's script."""
    return json.dumps(numbers, separators=(",", ":")).replace("<", "\\u003c")


def _around(expert: int, row: int, many: bool) -> str:
    return f"M{expert} {row}h1v1h-1z" if many else f"M{expert}.04 {row}.07h.92v.86h-.92z"


def pixel(share: float, kept: bool) -> bytes:
    strength = round(255 * math.sqrt(share))
    return bytes((*(KEPT if kept else PRUNED), strength))


def picture(pixels_LE: list[list[bytes]]) -> str:
    """A PNG, red, green, blue and opacity, as a data: URL."""
    lines = zlib.compress(b"".join(b"\0" + b"".join(row) for row in pixels_LE), 9)
    header = struct.pack(">IIBBBBB", len(pixels_LE[0]), len(pixels_LE), 8, 6, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", lines), (b"IEND", b""))
    body = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    return "data:image/png;base64," + base64.b64encode(b"\x89PNG\r\n\x1a\n" + body).decode()


def labels_of(names: list[str]) -> list[str]:
    """What tells the blocks apart: "model.layers.3.mlp" among its like is "3"."""
    parts = [name.split(".") for name in names]
    if len(names) == 1 or len({len(p) for p in parts}) > 1:
        return names
    varying = [i for i in range(len(parts[0])) if len({p[i] for p in parts}) > 1]
    return [".".join(p[i] for i in varying) for p in parts]

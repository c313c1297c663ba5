"""Law: the recommendation says no more than the intervals do."""

import pytest

from toolkit.report import show_sweep, tabulate
from toolkit.report.measurements import SweepRow, TaskResult
from toolkit.runtime.intervals import wilson

N = 100


def row(
    label: str, keep: int, correct: int, seed: int = 0, off: int | None = None, loss: float = 0.5, **pruning: str
) -> SweepRow:
    """A cell that answers `correct` of N rightly, and `off` of N off the task."""

    def result(name: str, right: int) -> TaskResult:
        return TaskResult(name=name, loss=loss, score=right / N, correct=right, n=N, interval=wilson(right, N))

    return SweepRow(
        label=label, keep=keep, **pruning, seed=seed, kept_unobserved=0, file=f"keep{keep}-{label}-{seed}.json",
        task=result("playground/logic", correct), off_task=None if off is None else result("playground/code", off),
    )  # fmt: skip


ROWS = [
    row("original", 8, 95, off=90),
    row("random", 6, 90, 0, off=10), row("random", 6, 20, 1, off=10),
    row("random", 4, 5, 0, off=0), row("random", 4, 9, 1, off=0),
    row("reap", 6, 94, off=40), row("reap", 4, 60, off=2),
    row("frequency", 6, 92, off=50), row("frequency", 4, 88, off=3),
]  # fmt: skip


def test_the_fewest_experts_whose_interval_overlaps_the_originals_are_recommended_with_the_reason() -> None:
    table = tabulate(ROWS)
    assert table.holding == {"random": None, "reap": 6, "frequency": 4}
    said = table.recommendation
    assert said.startswith(
        "pruning.keep=4 by frequency: the fewest experts with which accuracy (88.0 %, 95 % interval 80.2–93.0 %)"
    )
    assert "overlaps the original's (95.0 %, 95 % interval 88.8–97.8 %), on 100 dev questions of playground/logic" in said
    for honest in (
        "no proof that the two are equally good", "Fewest that hold: random none, reap 6, frequency 4.",
        "On playground/code it costs: 90.0 % -> 3.0 %.", "only pruned: fine-tuning wins back more",
    ):  # fmt: skip
        assert honest in said


# `random` holds only where every seed does: one lucky draw is no criterion.
def test_a_lucky_draw_does_not_hold_and_two_are_said_to_hold_too() -> None:
    assert tabulate(ROWS).holding["random"] is None
    lucky = [row("original", 8, 95), row("random", 4, 90, 0), row("random", 4, 89, 1), row("reap", 4, 91)]
    said = tabulate(lucky).recommendation
    assert "pruning.keep=4 by reap" in said and "Random experts hold there too" in said
    assert tabulate([lucky[0], *lucky[1:3]]).recommendation.startswith("No criterion holds")


def test_where_nothing_holds_the_best_of_each_is_named() -> None:
    said = tabulate([row("original", 8, 95), row("reap", 4, 30), row("frequency", 4, 40), row("reap", 2, 1)]).recommendation
    assert said.startswith("No criterion holds: ") and "Best of each: keep 4 frequency 40.0 %, keep 2 reap 1.0 %." in said


def test_of_equal_scores_the_lower_loss_is_better() -> None:
    rows = [row("original", 8, 95), row("reap", 4, 90, loss=0.5), row("frequency", 4, 90, loss=0.4)]
    assert "pruning.keep=4 by frequency" in tabulate(rows).recommendation


def test_an_original_that_answers_nothing_recommends_nothing() -> None:
    said = tabulate([row("original", 8, 0), row("reap", 4, 0)]).recommendation
    assert said.startswith("The original itself is right on none of 100 dev questions of playground/logic: ")


def test_the_terminal_shows_every_cell(capsys: pytest.CaptureFixture[str]) -> None:
    show_sweep(tabulate(ROWS))
    out = capsys.readouterr().out
    assert sum(line.startswith(("original", "random", "reap", "frequency")) for line in out.splitlines()) == len(ROWS)
    assert "100 dev questions of playground/logic; off task: playground/code" in out


def shape(label: str, correct: int, parameters: int, keep: int = 8, seed: int = 0, **cuts: int) -> SweepRow:
    """A cell of a sweep over widths and layers, too."""
    found = row(label, keep, correct, seed).model_dump()
    size = {"width": None, "layers": None, "parameters": parameters, "active_parameters": parameters // 2} | cuts
    return SweepRow.model_validate(found | size)


SHAPES = [
    shape("original", 95, 1000), shape("reap", 94, 600, keep=4), shape("energy", 93, 590, width=1024),
    shape("energy", 60, 300, width=512),
    shape("reap + energy", 91, 400, keep=4, width=1024, layers=3), shape("reap + random", 90, 400, keep=4, width=1024, seed=0),
    shape("reap + random", 40, 400, keep=4, width=1024, seed=1),
]  # fmt: skip


def test_where_shapes_are_swept_the_fewest_parameters_that_hold_are_recommended() -> None:
    table = tabulate(SHAPES)
    assert table.by_size and table.holding == {"reap": 600, "energy": 590, "reap + energy": 400, "reap + random": None}
    said = table.recommendation
    assert said.startswith(
        "4 experts, 1,024 channels, 3 layers by reap + energy (400 parameters, 40.0 % of the original's): the fewest parameters "
        "with which accuracy (91.0 %"
    )
    assert (
        "Smallest that hold: reap: 4 experts; energy: 8 experts, 1,024 channels; reap + energy: 4 experts, 1,024 channels" in said
    )
    assert "reap + random: none." in said and "Random" not in said


def test_where_no_shape_holds_the_best_of_each_size_is_named() -> None:
    said = tabulate([SHAPES[0], SHAPES[3], SHAPES[6]]).recommendation
    assert said.startswith("No criterion holds: none of these sizes has an interval")
    assert "Best of each: 4 experts, 1,024 channels reap + random 40.0 %; 8 experts, 512 channels energy 60.0 %." in said


def compressed(label: str, compression: str, correct: int, size: int, keep: int = 8) -> SweepRow:
    found = shape(label, correct, size // 4, keep).model_dump()
    return SweepRow.model_validate(found | {"bytes": size, "compression": compression, "not_written": f"No {compression[:3]}"})


def sized(row: SweepRow) -> SweepRow:
    return SweepRow.model_validate(row.model_dump() | {"bytes": 4 * (row.parameters or 0)})


COMPRESSED = [
    *(sized(row) for row in SHAPES[:4]),
    compressed("low_rank:0.5", "low_rank:0.5", 95, 2200), compressed("low_rank:0.1", "low_rank:0.1", 3, 400),
    compressed("2:4", "2:4", 40, 2300), compressed("reap, 2:4", "2:4", 91, 1300, keep=4),
]  # fmt: skip


def test_what_cannot_be_written_is_never_recommended_however_good_it_is() -> None:
    table = tabulate(COMPRESSED)
    assert table.by_bytes and table.holding == {
        "reap": 2400, "energy": 2360, "low_rank:0.5": 2200, "low_rank:0.1": None, "2:4": None, "reap, 2:4": 1300,
    }  # fmt: skip
    said = table.recommendation
    assert said.startswith("8 experts, 1,024 channels by energy (0.0 MiB, 59.0 % of the original's): the fewest bytes with which")
    assert "Smallest that hold: reap: 4 experts; energy: 8 experts, 1,024 channels." in said
    assert (
        "Measured only, and holding: 8 experts, low_rank:0.5 (55.0 % of the bytes, 95.0 %); 4 experts, 2:4 (32.5 % of the bytes, "
        "91.0 %). No 2:4. No low. These models" in said
    )


def test_where_only_what_cannot_be_written_holds_nothing_is_recommended() -> None:
    said = tabulate([COMPRESSED[0], COMPRESSED[3], COMPRESSED[4]]).recommendation
    assert (
        said.startswith("No criterion holds: ") and "Best of each: 8 experts, 512 channels energy 60.0 %. Measured only" in said
    )
    alone = tabulate([COMPRESSED[0], COMPRESSED[4]]).recommendation
    assert alone.startswith("Nothing can be recommended") and "8 experts, low_rank:0.5 (55.0 % of the bytes, 95.0 %)" in alone
    failed = tabulate([COMPRESSED[0], COMPRESSED[3], COMPRESSED[6]]).recommendation
    assert "Measured only" not in failed and "No 2:4." in failed


def allocated(label: str, keep: int, correct: int, experts: list[int], measurements: int = 30) -> SweepRow:
    found = row(f"{label}, measured allocation", keep, correct, loss=0.25).model_dump() | {"not_written": "No reader"}
    numbers = {"experts": experts, "active": [2] * len(experts), "measurements": measurements, "uniform_loss": 0.5}
    return SweepRow.model_validate(
        found | {"allocation": numbers | {"difference": 0.3, "interval": [0.2, 0.4], "p": 0.0001}}
    )  # fmt: skip


def test_what_other_numbers_per_block_give_is_said_and_never_recommended() -> None:
    uniform = [row("original", 8, 95), row("reap", 4, 60), row("reap", 2, 1)]
    said = tabulate([*uniform, allocated("reap", 4, 90, [6, 2]), allocated("reap", 2, 1, [2, 2], 1)]).recommendation
    assert (
        said.startswith("No criterion holds") and "Measured only, and holding: keep 4 on average (50.0 % of the experts" in said
    )
    for told in (
        "reap, measured allocation with keep 4 on average: 6, 2 experts in the blocks, loss 0.2500 instead of 0.5000, +30.0",
        "(95 % interval +20.0 to +40.0, p < 0.001)", "with keep 2 on average: no other numbers per block are possible",
        "chosen by the loss on these very questions", "No reader.",
    ):  # fmt: skip
        assert told in said
    searched = tabulate([*uniform, allocated("reap", 4, 60, [4, 4])]).recommendation
    assert "no other numbers per block were found better, of 30" in searched
    alone = tabulate([*uniform, allocated("reap", 2, 1, [2, 2], 1)]).recommendation
    assert "very questions" not in alone and "measured allocation" not in tabulate(uniform).recommendation


def test_the_terminal_shows_bytes_where_some_cells_are_compressed(capsys: pytest.CaptureFixture[str]) -> None:
    show_sweep(tabulate(COMPRESSED))
    out = capsys.readouterr().out
    assert "bytes" in out and "MiB" in out and "layers" not in out.partition("\n\n")[0] and "…" not in out
    assert sum(line.startswith(("original", "reap", "energy", "low_rank", "2:4")) for line in out.splitlines()) == len(COMPRESSED)


def test_the_terminal_shows_every_shape_with_its_size(capsys: pytest.CaptureFixture[str]) -> None:
    show_sweep(tabulate(SHAPES))
    out = capsys.readouterr().out
    assert "parameters" in out and "active" in out and "…" not in out
    combined = next(line for line in out.splitlines() if line.startswith("reap + energy"))
    assert combined.split()[3:8] == ["4", "1,024", "3", "400", "200"]
    assert [line.split()[8] for line in out.splitlines() if line.startswith("reap + random")] == ["0", "1"]

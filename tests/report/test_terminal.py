"""Law: the table is readable as plain text, and says what report.json says."""

import json
from pathlib import Path

import pytest
from made_up_run import ROLES, evaluate_role, make_cuts, make_run, off_task_loss

from toolkit.pipeline.run_facts import read_run_facts
from toolkit.report import show


def test_one_row_per_model_in_plain_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = read_run_facts(make_run(tmp_path).path)
    show(report)
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    rows = {role: next(line for line in lines if line.startswith(role)).split() for role in ROLES}
    assert rows["original"] == ["original", "95.0", "%", "76.4–99.1", "%", "20", "4.00", "M", "16.0", "MiB"]
    assert rows["recovered"][-4:] == ["2.00", "M", "8.0", "MiB"]
    assert report.headline in lines and report.comparisons[0] in lines
    assert [line.removeprefix("warning: ") for line in lines if line.startswith("warning: ")] == list(report.warnings)


def test_a_table_of_large_models_fits_into_80_columns_uncut(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path)
    evaluate_role(run, "original", parameters=671_000_000_000, checkpoint_bytes=1400 * 2**30, n=10_000)
    show(read_run_facts(run.path))
    table = [line for line in capsys.readouterr().out.splitlines() if line.strip().startswith(("model", *ROLES))]
    assert max(map(len, table)) <= 80  # what rich takes where there is no terminal
    assert "…" not in "".join(table)
    assert table[1].split()[-4:] == ["671.00", "B", "1,400.0", "GiB"]


def test_a_model_that_was_not_evaluated_has_a_row_that_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    show(read_run_facts(tmp_path))
    out = capsys.readouterr().out
    assert out.count("not evaluated") == 3 and all(role in out for role in ROLES)


def test_brackets_in_a_name_are_not_markup(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    brackets = {"headline": "the [bold]task[/] of [/nobody]", "warnings": ["[red] is a file"]}
    report = read_run_facts(tmp_path).model_copy(update=brackets)
    show(report)
    out = capsys.readouterr().out
    assert "the [bold]task[/] of [/nobody]" in out and "warning: [red] is a file" in out


def test_other_ranks_are_quiet(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    show(read_run_facts(tmp_path))
    assert capsys.readouterr().out == ""


def test_sizes_after_each_cut_fit_into_80_columns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path)
    make_cuts(run)
    show(read_run_facts(run.path))
    lines = capsys.readouterr().out.splitlines()
    rows = [line for line in lines if line.strip().startswith(("fewer", "narrower"))]
    assert [row.split()[-1] + row.split()[-2] for row in rows] == ["%75.0", "%50.0", "%25.0"]
    assert rows[2].split()[1:5] == ["2", "2", "1", "4"] and max(map(len, rows)) <= 80 and "…" not in "".join(rows)


def test_what_an_answer_costs_and_what_was_lost_elsewhere_fit_into_80_columns(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path)
    for role in ROLES:
        evaluate_role(run, role, generated_tokens=20 * 1_234, truncated=20, seconds=99_999.0)
        (run.evaluation / f"{role}.off_task.json").write_text(json.dumps(off_task_loss(12.3456, 1.0)))
        run.finish(f"off_task/{role}", role, 1.0)
    show(read_run_facts(run.path))
    lines = [line for line in capsys.readouterr().out.splitlines() if "tokens/answer" in line or "1,234.0" in line]
    assert len(lines) == 4 and max(map(len, lines)) <= 80 and "…" not in "".join(lines)
    assert lines[1].split() == ["original", "1,234.0", "100.0", "%", "5,263", "s", "12.3456", "0.0000", "100.0", "%"]

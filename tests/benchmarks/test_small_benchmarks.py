"""The benchmarks that have no laws of their own run as the pages show them, with sizes that take seconds."""

import json
import re
import sys
from pathlib import Path

import pytest
import torch
from conftest import PLAYGROUND, ROOT
from safetensors.torch import load_file

from toolkit.moe import load_model

sys.path.insert(0, str(ROOT / "benchmarks"))
import drafts as drafts_benchmark
import fit
import fit_scores
import gold_answers
import search
import selection
import skipping as skipping_benchmark
import skipping_study

SMALL = [
    "--hidden", "32", "--width", "32", "--layers", "2", "--sequences", "4", "--length", "16", "--batch-size", "2",
    "--repeats", "1",
]  # fmt: skip


def test_watching_and_the_exact_search_choose_as_the_plain_way(capsys) -> None:
    selection.main(SMALL)  # which stops where two contestants choose differently
    out = capsys.readouterr().out
    observing = [f"{what} / bare forward" for what in ("observing", "observing with channels", "gradients of channels")]
    searching = [f"{what} / exact search" for what in ("published enumeration", "transformers' block for every subset")]
    assert re.findall(r"^(.+):$", out, re.MULTILINE) == [*observing, *searching]
    assert len(re.findall(r"^  (?:CPU-seconds|wall) +\d+\.\d\d \(\d+\.\d\d to \d+\.\d\d\); ", out, re.MULTILINE)) == 2 * 5
    selection.main(["search", "--published-only", "--keep", "6", *SMALL])
    assert "28 subsets" in (out := capsys.readouterr().out) and "transformers'" not in out and "bare forward" not in out


# The contestant is worth beating only if it is the published code: its own results are kept.
@pytest.mark.parametrize("case", ["case_a", "case_b"])
def test_the_published_enumeration_finds_what_the_published_code_found(case: str) -> None:
    folder = ROOT / "tests" / "reference" / "naee" / case
    expected = json.loads((folder / "expected.json").read_text())
    ids = load_file(folder / "calibration.safetensors")["input_ids"]
    batches = [{"input_ids": b, "attention_mask": torch.ones_like(b)} for b in ids.split(expected["batch_size"])]
    for keep in (6, 4, 2):
        layers = expected["layerwise"][str(keep)]["layers"].values()
        assert selection.as_published(load_model(str(folder / "model")), batches, keep) == [layer["kept"] for layer in layers]


@pytest.mark.parametrize("arguments", [["sarch"], ["--keep", "8"], ["--keep", "1"]])
def test_what_cannot_be_measured_is_refused(arguments: list[str], capsys) -> None:
    with pytest.raises(SystemExit):
        selection.main(arguments)
    assert arguments[-1] in capsys.readouterr().err


def test_the_search_is_compared_with_every_subset_and_with_the_scores(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(search, "trained_model", _hardly_trained)
    monkeypatch.setattr(search, "playground_batches", lambda seed=0, examples=16, *tasks: _PLAYGROUND(seed, 16, *tasks))
    monkeypatch.setattr(search, "large", lambda experts, *rest: _LARGE(experts // 4, 2, experts // 8, rest[-1]))
    search.main()
    out = capsys.readouterr().out
    assert len(re.findall(r"gap median \d+\.\d\d%", out)) == 9
    assert len(re.findall(r"loss reconstruction .*random", out)) == 2


_LARGE, _PLAYGROUND, _TRAINED = search.large, search.playground_batches, search.trained_model


def _hardly_trained(seed: int, experts: int):
    return _TRAINED(seed, experts, steps=2)


def test_drafting_is_measured_for_the_original_and_the_pruned_model(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    small = ["--hidden", "32", "--width", "32", "--layers", "2", "--repeats", "1"]
    monkeypatch.setattr(sys, "argv", ["drafts.py", *small])
    drafts_benchmark.main()
    out = capsys.readouterr().out
    assert len(re.findall(r"verifying \d drafted: \d+\.\d\d", out)) == 2 * 8
    assert re.findall(r"drafting by (\w+): \d+\.\d\d .* (?:pays from|never pays)", out) == 2 * [
        "k1",
        "blocks",
        "layers",
        "lookup",
    ]


def test_the_least_acceptance_that_pays_is_where_drafting_breaks_even() -> None:
    share = drafts_benchmark.least_acceptance(3, 1.2, 0.1)
    assert share and (1 - share**4) / (1 - share) == pytest.approx(1.2 + 3 * 0.1)
    assert drafts_benchmark.least_acceptance(3, 2, 0.8) is None and drafts_benchmark.least_acceptance(3, 1, 0) == pytest.approx(0)


def test_skipping_is_measured_in_operations_and_in_time(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    small = "--hidden 32 --width 32 --layers 1 --length 8 --steps 2 --repeats 1 --prompts 2 8 --batches 1"
    monkeypatch.setattr(sys, "argv", ["skipping.py", *small.split()])
    assert skipping_benchmark.main() == 0
    out = capsys.readouterr().out
    saved = re.search(r"GFLOP: (0\.\d+); (\d+\.\d+)% of the experts skipped", out)
    assert saved and float(saved[1]) == pytest.approx(1 - float(saved[2]) / 100, abs=2e-4)
    assert "prefill, 2 prompts" in out and "prefill, 8 prompts" in out and "decode, batch 1" in out


def test_a_checkpoint_is_asked_with_every_rule(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    recipe = (ROOT / "recipes" / "playground.yaml").read_text().replace("examples: 512", "examples: 16")
    (tmp_path / "r.yaml").write_text(recipe)
    monkeypatch.setattr(
        sys, "argv", ["skipping_study.py", str(tmp_path / "r.yaml"), str(PLAYGROUND / "model"), "--examples", "8"]
    )
    skipping_study.main()
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")][1:]
    assert [row.split(" | ")[1] for row in rows] == ["no", "median", "0.25", "0.75"]


def test_searches_are_compared_on_measured_shapes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """Shapes that are measured already are not measured again, and a finished table is not opened."""
    for folder in ("recipes", "data"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    for split in ("train", "test"):  # the task itself has thousands of examples, all of which a run looks at
        lines = (PLAYGROUND / "sorting" / f"{split}.jsonl").read_text().splitlines(keepends=True)
        (tmp_path / f"{split}.jsonl").write_text("".join(lines[:40]))
    task = "{train: train.jsonl, test: test.jsonl, prompt: '{question}', completion: '{answer}', scorer: exact}"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(fit, "DRAWS", 2)
    monkeypatch.setattr(fit, "PARTS", (4,))
    monkeypatch.setattr(fit_scores, "PARTS", (4,))
    small = ["calibration.examples=4", "pruning.fit.examples=2", "evaluation.max_new_tokens=2", "pruning.width_multiple=128",
             f"task={task}"]  # fmt: skip
    document, file = tmp_path / "study.md", tmp_path / "scores.json"
    arguments = ["fit.py", *small, "--tasks", "sorting", "--seeds", "0", "--file", str(file), "--document", str(document)]
    monkeypatch.setattr(sys, "argv", arguments)
    assert fit.main() == 0
    table = fit_scores.ScoreTables.load(file).tables["sorting-seed0"]
    rows = [line for line in document.read_text().splitlines() if line.startswith("| ")]
    assert [row.split(" | ")[0][2:] for row in rows[2:]] == list(fit.SEARCHES)
    assert all(record.measured and record.measured.n == 2 for record in table.shapes)
    for limit in table.limits:
        within = [record.shape for record in table.shapes if record.bytes <= limit.bytes]
        assert {record.shape for record in limit.candidates} <= set(within)
        assert limit.bytes <= table.original_bytes / limit.part
    exhaustive = rows[2].split(" | ")
    assert exhaustive[2:5] == ["0.0000", "0.0", "0.0"]
    assert capsys.readouterr().out.count("measured already") == 0
    whole_way = fit_scores.run_context
    monkeypatch.setattr(fit_scores, "run_context", None)
    assert fit.main() == 0
    file.unlink()
    monkeypatch.setattr(fit_scores, "run_context", whole_way)
    assert fit.main() == 0
    assert "have been measured already" in capsys.readouterr().out
    assert fit_scores.ScoreTables.load(file).tables["sorting-seed0"].shapes == table.shapes


def test_gold_answers_are_found_right_and_others_wrong(tmp_path: Path, capsys) -> None:
    samples = ROOT / "tests" / "samples"
    for name in ("gsm8k", "svamp", "math"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "test.jsonl").write_text((samples / f"{name}_test.jsonl").read_text())
    gold_answers.main(tmp_path)
    found = dict(re.findall(r"^(gsm8k|svamp|math) .* (\d+\.\d%)$", capsys.readouterr().out, re.MULTILINE))
    assert found == dict.fromkeys(("gsm8k", "svamp", "math"), "100.0%")


def test_every_benchmark_that_a_page_shows_is_run_by_a_test() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "recipes").glob("*.md")]
    shown = {name for page in pages for name in re.findall(r"python benchmarks/(\w+)\.py", page.read_text())}
    tests = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    assert (
        shown
        and {name for name in shown if not re.search(rf"^\s*import {name}\b|from {name} import", tests, re.MULTILINE)} == set()
    )

"""`pollard generate` and `pollard benchmark`, as they are called."""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import PLAYGROUND
from small_run import small_folder, small_recipe

from toolkit.cli import exit_status
from toolkit.cli import main as cli
from toolkit.cli.verbs.benchmark import FIGURES
from toolkit.cli.verbs.verb import check_figures_file
from toolkit.pipeline.runner import run
from toolkit.runtime import distributed

Pollard = Callable[..., tuple[int, str]]
MODEL = str(PLAYGROUND / "model")
QUICKLY = ["--batch-sizes", "1,2", "--prompt-tokens", "8", "--new-tokens", "3", "--repeats", "2"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A run that has pruned, and evaluated."""
    with small_folder(tmp_path_factory, "looking") as folder:
        run(small_recipe())
        distributed.stop()  # a verb begins, and ends, a process group of its own
        yield folder


@pytest.fixture
def pollard(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Pollard:
    def call(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["pollard", *arguments])
        capsys.readouterr()
        return cli.main(), capsys.readouterr().out

    monkeypatch.setattr(exit_status, "quiet_libraries", lambda: None)
    return call


def test_a_checkpoint_writes(pollard: Pollard) -> None:
    status, out = pollard("generate", MODEL, "Reverse: a b c", "--max-new-tokens", "9")
    text, told = out.strip().splitlines()[0], out.strip().splitlines()[-1]
    assert status == 0 and text and " tokens, " in told and "per second" in told


def test_the_last_model_of_a_run_writes_unless_another_is_named(folder: Path, pollard: Pollard) -> None:
    assert "pruned: 3 tokens" in pollard("generate", "runs/small", "Why?", "--max-new-tokens", "3")[1]
    assert "original: 3 tokens" in pollard("generate", "runs/small", "Why?", "--max-new-tokens", "3", "--by", "original")[1]
    status, out = pollard("generate", "runs/small", "Why?", "--by", "recovered")
    assert status == 1 and "runs/small has no recovered model. There are: original, pruned." in out


def test_drafting_says_how_fast_it_really_is(folder: Path, pollard: Pollard) -> None:
    status, out = pollard("generate", "runs/small", "Why?", "--draft", "--max-new-tokens", "6")
    assert status == 0
    for said in (
        "original: ",
        "original, drafted by pruned: ",
        " times the speed (",
        " drafted tokens accepted (",
        "of 6 written",
    ):
        assert said in out
    assert "writes something else" not in out
    alone = pollard("generate", "runs/small", "Why?", "--by", "original", "--max-new-tokens", "6")[1]
    assert out.splitlines()[0] == alone.splitlines()[0]


def test_drafting_needs_a_second_model(pollard: Pollard) -> None:
    status, out = pollard("generate", MODEL, "Why?", "--draft")
    assert status == 1 and "--draft needs a second, smaller model" in out


@pytest.mark.parametrize("kind", ["plan", "k1", "lookup", "model"])
def test_whatever_drafts_the_writers_own_words_are_written(folder: Path, pollard: Pollard, kind: str) -> None:
    alone = pollard("generate", "runs/small", "Why?", "--by", "original", "--max-new-tokens", "6")[1]
    status, out = pollard("generate", "runs/small", "Why?", "--draft", kind, "--draft-tokens", "2", "--max-new-tokens", "6")
    drafted_by = "pruned" if kind == "model" else kind
    assert status == 0 and f"original, drafted by {drafted_by}: " in out and "writes something else" not in out
    assert out.splitlines()[0] == alone.splitlines()[0]


def test_the_pruned_model_drafts_for_itself(folder: Path, pollard: Pollard) -> None:
    status, out = pollard("generate", "runs/small", "Why?", "--draft", "k1", "--by", "pruned", "--max-new-tokens", "3")
    assert status == 0 and "pruned, drafted by k1: " in out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([MODEL, "Why?", "--draft", "plan"], "No run at"),
        (["runs/small", "Why?", "--draft", "plan", "--by", "pruned"], "the plan is of the original's experts"),
        (["runs/small", "Why?", "--draft-tokens", "4"], "only with --draft"),
        (["runs/small", "Why?", "--draft", "k1", "--draft-tokens", "0"], "from 1 on"),
    ],
)
def test_what_cannot_draft_says_so(folder: Path, pollard: Pollard, arguments: list[str], said: str) -> None:
    status, out = pollard("generate", *arguments)
    assert status == 1 and said in out


def test_drafts_are_a_table_commands_and_a_file(folder: Path, pollard: Pollard) -> None:
    # An evaluation of four tokens leaves one pass to save at most
    status, out = pollard("drafts", "runs/small", "--questions", "2", "--save", "drafts.json")
    found = json.loads(Path("drafts.json").read_text())
    assert status == 0 and "Target: original" in out and "--speculative-config" in out and "\x1b" not in out
    assert {"k1", "plan", "pruned", "lookup"} <= {draft["kind"] for draft in found["drafts"]}
    assert {line["server"] for line in found["servers"]} == {"vLLM", "llama.cpp", "no server"}
    check_figures_file(Path("drafts.json"), {"drafts", "verifying"}, "drafts")
    status, out = pollard("drafts", "runs/small", "--for", "recovered")
    assert status == 1 and "runs/small has no recovered model" in out
    assert "at least 1" in pollard("drafts", "runs/small", "--questions", "0")[1]
    assert "holds no figures of drafts" in pollard("drafts", "runs/small", "--save", "original/config.json")[1]


def test_a_benchmark_of_a_run_is_a_table_a_file_and_a_part_of_its_report(folder: Path, pollard: Pollard) -> None:
    status, out = pollard("benchmark", "runs/small", *QUICKLY, "--save", "figures.json")
    assert status == 0 and "\x1b" not in out and "ratios are to original" in out
    found = json.loads(Path("figures.json").read_text())
    check_figures_file(Path("figures.json"), FIGURES, "a benchmark")  # its own may be written again
    assert [model["name"] for model in found["models"]] == ["original", "pruned"]
    assert [batch["batch_size"] for batch in found["models"][1]["batches"]] == [1, 2]
    assert found.items() <= in_report().items()
    assert "ratios are to original, turn by turn" in Path("runs/small/report.html").read_text()
    for keep, there in ((3, False), (4, True)):  # figures are those of the models that were measured
        distributed.start()
        run(small_recipe(pruning__keep=keep))
        distributed.stop()
        assert bool(in_report()) == there


@pytest.mark.parametrize("content", ["my notes", '{"format": 1}', "[1]", ""])
def test_figures_overwrite_figures_and_nothing_else(pollard: Pollard, tmp_path: Path, content: str) -> None:
    (tmp_path / "mine.json").write_text(content)
    status, out = pollard("benchmark", MODEL, *QUICKLY, "--save", str(tmp_path / "mine.json"))
    assert status == 1 and "holds no figures of a benchmark. It is left as it is" in out
    assert (tmp_path / "mine.json").read_text() == content
    status, out = pollard("benchmark", MODEL, *QUICKLY, "--save", str(tmp_path / "none" / "figures.json"))
    assert status == 1 and "there is no folder" in out


def in_report() -> dict:
    return json.loads(Path("runs/small/report.json").read_text())["speed"]


def test_a_shape_is_measured_without_weights(folder: Path, pollard: Pollard) -> None:
    (folder / "shape").mkdir()
    (folder / "shape" / "config.json").write_text((folder / "original" / "config.json").read_text())
    status, out = pollard("benchmark", "shape", "--keep", "4,2", "--width", "8", "--layers", "1", *QUICKLY)
    assert status == 0 and "Random weights" in out
    assert all(name in out for name in ("keep 4", "keep 2", "width 8", "layers 1"))
    for option, said in (("--layers", "the model has 2 decoder layers"), ("--width", "give 1…16")):
        status, out = pollard("benchmark", "shape", option, "99", *QUICKLY)
        assert status == 1 and said in out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere"], "Cannot open the model nowhere"),
        ([MODEL, "--new-tokens", "1"], "--new-tokens must be at least 2"),
        ([MODEL, "--keep", "4"], "--keep makes random models of a shape"),
    ],
)
def test_what_cannot_be_measured_is_told(pollard: Pollard, arguments: list[str], said: str) -> None:
    status, out = pollard("benchmark", *arguments)
    assert status == 1 and said in out

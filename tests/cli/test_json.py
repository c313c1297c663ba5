"""`--json`: every verb either prints its facts as JSON, and nothing else on stdout, or is one of those that have none."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from conftest import PLAYGROUND, ROOT, tiny_model
from small_run import make_small, small_recipe, small_values

from toolkit.cli import exit_status
from toolkit.cli import main as cli
from toolkit.cli.verbs import VERBS
from toolkit.cli.verbs.verb import plain
from toolkit.pipeline.runner import run
from toolkit.recipe.file import dump_values
from toolkit.runtime import distributed

WITHOUT_FACTS = {"chat": "a conversation", "completion": "a shell's script"}
MODEL = str(PLAYGROUND / "model")
QUICKLY = ["--batch-sizes", "1", "--prompt-tokens", "8", "--new-tokens", "3", "--repeats", "2"]
ARGUMENTS = {  # of each verb, and keys that its facts have
    "run": (["recipe.yaml"], {"models", "pairs", "stages"}),
    "fit": (["fit.yaml"], {"fit", "stages"}),
    **{verb: (["recipe.yaml"], {"models", "stages"}) for verb in ("calibrate", "select", "prune", "evaluate", "report")},
    "recover": (
        ["recipe.yaml", "name=trained", "evaluation.models=[recovered]", "finetuning.trainer.max_steps=1"],
        {"models", "stages"},
    ),
    "refit": (["recipe.yaml", "name=refit", "pruning.refit=true", "calibration.examples=48"], {"models", "stages"}),
    "runs": ([], {"run", "state", "bytes"}),
    "sweep": (["recipe.yaml", "pruning.keep=4,2"], {"recommendation"}),
    "compare": (["runs/small/pruned", "runs/small/original"], {"first", "second", "verdict"}),
    "generate": ([MODEL, "Why?", "--max-new-tokens", "3"], {"text", "tokens_per_second"}),
    "drafts": (["runs/small", "--questions", "2"], {"drafts", "servers"}),
    "benchmark": ([MODEL, *QUICKLY], {"models", "batch_sizes"}),
    "estimate": (["recipe.yaml", "--gpus", "2", "--gpu", "h100"], {"stages", "fits", "seconds"}),
    "inspect": ([MODEL], {"experts", "parameters", "cuts"}),
    "preview": (["recipe.yaml"], {"examples", "lengths"}),
    "init": (["train.jsonl", "--model", MODEL, "--name", "mine"], {"recipe", "task", "preview"}),
    "upcycle": (["dense", "experts", "--width", "8"], {"target", "model"}),
    "criteria": ([], {"criterion", "width_criterion"}),
    "tasks": ([], {"gsm8k"}),
    "recipes": ([], {"recipes/playground.yaml"}),
}
UNREACHABLE = {
    "push": "needs the hub; what it returns is its address (tests/pipeline/test_push.py)",
    "export": "needs a reader's environment; what it returns is in tests/pipeline/test_export.py",
}


class Answer(NamedTuple):
    status: int
    out: str
    err: str


Pollard = Callable[..., Answer]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A recipe, a finished run of it, and a dense model."""
    folder = tmp_path_factory.mktemp("json")
    make_small(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        (folder / "recipe.yaml").write_text(dump_values(small_values()))
        limits = {"bytes": "0.3M", "measured": 2, "examples": 6}
        fit = small_values(name="fit", pruning={"width_multiple": 4, "fit": limits})
        (folder / "fit.yaml").write_text(dump_values(fit))
        tiny_model("llama").save_pretrained(folder / "dense")
        distributed.start()
        run(small_recipe())
        distributed.stop()  # a verb begins, and ends, a process group of its own
        yield folder


@pytest.fixture
def pollard(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Answer]:
    """The command in this process; what is captured is what the file descriptors get, whoever writes it."""

    def call(*arguments: str) -> Answer:
        monkeypatch.setattr(sys, "argv", ["pollard", *arguments])
        capfd.readouterr()
        try:
            status = cli.main()
        except SystemExit as stop:
            status = int(stop.code or 0)
        return Answer(status, *capfd.readouterr())

    monkeypatch.setattr(exit_status, "quiet_libraries", lambda: None)  # it changes the whole process, which other tests share
    return call


@pytest.mark.parametrize("verb", [verb.name for verb in VERBS])
def test_a_verb_prints_json_and_nothing_else_or_has_no_facts(verb: str, folder: Path, pollard: Pollard) -> None:
    if verb in WITHOUT_FACTS:
        answer = pollard(verb, "--json")
        assert answer.status == 2 and not answer.out
        return
    if verb in UNREACHABLE:
        pytest.skip(UNREACHABLE[verb])
    arguments, keys = ARGUMENTS[verb]
    answer = pollard(verb, *arguments, "--json")
    assert answer.status == 0, answer.err
    facts = json.loads(answer.out, parse_constant=lambda number: pytest.fail(f"{number} is no JSON"))
    assert keys <= (facts[0] if isinstance(facts, list) else facts).keys()


def test_the_lists_name_every_verb_once() -> None:
    listed = [*WITHOUT_FACTS, *UNREACHABLE, *ARGUMENTS]
    assert sorted(listed) == sorted(verb.name for verb in VERBS)
    assert {verb.name for verb in VERBS if not verb.has_facts} == set(WITHOUT_FACTS)


def test_a_mistake_leaves_stdout_empty_and_the_status_as_it_is(folder: Path, pollard: Pollard) -> None:
    answer = pollard("run", "recipe.yaml", "pruning.keep=99", "--json")
    assert (answer.status, answer.out) == (1, "") and "error" in answer.err
    answer = pollard("recipes", "--schema", "--json")
    assert (answer.status, answer.out) == (1, "") and "--schema" in answer.err


def test_the_command_on_every_rank_prints_it_too(folder: Path) -> None:
    """The entry of launchers, and only rank 0 of them."""
    command = [sys.executable, str(ROOT / "toolkit" / "train.py"), "recipe.yaml", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["name"] == "small" and "done already" in done.stderr


class Size(NamedTuple):
    parameters: int


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        (float("nan"), None),
        ({1: (float("inf"), 2.5)}, {"1": [None, 2.5]}),
        (Size(3), {"parameters": 3}),
        ([Path("a/b"), True, None], ["a/b", True, None]),
    ],
)
def test_facts_become_what_json_has(facts: Any, expected: Any) -> None:
    assert plain(facts) == expected
    json.dumps(plain(facts), allow_nan=False)

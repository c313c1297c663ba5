"""What a new user does wrong: each is one screen that names the mistake, the place and the remedy, and no traceback.

MISTAKES is the table; the folder holds a tiny model `original`, `train.jsonl`, `test.jsonl` and `mine.yaml` (RECIPE).
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from conftest import ROOT
from small_run import make_small
from transformers import LlamaConfig

from toolkit.cli import exit_status
from toolkit.cli import main as cli
from toolkit.pipeline.run_directory import RunDirectory

SCREEN = 24  # lines
RECIPE = """\
name: mine
model: original
task:
  train: train.jsonl
  test: test.jsonl
  prompt: "{question}"
  completion: "{answer}"
calibration:
  examples: 8
pruning:
  criterion: reap
  keep: 4
finetuning:
  zero: 0
  trainer:
    max_steps: 2
evaluation:
  models: [original, pruned]
"""


def nothing(folder: Path) -> None:
    """The mistake is on the command line."""


def written(before: str, after: str) -> Callable[[Path], None]:
    """The mistake is in the recipe."""

    def write(folder: Path) -> None:
        assert before in RECIPE
        (folder / "mine.yaml").write_text(RECIPE.replace(before, after))

    return write


def data(name: str, text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text(text) and None


def dense_model(folder: Path) -> None:
    sizes = {"vocab_size": 768, "hidden_size": 32, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaConfig(**sizes).save_pretrained(folder / "dense")


HELD: list[RunDirectory] = []  # while they are referred to


def run_at_work(folder: Path) -> None:
    HELD.append(RunDirectory("mine", folder / "runs"))
    HELD[-1].lock()


def another_run(folder: Path) -> None:
    directory = RunDirectory("mine", folder / "runs")
    directory.path.mkdir(parents=True)
    directory.open("another", "custom", "", [])


def somebodys_folder(folder: Path) -> None:
    (folder / "runs" / "mine").mkdir(parents=True)
    for name in ("recipe.yaml", "thesis.tex"):
        (folder / "runs" / "mine" / name).write_text("years of work")


class Mistake(NamedTuple):
    what: str
    made: Callable[[Path], None]
    command: str
    place: str
    remedy: str
    status: int = 1


MISTAKES = [
    Mistake(
        "a typo in a key",
        written("keep: 4", "kep: 4"),
        "run mine.yaml",
        "mine.yaml, line 12: `pruning.kep`",
        "Did you mean `keep`?",
    ),
    Mistake(
        "a typo in an override",
        nothing,
        "run mine.yaml prunning.keep=2",
        "command line (prunning.keep=2)",
        "Did you mean `pruning`?",
    ),
    Mistake(
        "an unknown criterion",
        written("reap", "raep"),
        "run mine.yaml",
        "mine.yaml, line 11: `pruning.criterion`",
        "Did you mean `reap`?",
    ),
    Mistake(
        "a word for a number",
        written("keep: 4", "keep: half"),
        "run mine.yaml",
        "line 12: `pruning.keep`",
        "a number of experts (4) or a fraction",
    ),
    Mistake(
        "a key that must be there",
        written("model: original\n", ""),
        "run mine.yaml",
        "mine.yaml: `model` is missing",
        "e.g. `model: mistralai/",
    ),
    Mistake("a tab in YAML", written("  keep: 4", "\tkeep: 4"), "run mine.yaml", "line 12, column 1", "replace the tab"),
    Mistake("a recipe that is not there", nothing, "run min.yaml", "No recipe at min.yaml", "mine.yaml"),
    Mistake("no recipe at all", nothing, "run", "pollard run", "arguments are required: recipe", 2),
    Mistake("no such verb", nothing, "prun mine.yaml", "prun", "choose from", 2),
    Mistake("an option that is none", nothing, "run mine.yaml --frsh", "--frsh", "usage: pollard", 2),
    Mistake("an override without a value", nothing, "run mine.yaml pruning.keep", "`pruning.keep`", "write key.path=value"),
    Mistake(
        "a data file that is not there",
        written("train.jsonl", "trian.jsonl"),
        "run mine.yaml",
        "Cannot read trian.jsonl",
        "relative to where you start",
    ),
    Mistake(
        "a broken line",
        data("train.jsonl", '{"question": "a", "answer": "b"}\n{"question": "a", '),
        "run mine.yaml",
        "train.jsonl, line 2",
        "one JSON object",
    ),
    Mistake("an empty file", data("test.jsonl", "\n"), "run mine.yaml", "test.jsonl is empty", "needs test examples"),
    Mistake(
        "a column that is none",
        written("{question}", "{problem}"),
        "run mine.yaml",
        "train.jsonl, line 1: no field `problem`",
        "Fields there: question, answer",
    ),
    Mistake("as many experts as there are", nothing, "run mine.yaml pruning.keep=9", "pruning.keep is 9", "8 experts"),
    Mistake("a dense model", dense_model, "run mine.yaml model=dense", "llama", "no MoE block"),
    Mistake(
        "a model that is not there", nothing, "run mine.yaml model=orignal", "Cannot open the model orignal", "check the name"
    ),
    Mistake(
        "a learning rate in words",
        nothing,
        "run mine.yaml evaluation.models=[recovered] finetuning.trainer.learning_rate=fast",
        "finetuning.trainer.learning_rate",
        "number",
    ),
    Mistake(
        "a trainer's key that is none",
        nothing,
        "run mine.yaml evaluation.models=[recovered] finetuning.trainer.learning_rat=1",
        "finetuning.trainer.learning_rat ",
        "Did you mean `learning_rate`?",
    ),
    Mistake("a ZeRO stage that is none", nothing, "run mine.yaml finetuning.zero=4", "finetuning.zero", "0, 1, 2, 3, 3-offload"),
    Mistake(
        "adapters of a method without any", nothing, "run mine.yaml finetuning.lora.rank=8", "`finetuning`", "say method: lora"
    ),
    Mistake(
        "bfloat16 without a GPU", nothing, "run mine.yaml model.dtype=bfloat16", "model.dtype is bfloat16", "model.dtype=float32"
    ),
    Mistake("two runs at once", run_at_work, "run mine.yaml", "runs/mine", "name=…"),
    Mistake(
        "a name whose folder holds something else",
        somebodys_folder,
        "run mine.yaml",
        "runs/mine has no manifest.json, so it is no run directory, and holds recipe.yaml, thesis.tex",
        "name=mine-2",
    ),
    Mistake(
        "another model in the same run directory",
        another_run,
        "run mine.yaml",
        "runs/mine holds a run with model another",
        "name=mine-2",
    ),
    Mistake("a chat with a run that is none", nothing, "chat mine", "No run at mine", "pollard run"),
]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mistakes")
    make_small(folder)
    (folder / "mine.yaml").write_text(RECIPE)
    return folder


@pytest.mark.parametrize("mistake", MISTAKES, ids=[mistake.what for mistake in MISTAKES])
def test_a_mistake_is_one_screen(mistake: Mistake, prepared: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    folder = tmp_path / "here"
    shutil.copytree(prepared, folder)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(exit_status, "quiet_libraries", lambda: None)
    monkeypatch.setattr(sys, "argv", ["pollard", *mistake.command.split()])
    mistake.made(folder)
    try:
        status = cli.main()
    except SystemExit as stop:
        status = int(stop.code or 0)
    out, err = capsys.readouterr()
    told = out + err
    HELD.clear()
    assert status == mistake.status, told
    assert mistake.place in told and mistake.remedy in told, told
    assert "Traceback" not in told and len(told.splitlines()) <= SCREEN, told
    assert "calibrate  " not in told  # nothing had begun


# For whoever looks for the place in the code.
def test_debug_shows_the_traceback_of_a_mistake(prepared: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(prepared)
    monkeypatch.setattr(exit_status, "quiet_libraries", lambda: None)
    for arguments in (["--debug", "run", "none.yaml"], ["run", "none.yaml", "--debug"]):
        monkeypatch.setattr(sys, "argv", ["pollard", *arguments])
        assert cli.main() == 1
        out, err = capsys.readouterr()
        assert err.startswith("Traceback") and "in load_recipe" in err and out.startswith("error No recipe at none.yaml")


@pytest.mark.parametrize(
    "entry", [["-m", "toolkit.cli", "run"], [str(ROOT / "toolkit" / "train.py")]], ids=["pollard", "train.py"]
)
@pytest.mark.parametrize("mistake", MISTAKES[:2], ids=[mistake.what for mistake in MISTAKES[:2]])
def test_the_real_command_tells_it_alike(entry: list[str], mistake: Mistake, prepared: Path, tmp_path: Path) -> None:
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    mistake.made(tmp_path)
    command = [sys.executable, *entry, *mistake.command.split()[1:]]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == mistake.status
    assert mistake.place in done.stdout and mistake.remedy in done.stdout and done.stderr == ""


# A law instead of a time: what takes seconds to import is not imported for help, or to tell a mistake in a recipe.
@pytest.mark.parametrize(
    "command",
    ["toolkit.cli.main --help", "toolkit.cli.main run --help", "toolkit.cli.main run none.yaml",
     "toolkit.cli.main estimate none.yaml", "toolkit.cli.main sweep mine.yaml pruning.kep=4,2",
     "toolkit.cli.main completion bash", "toolkit.cli.main chat none",
     "toolkit.train --help", "toolkit.train mine.yaml pruning.kep=2"],
)  # fmt: skip
def test_help_and_mistakes_of_a_recipe_are_told_in_an_instant(command: str, prepared: Path) -> None:
    module, *arguments = command.split()
    script = f"""
import sys
from {module} import main
sys.argv = ["pollard", *{arguments!r}]
try:
    main()
except SystemExit:
    pass
print("IMPORTED", [name for name in ("torch", "transformers", "trl", "deepspeed", "datasets", "numpy") if name in sys.modules])
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=prepared, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "IMPORTED []"

"""Law: a new stage is one file and one line. A copy of the package gets one, and everything that loops over stages has it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from small_run import make_small, small_recipe

from toolkit.recipe.file import dump_recipe

FILE = '''"""The plan -> longest.json: how long the longest question is."""

import json
from dataclasses import dataclass

from toolkit.estimate import StageEstimate
from toolkit.pipeline.stage import Facts, Shown, Stage
from toolkit.runtime.distributed import on_main
from toolkit.runtime.files import fingerprint_of, write_text


@dataclass(frozen=True)
class LengthFacts(Facts):
    longest: int


class Lengths(Stage):
    kind = "lengths"
    needs = ("select",)
    output = "longest.json"
    last_screen = Shown(6, "how long questions are")

    def purpose(self) -> str:
        return "measure the longest question"

    def fingerprint(self) -> str:
        return fingerprint_of(self.context.data.task_fingerprint(self.context.recipe.task, "test"))

    def run(self) -> LengthFacts:
        longest = max(len(example.messages[-1]["content"]) for example in self.context.task.examples("test"))
        on_main(lambda: write_text(self.context.directory.path / self.output, json.dumps(longest)))
        return LengthFacts(longest)

    def outlook(self) -> str:
        return "every question, once"

    def estimate(self, on) -> StageEstimate:
        return StageEstimate(self.name, "every question, once", seconds=0.0)
'''


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A copy of the toolkit with the new stage, in a folder with a small model, its data and a recipe."""
    shutil.copytree(ROOT / "toolkit", tmp_path / "toolkit", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "toolkit/pipeline/stages/lengths.py").write_text(FILE)
    listed = (tmp_path / "toolkit/pipeline/stage_list.py").read_text()
    listed = listed.replace("    Slot(Report),", "    Slot(Lengths),\n    Slot(Report),")
    imported = "from toolkit.pipeline.stages.harness import Harness\n"
    listed = listed.replace(imported, imported + "from toolkit.pipeline.stages.lengths import Lengths\n")
    (tmp_path / "toolkit/pipeline/stage_list.py").write_text(listed)
    make_small(tmp_path)
    (tmp_path / "small.yaml").write_text(dump_recipe(small_recipe(evaluation__models=["original"])))
    return tmp_path


def pollard(folder: Path, *arguments: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    command = [sys.executable, "-m", "toolkit.cli", *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_it_is_run_shown_estimated_and_skipped_when_it_is_done(package: Path) -> None:
    out = pollard(package, "run", "small.yaml")
    assert "  lengths             every question, once" in out  # the first screen
    assert "measure the longest question (not done yet)" in out
    assert "runs/small/longest.json" in out.split("Done in")[1] and "how long questions are" in out.split("Done in")[1]
    manifest = json.loads((package / "runs/small/manifest.json").read_text())
    entry = manifest["stages"]["lengths"]
    assert entry["longest"] == json.loads((package / "runs/small/longest.json").read_text()) > 20
    assert list(entry["made_from"]) == ["select"] and manifest["planned"][-2:] == ["lengths", "report"]
    assert "lengths              done already, skipped" in pollard(package, "run", "small.yaml")
    assert "lengths" in pollard(package, "estimate", "small.yaml")

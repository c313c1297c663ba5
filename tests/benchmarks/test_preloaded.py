"""benchmarks/preloaded.py: a run that is forked is the run."""

import os
import sys
from pathlib import Path

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
import preloaded

SCRIPT = """
import os, sys, torch
print(sys.argv[1:], os.getcwd(), os.environ["ASKED"], torch.get_num_threads(), "trl" in sys.modules)
sys.exit(len(sys.argv) - 2)
"""


def test_a_forked_run_has_its_own_folder_environment_arguments_and_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script, log = tmp_path / "script.py", tmp_path / "run.log"
    script.write_text(SCRIPT)
    for asked in ("one", "two"):  # the second one comes from the same server
        folder = tmp_path / asked
        folder.mkdir()
        monkeypatch.chdir(folder)
        environment = os.environ | {"ASKED": asked, "OMP_NUM_THREADS": "1"}
        assert preloaded.run([str(script), asked], environment, log)
        assert not preloaded.run([str(script), asked, "fails"], environment, log)
    lines = log.read_text().splitlines()
    assert [line.split()[0] for line in lines] == ["['one']", "['one',", "['two']", "['two',"]
    assert f"['two'] {tmp_path / 'two'} two 1 True" in lines


def test_a_verb_runs_as_a_module(tmp_path: Path) -> None:
    log = tmp_path / "run.log"
    assert preloaded.run(["--module", "toolkit.cli", "criteria"], os.environ | {"OMP_NUM_THREADS": "1"}, log)
    assert "reap" in log.read_text()

"""`pollard export` around the reader's program: what is refused, what a failure leaves, what is not made twice.

A program stands in for the reader's here; tests/readers has the readers themselves.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT, raises
from small_disk import files_of_at_most
from small_run import small_folder, small_recipe

from toolkit.pipeline.export import export
from toolkit.pipeline.export.environments import UNFINISHED, ReaderEnvironment
from toolkit.pipeline.export.formats import Format
from toolkit.pipeline.export.reader_process import reason_in
from toolkit.pipeline.runner import run

WRITES = "import sys; open(sys.argv[sys.argv.index('--outfile') + 1], 'wb').write(bytes(300_000))"
REFUSES = "raise NotImplementedError('Model TinyForCausalLM is not supported')"
WAITS = "import sys, time; open(sys.argv[3], 'wb').write(b'half'); print('here', flush=True); time.sleep(600)"
FORMAT = Format("gguf-f32", "f32", ReaderEnvironment("stand-in", ("nothing==1",), ("json",), source="nothing==1"))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with small_folder(tmp_path_factory, "exports") as folder:
        run(small_recipe(evaluation__models=["pruned"]), until="prune")
        yield folder


@pytest.fixture
def python(small: Path, tmp_path: Path) -> Path:
    """Of an environment whose converter is a program of a line."""
    python = tmp_path / "environment" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    (tmp_path / "environment" / "llama.cpp").mkdir()
    write_converter(python, WRITES)
    return python


def write_converter(python: Path, program: str) -> None:
    (python.parents[1] / "llama.cpp" / "convert_hf_to_gguf.py").write_text(program)


@pytest.fixture(autouse=True)
def no_exports(small: Path) -> Iterator[None]:
    yield
    subprocess.run(["rm", "-rf", small / "runs" / "small" / "exports"], check=True)


EXPORTS = Path("runs/small/exports")


def exported(python: Path, **options: bool) -> object:
    return export("runs/small", FORMAT, "pruned", str(python), evaluate=False, **options)


def test_an_export_is_whole_and_is_not_made_twice(python: Path) -> None:
    facts = exported(python)
    assert facts.bytes == 300_000 and facts.model == "pruned" and facts.scores is None
    assert sorted(path.name for path in (EXPORTS / "gguf-f32").iterdir()) == ["export.json", "model.gguf", "pollard.json"]
    assert [path.name for path in EXPORTS.iterdir()] == ["gguf-f32"]
    write_converter(python, REFUSES)
    assert exported(python) == facts


def test_what_somebody_else_put_there_stays(python: Path) -> None:
    exported(python)
    (EXPORTS / "gguf-f32" / "notes.txt").write_text("mine")
    with raises("folders.foreign", "notes.txt"):
        exported(python, overwrite=True)
    assert (EXPORTS / "gguf-f32" / "notes.txt").read_text() == "mine"


def test_an_export_of_another_making_is_replaced_only_when_asked(python: Path) -> None:
    exported(python)
    facts = EXPORTS / "gguf-f32" / "export.json"
    other = Format("gguf-f32", "f32", ReaderEnvironment("stand-in", ("nothing==2",), ("json",), source="nothing==1"))
    before = facts.read_text()
    with raises("folders.exists", "gguf-f32"):
        export("runs/small", other, "pruned", str(python), evaluate=False)
    assert facts.read_text() == before
    export("runs/small", other, "pruned", str(python), evaluate=False, overwrite=True)
    assert "nothing==2" in facts.read_text()


def test_the_readers_own_reason_is_the_message(python: Path) -> None:
    write_converter(python, REFUSES)
    with raises("export.refused", "NotImplementedError: Model TinyForCausalLM is not supported", EXPORTS / "gguf-f32.log"):
        exported(python)
    assert [path.name for path in EXPORTS.iterdir()] == ["gguf-f32.log"]


def test_a_full_disk_leaves_nothing(python: Path) -> None:
    with raises("files.disk-full", EXPORTS / "gguf-f32"), files_of_at_most(200_000):
        exported(python)
    assert not list(EXPORTS.glob("*/*"))
    assert exported(python).bytes == 300_000


def test_after_a_kill_the_same_command_makes_it(python: Path) -> None:
    write_converter(python, WAITS)
    lines = (
        "import sys; sys.path[:0] = sys.argv[1:3]\nfrom test_export import *\n"
        "export('runs/small', FORMAT, 'pruned', sys.argv[3], evaluate=False)"
    )
    started = subprocess.Popen(
        [sys.executable, "-c", lines, ROOT, ROOT / "tests/pipeline", python],
        env={**os.environ, "PYTHONPATH": str(ROOT / "tests")},
    )
    half = EXPORTS / "gguf-f32.tmp" / "model.gguf"
    while not (half.exists() and half.stat().st_size):
        assert started.poll() is None
        time.sleep(0.1)
    children = subprocess.run(["pgrep", "-P", str(started.pid)], capture_output=True, text=True, check=True).stdout.split()
    started.send_signal(signal.SIGKILL)
    started.wait()
    for child in children:  # the reader's program ends with it: nothing writes any more
        while Path(f"/proc/{child}/stat").exists() and Path(f"/proc/{child}/stat").read_text().split()[2] != "Z":
            time.sleep(0.05)
    assert half.exists()
    write_converter(python, WRITES)
    assert exported(python).bytes == 300_000
    assert not half.parent.exists()


def test_a_run_without_the_model_says_which_it_has(python: Path) -> None:
    with raises("export.not-recovered", "runs/small", "--model pruned"):
        export("runs/small", FORMAT, None, str(python), evaluate=False)
    with raises("run.no-model", "recovered"):
        export("runs/small", FORMAT, "recovered", str(python), evaluate=False)
    with raises("run.unknown-role", "recoverd"):
        export("runs/small", FORMAT, "recoverd", str(python), evaluate=False)
    assert not EXPORTS.exists()


def test_an_environment_that_is_not_there(python: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with raises("export.no-environment", "--install", tmp_path / "pollard" / "readers", "nothing==1"):
        export("runs/small", FORMAT, "pruned", evaluate=False)
    lacking = Format("gguf", "f32", ReaderEnvironment("stand-in", ("nothing==1",), ("json", "no_such_module")))
    with raises("export.python-lacks", python, "no_such_module"):
        export("runs/small", lacking, "pruned", str(python), evaluate=False)
    with raises("export.python", tmp_path / "nowhere"):
        export("runs/small", FORMAT, "pruned", str(tmp_path / "nowhere"), evaluate=False)


def test_an_environment_that_cannot_be_made_is_begun_anew(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """pip looks into an empty folder; what it leaves is not taken for an environment."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for name, value in {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path), "PIP_CONFIG_FILE": os.devnull}.items():
        monkeypatch.setenv(name, value)
    environment = ReaderEnvironment("stand-in", ("pollard-no-such-package==1",), ())
    environment.folder.mkdir(parents=True)
    (environment.folder / "notes.txt").write_text("mine")
    with raises("export.foreign-environment", environment.folder):
        environment.python(install=True)
    (environment.folder / UNFINISHED).touch()
    with raises("export.environment-failed", "pollard-no-such-package==1"):
        environment.python(install=True)
    assert not environment.is_ready and not (environment.folder / "notes.txt").exists()
    assert environment.folder != ReaderEnvironment("stand-in", (), ()).folder


def test_the_reason_is_the_last_error() -> None:
    trace = "INFO ok\nFileNotFoundError: a\n\nDuring handling …\n\npkg.Weird.OddError: b: c\n"
    assert reason_in(trace) == "pkg.Weird.OddError: b: c"
    assert reason_in("Segmentation fault\n\n") == "Segmentation fault"
    assert reason_in("") == "it printed nothing"

"""What `pip install` gives: a wheel built from a clean copy, in an environment of its own, used from an empty folder.

What the wheel depends on is that of the environment the tests run in: a line of a .pth file puts it behind the new one's own.
"""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from conftest import ROOT

LARGEST = 50 * 2**20  # bytes; the package index takes 100 MB
QUICKLY = ["calibration.examples=16", "finetuning.trainer.max_steps=2", "evaluation.examples=8", "evaluation.fidelity=2"]

pytest.importorskip("build", reason="an extra: ./launch.sh setup dev")
pytest.importorskip("hatchling", reason="an extra: ./launch.sh setup dev")


def run(*command: str | Path, folder: Path, **environment: str) -> str:
    known = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")} | environment
    done = subprocess.run(command, cwd=folder, env=known, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


@pytest.fixture(scope="module")
def tracked() -> list[str]:
    """The paths of what a clone has, as it stands here."""
    listed = run("git", "ls-files", "-co", "--exclude-standard", folder=ROOT).splitlines()
    return [name for name in listed if (ROOT / name).is_file()]


@pytest.fixture(scope="module")
def wheel(tracked: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    for name in tracked:
        (folder / "clone" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / "clone" / name)
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder / "dist", folder / "clone", folder=folder)
    (built,) = (folder / "dist").glob("*.whl")
    return built


@pytest.fixture(scope="module")
def programs(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of programs of an environment that has the wheel."""
    environment = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", environment, folder=environment)
    programs = environment / "bin"
    run(programs / "python", "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", wheel, folder=environment)
    (own,) = environment.glob("lib/python*/site-packages")
    there = [path for path in sys.path if path.endswith("site-packages")]
    (own / "dependencies.pth").write_text("".join(f"{path}\n" for path in there))
    return programs


def test_the_wheel_has_the_toolkit_the_recipes_and_the_playground_and_nothing_else(wheel: Path, tracked: list[str]) -> None:
    inside = {name for name in zipfile.ZipFile(wheel).namelist() if not name.split("/")[0].endswith(".dist-info")}
    embedded = {name for name in tracked if name.startswith(("recipes/", "data/playground/", "data/tickets/"))}
    scripts = {name for name in embedded if name.endswith(".py")}  # which drew the data and made the model
    assert scripts and len(embedded) > 30
    expected = {name for name in tracked if name.startswith("toolkit/")} | {
        f"toolkit/embedded/{name}" for name in embedded - scripts
    }
    assert inside == expected
    assert wheel.stat().st_size < LARGEST


def test_an_installed_pollard_finds_its_recipes_from_an_empty_folder(programs: Path, tmp_path: Path) -> None:
    where = run(programs / "python", "-c", "import toolkit; print(toolkit.__file__)", folder=tmp_path)
    assert Path(where).is_relative_to(programs.parent)
    assert run(programs / "pollard", "--version", folder=tmp_path).startswith(
        "pollard 0.1.0, torch "
    )  # no commit of another project
    assert "recipes/playground.yaml " in run(programs / "pollard", "recipes", folder=tmp_path)
    text = run(programs / "pollard", "recipes", "my-data", folder=tmp_path)
    assert text == (ROOT / "recipes" / "my-data.yaml").read_text()
    (tmp_path / "mine.yaml").write_text(text)
    assert "Sort these words: " in run(programs / "pollard", "preview", "mine.yaml", folder=tmp_path)
    assert not (tmp_path / "data").exists()


@pytest.mark.launcher
def test_an_installed_pollard_does_the_whole_job_on_two_ranks(programs: Path, tmp_path: Path) -> None:
    launcher = [programs / "python", "-m", "deepspeed.launcher.runner"]  # the program `deepspeed` is the other environment's
    start = [*launcher, "--num_gpus", "2", "--module", "toolkit.cli", "run", "recipes/playground.yaml"]
    out = run(*start, *QUICKLY, folder=tmp_path, PATH=f"{programs}:{os.environ['PATH']}", CUDA_VISIBLE_DEVICES="")
    assert "2 ranks on CPU" in out and "toolkit/embedded/data/playground/model (mixtral)" in out
    done = tmp_path / "runs" / "playground"
    assert (done / "report.html").exists() and (done / "recovered" / "model.safetensors").exists()

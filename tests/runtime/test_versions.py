"""Which Pollard it is: never the commit of a project into whose folder it is installed."""

import subprocess
import sys
from pathlib import Path

from conftest import ROOT

from toolkit.runtime.versions import git_commit, versions


def test_versions_name_the_toolkit_and_what_it_stands_on() -> None:
    ours, *theirs = versions().split(", ")
    assert ours.startswith("pollard 0.1.0") and [each.split()[0] for each in theirs] == [
        "torch",
        "transformers",
        "trl",
        "deepspeed",
    ]
    assert versions(["no-such-package"]).endswith(", no-such-package (not installed)")


def test_a_copy_inside_of_another_project_has_no_commit(tmp_path: Path) -> None:
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    package = tmp_path / ".venv" / "toolkit"
    (package / "runtime").mkdir(parents=True)
    for name in ("__init__.py", "runtime/__init__.py", "runtime/versions.py"):
        (package / name).write_text((ROOT / "toolkit" / name).read_text())
    ask = "from toolkit.runtime.versions import git_commit; print(git_commit())"
    done = subprocess.run([sys.executable, "-c", ask], cwd=package.parent, capture_output=True, text=True, check=True)
    assert done.stdout == "None\n"


def test_a_checkout_has_its_commit() -> None:
    asked = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (git_commit() or "") == asked.stdout.strip()


def test_the_command_says_it_without_importing_torch() -> None:
    code = "import atexit, sys; atexit.register(lambda: print('torch' in sys.modules)); sys.argv = ['pollard', '--version']\n"
    code += "from toolkit.cli.main import main; main()"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    first, imported = done.stdout.splitlines()
    assert first == versions() and imported == "False"

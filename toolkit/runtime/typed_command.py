"""The command that the user typed, so that messages can repeat it for pasting, with paths of programs that are not on PATH."""

import os
import re
import shlex
import shutil
import sys
from pathlib import Path

from toolkit.runtime.distributed import world_size

# Environment variables
LAUNCHER = "POLLARD_LAUNCHER"  # set by launch.sh: how it was called, up to the recipe
CALLED_FROM = "POLLARD_CALLED_FROM"  # set by launch.sh: the folder that it was called in


def command_again(*changed: tuple[str, str], ranks: int | None = None) -> str:
    """The typed command, without --fresh, which would start again. `changed`: words and their replacements; `ranks`: another
    number of ranks."""
    words = [word for word in sys.argv[1:] if word != "--fresh" and not word.startswith(("--local_rank", "--local-rank"))]
    for word, replacement in changed:
        words = [replacement if each == word else each for each in words]
    return f"{_change_folder()}{_program(ranks)} {shlex.join(words)}"


def _program(ranks: int | None) -> str:
    script, number = Path(sys.argv[0]), ranks or world_size()
    if launcher := os.environ.get(LAUNCHER):
        return launcher if ranks is None else re.sub(r"--ranks \d+", f"--ranks {ranks}", launcher)
    is_script = script.name == "train.py"
    if "TORCHELASTIC_RUN_ID" in os.environ:
        started = f"{program_path('torchrun')} --nproc-per-node {ranks or os.environ.get('LOCAL_WORLD_SIZE', number)}"
        return f"{started} {shlex.quote(str(script)) if is_script else '-m toolkit.cli'}"
    if number > 1 or ranks:
        started = f"{program_path('deepspeed')} --num_gpus {number}"
        return f"{started} {shlex.quote(str(script)) if is_script else '--module toolkit.cli'}"
    if is_script:
        return f"{program_path('python')} {shlex.quote(str(script))}"
    return program_path("pollard") if script.name != "__main__.py" else f"{program_path('python')} -m toolkit.cli"


def program_path(name: str) -> str:
    """How to call a program of this environment: by name if the shell finds it, else by path."""
    own, found = Path(sys.executable).parent / name, shutil.which(name)
    if not own.exists():
        return name
    if found and LAUNCHER not in os.environ:  # launch.sh puts the environment on the path for the run alone
        linked = name != "python" and os.path.samefile(found, own)  # of an environment's python, all are links to one
        if linked or os.path.samefile(Path(found).parent, own.parent):
            return name
    path = min((os.path.relpath(own), str(own)), key=len)
    return shlex.quote(path if "/" in path else f"./{path}")


def _change_folder() -> str:
    """`cd … && ` if launch.sh was called elsewhere: without a recipe it changes to its own folder."""
    there = os.environ.get(CALLED_FROM)
    return "" if there is None or os.path.samefile(there, ".") else f"cd {shlex.quote(os.getcwd())} && "

"""The command that was typed, as it can be pasted where it was typed: programs that are not on the path by theirs."""

import os
import re
import shlex
import shutil
import sys
from pathlib import Path

from toolkit.runtime.distributed import world_size

LAUNCHER = "POLLARD_LAUNCHER"  # launch.sh puts here how it was called, up to the recipe
SHELL_PATH = "POLLARD_SHELL_PATH"  # PATH as it was, once the process has put more on it
CALLED_FROM = "POLLARD_CALLED_FROM"  # and here the folder it was called in


def command_again(*changed: tuple[str, str], ranks: int | None = None) -> str:
    """What was typed, as far as a rank can know it, without --fresh: that would begin anew. `changed`: words and what stands in
    their place; `ranks`: another number of them."""
    words = [word for word in sys.argv[1:] if word != "--fresh" and not word.startswith(("--local_rank", "--local-rank"))]
    for word, other in changed:
        words = [other if each == word else each for each in words]
    return f"{_from_there()}{_program(ranks)} {shlex.join(words)}"


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
    """A program of this environment, as it can be called: by its name where the shell finds it, else by its path."""
    ours, found = Path(sys.executable).parent / name, shutil.which(name, path=os.environ.get(SHELL_PATH))
    if not ours.exists():
        return name
    if found and LAUNCHER not in os.environ:  # launch.sh puts the environment on the path for the run alone
        linked = name != "python" and os.path.samefile(found, ours)  # of an environment's python, all are links to one
        if linked or os.path.samefile(Path(found).parent, ours.parent):
            return name
    path = min((os.path.relpath(ours), str(ours)), key=len)
    return shlex.quote(path if "/" in path else f"./{path}")


def _from_there() -> str:
    """launch.sh without a recipe goes to its own folder first."""
    there = os.environ.get(CALLED_FROM)
    return "" if there is None or os.path.samefile(there, ".") else f"cd {shlex.quote(os.getcwd())} && "

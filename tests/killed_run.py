"""Runs a verb, and kills itself when a method has been called so many times:

python tests/killed_run.py toolkit.recovery.refit.layer_files:LayerFiles.save 1 run r.yaml
"""

import os
import signal
import sys
from importlib import import_module
from pathlib import Path

sys.path[0] = str(Path(__file__).parents[1])

from toolkit.cli.main import main
from toolkit.runtime.distributed import barrier

place, calls = sys.argv.pop(2), int(sys.argv.pop(2))  # behind the launcher's --local_rank
module, _, method = place.partition(":")
owner, name = getattr(import_module(module), method.split(".")[0]), method.split(".")[1]
left, real = calls, getattr(owner, name)


def then_die(*arguments: object, **named: object) -> object:
    global left
    result = real(*arguments, **named)
    left -= 1
    if not left:
        barrier()
        os.kill(os.getpid(), signal.SIGKILL)
    return result


setattr(owner, name, then_die)
sys.argv[1], sys.argv[2] = sys.argv[2], sys.argv[1]  # the verb comes first
sys.exit(main())

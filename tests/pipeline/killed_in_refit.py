"""Runs a recipe as train.py does, and kills itself when so many layers are refit: python killed_in_refit.py LAYERS RECIPE …"""

import os
import signal
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).parents[2])

from toolkit.cli.main import main
from toolkit.recovery.refit.layer_files import LayerFiles
from toolkit.runtime.distributed import barrier

left, real = int(sys.argv.pop(2)), LayerFiles.save  # behind the launcher's --local_rank


def save(files: LayerFiles, *arguments: object) -> None:
    global left
    real(files, *arguments)  # type: ignore[arg-type]
    left -= 1
    if not left:
        barrier()
        os.kill(os.getpid(), signal.SIGKILL)


LayerFiles.save = save  # type: ignore[method-assign]
sys.argv.insert(1, "run")
sys.exit(main())

"""Runs `pollard fit`, and kills itself when so many models are measured: python killed_in_fit.py MODELS RECIPE …"""

import os
import signal
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).parents[2])

from toolkit.cli.main import main
from toolkit.pipeline.fit_measure import ShapeMeasurements
from toolkit.runtime.distributed import barrier

left, real = int(sys.argv.pop(2)), ShapeMeasurements._keep  # behind the launcher's --local_rank


def keep(measurements: ShapeMeasurements, *arguments: object) -> None:
    global left
    real(measurements, *arguments)  # type: ignore[arg-type]
    left -= 1
    if not left:
        barrier()
        os.kill(os.getpid(), signal.SIGKILL)


ShapeMeasurements._keep = keep  # type: ignore[method-assign, assignment]
sys.argv.insert(1, "fit")
sys.exit(main())

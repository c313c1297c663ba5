"""Run by test_calibrate.py on two ranks: a model in parts over two ranks is observed."""

import os
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).parents[2])

import torch

from toolkit.calibration import calibrate
from toolkit.moe.partition import partitioned_model
from toolkit.moe.placement import shard_batches
from toolkit.runtime.distributed import on_main, start, stop
from toolkit.runtime.errors import PollardError
from toolkit.runtime.zero import start_deepspeed

path, target = sys.argv[-2], Path(sys.argv[-1])
start()
start_deepspeed()
batches = torch.load(target / "batches.pt")
zero = {"stage": 3, "stage3_param_persistence_threshold": 0}  # small tensors would stay whole
with partitioned_model(path, None, "float32", zero) as model:
    statistics = calibrate(model, shard_batches(model, batches))
    try:
        calibrate(model, shard_batches(model, batches), channels=True)
    except PollardError as error:
        assert error.code == "calibration.channels-in-parts", error
    else:
        raise SystemExit("not refused")
on_main(lambda: statistics.save(target))
stop()
sys.stdout.flush()
os._exit(0)  # one exit in six aborts in torch's own threads, after everything is done ("terminate called without …")

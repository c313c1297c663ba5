"""Run by test_refit_checkpoint.py on two ranks: ORIGINAL PRUNED TARGET, batches.pt beside the last."""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).parents[2])

import torch

from toolkit.recovery.refit import refit_checkpoint
from toolkit.runtime.distributed import shard, start, stop

original, pruned, target = sys.argv[-3:]
start()
batches = torch.load(Path(target).with_name("batches.pt"))
refit_checkpoint(original, pruned, target, shard(batches))
stop()

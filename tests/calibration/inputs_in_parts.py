"""Run by test_expert_inputs.py on two ranks: each observes the experts' inputs on batches of its own."""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).parents[2])

import torch

from toolkit.calibration import CalibrationSource
from toolkit.calibration.expert_inputs import expert_inputs
from toolkit.cuts.compression import LowRank
from toolkit.moe import load_model
from toolkit.runtime.distributed import rank, shard, start, stop

path, target = sys.argv[-2], Path(sys.argv[-1])
start()
batches = torch.load(target / "batches.pt")
model = load_model(path, dtype="float64")
model.set_experts_implementation("eager")  # grouped_mm has no float64
found = expert_inputs(model, [CalibrationSource("", shard(batches))], LowRank(0.5))
plain = {f"{block}/{name}": list(inputs) for block, of_block in found.items() for name, inputs in of_block.items()}
torch.save(plain, target / f"inputs{rank()}.pt")
stop()

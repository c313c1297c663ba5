"""Pre-trains a mixture of *small* experts (32 of width 64, 4 per token), as OLMoE and Qwen3 have them, on two of the playground's
tasks: there, a pruned model still has more experts than a token takes, so that its routers have something to learn.

    python benchmarks/fine_grained.py        # half an hour of one core; start again to resume

Leaves a stock checkpoint of 14 MB in runs/fine-grained/model. The repository does not hold it: `recovery_ideas_study.py` makes it
first.
"""

import argparse
import json
import sys
from pathlib import Path

from transformers import AutoTokenizer

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "data" / "playground"))
from pretrain import PLAYGROUND, Pretraining, train

FOLDER = Path("runs", "fine-grained")
STEPS = 2500
FINE_GRAINED = Pretraining(
    model=FOLDER / "model",
    log=FOLDER / "training_log.jsonl",
    resume=FOLDER / "checkpoints" / "last.pt",
    mixture={"arithmetic": 70, "sorting": 30},
    experts=32,
    active=4,
    width=64,
)


def finished(asked: Pretraining, steps: int) -> bool:
    """Whether all its steps are done: the log says so, and there is nothing left to resume."""
    lines = asked.log.read_text().splitlines() if asked.log.exists() else []
    return bool(lines) and json.loads(lines[-1])["step"] == steps and not asked.resume.exists()


def make(asked: Pretraining = FINE_GRAINED, steps: int = STEPS) -> None:
    """Unless it is there."""
    if not finished(asked, steps):
        train(asked, AutoTokenizer.from_pretrained(PLAYGROUND.model), steps)
        asked.resume.unlink()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=STEPS)
    make(steps=parser.parse_args().steps)

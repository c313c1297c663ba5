"""What a run imports, for the process that `preloaded.py` forks runs from. Nothing is computed here: a fork would miss the
threads that computing starts."""

import os

from toolkit.cli.exit_status import quiet_libraries

os.environ["DS_ACCELERATOR"] = "cpu"  # or DeepSpeed looks for others, and warns
quiet_libraries()

import datasets  # noqa: F401
import deepspeed  # noqa: F401
import peft  # noqa: F401
from transformers.models.mixtral import modeling_mixtral  # noqa: F401
from trl import SFTConfig, SFTTrainer  # noqa: F401

import toolkit.pipeline.runner
import toolkit.recovery.recover  # noqa: F401

"""Win the accuracy back: fine-tune the pruned model under DeepSpeed ZeRO. Importing it takes seconds (trl)."""

from toolkit.recovery.recover import recover
from toolkit.recovery.settings import check_finetuning, sft_config
from toolkit.recovery.teacher import cache_logits
from toolkit.zero import deepspeed_config

__all__ = ["cache_logits", "check_finetuning", "deepspeed_config", "recover", "sft_config"]

"""`python quantize.py SOURCE TARGET SCHEME`: a checkpoint quantized by llm-compressor, and everything that vLLM reads beside it.

Schemes need no data: FP8_DYNAMIC has a scale per row of weights and one per token while it runs, W4A16 one per 128 weights,
rounded to nearest. Routers, gates of shared experts and the head stay as they are.
"""

import sys

import compressed_experts
from llmcompressor import oneshot
from llmcompressor.modifiers.quantization import QuantizationModifier
from transformers import AutoTokenizer

source, target, scheme = sys.argv[1:]
model = compressed_experts.load_source(source)
tokenizer = AutoTokenizer.from_pretrained(source)
oneshot(
    model=model,
    tokenizer=tokenizer,
    recipe=QuantizationModifier(targets="Linear", scheme=scheme, ignore=compressed_experts.WHOLE),
)
model.save_pretrained(target)
tokenizer.save_pretrained(target)

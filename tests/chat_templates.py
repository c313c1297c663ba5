"""Chat templates in the shapes that models are published with, and tokenizers that have them.

Each is written anew, as short as its shape allows; `ends` is what ends an assistant's turn.
"""

from typing import NamedTuple

from conftest import PLAYGROUND
from transformers import AutoTokenizer, PreTrainedTokenizerBase


class Shape(NamedTuple):
    template: str
    ends: str
    marks: tuple[str, ...] = ()  # tokens of the template's own, beside the end
    keeps_reasoning: bool = False  # of a message: the template shows it, or opens a block that it belongs to


CHATML = Shape(
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    "<|im_end|>",
    ("<|im_start|>",),
)
LLAMA3 = Shape(
    "{{ '<|begin_of_text|>' }}{% for m in messages %}{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' }}"
    "{{ m.content | trim }}{{ '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}",
    "<|eot_id|>",
    ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>"),
)
MISTRAL = Shape(
    "{{ '<s>' }}{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}"
    "{% elif m.role == 'assistant' %}{{ ' ' + m.content + '</s>' }}{% else %}{{ raise_exception('only user and assistant') }}"
    "{% endif %}{% endfor %}",
    "</s>",
    ("<s>",),
)
GEMMA = Shape(
    "{{ '<bos>' }}{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "{% for m in messages %}{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' + m.content | trim }}"
    "{{ '<end_of_turn>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}",
    "<end_of_turn>",
    ("<bos>", "<start_of_turn>"),
)
# Empties the reasoning of earlier turns, and writes a block of it before every last answer
QWEN3_THINK = Shape(
    "{% for m in messages %}{% if m.role == 'assistant' %}{% set think = m.reasoning_content or '' %}{% set text = m.content %}"
    "{% if not think and '</think>' in text %}{% set think = text.split('</think>')[0].split('<think>')[-1].strip('\n') %}"
    "{% set text = text.split('</think>')[-1].lstrip('\n') %}{% endif %}<|im_start|>assistant\n"
    "{% if loop.last %}{{ '<think>\n' + think.strip('\n') + '\n</think>\n\n' }}{% endif %}{{ text }}<|im_end|>\n"
    "{% else %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    "<|im_end|>",
    ("<|im_start|>",),
    True,
)
# The generation prompt opens the block
QWEN3_THINKING_ONLY = QWEN3_THINK._replace(
    template=QWEN3_THINK.template.replace(
        "<|im_start|>assistant\n{% endif %}", "<|im_start|>assistant\n{{ '<think>\n' }}{% endif %}"
    )
)
# The generation prompt opens the block, and what is rendered has none
R1_THINK = Shape(
    "{{ '<｜begin▁of▁sentence｜>' }}{% for m in messages %}{% if m.role == 'user' %}{{ '<｜User｜>' + m.content }}"
    "{% elif m.role == 'assistant' %}{{ '<｜Assistant｜>' + m.content.split('</think>')[-1] + '<｜end▁of▁sentence｜>' }}"
    "{% else %}{{ m.content }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<｜Assistant｜><think>\n' }}{% endif %}",
    "<｜end▁of▁sentence｜>",
    ("<｜begin▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>"),
    True,
)
HARMONY = Shape(
    "{{ '<|start|>system<|message|>You are a model.<|end|>' }}{% for m in messages %}{% if m.role == 'assistant' %}"
    "{% if loop.last and m.thinking %}{{ '<|start|>assistant<|channel|>analysis<|message|>' + m.thinking }}{{ '<|end|>' }}"
    "{% endif %}"
    "{% if m.tool_calls %}{% set f = m.tool_calls[0].function %}{{ '<|start|>assistant to=functions.' + f.name }}"
    "{{ '<|channel|>commentary json<|message|>' + f.arguments | tojson + '<|call|>' }}{% else %}"
    "{{ '<|start|>assistant<|channel|>final<|message|>' + m.content + ('<|return|>' if loop.last else '<|end|>') }}{% endif %}"
    "{% elif m.role == 'tool' %}{{ '<|start|>functions.' + m.name + ' to=assistant<|channel|>commentary<|message|>' }}"
    "{{ m.content + '<|end|>' }}{% else %}{{ '<|start|>' + m.role + '<|message|>' + m.content + '<|end|>' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}",
    "<|return|>",
    ("<|start|>", "<|message|>", "<|end|>", "<|channel|>", "<|call|>"),
    True,
)
TOOLS = Shape(
    "{% if tools %}{{ '<|im_start|>system\n<tools>\n' }}{% for t in tools %}{{ t | tojson + '\n' }}{% endfor %}"
    "{{ '</tools><|im_end|>\n' }}{% endif %}{% for m in messages %}{% if m.role == 'tool' %}{{ '<|im_start|>user\n' }}"
    "{{ '<tool_response name=' + (m.name or '?') + '>\n' + m.content + '\n</tool_response><|im_end|>\n' }}"
    "{% elif m.role == 'assistant' %}{{ '<|im_start|>assistant\n' + m.content }}{% for c in m.tool_calls or [] %}"
    "{% if m.content or not loop.first %}{{ '\n' }}{% endif %}"
    "{{ '<tool_call>\n' }}"
    '{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}'
    "{{ '\n</tool_call>' }}"
    "{% endfor %}{{ '<|im_end|>\n' }}{% else %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    "<|im_end|>",
    ("<|im_start|>",),
)
# Behind the end of a turn stands that of the text
PHI = Shape(
    "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + '<|end_of_turn|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ '<|endoftext|>' }}{% endif %}",
    "<|endoftext|>",
    ("<|end_of_turn|>",),
)
# No mark ends a turn but the next one's beginning; a word stands before the answer
SPEAKERS = Shape(
    "{% for m in messages %}{{ '\n\n' if not loop.first }}{{ m.role | capitalize + ': ' + m.content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '\n\n' }}{% endif %}",
    "<|end|>",
)
# The generation prompt opens the block, and what is rendered closes it: both tags begin alike
DEEPSEEK_V31_THINK = Shape(
    "{% for m in messages %}{% if m.role == 'user' %}{{ '<｜User｜>' + m.content }}{% elif m.role == 'assistant' %}"
    "{{ '<｜Assistant｜></think>' + m.content.split('</think>')[-1] + '<｜end▁of▁sentence｜>' }}{% else %}{{ m.content }}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<｜Assistant｜><think>' }}{% endif %}",
    "<｜end▁of▁sentence｜>",
    ("<｜User｜>", "<｜Assistant｜>"),
    True,
)
# Two marks end an answer, and the second is the end token
COMMAND_R7B = Shape(
    "{% for m in messages %}{{ '<|START_OF_TURN_TOKEN|>' }}{% if m.role == 'assistant' %}{{ '<|CHATBOT_TOKEN|>' }}"
    "{{ '<|START_RESPONSE|>' + m.content + '<|END_RESPONSE|>' }}{% else %}{{ '<|' + m.role + '_TOKEN|>' + m.content }}{% endif %}"
    "{{ '<|END_OF_TURN_TOKEN|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>' }}{% endif %}",
    "<|END_OF_TURN_TOKEN|>",
    ("<|START_OF_TURN_TOKEN|>", "<|CHATBOT_TOKEN|>", "<|START_RESPONSE|>", "<|END_RESPONSE|>"),
)
# A frame of words follows the reasoning
ERNIE_THINK = Shape(
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' %}"
    "{{ '<think>\n' + (m.reasoning_content or '') + '\n</think>\n\n<response>\n' + m.content + '\n</response>\n' }}"
    "{% else %}{{ m.content }}{% endif %}{{ '<|im_end|>\n\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}{% endif %}",
    "<|im_end|>",
    ("<|im_start|>",),
    True,
)
# The generation prompt opens the block otherwise than what is rendered, and no mark ends an answer
GLM_THINK = Shape(
    "{% for m in messages %}{{ '<|' + m.role + '|>' }}{% if m.role == 'assistant' %}"
    "{{ '\n<think>' + (m.reasoning_content or '') + '</think>' }}{% endif %}{{ '\n' + m.content | trim }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|><think>' }}{% endif %}",
    "<|endoftext|>",
    ("<|user|>", "<|assistant|>"),
    True,
)
# The block is rendered where there was reasoning only
MINIMAX_THINK = Shape(
    "{% for m in messages %}{{ ']~b]' + m.role + '\n' }}{% if m.reasoning_content %}"
    "{{ '<think>\n' + m.reasoning_content + '\n</think>\n\n' }}{% endif %}{{ m.content + '[e~[\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ ']~b]assistant\n<think>\n' }}{% endif %}",
    "[e~[",
    ("]~b]",),
    True,
)
SHAPES = {
    "ChatML": CHATML,
    "Llama 3": LLAMA3,
    "Mistral": MISTRAL,
    "Gemma": GEMMA,
    "Qwen3": QWEN3_THINK,
    "Qwen3, thinking only": QWEN3_THINKING_ONLY,
    "DeepSeek-R1": R1_THINK,
    "harmony": HARMONY,
    "tools": TOOLS,
    "Phi": PHI,
    "speakers": SPEAKERS,
    "DeepSeek-V3.1": DEEPSEEK_V31_THINK,
    "Command R7B": COMMAND_R7B,
    "ERNIE": ERNIE_THINK,
    "GLM": GLM_THINK,
    "MiniMax": MINIMAX_THINK,
}


def tokenizer_of(shape: Shape, special: bool = True, ends_apart: bool = False) -> PreTrainedTokenizerBase:
    """The playground's tokenizer with the template; its marks are special tokens, or plain text. `ends_apart`: the end of a
    turn is not the tokenizer's end token."""
    tokenizer = AutoTokenizer.from_pretrained(PLAYGROUND / "model")
    tokenizer.chat_template = shape.template
    if special:
        tokenizer.add_special_tokens(
            {"additional_special_tokens": [*shape.marks, shape.ends]}, replace_extra_special_tokens=False
        )
    if not ends_apart:
        tokenizer.add_special_tokens({"eos_token": shape.ends})
    return tokenizer

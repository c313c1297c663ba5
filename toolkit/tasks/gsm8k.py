"""Grade-school math (Cobbe et al., arXiv 2110.14168): 7,473 problems to train on, 1,319 to test.

    {"question": "Natalia sold clips to 48 of her friends in April, and then …",
     "answer": "Natalia sold 48/2 = <<48/2=24>>24 clips in May.\\nNatalia sold 48+24 = <<48+24=72>>72 clips … .\\n#### 72"}

The `<<…>>` annotations steer a calculator that is not used here, so they are taken out. The number after `####` is
the answer.
"""

import re

from toolkit.tasks.preset import Preset

ANNOTATION = re.compile(r"<<[^>]*>>")


def without_annotations(row: dict) -> dict:
    return row | {"answer": ANNOTATION.sub("", row["answer"])} if isinstance(row.get("answer"), str) else row


GSM8K = Preset(
    about="grade-school math in words (hub: openai/gsm8k), the number behind ####",
    dataset="openai/gsm8k",
    subset="main",
    train="train",
    test="test",
    prompt="{question}\nThink step by step, then write #### and the number.",
    completion="{answer}",
    scorer="numeric",
    prepare=without_annotations,
    sizes={"train": 7473, "test": 1319},
)

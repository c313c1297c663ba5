"""`python tokenizer.py FILE FOLDER`: the tokenizer of a GGUF file, as transformers reads it. Runs in a reader's environment."""

import json
import sys
from pathlib import Path

from transformers import AutoTokenizer

file = Path(sys.argv[1])
AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(sys.argv[2])
settings = Path(sys.argv[2]) / "tokenizer_config.json"
# As it is, in every family: transformers 5 gives a tokenizer that is said to be GPT-2's the splitting of GPT-2
settings.write_text(json.dumps(json.loads(settings.read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}))

"""`python tokenizer.py FILE FOLDER`: the tokenizer of a GGUF file, as transformers reads it. Runs in a reader's environment."""

import sys
from pathlib import Path

from transformers import AutoTokenizer

file = Path(sys.argv[1])
AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(sys.argv[2])

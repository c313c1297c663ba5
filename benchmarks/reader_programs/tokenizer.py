"""`python tokenizer.py FILE FOLDER`: the tokenizer of a GGUF file, as transformers 5 reads it."""

import json
import sys
from pathlib import Path

from transformers import AutoTokenizer

file = Path(sys.argv[1])
AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(sys.argv[2])
settings = Path(sys.argv[2]) / "tokenizer_config.json"
# transformers 4 knows the class of transformers 5 by this name
settings.write_text(json.dumps(json.loads(settings.read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}))

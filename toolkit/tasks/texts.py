"""Plain text, without questions and answers: what a calibration mix or an off-task measure may take beside tasks.

{"text": "The harbour of Odense was dug in 1803 and …"}      a line of a .jsonl file
paragraphs, with empty lines between them                    a .txt file
"""

import re
from collections.abc import Sequence
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from toolkit.errors import PollardError
from toolkit.tasks.prompts import Encoded, tokens_of
from toolkit.tasks.sources import read_jsonl


def read_texts(path: str) -> list[str]:
    """The texts in a .jsonl or .txt file. Raises PollardError for another kind of file, and for one without text."""
    if path.endswith(".jsonl"):
        texts = []
        for where, row in read_jsonl(path):
            if not isinstance(row.get("text"), str):
                raise PollardError(
                    f"{where}: plain text is read from the field `text`. Fields there: {', '.join(row) or 'none'}."
                )
            texts.append(row["text"])
    elif path.endswith(".txt"):
        try:
            texts = re.split(r"\n\s*\n", Path(path).read_text(encoding="utf-8-sig"))
        except (OSError, UnicodeDecodeError) as error:
            raise PollardError(
                f"Cannot read {path}: {error}. Give the path of a text file, relative to where you start."
            ) from None
    else:
        raise PollardError(f"{path} is no text file: plain text is a .jsonl file (a `text` in every line) or a .txt file.")
    found = [text.strip() for text in texts if text.strip()]
    if not found:
        raise PollardError(f"{path} is empty: it holds no text.")
    return found


def encode_texts(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], max_length: int) -> list[Encoded]:
    """The texts in pieces of at most `max_length` tokens, every token completion.

    Text may be cut where an answer may not: no piece of it is half a solution.
    """
    pieces = []
    for text in texts:
        ids = tokens_of(tokenizer, text)
        pieces += [Encoded(ids[start : start + max_length], 0) for start in range(0, len(ids), max_length)]
    return pieces

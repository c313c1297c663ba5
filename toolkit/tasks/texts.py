"""Plain text, without questions and answers: what a calibration mix or an off-task measure may take beside tasks.

{"text": "The harbour of Odense was dug in 1803 and …"}      a line of a .jsonl file, or of any other data file
paragraphs, with empty lines between them                    a .txt file
"""

import re
from collections.abc import Sequence
from glob import has_magic
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from toolkit.runtime.errors import PollardError, first_of
from toolkit.tasks.data_files import ENDINGS, ending_of, files_of
from toolkit.tasks.prompts import Encoded, tokens_of
from toolkit.tasks.sources import read_files
from toolkit.tasks.templates import check_texts, fields_in
from toolkit.tasks.text_files import NOT_UTF8, is_utf8, opened

KINDS = (*ENDINGS, ".txt")


def read_texts(path: str) -> list[str]:
    """The texts in data files or a .txt file. Raises PollardError for another kind of file, and for one without text."""
    several = has_magic(path) or Path(path).is_dir()
    texts = []
    for file in files_of(path) if several or ending_of(path) in KINDS else [path]:
        if ending_of(file) not in KINDS and not Path(file).is_dir():
            raise PollardError(f"{file} is no text file: plain text is a .jsonl file (a `text` in every line) or a .txt file.")
        texts += _paragraphs(file) if ending_of(file) == ".txt" else _texts_in(file)
    found = [text.strip() for text in texts if text.strip()]
    if not found:
        raise PollardError(f"{path} is empty: it holds no text.")
    return found


def _paragraphs(path: str) -> list[str]:
    try:
        with opened(path) as file:
            text = file.read()
    except (OSError, EOFError) as error:
        raise PollardError(f"Cannot read {path}: {error}. Give the path of a text file, relative to where you start.") from None
    if not is_utf8(text):
        raise PollardError(f"Cannot read {path}: {NOT_UTF8}")
    return re.split(r"\n\s*\n", text)


def _texts_in(path: str) -> list[str]:
    """The column `text` of data files. Raises PollardError with the first of the lines that have none."""
    texts, bad = [], []
    for where, row in read_files(path).lines:
        if isinstance(row, str):
            bad.append(f"{where}: {row}")
            continue
        try:
            if not isinstance(row.get("text"), str):
                bad.append(f"{where}: plain text is read from the field `text`. Fields there: {fields_in(row)}.")
                continue
            check_texts("text", row["text"], where)
            texts.append(row["text"])
        except PollardError as error:
            bad.append(str(error))
    if bad:
        raise PollardError(first_of(bad))
    return texts


def encode_texts(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], max_length: int) -> list[Encoded]:
    """The texts in pieces of at most `max_length` tokens, every token completion.

    Text may be cut where an answer may not: no piece of it is half a solution.
    """
    pieces = []
    for text in texts:
        ids = tokens_of(tokenizer, text)
        pieces += [Encoded(ids[start : start + max_length], 0) for start in range(0, len(ids), max_length)]
    return pieces

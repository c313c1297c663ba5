"""Answers as they come, so that a killed evaluation goes on instead of beginning again.

    {"fingerprint": "3f0c5d1be2a94c77"}                                              the first line of every file
    {"index": 7, "sample": 0, "text": "… #### 72", "tokens": 41, "ended": true}      one answer

Every rank appends to a file of its own; who reads, reads all of them, whatever number of ranks wrote them. A line that a kill
left half-written counts as not written, and files of other settings are removed. Judging is no part of it: after a scorer is
mended, the same answers are judged.
"""

import json
from pathlib import Path
from typing import Any

from toolkit.evaluation.answers import Request
from toolkit.evaluation.judging import Answer
from toolkit.runtime.distributed import on_main, rank
from toolkit.runtime.files import fingerprint_of

FORMAT = 2  # of the lines, and of how an answer is taken out of what was written
Found = dict[tuple[int, int], Answer]  # by item and sample


class AnswerLog:
    """The folder of one evaluation; `identity` is that of the model and of who writes. `begin` comes first."""

    def __init__(self, folder: Path, identity: Any) -> None:
        self.folder, self.identity = folder, identity
        self.fingerprint = ""

    def begin(self, *asked: Any) -> Found:
        """What is answered already of what is `asked`, on every rank; call it on all of them."""
        self.fingerprint = fingerprint_of(FORMAT, self.identity, asked)
        return on_main(self._read)

    def append(self, request: Request, answer: Answer) -> None:
        line = {"index": request.index, "sample": request.sample, **answer._asdict()}
        path = self.folder / f"{rank()}.jsonl"
        begun = path.exists()
        with path.open("a", encoding="utf-8") as file:  # closed, so a kill takes nothing that was appended
            if not begun:
                file.write(self._head())
            file.write(json.dumps(line) + "\n")

    def _head(self) -> str:
        return json.dumps({"fingerprint": self.fingerprint}) + "\n"

    def _read(self) -> Found:
        self.folder.mkdir(parents=True, exist_ok=True)
        found: Found = {}
        for path in sorted(self.folder.glob("*.jsonl")):
            lines = path.read_bytes().splitlines(keepends=True)
            if not lines or lines[0].decode(errors="replace") != self._head():
                path.unlink()
                continue
            whole = lines if lines[-1].endswith(b"\n") else lines[:-1]
            with path.open("r+b") as file:
                file.truncate(sum(map(len, whole)))
            for line in whole[1:]:
                entry: dict[str, Any] = json.loads(line)
                key = entry.pop("index"), entry.pop("sample")
                found[key] = Answer(**entry)
        return found

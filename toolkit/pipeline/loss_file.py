"""Losses that a search has measured, in a file, so that none is ever measured again:

{"fingerprint": "…", "losses": {"0,1,3": 0.42, "0,3": null}}

What stands for what was measured is the search's own; null is a loss that is not finite.
"""

import json
import math
from pathlib import Path

from toolkit.runtime.distributed import is_main, on_main
from toolkit.runtime.files import write_text


class LossFile:
    """On every rank. `fingerprint`: of the model, and of what the loss is measured on."""

    def __init__(self, path: Path, fingerprint: str) -> None:
        self.path, self.fingerprint = path, fingerprint
        self.losses = on_main(lambda: read_losses(path, fingerprint))

    def add(self, key: str, loss: float) -> None:
        """Kept as soon as it is known."""
        self.losses[key] = loss if math.isfinite(loss) else None
        if is_main():
            write_text(self.path, json.dumps({"fingerprint": self.fingerprint, "losses": self.losses}) + "\n")

    def get(self, key: str) -> float:
        """NaN: not finite. Raises KeyError for what was not measured."""
        found = self.losses[key]
        return math.nan if found is None else found


def read_losses(path: Path, fingerprint: str) -> dict[str, float | None]:
    """Those of the file (None: not finite); empty where it holds those of another model or other examples, or nothing that can be
    read."""
    try:
        found = json.loads(path.read_text())
        return dict(found["losses"]) if found["fingerprint"] == fingerprint else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}

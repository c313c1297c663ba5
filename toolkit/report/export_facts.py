"""What is known of a run's model in another program's format: its size, and its answers as that program gives them."""

from typing import Literal

from toolkit.report.measurements import Facts, Interval, Number
from toolkit.report.paired import PairedComparison
from toolkit.runtime.formatting import interval, percent, points
from toolkit.runtime.formatting import size as in_bytes


class ExportScore(Facts):
    """Of the task's questions, asked of the reader. `pair` compares with the model that was exported, question by question; None
    where that one was not evaluated on the same."""

    score: Number
    correct: int
    n: int
    interval: Interval
    seconds: Number | None = None
    pair: PairedComparison[str] | None = None


class ExportFacts(Facts):
    """exports/<name>/export.json."""

    format: Literal[1] = 1
    name: str
    """gguf, gguf-q8_0, fp8, w4a16."""
    model: str
    """The role of what was exported."""
    made_from: str
    """What identifies that model: of another one, the export is stale."""
    reader: str
    requirements: tuple[str, ...]
    bytes: int
    source_bytes: int
    scores: ExportScore | None = None

    def sentences(self) -> list[str]:
        """For the terminal."""
        change = self.bytes / self.source_bytes - 1
        percentage = f"{100 * change:+.0f} %".replace("-", "−")
        found = [f"{self.name}: {in_bytes(self.bytes)} on disk; {self.model} has {in_bytes(self.source_bytes)} ({percentage})"]
        if scores := self.scores:
            found += [
                f"{self.reader} answers {percent(scores.score)} of {scores.n:,} questions rightly "
                f"(95 % interval {interval(scores.interval)})"
            ]
            if pair := scores.pair:
                found += [
                    f"against {self.model}: {points(pair.difference)} points ({' to '.join(map(points, pair.interval))}); it "
                    f"alone is right on {pair.only_first:,}, {self.model} alone on {pair.only_second:,}"
                ]
        return found

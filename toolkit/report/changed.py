"""The questions on which the original and the result disagree: read before a difference of scores is believed."""

from typing import Any

from toolkit.pipeline.run_directory import RunDirectory
from toolkit.report.pairs import read_items

SHOWN = 5  # of each kind
LONGEST = 1_500  # characters of a text: an endless answer is not worth more


def changed(run: RunDirectory, models: dict[str, Any]) -> dict[str, Any] | None:
    """What the result (the recovered model, or the pruned one) answers wrongly and the original rightly, and the reverse;
    None where the two did not answer the same questions."""
    role = next((role for role in ("recovered", "pruned") if models.get(role)), None)
    if not (role and models.get("original")):
        return None
    before, after = (
        {item["index"]: item for item in read_items(run.evaluation / f"{name}.predictions.jsonl") or ()}
        for name in ("original", role)
    )
    if not before or {i: item["prompt"] for i, item in before.items()} != {i: item["prompt"] for i, item in after.items()}:
        return None
    lost = [i for i in before if before[i]["correct"] and not after[i]["correct"]]
    won = [i for i in before if after[i]["correct"] and not before[i]["correct"]]
    kinds = {"lost": lost, "won": won}
    return {"model": role} | {
        kind: {"count": len(found), "examples": [_example(before[i], after[i]) for i in sorted(found)[:SHOWN]]}
        for kind, found in kinds.items()
    }


def _example(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    texts = {
        "question": before["prompt"], "gold": before["gold"], "before": before["prediction"], "after": after["prediction"],
    }  # fmt: skip
    return {"index": before["index"]} | {key: _clipped(text) for key, text in texts.items()}


def _clipped(text: str) -> str:
    if len(text) <= LONGEST:
        return text
    return f"{text[: LONGEST // 2]} […] {text[-LONGEST // 2 :]}"

"""A scorer that raises: the evaluation is marked failed, everything else is done, and the next run does only what failed."""

import json
from pathlib import Path

import pytest
from small_run import make_small, small_recipe

from toolkit.pipeline.runner import run
from toolkit.runtime import distributed
from toolkit.runtime.errors import PollardError
from toolkit.tasks import SCORERS, Scorer

FAULT = "item 4 (test.jsonl, line 5): RuntimeError: no words"


def test_what_failed_is_noted_and_warned_of_and_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_small(tmp_path)
    monkeypatch.chdir(tmp_path)
    mended = SCORERS["contains"]
    fifth = json.loads((tmp_path / "test.jsonl").read_text().splitlines()[4])["answer"]

    def breaks(prediction: str, gold: str) -> bool:
        if gold == fifth and prediction != gold:  # the gold answer itself is judged before anything starts
            raise RuntimeError("no words")
        return mended.strict(prediction, gold)

    monkeypatch.setitem(SCORERS, "contains", Scorer(breaks, breaks))
    distributed.start()
    try:
        with pytest.raises(PollardError) as caught:
            run(small_recipe())
        assert str(caught.value).count(FAULT) == 2  # original and pruned
        folder = tmp_path / "runs" / "small"
        manifest = json.loads((folder / "manifest.json").read_text())
        assert set(manifest["stages"]) == {"calibrate", "select", "prune", "report"}
        assert {stage: failed["items"] for stage, failed in manifest["failed"].items()} == {
            "evaluate/original": [4],
            "evaluate/pruned": [4],
        }
        items = [json.loads(line) for line in (folder / "evaluation" / "pruned.predictions.jsonl").read_text().splitlines()]
        assert [item["error"] for item in items] == [None] * 4 + [FAULT, None]
        warnings = json.loads((folder / "report.json").read_text())["warnings"]
        assert sum(warning.startswith("pruned.json is left out, its evaluation failed.") for warning in warnings) == 1

        monkeypatch.setitem(SCORERS, "contains", mended)
        capsys.readouterr()
        run(small_recipe())
        done = [line for line in capsys.readouterr().out.splitlines() if "answer the test questions" in line]
        assert len(done) == 2
        manifest = json.loads((folder / "manifest.json").read_text())
        assert "failed" not in manifest and manifest["stages"]["evaluate/pruned"]["status"] == "done"
        report = json.loads((folder / "report.json").read_text())
        assert report["models"]["pruned"]["n"] == 6 and not any("failed" in warning for warning in report["warnings"])
    finally:
        distributed.stop()

"""The last screen of a run: what there is, and what to do next."""

from pathlib import Path

import pytest

from toolkit.cli import last_screen as module
from toolkit.cli.last_screen import last_screen
from toolkit.pipeline.run_directory import RunDirectory


def test_the_last_screen_says_what_there_is_and_what_to_do_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module, "program_path", lambda name: name)
    run = RunDirectory("small")
    run.pruned.mkdir(parents=True)
    (run.pruned / "model.safetensors").write_bytes(b"0" * 2**20)
    last_screen(run, 84, "pollard run small.yaml")
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "", "Done in 1 min 24 s", "  runs/small/pruned  the pruned model, 1.0 MiB", "Next",
        "  pollard run small.yaml   the stages that are left",
        "  pollard chat runs/small  ask the original and the smaller model side by side",
    ]  # fmt: skip

import os
import time
from pathlib import Path

import pytest
import torch
from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder

from toolkit import distributed
from toolkit.errors import PollardError
from toolkit.recovery import extension


@pytest.mark.skipif(torch.cuda.is_available(), reason="GPU ranks need nothing compiled")
def test_a_lock_left_by_a_killed_compilation_keeps_nobody_waiting() -> None:
    distributed.start()
    try:
        extension.build_communication()
        lock = extension.FOLDER / ShareMemCommBuilder.NAME / "lock"
        lock.touch()
        hour_ago = time.time() - 3600
        os.utime(lock, (hour_ago, hour_ago))
        extension.build_communication()  # torch itself would wait for ever
        assert not lock.exists()
    finally:
        distributed.stop()


def test_a_lock_just_taken_is_left_to_its_holder_for_a_moment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(extension, "MOMENT", 0.3)
    lock = tmp_path / "lock"
    lock.touch()
    started = time.time()
    extension._remove_stale(lock)
    assert not lock.exists() and time.time() - started >= 0.2


@pytest.mark.skipif(torch.cuda.is_available(), reason="GPU ranks need nothing compiled")
def test_a_machine_without_a_compiler_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extension.shutil, "which", lambda name: None)
    with pytest.raises(PollardError, match=r"finds no C\+\+ compiler: install one, e\.g\. `apt install g\+\+`"):
        extension.build_communication()

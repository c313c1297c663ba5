import pytest
import torch
from conftest import raises
from deepspeed.ops.op_builder.builder import OpBuilder
from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder

from toolkit.runtime import distributed
from toolkit.runtime import zero as extension

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="GPU ranks need nothing compiled")


def test_a_lock_left_by_a_killed_compilation_keeps_nobody_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    lock = extension.BUILD_FOLDER / ShareMemCommBuilder.NAME / "lock"
    distributed.start()
    try:
        extension.build_communication()
        with extension.build_lock():  # other tests build at the same time
            lock.touch()
        monkeypatch.setattr(OpBuilder, "_loaded_ops", {})  # as if in a new process
        extension.build_communication()  # torch itself would wait for ever
        assert not lock.exists()
    finally:
        distributed.stop()


def test_a_machine_without_a_compiler_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extension.shutil, "which", lambda name: None)
    with raises("zero.no-compiler", "apt install g++"):
        extension.build_communication()

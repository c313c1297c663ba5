"""Law: a stage's machine is named by its processor, cores and GPUs, on any machine."""

from pathlib import Path

import pytest

from toolkit.runtime import hardware as module


def test_this_machine_has_a_name_and_cores() -> None:
    found = module.hardware()
    assert found["cpu"] and found["cores"] >= 1 and isinstance(found["gpus"], list)


def test_a_machine_that_does_not_tell_is_named_by_its_architecture(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("builtins.open", lambda *_, **__: (_ for _ in ()).throw(OSError()))
    monkeypatch.setattr(module.platform, "machine", lambda: "aarch64")
    assert module._cpu_name() == "aarch64"

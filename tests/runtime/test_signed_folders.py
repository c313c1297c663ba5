"""What Pollard did not write is never removed, replaced or written over, whatever is called for."""

import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from conftest import raises
from safetensors.torch import save_file

from toolkit.runtime import signed_folders as folders
from toolkit.runtime.signed_folders import (
    check_target,
    foreign_files,
    own_files,
    provenance,
    put_in_place,
    read_provenance,
    remove_own,
    remove_own_file,
    whole_folder,
    write_own_file,
)

FACTS = provenance("pruned checkpoint", "some/model", "main")


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def made(target: Path, content: str = "old") -> Path:
    """A folder of Pollard's own."""
    with whole_folder(target, FACTS) as partial:
        (partial / "deep").mkdir()
        (partial / "deep" / "weights").write_text(content)
        (partial / "config.json").write_text("{}")
    return target


def test_a_folder_says_what_it_is_and_of_what(tmp_path: Path) -> None:
    made(tmp_path / "pruned")
    assert read_provenance(tmp_path / "pruned") == {
        "format": 1, "made_by": "pollard", "what": "pruned checkpoint", "source": "some/model", "revision": "main",
        "files": {"config.json": ["44136fa355b3678a"], "deep/weights": [checksum("old")]},
    }  # fmt: skip


def checksum(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def test_a_folder_is_replaced_whole(tmp_path: Path) -> None:
    target = tmp_path / "deeper" / "pruned"
    for content in ("old", "new"):
        made(target, content)
    assert (target / "deep" / "weights").read_text() == "new" and names_in(target.parent) == ["pruned"]


def test_a_failing_block_leaves_the_old_folder_untouched(tmp_path: Path) -> None:
    target = made(tmp_path / "pruned")
    with pytest.raises(RuntimeError), whole_folder(target, FACTS) as partial:
        (partial / "weights").write_text("new")
        raise RuntimeError
    assert (target / "deep" / "weights").read_text() == "old"
    with whole_folder(target, FACTS) as partial:  # what the failure left is not taken over
        assert names_in(partial) == ["pollard.json"]


def test_a_folder_that_fails_at_first_does_not_appear(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), whole_folder(tmp_path / "pruned", FACTS):
        raise RuntimeError
    assert not (tmp_path / "pruned").exists()


def everything(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def somebodys(folder: Path) -> None:
    """A folder of the user's, a model perhaps."""
    folder.mkdir(parents=True)
    for name in ("thesis.tex", "config.json", "model.safetensors"):
        (folder / name).write_text("mine")


@pytest.mark.parametrize("name", ["out", "out.tmp", "out.old.tmp"])
@pytest.mark.parametrize("writing", ["whole", "placed", "removed"])
def test_somebody_elses_folder_is_never_touched(tmp_path: Path, name: str, writing: str) -> None:
    target = tmp_path / "out"
    if name == "out.old.tmp":
        made(target)
    somebodys(tmp_path / name)
    before = everything(tmp_path)
    if writing == "whole":
        with raises("folders.foreign", target, "thesis.tex"), whole_folder(target, FACTS):
            pass
    elif writing == "placed" and name == "out":
        (tmp_path / "new").mkdir()
        with raises("folders.foreign", "config.json, model.safetensors, thesis"):
            put_in_place(tmp_path / "new", target)
    else:
        with raises("folders.foreign", tmp_path / name):
            remove_own(tmp_path / name)
    assert everything(tmp_path) == before


@pytest.mark.parametrize("file", ["notes.txt", "model.gguf", "deep/mine.txt", "sub/mine.txt"])
def test_what_somebody_put_into_a_folder_of_ours_keeps_it_from_being_replaced(tmp_path: Path, file: str) -> None:
    target = made(tmp_path / "pruned")
    (target / file).parent.mkdir(exist_ok=True)
    (target / file).write_text("mine")
    with raises("folders.foreign", target, file):
        check_target(target, overwrite=True)
    assert (target / file).read_text() == "mine"


def test_what_later_stages_and_libraries_leave_is_ours(tmp_path: Path) -> None:
    target = made(tmp_path / "pruned")
    for file in ("__pycache__/a.pyc", "deep/__pycache__/b.pyc", ".cache/c"):
        (target / file).parent.mkdir(exist_ok=True)
        (target / file).write_text("")
    write_own_file(target, "README.md", "a card")
    write_own_file(target, "README.md", "another")
    assert foreign_files(target) == [] and target / "README.md" in own_files(target)
    remove_own_file(target, "README.md")
    assert not (target / "README.md").exists() and names_in(target) == sorted(
        ["config.json", "deep", "pollard.json", "__pycache__", ".cache"]
    )


# Training goes on in place, settings are tuned by hand: the files keep their names, and are somebody's work.
@pytest.mark.parametrize("size", [0, 10, 300_000])
def test_a_file_that_somebody_changed_is_theirs(tmp_path: Path, size: int) -> None:
    target = made(tmp_path / "pruned", "0" * size)
    shutil.copytree(target, tmp_path / "moved")  # with other times
    check_target(tmp_path / "moved", overwrite=True)
    (target / "deep" / "weights").write_text("1" * max(size, 1))
    with raises("folders.foreign", "deep/weights (changed since)"):
        check_target(target, overwrite=True)
    assert [path.name for path in own_files(target)] == ["config.json", "pollard.json"]


@pytest.mark.parametrize("then", ["written", "removed"])
def test_what_a_stage_writes_beside_a_checkpoint_keeps_what_somebody_made_of_it(tmp_path: Path, then: str) -> None:
    target = made(tmp_path / "pruned")
    write_own_file(target, "README.md", "a card")
    (target / "README.md").write_text("a card, and what I found")
    if then == "written":
        write_own_file(target, "README.md", "a card")
    else:
        remove_own_file(target, "README.md")
    assert (target / "README.edited.md").read_text() == "a card, and what I found"
    assert foreign_files(target) == ["README.edited.md"]


def test_a_kill_while_an_old_folder_is_removed_leaves_it_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target, unlinked = made(tmp_path / "pruned"), Path.unlink

    def unlink(self: Path) -> None:
        if self.name == "config.json":
            raise KilledError
        unlinked(self)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", unlink)
        with pytest.raises(KilledError):
            made(target, "new")
    made(target, "newest")
    assert os.listdir(tmp_path) == ["pruned"]


def test_replacing_what_is_ours_must_be_asked_for(tmp_path: Path) -> None:
    target = made(tmp_path / "pruned")
    with raises("folders.exists", "pruned checkpoint of some/model", "overwrite=True"):
        check_target(target, overwrite=False)
    check_target(target, overwrite=True)


def test_nothing_and_an_empty_folder_may_become_a_result(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("absent", "empty"):
        check_target(tmp_path / name, overwrite=False)
        made(tmp_path / name)
        assert names_in(tmp_path / name) == ["config.json", "deep", "pollard.json"]


def test_places_that_no_folder_can_take_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "here" / "below").mkdir(parents=True)
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "here" / "below")
    for target, message in {
        tmp_path / "file": "is a file", tmp_path / "link": f"is a link to {tmp_path}/elsewhere", Path("/proc"): "is mounted",
        tmp_path / "here" / "below": "is the folder you are in", tmp_path / "here": "is above the folder you are in",
        tmp_path / "home": "is your home folder", tmp_path: "is above",
    }.items():  # fmt: skip
        with raises("folders.not-replaceable", target, message):
            check_target(target, overwrite=True)
    assert (tmp_path / "link").is_symlink()


def test_checkpoints_of_earlier_versions_are_known_by_their_run(tmp_path: Path) -> None:
    for name in ("pruned", "adapter", "pictures"):
        somebodys(tmp_path / name)
        (tmp_path / name / "thesis.tex").unlink()
    (tmp_path / "begun.tmp").mkdir()
    (tmp_path / "begun.tmp" / "pruning.json").write_text('{"format": 1, "fingerprint": "1"}')
    assert foreign_files(tmp_path / "pruned") and not foreign_files(tmp_path / "begun.tmp")
    (tmp_path / "manifest.json").write_text(json.dumps({"format": 1, "stages": {}}))
    assert not foreign_files(tmp_path / "pruned") and not foreign_files(tmp_path / "adapter")
    assert foreign_files(tmp_path / "pictures")
    earlier = (
        "README.md", "model-00001-of-00002.safetensors", "model.safetensors.index.json", "tokenizer.model", "merges.txt",
        "preprocessor_config.json", "modeling_my.py", "skipping.json", "LICENSE",
    )  # fmt: skip
    theirs = ("model-q4.gguf", "notes.md", "notes.txt", "results.json")
    for name in (*earlier, *theirs):
        (tmp_path / "pruned" / name).write_text("")
    assert foreign_files(tmp_path / "pruned") == [*theirs]


class KilledError(BaseException):
    pass


# os.rename stands for everything that a kill can come before: whatever happens, one of the two is there whole.
@pytest.mark.parametrize("moment", [0, 1, 2])
def test_a_kill_while_a_folder_is_replaced_loses_neither(tmp_path: Path, moment: int, monkeypatch: pytest.MonkeyPatch) -> None:
    target, renamed = made(tmp_path / "pruned"), Path.rename
    count = iter(range(9))

    def rename(self: Path, to: Path) -> Path:
        if next(count) == moment:
            raise KilledError
        return renamed(self, to)

    def rmtree(path: Path, **options: bool) -> None:
        if moment == 2 and path.name == "pruned.old.tmp":
            raise KilledError
        shutil.rmtree(path, **options)  # type: ignore[call-overload]

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", rename)
        patched.setattr(folders, "shutil", type("", (), {"rmtree": staticmethod(rmtree)}))
        with pytest.raises(KilledError):
            made(target, "new")
    check_target(target, overwrite=True)
    assert (target / "deep" / "weights").read_text() == ("new" if moment == 2 else "old")
    made(target, "newest")
    assert (target / "deep" / "weights").read_text() == "newest" and os.listdir(tmp_path) == ["pruned"]


# safetensors writes files of mode 600, beside configurations of mode 644: a server of another user would find half a model
@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600)])
def test_weights_may_be_read_by_whoever_may_read_the_rest(mask: int, mode: int, tmp_path: Path) -> None:
    before = os.umask(mask)
    try:
        with whole_folder(tmp_path / "made", FACTS) as partial:
            save_file({"weight": torch.zeros(2)}, partial / "model.safetensors")
    finally:
        os.umask(before)
    assert (tmp_path / "made" / "model.safetensors").stat().st_mode & 0o777 == mode

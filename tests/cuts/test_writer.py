import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from conftest import logits_of, plan_for, raises, tiny_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from toolkit.cuts import writer
from toolkit.cuts.apply import apply_plan
from toolkit.cuts.checkpoint import prune_checkpoint
from toolkit.cuts.plan import Plan
from toolkit.moe import tensor_files
from toolkit.runtime.distributed import stop
from toolkit.runtime.errors import PollardError

KEPT = [0, 3, 5, 6]
WRITTEN = ("config.json", "generation_config.json", "pollard.json")


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint in several files, to be written in several others."""
    tiny_model("mixtral").save_pretrained(tmp_path / "original", max_shard_size="60KB")
    monkeypatch.setattr(writer, "SHARD_BYTES", 40_000)
    return tmp_path / "original"


@pytest.fixture(scope="module")
def plan() -> Plan:
    return plan_for(tiny_model("mixtral"), KEPT)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_a_checkpoint_in_files_becomes_one_in_files(source: Path, plan: Plan, tmp_path: Path) -> None:
    assert len([*source.glob("*.safetensors")]) > 2
    prune_checkpoint(source, plan, tmp_path / "pruned")
    files = sorted(path.name for path in (tmp_path / "pruned").glob("*.safetensors"))
    assert files[0] == f"model-00001-of-{len(files):05}.safetensors" and len(files) > 2
    index = json.loads((tmp_path / "pruned" / "model.safetensors.index.json").read_text())
    found = {name: file for file in files for name in load_file(tmp_path / "pruned" / file)}
    assert index["weight_map"] == found
    tensors = [tensor for file in files for tensor in load_file(tmp_path / "pruned" / file).values()]
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in tensors)
    assert max(os.path.getsize(tmp_path / "pruned" / file) for file in files) < 45_000
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "pruned")
    assert torch.equal(logits_of(stock), logits_of(apply_plan(tiny_model("mixtral"), plan)))


def test_everything_else_is_copied_as_it_is_and_what_is_left_is_said(source: Path, plan: Plan, tmp_path: Path, capsys) -> None:
    beside = {"tokenizer.json": b'{"a":  1}', "chat_template.jinja": b"{{ x }}\r\n", "LICENSE": b"words", "code.py": b"1"}
    for name, data in beside.items():
        (source / name).write_bytes(data)
    (source / "additional_chat_templates").mkdir()
    (source / "additional_chat_templates" / "tools.jinja").write_text("{{ tools }}")
    for name in ("consolidated.safetensors", "pytorch_model.bin", ".hidden"):
        (source / name).write_bytes(b"weights")
    (source / "original").mkdir()
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"torch_dtype": "float32", "a_key_of_another_reader": {"b": [1]}}))
    prune_checkpoint(source, plan, tmp_path / "pruned")
    found = content(tmp_path / "pruned" / "additional_chat_templates")
    assert found == {"tools.jinja": b"{{ tools }}"}
    shutil.rmtree(tmp_path / "pruned" / "additional_chat_templates")
    found = content(tmp_path / "pruned")
    assert {name: found[name] for name in beside} == beside
    assert found["generation_config.json"] == (source / "generation_config.json").read_bytes()
    assert {name for name in found if not name.startswith("model")} == {*beside, *WRITTEN}
    assert "left out: consolidated.safetensors, original/, pytorch_model.bin" in capsys.readouterr().out
    written = json.loads(found["config.json"])
    counts = {"num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2}
    assert written == config | counts | {"torch_dtype": "float32", "a_key_of_another_reader": {"b": [1]}}


def _rank(rank: int, ranks: int, folder: str, plan: Plan) -> None:
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(ranks))
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/r{ranks}", rank=rank, world_size=ranks)
    prune_checkpoint(f"{folder}/original", plan, f"{folder}/by{ranks}")
    if ranks == 2:
        _fail_on_one_rank(rank, folder, plan)
    stop()


def _fail_on_one_rank(rank: int, folder: str, plan: Plan) -> None:
    if rank == 1:
        writer.write_file = lambda path, pieces: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left on device"))
    with pytest.raises(
        PollardError, match=r"Cannot write .*failed: No space left on device \(.* GB free there\)\. Files"
    ):  # on both
        prune_checkpoint(f"{folder}/original", plan, f"{folder}/failed")
    assert not Path(folder, "failed").exists()


@pytest.mark.launcher
def test_any_number_of_ranks_writes_the_same_bytes_and_fails_together(source: Path, plan: Plan, tmp_path: Path) -> None:
    prune_checkpoint(source, plan, tmp_path / "by1")
    for ranks in (2, 4):
        mp.start_processes(_rank, (ranks, str(tmp_path), plan), nprocs=ranks, start_method="fork")
        assert content(tmp_path / f"by{ranks}") == content(tmp_path / "by1")


class StoppedError(Exception):
    pass


def stop_at(number: int, monkeypatch: pytest.MonkeyPatch, error: Exception) -> list[str]:
    """From the `number`-th file on, half of it is written and then `error` is raised; lists what is written whole."""
    written: list[str] = []
    whole = tensor_files.write_file

    def write(path: Path, pieces: Any) -> None:
        if len(written) == number:
            path.with_name(path.name + ".tmp").write_bytes(b"half")
            raise error
        whole(path, pieces)
        written.append(path.name)

    monkeypatch.setattr(writer, "write_file", write)
    return written


def test_a_rerun_goes_on_after_the_last_whole_file(source: Path, plan: Plan, tmp_path: Path, monkeypatch, capsys) -> None:
    prune_checkpoint(source, plan, tmp_path / "undisturbed")
    stop_at(2, monkeypatch, StoppedError())
    with pytest.raises(StoppedError):
        prune_checkpoint(source, plan, tmp_path / "pruned")
    rest = stop_at(99, monkeypatch, StoppedError())
    prune_checkpoint(source, plan, tmp_path / "pruned")
    names = [name for name in content(tmp_path / "pruned") if name.endswith(".safetensors")]
    assert rest == names[2:] and f"2 of {len(names)} files are there already" in capsys.readouterr().out
    assert content(tmp_path / "pruned") == content(tmp_path / "undisturbed")
    assert not (tmp_path / "pruned.tmp").exists()


@pytest.mark.parametrize("what", ["plan", "source", "experts per token"])
def test_another_pruning_takes_nothing_over(what: str, source: Path, plan: Plan, tmp_path: Path, monkeypatch) -> None:
    stop_at(2, monkeypatch, StoppedError())
    with pytest.raises(StoppedError):
        prune_checkpoint(source, plan, tmp_path / "pruned")
    if what == "plan":
        plan = plan_for(tiny_model("mixtral"), [0, 1, 2, 3])
    elif what == "source":
        tiny_model("mixtral", seed=1).save_pretrained(source, max_shard_size="60KB")
    else:
        plan = plan.model_copy(update={"experts_per_token": 1})
    rest = stop_at(99, monkeypatch, StoppedError())
    prune_checkpoint(source, plan, tmp_path / "pruned")
    assert rest == [name for name in content(tmp_path / "pruned") if name.endswith(".safetensors")]


def test_a_full_disk_is_said_and_what_is_whole_is_kept(source: Path, plan: Plan, tmp_path: Path, monkeypatch) -> None:
    stop_at(2, monkeypatch, OSError(errno.ENOSPC, "No space left on device"))
    with pytest.raises(
        PollardError, match=r"Cannot write .*pruned: No space left on device \(.* GB free there\)\. Files that are whole"
    ):
        prune_checkpoint(source, plan, tmp_path / "pruned")
    assert not (tmp_path / "pruned").exists() and len([*(tmp_path / "pruned.tmp").glob("*.safetensors")]) == 2


def test_a_disk_too_small_is_said_before_anything_is_written(source: Path, plan: Plan, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1, 1, 1000))
    with raises("prune.disk-full", "needs 0.0 GB", "0.0 GB are free"):
        prune_checkpoint(source, plan, tmp_path / "pruned")
    assert [path.name for path in tmp_path.iterdir()] == ["original"]


def test_a_target_that_cannot_be_written_is_said(source: Path, plan: Plan, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a file, not a folder")
    with raises("checkpoint.cannot-write", "file/pruned.tmp", "Not a directory"):
        prune_checkpoint(source, plan, tmp_path / "file" / "pruned")
    with raises("prune.replaces-original"):
        prune_checkpoint(source, plan, source)


def test_a_damaged_source_leaves_nothing_at_the_target(source: Path, plan: Plan, tmp_path: Path) -> None:
    last = sorted(source.glob("*.safetensors"))[-1]
    whole = last.read_bytes()
    for damage, message in (
        (lambda: last.write_bytes(whole[:-4]), ("checkpoint.damaged-file", "is cut off")),
        (last.unlink, ("checkpoint.missing-file",)),
    ):
        damage()
        with raises(*message):
            prune_checkpoint(source, plan, tmp_path / "pruned")
        assert not [*tmp_path.glob("pruned*")]

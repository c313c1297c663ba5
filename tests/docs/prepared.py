"""The folder that the pages speak of: models, data, recipes and runs by the names they have there, all of them small."""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import torch
from conftest import PLAYGROUND, ROOT, tiny_model
from small_run import make_small, small_values

import toolkit
from toolkit.moe import load_model
from toolkit.pipeline import runner as pipeline
from toolkit.recipe.file import dump_values, load_recipe, read_values
from toolkit.recipe.schema import Recipe
from toolkit.runtime.distributed import start, stop

MODELS = {
    "data/playground/model": "mixtral",
    "mistralai/Mixtral-8x7B-v0.1": "mixtral",
    "mistralai/Mixtral-8x7B-Instruct-v0.1": "mixtral",
    "Qwen/Qwen2.5-1.5B": "qwen2",
    "Qwen/Qwen3-30B-A3B": "qwen3_moe",
    "path/to/checkpoint": "mixtral",
    "path/of/original": "mixtral",
    "path/of/smaller": "mixtral",
}
OWN = ("runs", "path")  # folders that pages write to
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
SHORT = {
    "calibration": {"examples": 8, "batch_size": 4},
    "finetuning": {"examples": 8, "zero": 0},
    "evaluation": {"examples": 4, "max_new_tokens": 4},
}
FIT_BYTES = 280_000  # of the 330 KiB that a model has
TRAINER = {"max_steps": 2, "per_device_train_batch_size": 2, "eval_strategy": "steps", "eval_steps": 2, "logging_steps": 1}
STANDS_IN = {  # for the programs that launch.sh calls
    "python": "echo 0",  # GPUs, and a free port
    "deepspeed": 'printf "%s\\n" "$@" > launched',
    "ruff": ":",
    "mypy": ":",
    "pytest": ":",
}


def make_folder(folder: Path) -> Path:
    """Made once; every page gets a folder that leads to it."""
    for name, family in MODELS.items():
        tiny_model(family, vocab_size=768, eos_token_id=1).save_pretrained(folder / name)
        for file in TOKENIZER:
            shutil.copy(PLAYGROUND / "model" / file, folder / name)
    (folder / "path" / "of" / "config").mkdir()  # the shape of a model, without weights
    shutil.copy(folder / "path" / "of" / "original" / "config.json", folder / "path" / "of" / "config")
    for task in filter(lambda task: (task / "train.jsonl").exists(), PLAYGROUND.iterdir()):
        (folder / "data" / "playground" / task.name).symlink_to(task)
    _write(folder / "data" / "tickets.train.jsonl", 60, text="My parcel {} has not come.", team="shipping")
    _write(folder / "data" / "tickets.test.jsonl", 6, text="Where is parcel {}?", team="shipping")
    (folder / "recipes").mkdir()
    for recipe in (ROOT / "recipes").glob("*.yaml"):
        (folder / "recipes" / recipe.name).write_text(dump_values(short(read_values(recipe.read_text()))))
    (folder / "benchmarks").mkdir()
    (folder / "benchmarks" / "scaling").symlink_to(ROOT / "benchmarks" / "scaling")  # published configurations
    _launcher(folder)
    _runs(folder)
    return folder


def page_folder(everything: Path, folder: Path, runs: bool = True) -> None:
    """What a page makes stays in its own folder; with the finished runs, or with none."""
    for entry in everything.iterdir():
        if entry.name not in (*OWN, "data", "launch.sh"):
            (folder / entry.name).symlink_to(entry)
    shutil.copy(everything / "launch.sh", folder)  # its home is where it lies
    for name in OWN if runs else OWN[1:]:
        shutil.copytree(everything / name, folder / name)
    (folder / "data").mkdir()
    for entry in (everything / "data").iterdir():
        (folder / "data" / entry.name).symlink_to(entry)


def known_names() -> dict[str, Any]:
    """What a page takes for granted: the import, a loaded model and batches."""
    ids = torch.randint(3, 64, (2, 12), generator=torch.Generator().manual_seed(0))
    batches = [{"input_ids": ids, "attention_mask": torch.ones_like(ids)}]
    return {"toolkit": toolkit, "model": load_model("path/to/checkpoint"), "batches": batches}


def short(values: dict[str, Any]) -> dict[str, Any]:
    """A recipe of the repository with the same keys, and numbers that make it quick."""
    for section, changes in SHORT.items():
        values[section] = {**(values.get(section) or {}), **changes}
    values["finetuning"]["trainer"] = TRAINER
    if fit := values.get("pruning", {}).get("fit"):
        values["pruning"] |= {"width_multiple": 4, "fit": fit | {"bytes": FIT_BYTES, "refit": {"examples": 8}, "measured": 1}}
    if values["task"] == "gsm8k":
        samples = {split: str(ROOT / "tests" / "samples" / f"gsm8k_{split}.jsonl") for split in ("train", "test")}
        values["task"] = {"name": "gsm8k", **samples}
    elif isinstance(values["task"], str):
        values["task"] = {"name": values["task"], "dev_examples": 8}
    return values


def launched(arguments: list[str]) -> list[str]:
    """Runs ./launch.sh; what it would start, as arguments of `pollard` (none: it only sets up, or tests)."""
    Path("launched").unlink(missing_ok=True)
    environment = {key: value for key, value in os.environ.items() if not key.startswith("SLURM")}
    done = subprocess.run(["./launch.sh", *arguments], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    if not Path("launched").exists():
        return []
    words = Path("launched").read_text().splitlines()
    if "toolkit.cli" in words:
        return words[words.index("toolkit.cli") + 1 :]
    entry = next(n for n, word in enumerate(words) if word.endswith("toolkit/train.py"))
    return ["run", *words[entry + 1 :]]


def _launcher(folder: Path) -> None:
    """launch.sh where it finds itself set up, and a hostfile for it."""
    for name in ("toolkit", "pyproject.toml", "constraints.txt"):
        (folder / name).symlink_to(ROOT / name)
    shutil.copy(ROOT / "launch.sh", folder)
    programs = folder / ".venv" / "bin"
    programs.mkdir(parents=True)
    for name, does in STANDS_IN.items():
        (programs / name).write_text(f"#!/usr/bin/env bash\n{does}\n")
        (programs / name).chmod(0o755)
    wanted = subprocess.run(
        "cat pyproject.toml constraints.txt | sha256sum", shell=True, cwd=folder, capture_output=True, check=True
    )
    for extra in ("", ".dev"):
        (folder / ".venv" / f"pollard-set-up{extra}").write_bytes(wanted.stdout)
    (folder / "questions.txt").write_text("How many pens are left?\nWho is tallest?\n")
    (folder / "hosts").write_text("node1 slots=8\nnode2 slots=8\n")


def _runs(folder: Path) -> None:
    """Finished runs, for what reads them."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        make_small(folder)
        start()
        for name in ("small", "large"):
            pipeline.run(Recipe.model_validate(small_values(name=name)), until="evaluate")
        pipeline.run(load_recipe("recipes/playground.yaml"), until="evaluate")
        pipeline.run(load_recipe("recipes/math.yaml", ["finetuning.method=lora"]), until="recover")
    finally:
        stop()
        os.chdir(before)
    shutil.copy(folder / "runs" / "small" / "plan.json", folder)


def _write(path: Path, lines: int, **columns: str) -> None:
    rows = ({key: value.format(n) for key, value in columns.items()} for n in range(lines))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))

"""Law: what a run is about is resolved once: no stage, check or screen builds a task or opens a data file again."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small_run import TASK, small_folder, small_recipe

from toolkit.pipeline.context import RunContext
from toolkit.pipeline.runner import run
from toolkit.recipe.data import TaskRecipe
from toolkit.recipe.roles import Role
from toolkit.tasks import Task, sources


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory):
    with small_folder(tmp_path_factory, "context") as folder:
        (folder / "notes.jsonl").write_text("".join(json.dumps({"text": f"Note {i}: it rained."}) + "\n" for i in range(9)))
        yield folder


def test_a_run_builds_each_task_and_reads_each_data_file_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = TASK | {"train": "other.jsonl"}
    Path("other.jsonl").write_text(Path("train.jsonl").read_text())
    built, read, hashed = Counter[str](), Counter[str](), Counter[str]()
    build, read_file, hash_file = Task.__init__, sources.read_file, sources.fingerprint_of_path

    def counting(count: Counter[str], real: Callable[[str], Any]) -> Callable[[str], Any]:
        def counted(path: str) -> Any:
            count[Path(path).name] += 1
            return real(path)

        return counted

    def counted_build(self: Task, recipe: TaskRecipe) -> None:
        built[str(recipe.train)] += 1
        build(self, recipe)

    monkeypatch.setattr(Task, "__init__", counted_build)
    monkeypatch.setattr(sources, "read_file", counting(read, read_file))
    monkeypatch.setattr(sources, "fingerprint_of_path", counting(hashed, hash_file))
    trainer = {"max_steps": 1, "per_device_train_batch_size": 2, "eval_strategy": "no"}
    mix = [{"task": TASK, "examples": 4}, {"task": other, "examples": 4}, {"text": "notes.jsonl", "examples": 4}]
    everything = run(
        small_recipe(
            calibration__data=mix, control=True,
            finetuning={"zero": 0, "data": mix, "trainer": trainer, "teacher": "original"},
            evaluation={"batch_size": 3, "max_new_tokens": 4, "off_task": False, "fidelity": 4},
        )
    )  # fmt: skip
    assert {"teacher", "recover", "fidelity/control", "evaluate/control", "report"} <= everything.done().keys()
    assert built == {"train.jsonl": 2, "other.jsonl": 1}  # the report, which knows the run directory alone, reads no data for it
    assert read == hashed | {"test.jsonl": 1} == {"train.jsonl": 1, "test.jsonl": 1, "other.jsonl": 1, "notes.jsonl": 1}


def test_what_variants_of_a_recipe_share_is_resolved_once(folder: Path) -> None:
    context = RunContext(small_recipe())
    fewer = context.variant(small_recipe(pruning__keep=2))
    assert fewer.task is context.task and fewer.tokenizer is context.tokenizer and fewer.meta_model is context.meta_model
    assert (context.budget.keep, fewer.budget.keep) == (4, 2)
    assert context.fingerprints.calibrate == fewer.fingerprints.calibrate
    assert context.fingerprints.select != fewer.fingerprints.select


def test_the_original_and_what_a_round_prunes_are_two_models(folder: Path) -> None:
    context = RunContext(small_recipe(pruning={"schedule": [6, 4]}))
    assert context.checkpoint(Role.ORIGINAL).path == context.original.path == "original"
    assert context.source.path == "runs/small/rounds/6/recovered"
    assert RunContext(small_recipe()).source == RunContext(small_recipe()).original

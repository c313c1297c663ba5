"""lm-evaluation-harness on a local task: what it finds is what a plain loop finds, and mistakes are told before anything runs."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import PLAYGROUND, raises, tiny_model
from small_harness import QUESTIONS, make_task, own_alone

from toolkit.evaluation import harness
from toolkit.evaluation.harness import check_harness, run_harness
from toolkit.moe import load_tokenizer


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    make_task(tmp_path / "tasks")
    return str(tmp_path / "tasks")


@torch.no_grad()
def by_hand(model: Any, tokenizer: Any) -> list[bool]:
    """Per question whether the choice with the highest log-likelihood is the right one."""
    right = []
    for line in QUESTIONS:
        prompt = tokenizer(line["question"])["input_ids"]
        likely = []
        for choice in line["choices"]:
            ids = tokenizer(f"{line['question']} {choice}")["input_ids"]
            log_p = model(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
            likely.append(sum(log_p[i - 1, ids[i]].item() for i in range(len(prompt), len(ids))))
        right.append(likely.index(max(likely)) == line["label"])
    return right


def test_accuracy_is_what_a_plain_loop_over_the_choices_finds(folder: str) -> None:
    tokenizer = load_tokenizer(str(PLAYGROUND / "model"))
    for seed in (0, 1):
        model = tiny_model("mixtral", vocab_size=768, eos_token_id=1, seed=seed)
        model.lm_head.weight.data *= 6
        check_harness(["small_choice"], folder)
        found = run_harness(model, tokenizer, ["small_choice"], folder, 3)["small_choice"]
        assert found.output_type == "multiple_choice"
        right = by_hand(model, tokenizer)
        share = sum(right) / len(right)
        assert (found.n, found.metrics["acc"].value) == (8, share)
        assert found.metrics["acc"].error == pytest.approx((share * (1 - share) / 7) ** 0.5)


def test_a_group_is_multiple_choice_only_where_all_its_tasks_are() -> None:
    kinds = {"arc": "multiple_choice", "piqa": "multiple_choice", "gsm8k": "generate_until", "old": None}
    groups = {"choices": ["arc", "piqa"], "mixed": ["choices", "gsm8k"], "all": ["choices", "arc"], "none": []}
    output = {
        "configs": {task: {"output_type": kind} for task, kind in kinds.items()},
        "group_subtasks": groups,
        "results": {name: {"acc,none": 0.5} for name in (*kinds, *groups)},
    }
    found = {name: result.output_type for name, result in harness._read(output).items()}
    assert {name for name, kind in found.items() if kind == "multiple_choice"} == {"arc", "piqa", "choices", "all"}
    assert (found["gsm8k"], found["mixed"], found["none"], found["old"]) == ("generate_until", None, None, None)


def test_an_unknown_task_a_missing_folder_and_missing_data_are_told(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    own_alone(monkeypatch)
    with raises("harness.no-task", "'smal_choice'", "Did you mean `small_choice`?"):
        check_harness(["smal_choice"], folder)
    with raises("harness.no-folder", "nowhere"):
        check_harness(["small_choice"], "nowhere")
    (Path(folder) / "questions.jsonl").unlink()
    with raises("harness.data", "small_choice"):
        check_harness(["small_choice"], folder)


def test_a_missing_extra_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    harness._tasks.cache_clear()
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    with raises("harness.not-installed", "pip install 'pollard-moe[lm-eval]'"):
        check_harness(["arc_easy"], None)

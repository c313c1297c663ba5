"""Laws of what the student writes: it counts by the divergence from the teacher alone, and changes nothing where it is not."""

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import raises, tiny_model
from datasets import Dataset
from small_run import TASK, small_folder, small_recipe
from transformers import PreTrainedModel
from trl import SFTConfig

from toolkit.moe import load_tokenizer
from toolkit.recipe.finetuning import DistillationRecipe
from toolkit.recipe.schema import Recipe
from toolkit.recovery.distillation import DIVERGENCE_ONLY, Batch, DistilledTrainer
from toolkit.recovery.recover import _rows
from toolkit.recovery.seam_columns import SeamColumns, TeacherStates
from toolkit.recovery.student_answers import JoinedCaches, MixedData, mixed_data, read_student_answers
from toolkit.recovery.teacher import TeacherCache, cache_logits, predicted_tokens
from toolkit.recovery.training_data import TrainingData, read_training_data
from toolkit.tasks import Encoded

VOCABULARY, WEIGHT, TEMPERATURE = 60, 0.3, 2.0  # few enough words that the cache holds the whole distribution
SHARED = [Encoded([5, 9, 11, 23, 2], 2), Encoded([7, 8, 31, 2], 1), Encoded([4, 44, 13, 17, 19, 2], 3)]
STUDENT = [Encoded([5, 9, 50, 51, 52, 53], 2), Encoded([7, 8, 40, 2], 1)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with small_folder(tmp_path_factory, "student") as folder:
        yield folder


@pytest.fixture(scope="module")
def teacher() -> PreTrainedModel:
    return tiny_model("mixtral", vocab_size=VOCABULARY)


@pytest.fixture(scope="module")
def caches(folder: Path, teacher: PreTrainedModel) -> JoinedCaches:
    found = []
    for name, encoded in (("teacher", SHARED), ("student", STUDENT)):
        cache_logits(teacher, encoded, folder / name, TEMPERATURE, 2, 0, "fingerprint")
        found.append(TeacherCache(folder / name, encoded, TEMPERATURE, VOCABULARY))
    return JoinedCaches(found, [len(SHARED), len(STUDENT)])


def mixed(student: list[Encoded]) -> MixedData:
    return mixed_data(small_recipe(), TrainingData(SHARED, 0, 0), student)


def gradient(folder: Path, caches: JoinedCaches, rows: list[dict]) -> tuple[float, torch.Tensor, DistilledTrainer]:
    """The loss of the rows as one batch, and the gradient of all weights of a student."""
    student = tiny_model("mixtral", vocab_size=VOCABULARY, seed=1)
    arguments = SFTConfig(
        str(folder / "out"), use_cpu=True, bf16=False, report_to="none", max_length=None, completion_only_loss=False,
        dataset_kwargs={"skip_prepare_dataset": True},
    )  # fmt: skip
    trainer = DistilledTrainer(
        student, arguments, train_dataset=Dataset.from_list(rows), processing_class=load_tokenizer("original"), cache=caches,
        distillation=DistillationRecipe(weight=WEIGHT, temperature=TEMPERATURE),
    )  # fmt: skip
    loss = trainer.compute_loss(student, trainer.data_collator(rows))
    loss.backward()
    return loss.item(), gradients_of(student), trainer


def gradients_of(model: PreTrainedModel) -> torch.Tensor:
    return torch.cat([p.grad.flatten() if p.grad is not None else torch.zeros(p.numel()) for p in model.parameters()])


def by_hand(teacher: PreTrainedModel, student: PreTrainedModel, encoded: Encoded) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross entropy and KL over a completion, from whole distributions, in float64."""
    ids, first = torch.tensor([encoded.input_ids]), encoded.prompt_length - 1
    with torch.no_grad():
        p = (teacher(ids).logits[0, first:-1].double() / TEMPERATURE).log_softmax(-1)
    logits = student(ids).logits[0, first:-1].double()
    q = (logits / TEMPERATURE).log_softmax(-1)
    cross = torch.nn.functional.cross_entropy(logits, ids[0, encoded.prompt_length :], reduction="sum")
    return cross, (p.exp() * (p - q)).sum()


def test_what_the_student_wrote_has_no_cross_entropy(folder: Path, caches: JoinedCaches, teacher: PreTrainedModel) -> None:
    rows = _rows(mixed(STUDENT))
    loss, found, trainer = gradient(folder, caches, rows)
    student = tiny_model("mixtral", vocab_size=VOCABULARY, seed=1)
    cross, divergence = map(list, zip(*(by_hand(teacher, student, each) for each in [*SHARED, *STUDENT]), strict=True))
    tokens = sum(map(predicted_tokens, [*SHARED, *STUDENT]))
    expected = ((1 - WEIGHT) * sum(cross[: len(SHARED)]) + WEIGHT * TEMPERATURE**2 * sum(divergence)) / tokens
    expected.backward()
    assert loss == pytest.approx(expected.item(), rel=1e-4)
    torch.testing.assert_close(found, gradients_of(student), rtol=1e-3, atol=1e-4)
    logged = trainer._metrics["train"]
    assert logged["cross_entropy"] == [pytest.approx(float(sum(cross[:3])) / sum(map(predicted_tokens, SHARED)), rel=1e-4)]
    assert logged["divergence"] == [pytest.approx(float(sum(divergence)) / tokens, rel=1e-4)]


def test_a_batch_of_the_student_alone_is_pulled_by_the_divergence_alone(
    folder: Path, caches: JoinedCaches, teacher: PreTrainedModel
) -> None:
    rows = _rows(mixed(STUDENT))[len(SHARED) :]
    loss, found, trainer = gradient(folder, caches, rows)
    student = tiny_model("mixtral", vocab_size=VOCABULARY, seed=1)
    kl = torch.stack([by_hand(teacher, student, each)[1] for each in STUDENT])
    divergence = kl.sum() / sum(map(predicted_tokens, STUDENT))
    (WEIGHT * TEMPERATURE**2 * divergence).backward()
    assert loss == pytest.approx(WEIGHT * TEMPERATURE**2 * float(divergence), rel=1e-4)
    torch.testing.assert_close(found, gradients_of(student), rtol=1e-3, atol=1e-4)
    assert "cross_entropy" not in trainer._metrics["train"] and len(trainer._metrics["train"]["divergence"]) == 1
    supervised = [row | {DIVERGENCE_ONLY: False} for row in rows]
    assert (gradient(folder, caches, supervised)[1] - found).abs().max() > 1e-3


def test_without_a_student_nothing_changes_bit_for_bit(folder: Path, caches: JoinedCaches) -> None:
    rows = _rows(mixed([]))
    assert [row.keys() for row in rows] == [{"example", "input_ids", "labels"}] * len(SHARED)
    plain, marked = gradient(folder, caches, rows), gradient(folder, caches, [row | {DIVERGENCE_ONLY: False} for row in rows])
    assert plain[0] == marked[0] and torch.equal(plain[1], marked[1])
    assert plain[2]._metrics["train"] == marked[2]._metrics["train"]


def test_joined_caches_number_their_examples_on(caches: JoinedCaches) -> None:
    for number, encoded in enumerate([*SHARED, *STUDENT]):
        assert len(caches.rows(number).tail_N) == predicted_tokens(encoded)
    assert torch.equal(caches.rows(3).offset_NK, caches.caches[1].rows(0).offset_NK)


def test_joined_caches_hold_hidden_states_in_one_form() -> None:
    """Where the disk had room for one cache's states whole, and not for another's, all are read as projections."""
    whole, projected = SeamColumns((1, 3), 16), SeamColumns((1, 3), 16, seed=5)
    states = {number: torch.randn(7, 16, generator=torch.Generator().manual_seed(number)).bfloat16() for number in (1, 3)}

    def holding(columns: SeamColumns) -> Any:
        hidden, *length = columns.stored(states)
        found = TeacherStates.of(hidden, length[0] if length else None)
        return SimpleNamespace(columns=columns, states=lambda example: found)

    alike = JoinedCaches([holding(whole), holding(whole)], [1, 1])
    assert alike.columns == whole and alike.states(1).hidden_NGD.shape == (7, 2, 16)
    mixed = JoinedCaches([holding(whole), holding(projected)], [1, 1])
    assert mixed.columns == projected
    for mine, other in zip(mixed.states(0), mixed.states(1), strict=True):
        assert mine.dtype == other.dtype
        torch.testing.assert_close(mine, other)


def wish(*sources: dict, **finetuning: object) -> Recipe:
    return small_recipe(finetuning={"teacher": "original", "data": list(sources)} | finetuning)


def written(folder: Path, **answers: list[Batch]) -> Path:
    """A folder with the student's answers by the number of their source (`of_1`)."""
    for name, lines in answers.items():
        path = folder / name.removeprefix("of_") / "00000.jsonl"
        path.parent.mkdir(parents=True)
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def line(*ids: int) -> Batch:
    return {"input_ids": [1, 3, *ids], "prompt_length": 2, "drawn": 1, "right": 0, "ended": 1}


def test_equal_answers_count_once_and_weights_are_shares_of_both(folder: Path, tmp_path: Path) -> None:
    student = {"self_generated": True, "writer": "student"}
    answers = written(tmp_path, of_1=[line(4, 5), line(6), line(4, 5)], of_2=[line(7 + i) for i in range(8)])
    every = read_student_answers(wish({"task": TASK}, student, student), answers)
    assert every == [Encoded([1, 3, 4, 5], 2), Encoded([1, 3, 6], 2), *(Encoded([1, 3, 7 + i], 2) for i in range(8))]
    weighed = wish({"task": TASK, "weight": 2}, student | {"weight": 1}, student | {"weight": 1})
    some = read_student_answers(weighed, answers)
    assert [sum(each in part for each in some) for part in (every[:2], every[2:])] == [2, 2]
    shared = read_training_data(weighed, load_tokenizer("original"), tmp_path)
    assert len(shared.encoded) == 48  # what the student writes takes nothing from the data that trainings share
    both = mixed_data(weighed, shared, some)
    assert [sum(row.divergence_only == only for row in both.rows) for only in (False, True)] == [4, 4]
    for row in both.rows:
        assert row.encoded == [*shared.encoded, *some][row.example] and row.divergence_only == (row.encoded in some)


def test_answers_that_were_not_drawn_are_missed(folder: Path, tmp_path: Path) -> None:
    with raises("recovery.no-student-answers", tmp_path / "1"):
        read_student_answers(wish({"task": TASK}, {"self_generated": True, "writer": "student"}), tmp_path)

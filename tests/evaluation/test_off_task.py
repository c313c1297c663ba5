"""Laws of what is measured beside the task: loss, KL and agreement are those of a plain loop, whatever the batches."""

import json
import math
from pathlib import Path

import pytest
import torch
from conftest import PLAYGROUND, raises, tiny_model
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

from toolkit.evaluation import completion_loss, measure_fidelity, write_reference
from toolkit.evaluation.off_task import EXAMPLES, OffTaskLoss, Reference, measure_off_task, read_off_task
from toolkit.recipe.off_task import EMBEDDED_TEXTS, OffTaskRecipe
from toolkit.recipe.schema import Recipe
from toolkit.tasks import DataCache, Encoded, padded_batches
from toolkit.tasks.sources import read_texts


def model_of(seed: int) -> PreTrainedModel:
    return tiny_model("mixtral", vocab_size=300, seed=seed)


def texts() -> list[Encoded]:
    draw = torch.Generator().manual_seed(3)
    return [Encoded(torch.randint(3, 300, (6 + i % 5,), generator=draw).tolist(), 2 * (i % 2)) for i in range(9)]


def batches(size: int = 4) -> list[dict[str, torch.Tensor]]:
    return padded_batches(texts(), size, 0)


def measured(model: PreTrainedModel, folder: Path, size: int = 4) -> OffTaskLoss:
    """Compared with the model of seed 0."""
    write_reference(model_of(0), batches(size), folder, "fingerprint")
    return measure_off_task(model, batches(size), Reference(folder, "fingerprint"))


@torch.no_grad()
def by_hand(original: PreTrainedModel, model: PreTrainedModel) -> tuple[float, float, float, int]:
    """Sums over the completion tokens, one unpadded text at a time, over the whole vocabulary, in float64."""
    nats = kl = agreed = 0.0
    tokens = 0
    for text in texts():
        first = max(text.prompt_length, 1)
        p, q = (m(torch.tensor([text.input_ids])).logits[0, first - 1 : -1].double().softmax(-1) for m in (original, model))
        nats -= q.gather(-1, torch.tensor(text.input_ids[first:])[:, None]).log().sum().item()
        kl += (p * (p / q).log()).sum().item()
        agreed += (p.argmax(-1) == q.argmax(-1)).sum().item()
        tokens += len(p)
    return nats / tokens, kl / tokens, agreed / tokens, tokens


@pytest.mark.parametrize("size", [1, 4, 9])
def test_it_is_what_a_plain_loop_over_whole_distributions_finds(tmp_path: Path, size: int) -> None:
    other = model_of(1)
    other.lm_head.weight.data = 0.7 * model_of(0).lm_head.weight.data + 0.3 * other.lm_head.weight.data
    other.model.load_state_dict(model_of(0).model.state_dict())
    loss, kl, agreement, tokens = by_hand(model_of(0), other)
    found = measured(other, tmp_path / "kept", size)
    assert (found.loss, found.kl) == (pytest.approx(loss, abs=1e-5), pytest.approx(kl, abs=1e-4))
    assert found.agreement == pytest.approx(agreement) and 0 < agreement < 1
    assert (found.tokens, found.texts) == (tokens, 9)


def test_it_is_the_loss_and_the_kl_that_other_measurements_find(tmp_path: Path) -> None:
    found = measured(model_of(1), tmp_path / "kept")
    assert found.loss == pytest.approx(completion_loss(model_of(1), batches()).mean, abs=1e-6)
    assert found.kl == pytest.approx(measure_fidelity(model_of(1), batches(), tmp_path / "kept", "fingerprint").kl, abs=1e-12)


def test_the_original_agrees_with_itself(tmp_path: Path) -> None:
    found = measured(model_of(0), tmp_path / "kept")
    assert found.kl == pytest.approx(0, abs=1e-6) and found.agreement == 1


def test_equals_agree(tmp_path: Path) -> None:
    undecided = model_of(0)
    undecided.lm_head.weight.data.zero_()  # every token is as likely as every other
    found = measured(undecided, tmp_path / "kept")
    assert found.agreement == 1 and found.loss == pytest.approx(math.log(300), abs=1e-5)


def test_without_the_original_the_loss_is_measured_alone(tmp_path: Path) -> None:
    alone, compared = measure_off_task(model_of(1), batches(), None), measured(model_of(1), tmp_path / "kept")
    assert (alone.kl, alone.agreement) == (None, None)
    assert (alone.loss, alone.tokens, alone.texts) == (compared.loss, compared.tokens, compared.texts)


def test_what_is_not_finite_is_none_in_the_file() -> None:
    broken = model_of(1)
    broken.lm_head.weight.data[5] = math.nan
    found = measure_off_task(broken, batches(), None)
    assert found.loss is None and json.loads(json.dumps(found.to_json(), allow_nan=False))["loss"] is None


def test_another_models_reference_is_refused(tmp_path: Path) -> None:
    write_reference(model_of(0), batches(), tmp_path / "kept", "fingerprint")
    with raises("fidelity.other-tokens", tmp_path / "kept"):
        measure_off_task(model_of(1), batches(), Reference(tmp_path / "kept", "another"))


# Reading


def recipe() -> Recipe:
    return Recipe.model_validate({"name": "x", "model": "x", "task": "playground/arithmetic", "calibration": {"batch_size": 8}})


def tokenizer() -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(PLAYGROUND / "model")


def test_the_texts_that_come_with_pollard_are_short_varied_and_as_many_as_of_other_data() -> None:
    found = read_texts(str(EMBEDDED_TEXTS))
    assert len(set(found)) == len(found) == EXAMPLES
    assert all(len(text) > 200 or not text.isascii() for text in found) and max(map(len, found)) < 1_000
    assert sum("Question:" in text for text in found) >= 5 and sum("def " in text or "return" in text for text in found) >= 5
    assert sum(not text.isascii() for text in found) >= 10
    encoded = read_off_task(OffTaskRecipe(), recipe(), tokenizer(), DataCache())
    assert sum(len(batch["input_ids"]) for batch in encoded.batches) == EXAMPLES and encoded.unknown == 0


def test_of_a_text_the_first_64_pieces_count_unless_a_number_is_given(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("\n\n".join(f"Paragraph {i} of many." for i in range(100)))

    def read(**given: int) -> int:
        data = OffTaskRecipe(text=str(path), **given)
        return sum(len(batch["input_ids"]) for batch in read_off_task(data, recipe(), tokenizer(), DataCache()).batches)

    assert (read(), read(examples=70), read(examples=3)) == (64, 70, 3)


def test_of_a_task_the_completions_of_its_dev_examples_count() -> None:
    data = OffTaskRecipe.model_validate({"task": "playground/sorting"})
    found = read_off_task(data, recipe(), tokenizer(), DataCache())
    first = found.batches[0]
    assert found.name == "playground/sorting" and 0 < first["completion_mask"].sum() < first["attention_mask"].sum()


def test_data_that_says_nothing_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    for text, code in (("", "text.empty"), ("a\n\nb\n\nc", "off-task.no-tokens")):
        path.write_text(text)
        with raises(code, path):
            read_off_task(OffTaskRecipe(text=str(path)), recipe(), tokenizer(), DataCache())
    with raises("data.no-file", "nowhere.txt"):
        read_off_task(OffTaskRecipe(text="nowhere.txt"), recipe(), tokenizer(), DataCache())


def test_tokens_that_stand_for_unknown_text_are_counted(tmp_path: Path) -> None:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    words = Tokenizer(WordLevel({"<unk>": 0, "</s>": 1, "the": 2, "river": 3}, unk_token="<unk>"))
    words.pre_tokenizer = Whitespace()
    small = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", eos_token="</s>", pad_token="</s>")
    path = tmp_path / "notes.txt"
    path.write_text("the river\n\nla rivière, 川")
    found = read_off_task(OffTaskRecipe(text=str(path)), recipe(), small, DataCache())
    assert found.unknown == sum(token == 0 for one in ([2, 3], [0, 0, 0, 0]) for token in one[1:])

"""What an evaluation tells of a model that skips: the same however questions are batched, and nothing of one that does not."""

from pathlib import Path

import pytest
from conftest import PLAYGROUND, tiny_model

import toolkit
from toolkit.calibration import skipping_thresholds
from toolkit.moe import load_model, load_tokenizer, skipping
from toolkit.recipe.data import TaskRecipe
from toolkit.tasks import Task, encode_all, padded_batches

SKIPPING_FACTS = {"skip_rate", "experts_skipped", "skipped_per_token"}


def test_the_skip_rate_does_not_depend_on_the_batches_and_a_checkpoint_is_told_by_its_file(tmp_path: Path) -> None:
    tokenizer, task = load_tokenizer(str(PLAYGROUND / "model")), Task(TaskRecipe(name="playground/sorting"))
    model = tiny_model("mixtral", vocab_size=768, eos_token_id=1)
    batches = padded_batches(encode_all(tokenizer, task.examples("train")[:6], 128)[0], 3, int(tokenizer.pad_token_id))
    thresholds = skipping_thresholds(model, batches)
    plain = toolkit.evaluate(model, tokenizer, task, examples=5, max_new_tokens=6)
    assert not SKIPPING_FACTS & plain.facts.to_json().keys()
    with skipping(model, thresholds):
        alone, three, auto = (
            toolkit.evaluate(model, tokenizer, task, examples=5, batch_size=size, max_new_tokens=6) for size in (1, 3, "auto")
        )
    assert alone.items == three.items == auto.items
    assert alone.facts.skipped_per_token == three.facts.skipped_per_token == auto.facts.skipped_per_token
    assert 0.1 < alone.facts.skip_rate < 0.9
    assert alone.facts.experts_skipped == pytest.approx(alone.facts.skip_rate / 2)

    model.save_pretrained(tmp_path)
    thresholds.save(tmp_path)
    loaded = toolkit.evaluate(load_model(str(tmp_path)), tokenizer, task, examples=5, batch_size=3, max_new_tokens=6)
    assert loaded.facts.skipped_per_token == three.facts.skipped_per_token

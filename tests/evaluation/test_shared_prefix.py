"""What all prompts begin with is computed once, and nothing else changes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import tiny_model
from families import EXCEPTIONS, VOCABULARY, families, tiny_family
from small_run import kill_in_call

from toolkit.calibration import skipping_thresholds
from toolkit.evaluation import AnswerLog, Decoding, evaluate, generate_shard, generation, greedy, sampled
from toolkit.evaluation.shared_prefix import CommonPrefix, SharedPrefix, compute_prefix
from toolkit.moe import skipping
from toolkit.recipe.data import TaskRecipe
from toolkit.tasks import Task, encode_all, encode_prompt, padded_batches

SHOTS = list(range(3, 23))  # twenty tokens; the tiny families' windows are of sixteen
OWN = [[30], [31, 32, 33], [40, 41, 42, 43, 44, 45, 46, 47, 48], [50, 51, 52, 53], [60, 61]]
PROMPTS = [SHOTS + own for own in OWN]
# Their layers keep a recurrent state, or what an indexer chooses from, beside or instead of keys and values
WHOLE = {
    "axk2", "bailing_hybrid", "deepseek_v32", "deepseek_v4", "dots3_note", "glm5_next", "glm_moe_dsa", "granitemoehybrid",
    "hy_v4", "inkling", "inkling2", "jamba", "kimi_linear", "lfm2_moe", "minimax", "mistral_large4", "nemotron_h",
    "qwen3_5_moe", "qwen3_next", "qwen4_exp", "unlimited_ocr", "zaya",
}  # fmt: skip


@pytest.fixture(scope="module")
def task() -> Task:
    return Task(TaskRecipe.model_validate({"name": "playground/facts", "shots": 5}))


@pytest.fixture(scope="module")
def prompts(tokenizer: Any, task: Task) -> list[list[int]]:
    return [encode_prompt(tokenizer, example) for example in task.examples("test")[:12]]


def prefix_of(model: Any, prompts: list[list[int]]) -> SharedPrefix:
    common = CommonPrefix.of(prompts)
    assert common
    prefix = compute_prefix(model, common)
    assert prefix
    return prefix


class Columns:
    """Counts the tokens, padding included, that pass through a model."""

    def __init__(self, model: Any) -> None:
        self.passes: list[int] = []
        self.handle = model.get_input_embeddings().register_forward_pre_hook(self)

    def __call__(self, module: Any, arguments: Any) -> None:
        self.passes.append(arguments[0].numel())

    def taken(self) -> int:
        self.handle.remove()
        return sum(self.passes)


def test_what_all_prompts_begin_with_leaves_each_a_token() -> None:
    found = CommonPrefix.of(PROMPTS)
    assert found == CommonPrefix(SHOTS, PROMPTS[0], len(PROMPTS[2])) == CommonPrefix.of(PROMPTS[::-1])
    same = CommonPrefix.of([SHOTS] * 5)
    assert same and same.tokens == SHOTS[:-1]
    inner = CommonPrefix.of([SHOTS, *PROMPTS])
    assert inner and inner.tokens == SHOTS[:-1]
    assert CommonPrefix.of([p[5:] for p in PROMPTS]) is None  # fifteen tokens
    assert CommonPrefix.of(PROMPTS[:3]) is None  # three prompts
    assert CommonPrefix.of([*PROMPTS, [9, *SHOTS]]) is None and CommonPrefix.of([]) is None


# The law: a batch that begins with the prefix gives the next token's logits, and the ones after it, that every prompt has alone.
@torch.no_grad()
def test_logits_are_those_of_each_prompt_alone(family: str) -> None:
    model = tiny_model(family)
    prefix, length, count = prefix_of(model, PROMPTS), max(map(len, PROMPTS)), len(SHOTS)
    mask_BS = torch.tensor([[0] * (length - len(p)) + [1] * len(p) for p in PROMPTS])
    ids_BS = torch.tensor([[0] * (length - len(p)) + p for p in PROMPTS])
    positions_BS = (mask_BS.cumsum(-1) - 1).clamp(min=0)
    cache = prefix.cache_for([length - len(p) for p in PROMPTS])
    begun = model(
        ids_BS[:, count:], attention_mask=mask_BS, position_ids=positions_BS[:, count:], past_key_values=cache
    ).logits[:, -1]  # fmt: skip
    step = model(
        torch.full((len(PROMPTS), 1), 7), attention_mask=torch.nn.functional.pad(mask_BS, (0, 1), value=1),
        position_ids=positions_BS[:, -1:] + 1, past_key_values=cache,
    ).logits[:, -1]  # fmt: skip
    for row, prompt in enumerate(PROMPTS):
        alone = model(torch.tensor([[*prompt, 7]]), use_cache=False).logits[0]
        torch.testing.assert_close(begun[row], alone[-2], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(step[row], alone[-1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", [family for family in families() if family not in EXCEPTIONS])
def test_every_family_shares_it_or_computes_it_in_every_row(family: str, tokenizer: Any) -> None:
    model, common = tiny_family(family), CommonPrefix.of(PROMPTS)
    assert common
    prefix = compute_prefix(model, common)
    assert (prefix is None) == (family in WHOLE)
    settings = greedy(model, tokenizer, 8)
    settings.eos_token_id = list(range(1, VOCABULARY, 9))  # a random model ends only by chance: let there be many ends
    assert dict(generate_shard(model, PROMPTS, 3, settings, common=common)) == dict(generate_shard(model, PROMPTS, 3, settings))


def test_answers_do_not_change_and_the_shots_pass_once(model: Any, tokenizer: Any, prompts: list[list[int]]) -> None:
    settings, common = greedy(model, tokenizer, 32), CommonPrefix.of(prompts)
    assert common and len(common.tokens) > 80
    whole = Columns(model)
    expected = dict(generate_shard(model, prompts, 4, settings))
    in_every_row = whole.taken()
    once = Columns(model)
    assert dict(generate_shard(model, prompts, 4, settings, common=common)) == expected
    assert len({len(answer) for answer in expected.values()}) > 3  # rows left the batches
    both_ways = len(common.shortest) + common.longest - len(common.tokens)  # of the prompt whose keys and values are taken
    assert once.taken() == in_every_row - len(prompts) * len(common.tokens) + both_ways


def test_what_is_drawn_does_not_change(model: Any, tokenizer: Any, prompts: list[list[int]]) -> None:
    settings, drawing = sampled(model, tokenizer, 24, temperature=1.5), Decoding(seed=7)

    def drawn(common: CommonPrefix | None) -> dict[int, list[int]]:
        return dict(generate_shard(model, prompts, 5, settings, lambda i: drawing.random_numbers(i, 0), common=common))

    assert drawn(CommonPrefix.of(prompts)) == drawn(None)


def test_evaluation_shares_the_shots_of_all_its_questions_also_after_a_kill(
    model: Any, tokenizer: Any, task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings: dict[str, Any] = {"examples": 11, "max_new_tokens": 32, "batch_size": 5}
    with monkeypatch.context() as patch:
        patch.setattr(CommonPrefix, "of", lambda prompts: None)
        expected = evaluate(model, tokenizer, task, **settings)
    capsys.readouterr()
    assert evaluate(model, tokenizer, task, **settings | {"batch_size": 2}).items == expected.items
    line = "tokens that every prompt begins with are computed once"
    assert line in capsys.readouterr().out
    kill_in_call(3, generation, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        evaluate(model, tokenizer, task, log=AnswerLog(tmp_path, "model"), **settings)
    before = capsys.readouterr().out
    assert evaluate(model, tokenizer, task, log=AnswerLog(tmp_path, "model"), **settings).items == expected.items
    after = capsys.readouterr().out  # one question is left, and what all have in common is still what it was
    assert [text for text in before.splitlines() if line in text] == [text for text in after.splitlines() if line in text] != []


def test_a_model_whose_answers_depend_on_more_than_its_cache_is_found_out(model: Any, prompts: list[list[int]]) -> None:
    common, layer = CommonPrefix.of(prompts), model.model.layers[0]
    assert common

    def with_mean(module: Any, arguments: Any) -> Any:  # of all tokens that pass: a state that no cache holds
        return (arguments[0] + arguments[0].mean(dim=1, keepdim=True), *arguments[1:])

    handle = layer.register_forward_pre_hook(with_mean)
    try:
        assert compute_prefix(model, common) is None
    finally:
        handle.remove()
    assert compute_prefix(model, common)


def test_what_is_skipped_is_counted_over_whole_prompts(
    model: Any, tokenizer: Any, task: Task, capsys: pytest.CaptureFixture[str]
) -> None:
    encoded, _ = encode_all(tokenizer, task.examples("test")[:8], 512, "max_length")
    thresholds = skipping_thresholds(model, padded_batches(encoded, 8, 0))
    with skipping(model, thresholds):
        one, other = (evaluate(model, tokenizer, task, "test", 8, size, 8).facts for size in (2, 8))
    assert one.skip_rate == pytest.approx(other.skip_rate) and one.skip_rate
    assert "computed once" not in capsys.readouterr().out

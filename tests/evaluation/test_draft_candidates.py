"""Laws of drafts and their replay: the counts that transformers' assisted generation really has, the target's own tokens, its
weights shared, and the target as it was."""

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import torch
from conftest import PLAYGROUND, logits_of, plan_for, raises, tiny_model
from transformers import GenerationConfig, PreTrainedModel

from toolkit.cuts import LayersCut, Plan, apply_plan
from toolkit.evaluation import generate
from toolkit.evaluation.draft_candidates import LENGTHS, Candidate, Replay, SelfDrafts, TargetAnswer, least_missed, predictions
from toolkit.evaluation.draft_costs import measure_costs
from toolkit.evaluation.drafting import Draft, timed_answer
from toolkit.evaluation.replay import replay_lookup, replay_predictions
from toolkit.moe import find_blocks, load_model, load_tokenizer
from toolkit.tasks import Example, encode_prompt

QUESTIONS = ("What is 17 + 25?", "Reverse: a b c d e f", "Sort these words: olive acorn tiger", "x = 3; x = x + 4; print(x)")
MOST = 24  # new tokens: some answers end by themselves, some do not


@pytest.fixture(scope="module")
def target() -> PreTrainedModel:
    return load_model(str(PLAYGROUND / "model"))


@pytest.fixture(scope="module")
def settings() -> GenerationConfig:
    ends = load_tokenizer(str(PLAYGROUND / "model")).eos_token_id
    return GenerationConfig(do_sample=False, max_new_tokens=MOST, pad_token_id=0, eos_token_id=[ends])


@pytest.fixture(scope="module")
def replay(target: PreTrainedModel, settings: GenerationConfig) -> Replay:
    tokenizer = load_tokenizer(str(PLAYGROUND / "model"))
    prompts = [encode_prompt(tokenizer, Example(({"role": "user", "content": text},), "", "")) for text in QUESTIONS]
    written = generate(target, prompts, settings)
    ends: Any = settings.eos_token_id
    return Replay([TargetAnswer(prompt, tokens) for prompt, tokens in zip(prompts, written, strict=True)], MOST, ends)


@pytest.fixture(scope="module")
def drafts(target: PreTrainedModel, replay: Replay) -> Iterator[dict[str, Candidate]]:
    plan = plan_for(target, [0, 2, 5, 7])
    pruned = apply_plan(load_model(str(PLAYGROUND / "model")), plan)
    with ExitStack() as stack:
        own = SelfDrafts(target, replay, stack)
        blocks, layers = own.without_blocks(), own.without_layers()
        yield {
            "k1": own.with_one_expert(), "plan": own.with_plan(plan), "blocks": blocks[0], "more blocks": blocks[-1],
            "layers": layers[0], "model": Candidate("pruned", "", pruned, replay.by_model(pruned), shares_weights=False),
            "lookup": Candidate("lookup", "", None, replay.by_lookup(), shares_weights=True),
        }  # fmt: skip


def test_answers_of_both_kinds_are_replayed(replay: Replay) -> None:
    ended = [answer.tokens[-1] in replay.ends for answer in replay.answers]
    assert any(ended) and not all(len(answer.tokens) == MOST for answer in replay.answers)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("name", ["k1", "plan", "blocks", "more blocks", "layers", "model", "lookup"])
def test_replayed_counts_are_those_of_assisted_generation(
    target: PreTrainedModel, settings: GenerationConfig, replay: Replay, drafts: dict[str, Candidate], name: str, length: int
) -> None:
    draft = drafts[name]
    predicted = predictions(draft.model, replay.answers) if draft.model else [torch.empty(0)] * len(replay.answers)
    passes = 0
    for answer, predicted_N in zip(replay.answers, predicted, strict=True):
        tokens = torch.tensor(answer.tokens)
        if draft.model is None:
            replayed = replay_lookup(torch.tensor(answer.prompt), tokens, length, MOST, replay.ends)
        else:
            replayed = replay_predictions(tokens, predicted_N, length, MOST, replay.ends)
        counted = timed_answer(target, answer.prompt, settings, Draft(draft.model, length))
        assert counted.tokens == answer.tokens
        assert (replayed.passes, replayed.accepted) == (counted.passes, counted.accepted)
        assert replayed.drafted == counted.drafted if draft.model is None else replayed.drafted >= counted.drafted
        passes += replayed.passes
    assert draft.counts[length].passes == passes


def test_some_drafts_are_accepted_and_some_are_not(drafts: dict[str, Candidate]) -> None:
    for name in ("k1", "plan", "blocks", "model"):
        counts = drafts[name].counts[4]
        assert 0 < counts.accepted < counts.drafted, name


def test_copies_share_the_targets_storage(target: PreTrainedModel, drafts: dict[str, Candidate]) -> None:
    own = {name: parameter.data_ptr() for name, parameter in target.named_parameters()}
    for name in ("k1", "blocks"):
        model = drafts[name].model
        assert model is not None and model is not target
        assert {n: p.data_ptr() for n, p in model.named_parameters()} == own
    for name in ("plan", "layers"):  # a plan's routers have fewer rows; layers that are left out are not there
        model = drafts[name].model
        assert model is not None
        kept = {n: p.data_ptr() for n, p in model.named_parameters() if ".gate." not in n}
        assert kept and kept.items() <= own.items()
        assert name == "layers" or kept.keys() == {n for n in own if ".gate." not in n}


def test_the_target_is_as_it_was(target: PreTrainedModel, drafts: dict[str, Candidate], settings: GenerationConfig) -> None:
    fresh = load_model(str(PLAYGROUND / "model"))
    assert torch.equal(logits_of(target), logits_of(fresh))
    assert target.config.to_dict() == fresh.config.to_dict()
    assert [b.experts_per_token for b in find_blocks(target)] == [b.experts_per_token for b in find_blocks(fresh)]
    prompt = [5, 6, 7, 8]
    for draft in drafts.values():
        timed_answer(target, prompt, settings, Draft(draft.model, 3))
    assert torch.equal(logits_of(target), logits_of(fresh))


def test_a_draft_with_a_plan_is_the_pruned_model(drafts: dict[str, Candidate]) -> None:
    masked, pruned = drafts["plan"].model, drafts["model"].model
    assert masked is not None and pruned is not None
    torch.testing.assert_close(logits_of(masked), logits_of(pruned), rtol=1e-5, atol=1e-5)
    assert drafts["plan"].counts == drafts["model"].counts


def test_the_target_agrees_with_itself(target: PreTrainedModel, replay: Replay) -> None:
    assert replay.agreement(target) == 1
    assert all(counts.passes < counts.tokens for counts in replay.by_model(target).values())


def test_every_family_can_draft_for_itself(family: str) -> None:
    model = tiny_model(family, num_hidden_layers=3, layer_types=["full_attention"] * 3)
    prompts = [[5, 6, 7, 8], [9, 10, 11, 12, 13]]
    chosen = GenerationConfig(do_sample=False, max_new_tokens=10, pad_token_id=0, eos_token_id=[2])
    written = generate(model, prompts, chosen)
    replay = Replay([TargetAnswer(prompt, tokens) for prompt, tokens in zip(prompts, written, strict=True)], 10, [2])
    assert replay.agreement(model) == 1
    before = logits_of(model)
    with ExitStack() as stack:
        own = SelfDrafts(model, replay, stack)
        for draft in (own.with_one_expert(), *own.without_blocks(), *own.without_layers()):
            assert {p.data_ptr() for p in draft.model.parameters()} <= {p.data_ptr() for p in model.parameters()}
            counted = [timed_answer(model, prompt, chosen, Draft(draft.model, 3)) for prompt in prompts]
            assert [answer.tokens for answer in counted] == written
            assert draft.counts[3].passes == sum(answer.passes for answer in counted), draft.kind
    assert torch.equal(logits_of(model), before)


def test_what_routes_to_one_expert_already_is_no_draft_of_that_kind(replay: Replay) -> None:
    model = tiny_model("mixtral", vocab_size=768, num_experts_per_tok=1)
    with ExitStack() as stack, raises("drafts.one-expert-already"):
        SelfDrafts(model, replay, stack).with_one_expert()


def test_another_models_plan_is_refused(target: PreTrainedModel, replay: Replay) -> None:
    other = plan_for(tiny_model("mixtral"), [0, 1])
    with ExitStack() as stack, raises("plan.other-model"):
        SelfDrafts(target, replay, stack).with_plan(other)


def test_a_plan_of_layers_drafts_too(target: PreTrainedModel, replay: Replay) -> None:
    count = len(find_blocks(target))
    cut = LayersCut.of(target, [number for number in range(count) if number != 1], "by hand")
    plan = Plan(model="tiny", experts_per_token=2, cuts=[cut])
    with ExitStack() as stack:
        assert SelfDrafts(target, replay, stack).with_plan(plan).counts[4].tokens == replay.tokens


def test_the_parts_that_are_missed_least_go_first() -> None:
    weight = {0: 9, 1: 1, 2: 5, 3: 2, 4: 3, 5: 30}
    asked: list[tuple[int, ...]] = []

    def passes(left_out: Any) -> int | None:
        asked.append(tuple(left_out))
        return None if 3 in left_out else sum(weight[part] for part in left_out)

    assert list(least_missed(range(6), 3, passes)) == [(1,), (1, 4), (1, 2, 4)]
    assert len(asked) <= 6 + 2 * 4
    assert list(least_missed(range(3), 3, lambda _: None)) == [] == list(least_missed(range(1), 0, passes))


def test_costs_are_multiples_of_a_pass_over_one_token(
    target: PreTrainedModel, replay: Replay, drafts: dict[str, Candidate]
) -> None:
    models = {name: draft.model for name, draft in drafts.items() if draft.model is not None}
    costs = measure_costs(target, models, replay.answers, repeats=2)
    assert costs.verifying.keys() == {0, *LENGTHS} and costs.verifying[0] == [1.0, 1.0, 1.0]
    assert costs.drafting.keys() == models.keys()
    for middle, low, high in (costs.seconds, *costs.verifying.values(), *costs.drafting.values()):
        assert 0 < low <= middle <= high

"""Law: an example in a row of several has the logits that it has alone; a model that breaks it is refused."""

import pytest
import torch
from conftest import raises, tiny_model
from families import EXCEPTIONS, families, tiny_family
from transformers import PreTrainedModel

from toolkit.moe import find_blocks, meta_model
from toolkit.moe.packing import check_kept_apart, check_packable, packed_inputs, real_positions
from toolkit.runtime.errors import PollardError

# Their code hands no positions on to its attention masks, or reads one position per axis of an image
TOLD_WHEN_TRAINING_BEGINS = {"afmoe", "ernie4_5_vl_moe", "glm4v_moe", "gpt_oss"}
PACKED = sorted(
    {"aria", "axk1", "beam", "cohere2_moe", "deepseek_v2", "deepseek_v3", "dots1", "ernie4_5_moe", "exaone_moe", "flex_olmo"}
    | {"gemma4", "glm4_moe", "granitemoe", "hunyuan_v1_moe", "minimax_m2", "mixtral", "olmoe", "phimoe", "qwen2_moe", "qwen3_moe"}
)


def examples(*lengths: int) -> list[list[int]]:
    draw = torch.Generator().manual_seed(7)
    return [torch.randint(3, 60, (length,), generator=draw).tolist() for length in lengths]


@torch.no_grad()
def assert_kept_apart(model: PreTrainedModel) -> None:
    one, two, three, four = examples(13, 1, 8, 5)
    packed = model(**packed_inputs([[one, two, three], [four]]), use_cache=False).logits
    for example, found in zip((one, two, three, four), (*packed[0].split([13, 1, 8]), packed[1, :5]), strict=True):
        alone = model(input_ids=torch.tensor([example]), use_cache=False).logits[0]
        torch.testing.assert_close(found, alone, rtol=1e-5, atol=1e-5 * float(alone.abs().max()))


@pytest.mark.parametrize("family", PACKED)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_an_examples_logits_are_those_it_has_alone(family: str, attention: str) -> None:
    model = tiny_family(family)
    model.set_attn_implementation(attention)
    assert_kept_apart(model)


def test_a_sliding_window_counts_an_examples_own_positions() -> None:
    model = tiny_model("mixtral", sliding_window=4)
    assert_kept_apart(model)
    ids = torch.tensor(examples(12))
    with torch.no_grad():  # so narrow that it matters here
        assert not torch.allclose(model(ids).logits, tiny_model("mixtral")(ids).logits)


@pytest.mark.parametrize("family", sorted(set(families()) - set(EXCEPTIONS)))
def test_every_family_keeps_examples_apart_or_is_refused(family: str) -> None:
    model = tiny_family(family)
    try:
        check_packable(meta_model(model.config))
    except PollardError as error:
        assert error.code == "model.no-packing"
        return
    if family in TOLD_WHEN_TRAINING_BEGINS:
        with raises("model.no-packing", "finetuning.packing"):
            check_kept_apart(model, 60, "cpu")
    else:
        check_kept_apart(model, 60, "cpu")
        assert_kept_apart(model)


@pytest.mark.parametrize(
    ("family", "named"),
    [
        ("qwen3_next", "linear_attention"), ("lfm2_moe", "conv"), ("deepseek_v4", "sparse_attention"),
        ("deepseek_v32", "indexed_attention"),
    ],
)  # fmt: skip
def test_what_carries_one_example_over_into_the_next_is_told_before_anything_starts(family: str, named: str) -> None:
    with raises("model.no-packing", named):
        check_packable(meta_model(tiny_family(family).config))


def test_an_index_of_keys_shows_only_in_long_rows_that_it_leaks() -> None:
    check_kept_apart(tiny_family("deepseek_v32"), 60, "cpu")
    with raises("model.no-packing"):
        check_kept_apart(tiny_family("deepseek_v32", index_topk=4), 60, "cpu")


def test_a_convolution_is_refused_whatever_its_layer_is_called() -> None:
    model = tiny_model("mixtral")
    find_blocks(model)[0].module.short_conv = torch.nn.Conv1d(8, 8, 4)
    with raises("model.no-packing", "short_conv"):
        check_packable(model)


def test_the_check_leaves_mode_and_random_numbers_as_they_were() -> None:
    model, state = tiny_model("mixtral").train(), torch.get_rng_state()
    check_kept_apart(model, 60, "cpu")
    assert model.training and torch.equal(torch.get_rng_state(), state)


def test_padding_is_told_by_positions_alone() -> None:
    inputs = packed_inputs([examples(4, 2), examples(3)])
    assert inputs["position_ids"].tolist() == [[0, 1, 2, 3, 0, 1], [0, 1, 2, 0, 0, 0]]
    assert real_positions(inputs["position_ids"]).tolist() == [[True] * 6, [True] * 3 + [False] * 3]

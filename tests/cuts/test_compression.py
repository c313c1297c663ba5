"""Laws of what compresses experts and is never written: the best at its rank, two of four, and no trace afterwards."""

from collections.abc import Mapping

import pytest
import torch
from conftest import plan_for, raises, tiny_model
from families import text_logits, tiny_family
from torch.testing import assert_close
from transformers import PreTrainedModel

from toolkit.cuts import shape_of, shaped_meta_model
from toolkit.cuts.compression import (
    Compression,
    LowRank,
    MatrixInputs,
    TwoOfFour,
    check_compression,
    compressed,
    compressed_sizes,
    compression_of,
    whitened_basis,
)
from toolkit.moe import find_blocks, meta_model, sizes
from toolkit.moe.expert_matrices import expert_matrices

# Transposed; without a gate; a norm behind every expert; two lists of experts. (gpt_oss, of the common ones, is transposed,
# biased, and its gate and up rows take turns.)
ODD = ("aria", "nemotron_h", "muse_spark", "ernie4_5_vl_moe")


def drawn_inputs(model: PreTrainedModel, rank: int = 10**6) -> Mapping[str, Mapping[str, MatrixInputs]]:
    """As if observed, with moments drawn anew for every expert."""
    generator, found = torch.Generator().manual_seed(5), {}
    for block in find_blocks(model):
        of_block = found[block.name] = {}
        for matrix in expert_matrices(block.experts):
            samples = torch.randn(block.expert_count, matrix.shape[1], 99, generator=generator, dtype=torch.float64)
            moments = samples @ samples.mT
            bases = [whitened_basis(matrix.of(expert), moments[expert], rank) for expert in range(block.expert_count)]
            of_block[matrix.name] = MatrixInputs(moments.diagonal(dim1=1, dim2=2).sqrt(), torch.stack(bases))
    return found


@pytest.fixture
def problem() -> tuple[torch.Tensor, torch.Tensor]:
    """W [12, 20] and inputs X [20, 50] of very different sizes."""
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(12, 20, generator=generator, dtype=torch.float64)
    mixing = torch.randn(20, 20, generator=generator, dtype=torch.float64) * torch.logspace(-2, 1, 20, dtype=torch.float64)
    return weight, mixing @ torch.randn(20, 50, generator=generator, dtype=torch.float64)


def projected(basis: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return basis @ basis.T @ weight


@pytest.mark.parametrize("rank", [1, 3, 8, 11])
def test_the_error_on_the_tokens_is_what_eckart_and_young_allow_and_below_the_plain_svd(
    problem: tuple[torch.Tensor, torch.Tensor], rank: int
) -> None:
    weight, inputs = problem
    ours = projected(whitened_basis(weight, inputs @ inputs.T, rank), weight)
    error = ((weight - ours) @ inputs).square().sum()
    discarded = torch.linalg.svdvals(weight @ inputs)[rank:].square().sum()  # no matrix of this rank has less
    assert_close(error, discarded, rtol=1e-4, atol=0)
    left, values, right = torch.linalg.svd(weight, full_matrices=False)
    plain = left[:, :rank] * values[:rank] @ right[:rank]
    assert error < ((weight - plain) @ inputs).square().sum()
    assert torch.linalg.matrix_rank(ours) == rank


def test_it_is_the_matrix_that_svd_llm_writes(problem: tuple[torch.Tensor, torch.Tensor]) -> None:
    weight, inputs = problem
    root = torch.linalg.cholesky(inputs @ inputs.T)
    left, values, right = torch.linalg.svd(weight @ root, full_matrices=False)
    theirs = left[:, :5] * values[:5] @ right[:5] @ torch.linalg.inv(root)
    assert_close(projected(whitened_basis(weight, inputs @ inputs.T, 5), weight), theirs, rtol=1e-3, atol=1e-4)


def test_the_basis_of_a_smaller_rank_is_the_beginning_of_a_larger_ones(problem: tuple[torch.Tensor, torch.Tensor]) -> None:
    weight, inputs = problem
    large, small = (whitened_basis(weight, inputs @ inputs.T, rank) for rank in (9, 4))
    assert_close(large[:, :4], small)


def test_fewer_tokens_than_inputs_or_none_still_give_a_matrix(problem: tuple[torch.Tensor, torch.Tensor]) -> None:
    weight, inputs = problem
    few = inputs[:, :3]
    ours = projected(whitened_basis(weight, few @ few.T, 3), weight)
    assert_close(ours @ few, weight @ few, rtol=1e-3, atol=1e-3)  # three tokens have three dimensions
    none = projected(whitened_basis(weight, torch.zeros(20, 20, dtype=torch.float64), 4), weight)
    assert_close(torch.linalg.norm(weight - none) ** 2, torch.linalg.svdvals(weight)[4:].square().sum())


@pytest.mark.parametrize("odd_family", ODD)
def test_at_full_rank_the_model_is_the_original(odd_family: str) -> None:
    check_full_rank(tiny_family(odd_family))


def test_at_full_rank_the_model_is_the_original_in_common_families(family: str) -> None:
    check_full_rank(tiny_model(family))


def check_full_rank(model: PreTrainedModel) -> None:
    before, plan = text_logits(model), plan_for(model, list(range(find_blocks(model)[0].expert_count)))
    inputs = drawn_inputs(model)
    with compressed(model, plan, LowRank(9.0), inputs):
        assert_close(text_logits(model), before, rtol=1e-5, atol=1e-5 * before.abs().max().item())
    with compressed(model, plan, LowRank(0.5), inputs):
        assert (text_logits(model) - before).abs().max() > 1e-3  # it does something


@pytest.mark.parametrize("odd_family", ODD)
def test_two_of_every_four_inputs_stay_in_odd_layouts(odd_family: str) -> None:
    check_two_of_four(tiny_family(odd_family))


def test_two_of_every_four_inputs_stay(family: str) -> None:
    check_two_of_four(tiny_model(family))


def check_two_of_four(model: PreTrainedModel) -> None:
    """Against a plain loop of Wanda's rule, along the inputs of what the experts really compute."""
    inputs, kept = drawn_inputs(model), [0, 2]
    blocks = find_blocks(model)
    whole = {(block.name, m.name): m.parameter.data.clone() for block in blocks for m in expert_matrices(block.experts)}
    with compressed(model, plan_for(model, kept), TwoOfFour(), inputs):
        for block in find_blocks(model):
            for matrix in expert_matrices(block.experts):
                before = whole[block.name, matrix.name]
                for expert in range(block.expert_count):
                    old, new = before[expert], matrix.of(expert)
                    old = old.T if matrix.transposed else old
                    expected = wanda(old, inputs[block.name][matrix.name].norm[expert]) if expert in kept else old
                    assert torch.equal(new, expected)


def wanda(weight: torch.Tensor, norm: torch.Tensor) -> torch.Tensor:
    found = weight.clone()
    for row in range(weight.shape[0]):
        for start in range(0, weight.shape[1], 4):
            score = [abs(weight[row, column].item()) * norm[column].item() for column in range(start, start + 4)]
            for place in sorted(range(4), key=lambda place: (-score[place], place))[2:]:
                found[row, start + place] = 0
    return found


def test_of_equal_scores_the_lower_index_stays_and_without_tokens_the_larger_weight() -> None:
    weight = torch.tensor([[1.0, -1.0, 1.0, 1.0, 4.0, 1.0, 2.0, 3.0]])
    for norm in (torch.ones(1, 8, dtype=torch.float64), torch.zeros(1, 8, dtype=torch.float64)):
        ours = TwoOfFour().compress(weight, MatrixInputs(norm, None), 0)
        assert ours.tolist() == [[1.0, -1.0, 0.0, 0.0, 4.0, 0.0, 0.0, 3.0]]


@pytest.mark.parametrize("compression", [LowRank(0.5), TwoOfFour()], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_are_bit_identical_afterwards_also_after_an_error(compression: Compression, dtype: torch.dtype) -> None:
    model = tiny_model("gpt_oss", dtype)
    before = {name: (parameter, parameter.data_ptr(), parameter.data.clone()) for name, parameter in model.named_parameters()}
    plan, inputs = plan_for(model, [0, 3, 5, 6]), drawn_inputs(model)
    with pytest.raises(ZeroDivisionError), compressed(model, plan, compression, inputs):
        assert any(not torch.equal(parameter, values) for parameter, _, values in before.values())
        raise ZeroDivisionError
    broken = {**inputs, find_blocks(model)[1].name: {}}
    with pytest.raises(KeyError), compressed(model, plan, compression, broken):  # on the way in, after the first block
        raise AssertionError
    for name, parameter in model.named_parameters():
        known, place, values = before[name]
        assert parameter is known and parameter.data_ptr() == place and torch.equal(parameter.data, values)


def test_a_rank_takes_at_most_its_share_of_the_numbers_and_one_more_would_not() -> None:
    for share in (0.5, 0.25, 0.9):
        for out, into in ((32, 32), (512, 128), (128, 256), (28672, 4096)):
            rank = LowRank(share).rank((out, into))
            assert rank * (out + into) <= share * out * into < (rank + 1) * (out + into)
    with raises("compression.no-rank", "low_rank:0.01", "[32, 32]"):
        LowRank(0.01).numbers((32, 32))


def test_two_of_four_is_half_of_the_numbers_and_in_16_bits_9_of_16_bytes() -> None:
    assert TwoOfFour().numbers((32, 16)) == 256 and TwoOfFour().bits((32, 16), 16) == 0.5625 * 32 * 16 * 16
    with raises("compression.not-in-fours", "[32, 18]"):
        TwoOfFour().numbers((32, 18))


@pytest.mark.parametrize("keep", [8, 4])
@pytest.mark.parametrize("compression", [LowRank(0.5), TwoOfFour()], ids=str)
def test_sizes_are_those_of_what_would_be_stored(compression: Compression, keep: int) -> None:
    """Counted on the weights: the numbers that are not zero, or two factors; all else as in the pruned model."""
    model = tiny_model("gpt_oss")
    plan = plan_for(model, list(range(keep)))
    pruned = shaped_meta_model(model.config, shape_of(plan))
    found = compressed_sizes(pruned, sizes(pruned), compression, torch.bfloat16)
    stored = experts = 0
    inputs = drawn_inputs(model)
    for block in find_blocks(model):
        for matrix in expert_matrices(block.experts):
            for expert in range(keep):
                left = compression.compress(matrix.of(expert), inputs[block.name][matrix.name], expert)
                rank = int(torch.linalg.matrix_rank(left.double(), rtol=1e-5))
                stored += rank * sum(left.shape) if isinstance(compression, LowRank) else int(left.count_nonzero())
                experts += left.numel()
    assert found.parameters == sizes(pruned).parameters - experts + stored
    assert found.active_parameters == sizes(pruned).active_parameters - (experts - stored) * 2 // keep
    indices = 0 if isinstance(compression, LowRank) else stored // 4  # two bits for each number
    assert found.bytes == 2 * found.parameters + indices


def test_a_recipes_words() -> None:
    for text, compression in (("2:4", TwoOfFour()), ("low_rank:0.5", LowRank(0.5)), ("low_rank:0.125", LowRank(0.125))):
        assert compression_of(text) == compression and str(compression) == text


def test_what_cannot_be_compressed_is_refused_without_weights() -> None:
    model = meta_model(tiny_model("mixtral", intermediate_size=18).config)
    with raises("compression.not-in-fours", "2:4", 18):
        check_compression(model, TwoOfFour())
    check_compression(model, LowRank(0.5))
    quantized = meta_model(tiny_model("mixtral").config)
    quantized.config.quantization_config = {"quant_method": "fp8"}
    with raises("compression.quantized", "fp8", "2:4"):
        check_compression(quantized, TwoOfFour())
    offloaded = meta_model(tiny_model("mixtral").config)
    plan = plan_for(offloaded, [0, 1])
    with raises("compression.offloaded", "model.layers.0.mlp"), compressed(offloaded, plan, TwoOfFour(), {}):
        raise AssertionError

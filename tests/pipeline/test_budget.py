"""What numbers of a recipe mean for a model, and which of them are refused before anything starts."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import raises, tiny_model
from small_run import small_folder, small_recipe

from toolkit.cuts import shaped_meta_model
from toolkit.moe import expert_width, find_blocks
from toolkit.pipeline.budget import Budget
from toolkit.pipeline.checks import check
from toolkit.pipeline.context import RunContext
from toolkit.selection import channels_to_keep, width_multiple


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """`original`: 8 experts of 16 channels in each of 4 layers; `dense-first`: the same, without experts in its first layer."""
    with small_folder(tmp_path_factory, "budget") as folder:
        sizes = {"vocab_size": 768, "eos_token_id": 1, "num_hidden_layers": 4}
        tiny_model("mixtral", **sizes).save_pretrained(folder / "original")
        tiny_model("deepseek_v2", **sizes).save_pretrained(folder / "dense-first")
        for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            (folder / "dense-first" / file).write_bytes((folder / "original" / file).read_bytes())
        yield folder


def context_of(model: str = "original", **pruning: object) -> RunContext:
    return RunContext(small_recipe(model=model, pruning=pruning))


@pytest.mark.parametrize(
    ("pruning", "budget"),
    [
        ({"keep": 0.5}, Budget(4, 2, False)),
        ({"keep": 1, "width": 0.5}, Budget(1, 1, True, width=8)),
        ({"width": 0.4}, Budget(8, 2, False, width=8)),  # 6.4 channels: the nearest multiple of 4
        ({"width": 0.2}, Budget(8, 2, False, width=4)),
        ({"width": 6, "width_multiple": 1}, Budget(8, 2, False, width=6)),
        ({"layers": 0.5}, Budget(8, 2, False, layers=2, depth=4)),
        ({"layers": [0, 3], "keep": 6}, Budget(6, 2, False, layers=(0, 3), depth=4)),
        ({"width": 16, "layers": 4}, Budget(8, 2, False, depth=4)),  # all there are: not cut
    ],
)
def test_numbers_and_fractions_are_counts(folder: Path, pruning: dict, budget: Budget) -> None:
    assert context_of(**pruning).budget == budget


def test_the_shape_of_a_budget_is_that_of_a_real_model(folder: Path) -> None:
    context = context_of(keep=4, width=0.5, layers=2)
    model = shaped_meta_model(context.config, context.budget.shape)
    assert context.budget.shape.layers == (0, 3)  # as `top` would choose
    assert (find_blocks(model)[0].expert_count, expert_width(model), model.config.num_hidden_layers) == (4, 8, 2)


def test_fractions_of_a_schedule_are_of_the_original_in_every_round(folder: Path) -> None:
    context = context_of(schedule=[{"keep": 0.75, "width": 12}, {"keep": 0.5, "width": 12, "layers": 0.5}])
    assert context.budget == Budget(4, 2, False, 12, 2, 4)
    assert context.cuts == Budget(4, 2, False, None, 2, 4)  # the width is that of the round before


def test_a_round_says_in_numbers_what_it_cuts_of_what_the_one_before_has_left(folder: Path) -> None:
    steps = [{"width": 0.75}, {"keep": 6, "width": 0.5}, {"keep": 6, "width": 0.5, "layers": 3}]
    context = context_of(schedule=steps, width_criterion="magnitude")
    before = context.variant(small_recipe(pruning={"schedule": steps[:2], "width_criterion": "magnitude"}))
    own = before.own_pruning
    assert (own.schedule, own.keep, own.width, own.width_multiple, own.layers) == (None, 6, 8, 4, None)
    assert context.own_pruning.width is None and context.own_pruning.layers == 3


@pytest.mark.parametrize(
    ("pruning", "code", "named"),
    [
        ({"keep": None}, "recipe.nothing-to-prune", ["pruning.keep", "pruning.width", "pruning.layers"]),
        ({"width": 17}, "selection.width", ["pruning.width is 17", "16 channels"]),
        ({"width": 6}, "selection.width-multiple", ["pruning.width is 6", "no multiple of 4", "4 or 8"]),
        ({"width": 0.5, "width_multiple": 32}, "selection.width", ["pruning.width_multiple is 32"]),
        ({"layers": 5}, "selection.layers", ["pruning.layers is 5", "4 decoder layers"]),
        ({"layers": [0, 4]}, "selection.layers", ["layer 4", "4 decoder layers"]),
        ({"keep": 4, "width": 8, "experts_per_token": 3}, "selection.experts-per-token", ["pruning.experts_per_token is 3"]),
    ],
)
def test_what_the_model_cannot_be_cut_to_is_told_before_anything_starts(
    folder: Path, pruning: dict, code: str, named: list[str]
) -> None:
    with raises(code, *named):
        check(context_of(**pruning))


def test_layers_without_any_experts_are_no_model_to_prune(folder: Path) -> None:
    with raises("layers.no-moe-block", "None of layers 0 has experts"):
        check(context_of("dense-first", layers=[0]))
    check(context_of("dense-first", layers=[0, 2]))


@pytest.mark.parametrize(
    ("schedule", "named"),
    [
        ([{"keep": 0.5}, {"keep": 5}], ["Step 2", "more (keep)", "4 experts", "5 experts"]),
        ([{"keep": 0.5}, {"keep": 4}], ["Step 2", "the same"]),
        ([{"width": 0.5}, {"width": 8, "layers": 4}], ["the same"]),
        ([{"layers": 2}, {"keep": 4, "layers": 0.75}], ["more (layers)", "2 layers", "3 layers"]),
    ],
)
def test_steps_that_only_counting_shows_to_grow_are_refused(folder: Path, schedule: list, named: list[str]) -> None:
    with raises("recipe.schedule-grows", *named):
        check(context_of(schedule=schedule))


@pytest.mark.parametrize(
    ("width", "multiple"), [(14336, 128), (1408, 128), (768, 128), (512, 128), (256, 64), (96, 16), (16, 4), (6, 1), (3, 1)]
)
def test_widths_are_multiples_of_128_or_leave_at_least_four_steps(width: int, multiple: int) -> None:
    assert width_multiple(width) == multiple
    for share in (0.25, 0.5, 0.75):
        assert channels_to_keep(share, width) % multiple == 0
    assert channels_to_keep(width, width, multiple) == width  # all of them, whatever the multiple


def test_a_fraction_that_would_be_rounded_far_up_is_refused() -> None:
    with raises("selection.width-multiple", "0.01", "64", "width_multiple=1"):
        channels_to_keep(0.01, 256)
    assert channels_to_keep(0.01, 256, 1) == 3

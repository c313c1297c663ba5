from pathlib import Path

import pytest
from conftest import raises

from toolkit.pipeline.sweep_grid import load_grid
from toolkit.runtime.errors import PollardError


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "r.yaml"
    path.write_text("name: try\nmodel: some/model\ntask: gsm8k\nseed: 7\npruning: {tokens: completion}\n")
    return path


def test_lists_are_crossed_and_only_random_is_drawn_several_times(recipe: Path) -> None:
    grid = load_grid(recipe, ["pruning.keep=6,0.5", "pruning.criterion=random,reap", "seed=1,2", "evaluation.examples=3"])
    cells = [(cell.recipe.pruning.keep, cell.recipe.pruning.criterion, cell.seed) for cell in grid.cells]
    drawn = [(keep, "random", seed) for keep in (6, 0.5) for seed in (1, 2)]
    assert sorted(cells, key=str) == sorted([*drawn, (6, "reap", 7), (0.5, "reap", 7)], key=str)
    # One calibration: the recipe's own seed draws its examples, in every cell
    assert {cell.recipe.seed for cell in grid.cells} == {grid.recipe.seed} == {7}
    assert all(cell.recipe.pruning.tokens == "completion" and cell.recipe.evaluation.examples == 3 for cell in grid.cells)


def test_a_label_says_what_else_is_swept(recipe: Path) -> None:
    grid = load_grid(recipe, ["pruning.tokens=all,prompt", "pruning.keep=4"])
    assert [cell.label for cell in grid.cells] == ["weighted_ean, tokens all", "weighted_ean, tokens prompt"]


def test_other_cuts_are_axes_and_label_a_line_by_what_chooses_in_it(recipe: Path) -> None:
    grid = load_grid(
        recipe, ["pruning.keep=null,4", "pruning.width=null,0.5", "pruning.width_criterion=energy,random", "seed=0,1"]
    )
    found = [(cell.recipe.pruning.keep, cell.recipe.pruning.width, cell.seed, cell.label) for cell in grid.cells]
    assert found == [  # neither keep nor width: the original
        (None, 0.5, 7, "energy, width 0.5"), (None, 0.5, 0, "random, width 0.5"), (None, 0.5, 1, "random, width 0.5"),
        (4, None, 7, "weighted_ean"),
        (4, 0.5, 7, "weighted_ean + energy, width 0.5"),
        (4, 0.5, 0, "weighted_ean + random, width 0.5"), (4, 0.5, 1, "weighted_ean + random, width 0.5"),
    ]  # fmt: skip


# A cell without the other cuts must not begin to cut experts because its width is null.
def test_where_other_cuts_are_swept_and_keep_is_not_set_all_experts_stay(recipe: Path) -> None:
    assert [cell.recipe.pruning.keep for cell in load_grid(recipe, ["pruning.width=null,0.5,0.25"]).cells] == [None, None]
    assert [cell.recipe.pruning.keep for cell in load_grid(recipe, ["pruning.width=null,8", "pruning.keep=4"]).cells] == [4, 4]


def test_a_list_of_layers_is_one_value(recipe: Path) -> None:
    cells = load_grid(recipe, ["pruning.layers=3,[0, 1, 3],[0, 3]"]).cells
    assert [cell.recipe.pruning.layers for cell in cells] == [3, [0, 1, 3], [0, 3]]
    assert [cell.label for cell in cells] == ["dev_loss, layers 3", "layers [0, 1, 3]", "layers [0, 3]"]
    assert load_grid(recipe, ["pruning.layers=[0, 3]", "pruning.keep=4,2"]).recipe.pruning.layers == [0, 3]


def test_compressions_are_an_axis_of_which_one_value_is_enough(recipe: Path) -> None:
    grid = load_grid(recipe, ["pruning.keep=null,4", "sweep.compression=null,low_rank:0.50,2:4"])
    assert [(cell.recipe.pruning.keep, cell.compression, cell.label) for cell in grid.cells] == [
        (None, "low_rank:0.5", "low_rank:0.5"), (None, "2:4", "2:4"),
        (4, None, "weighted_ean"), (4, "low_rank:0.5", "weighted_ean, low_rank:0.5"), (4, "2:4", "weighted_ean, 2:4"),
    ]  # fmt: skip
    alone = load_grid(recipe, ["sweep.compression=2:4"])  # all experts stay where nobody says how many
    assert [(cell.recipe.pruning.keep, cell.label) for cell in alone.cells] == [(None, "2:4")]
    assert alone.recipe.sweep.compression is None and grid.left_out == alone.left_out == 0


def test_compression_together_with_other_cuts_is_left_out_and_counted(recipe: Path) -> None:
    grid = load_grid(recipe, ["pruning.width=null,0.5", "pruning.layers=null,3", "sweep.compression=null,2:4"])
    assert [cell.label for cell in grid.cells] == [
        "2:4",
        "dev_loss, layers 3",
        "energy, width 0.5",
        "energy + dev_loss, width 0.5, layers 3",
    ]
    assert grid.left_out == 3


def test_what_is_said_twice_is_one_cell(recipe: Path) -> None:
    assert len(load_grid(recipe, ["pruning.keep=4,4,2"]).cells) == 2


def test_commas_elsewhere_are_no_lists(recipe: Path) -> None:
    grid = load_grid(recipe, ["pruning.keep=4,2", "task.prompt=One, two: {question}"])
    assert grid.recipe.task.prompt == "One, two: {question}"


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ([], "needs something to compare: e.g. pruning.keep=6,4,2"),
        (["pruning.keep=4"], "needs something to compare"),
        (["pruning.criterion=reap,reep"], "`pruning.criterion` cannot be 'reep'. Did you mean `reap`?"),
        (
            ["pruning.keep=4,,2"],
            "`pruning.keep=4,,2` has nothing between two commas: say what to compare, e.g. pruning.keep=4,2.",
        ),
        (["pruning.kep=4,2"], "`pruning.kep` is not a key of a recipe. Did you mean `keep`?"),
        (["pruning.keep=4,2", "seed=0,-1"], "command line (seed=-1): `seed`"),
        (["sweep.compression=low_rank,2:4"], "`sweep.compression`: 2:4, or low_rank with the share"),
        (["sweep.compression=low_rank:1.5"], "in (0, 1): low_rank:0.5"),
        (["sweep.compression=1:4"], "`sweep.compression`: 2:4, or low_rank with the share"),
    ],
)
def test_mistakes_are_told_as_a_recipes_are(recipe: Path, overrides: list[str], said: str) -> None:
    with pytest.raises(PollardError) as caught:
        load_grid(recipe, overrides)
    assert said in str(caught.value)


def test_a_sweep_refits_nothing_and_refuses_to_compare_it(recipe: Path) -> None:
    grid = load_grid(recipe, ["pruning.keep=6,4", "pruning.refit=true"])
    plain = load_grid(recipe, ["pruning.keep=6,4"])
    assert [cell.recipe.pruning for cell in grid.cells] == [cell.recipe.pruning for cell in plain.cells]
    assert grid.recipe.pruning.refit is True  # of the run itself
    for override in ("pruning.refit=true,false", "pruning.refit.examples=64,128"):
        with raises("sweep.refit", override.partition("=")[0]):
            load_grid(recipe, [override])

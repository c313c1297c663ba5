from pathlib import Path

import pytest
from conftest import plan_for, raises, tiny_model

from toolkit.cli.benchmark_models import models_to_measure
from toolkit.cuts.checkpoint import prune_checkpoint
from toolkit.pipeline.run_models import models_at, original_and
from toolkit.runtime.errors import PollardError

NOTHING_DONE = '{"format": 1, "stages": {}}'


@pytest.fixture
def run(tmp_path: Path, tiny_checkpoint) -> Path:
    """A run that has pruned a tiny Mixtral to four experts, and trained nothing yet."""
    original, folder = tiny_checkpoint(), tmp_path / "runs" / "small"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text(NOTHING_DONE)
    (folder / "recipe.yaml").write_text(f"name: small\nmodel: {original}\ntask: playground/sorting\n")
    prune_checkpoint(str(original), plan_for(tiny_model("mixtral"), [0, 2, 5, 7]), folder / "pruned")
    return folder


def test_a_run_is_its_models_and_a_checkpoint_itself(run: Path) -> None:
    assert [checkpoint.name for checkpoint in models_at(str(run))] == ["original", "pruned"]
    assert models_at(str(run))[1].path == str(run / "pruned")
    assert models_at("some/hub-id") == [("some/hub-id", "some/hub-id", None, "auto")]


def test_of_a_run_the_last_of_its_models_is_meant_unless_one_is_named(run: Path) -> None:
    assert [checkpoint.name for checkpoint in original_and(str(run), None)] == ["original", "pruned"]
    assert original_and(str(run), "original")[1].name == "original"
    assert original_and(str(run), "another/model")[1].path == "another/model"
    with pytest.raises(PollardError, match=r"has no recovered model\. There are: original, pruned\."):
        original_and(str(run), "recovered")


def test_entrants_know_their_sizes_and_load(run: Path) -> None:
    original, pruned = models_to_measure([str(run)], {}, "float32")
    assert (original.name, pruned.name) == ("original", "pruned")
    assert pruned.size.parameters < original.size.parameters
    assert pruned.size.active_parameters == pytest.approx(original.size.active_parameters, rel=0.02)  # smaller routers
    model = pruned.load()
    assert sum(p.numel() for p in model.parameters()) == pruned.size.parameters
    assert pruned.weight_bytes == 4 * pruned.size.parameters


def test_a_configuration_alone_stands_for_random_models_of_its_shape(tmp_path: Path) -> None:
    tiny_model("mixtral").config.save_pretrained(tmp_path)
    fewer = {"keep": [4, 2], "width": [8], "layers": [1]}
    whole, four, two, narrow, short = models_to_measure([str(tmp_path)], fewer, "float32")
    entrants = whole, four, two, narrow, short
    assert [e.name for e in entrants] == [tmp_path.name, "keep 4", "keep 2", "width 8", "layers 1"]
    assert all(e.size.random for e in entrants)
    assert narrow.size.active_parameters < whole.size.active_parameters > short.size.active_parameters
    model = two.load()
    assert sum(p.numel() for p in model.parameters()) == two.size.parameters < four.size.parameters
    assert model.config.num_local_experts == 2 and all(p.std() > 0 for p in model.parameters())


def test_keep_is_for_shapes_not_for_weights(run: Path) -> None:
    with raises("cli.keep-with-weights", "--keep"):
        models_to_measure([str(run)], {"keep": [4]}, "float32")


def test_more_layers_than_there_are(tmp_path: Path) -> None:
    tiny_model("mixtral").config.save_pretrained(tmp_path)
    with raises("cli.too-many-layers", "1…2"):
        models_to_measure([str(tmp_path)], {"layers": [3]}, "float32")


def test_a_damaged_recipe_is_told(run: Path) -> None:
    (run / "recipe.yaml").write_text("model: [")
    with pytest.raises(PollardError, match="is not valid YAML"):
        models_at(str(run))
    assert (run / "manifest.json").read_text() == NOTHING_DONE

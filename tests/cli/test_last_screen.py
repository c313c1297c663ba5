"""The last screen of a run: what there is, and what to do next."""

from pathlib import Path

import pytest
from conftest import PLAYGROUND
from planned_recipe import recipe_of

from toolkit.cli import last_screen as module
from toolkit.cli.last_screen import _axis_to_try, last_screen
from toolkit.cuts import ModelShape
from toolkit.cuts.shape import plan_of_shape
from toolkit.moe import load_config, meta_model
from toolkit.pipeline.run_directory import RunDirectory
from toolkit.recipe.file import dump_recipe


def test_the_last_screen_says_what_there_is_and_what_to_do_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module, "program_path", lambda name: name)
    run = RunDirectory("small")
    run.pruned.mkdir(parents=True)
    (run.pruned / "model.safetensors").write_bytes(b"0" * 2**20)
    last_screen(run, 84, "pollard run small.yaml")
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "", "Done in 1 min 24 s", "  runs/small/pruned  the pruned model, 1.0 MiB", "Next",
        "  pollard run small.yaml   the stages that are left",
        "  pollard chat runs/small  ask the original and the smaller model side by side",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("pruning", "axis"),
    [
        ({"keep": 4}, ("keep", [6, 4, 2])),
        ({"keep": 4, "width": 0.5}, ("keep", [6, 4, 2])),
        ({"width": 0.5}, ("width", [0.75, 0.5, 0.25])),
        ({"layers": 3}, ("layers", [0.75, 0.5, 0.25])),
        ({"schedule": [4, 2]}, None),
    ],
)
def test_a_sweep_is_suggested_over_what_was_cut(tmp_path: Path, pruning: dict, axis: tuple | None) -> None:
    run = RunDirectory("small", tmp_path)
    model = str(PLAYGROUND / "model")
    recipe = recipe_of(model, pruning=pruning)
    run.path.mkdir()
    run.open(model, "gsm8k", dump_recipe(recipe), [])
    plan_of_shape(meta_model(load_config(model)), ModelShape(experts=4)).save(run.plan)
    found = _axis_to_try(run)
    assert (found and (found.key, found.values)) == axis

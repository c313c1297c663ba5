import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import ROOT, tiny_model

from toolkit.cli import exit_status
from toolkit.cli import main as cli
from toolkit.cli.verbs import VERBS, running
from toolkit.cuts import ModelShape, prune_checkpoint
from toolkit.cuts.shape import plan_of_shape
from toolkit.moe import load_config, meta_model
from toolkit.recipe.schema import PruningRecipe
from toolkit.runtime.errors import PollardError
from toolkit.selection import CRITERIA, LAYER_CRITERIA, WIDTH_CRITERIA


@pytest.fixture
def pollard(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Runs `pollard …` in this process: exit status, what it printed, what argparse complained about."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["pollard", *arguments])
        try:
            status = cli.main()
        except SystemExit as stop:
            status = int(stop.code or 0)
        return status, *capsys.readouterr()

    monkeypatch.setattr(exit_status, "quiet_libraries", lambda: None)  # it changes the whole process, which other tests share
    return run


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    path = tmp_path / "r.yaml"
    path.write_text("name: try\nmodel: no/model\ntask: playground/sorting\n")
    return str(path)


def test_help_names_every_verb(pollard) -> None:
    status, out, _ = pollard("--help")
    assert status == 0
    assert all(verb.name in out for verb in VERBS)


def test_criteria_lists_each_with_one_line(pollard) -> None:
    status, out, _ = pollard("criteria")
    assert status == 0
    listed = [line for line in out.splitlines() if line.startswith("  ")]
    assert [line.split()[0] for line in listed] == [*CRITERIA, *WIDTH_CRITERIA, *LAYER_CRITERIA]
    assert all(len(line.split()) > 3 for line in out.splitlines())


def test_inspect_shows_a_model_as_plain_text(pollard) -> None:
    status, out, _ = pollard("inspect", str(ROOT / "data" / "playground" / "model"))
    assert status == 0
    assert (
        "family          mixtral\nlayers          4\nMoE blocks      4, with 8 experts each\nper token       2 experts\n" in out
    )
    rows = [line.split()[:2] for line in out.splitlines() if line.startswith(("experts", "channels", "layers")) and "%" in line]
    assert rows == [["experts", "6"], ["channels", "192"], ["layers", "3"]]
    assert "\x1b" not in out


def test_inspect_shows_the_cuts_of_a_plan_and_of_a_pruned_checkpoint(pollard, tmp_path: Path) -> None:
    source = str(ROOT / "data" / "playground" / "model")
    shape = ModelShape(experts=4, width=64, layers=(0, 1, 3))
    plan = plan_of_shape(meta_model(load_config(source)), shape).model_copy(update={"model": source})
    plan.save(tmp_path / "plan.json")
    status, out, _ = pollard("inspect", str(tmp_path / "plan.json"))
    assert status == 0 and "3 of 4 stay, by : 0–1, 3" in out and "64 channels of every expert stay" in out
    assert [line.split()[0] for line in out.splitlines() if "%" in line] == ["original", "fewer", "fewer", "narrower"]
    prune_checkpoint(source, plan, tmp_path / "pruned")
    status, out, _ = pollard("inspect", str(tmp_path / "pruned"))
    assert status == 0 and "4 of 8 experts stay" in out and "3 of 4 layers stay, by : 0–1, 3" in out and "64 channels stay" in out
    plan.model_copy(update={"model": str(tmp_path / "pruned")}).save(tmp_path / "plan.json")
    status, out, _ = pollard("inspect", str(tmp_path / "plan.json"))
    assert status == 1 and out.startswith("error The plan")


def test_inspect_refuses_a_dense_model_and_none(pollard, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama", "num_hidden_layers": 1, "hidden_size": 32}')
    status, out, _ = pollard("inspect", str(tmp_path))
    assert status == 1 and out.startswith("error llama has no MoE block")
    status, out, _ = pollard("inspect", "no/such-model")
    assert status == 1 and out.startswith("error Cannot open the model no/such-model.")


# The last line is what a script looks at: `pollard estimate … | tail -1`.
@pytest.mark.parametrize(
    ("gpu_memory", "last"),
    [
        ("80G", "fits"),
        ("1M", "does not fit: calibrate (GPU memory); off_task/original (GPU memory); evaluate/original (GPU memory)"),
    ],
)
def test_estimate_shows_a_plan_and_whether_it_fits(pollard, gpu_memory: str, last: str) -> None:
    recipe = str(ROOT / "recipes" / "playground.yaml")
    there = ["--gpus", "2", "--gpu-memory", gpu_memory, "--cpu-memory", "64G", "--nodes", "2"]
    model = f"model={ROOT / 'data' / 'playground' / 'model'}"
    scores = ["evaluation.models=[original]", "evaluation.fidelity=null"]
    status, out, _ = pollard("estimate", recipe, *there, model, *scores)
    lines = out.splitlines()
    assert status == 0 and "\x1b" not in out
    assert lines[0] == "Estimates, not measurements"
    assert lines[-1].startswith(last)
    stages = [line.split()[0] for line in lines if line.endswith((" yes", " no: GPU"))]
    assert stages == ["calibrate", "select", "prune", "off_task/original", "evaluate/original"]
    assert "parameters      3.51 M -> 1.94 M (4 of 8 experts per block)" in lines


def test_estimate_refuses_a_size_without_a_unit_and_a_dense_model(pollard, recipe: str, tmp_path: Path) -> None:
    status, out, _ = pollard("estimate", recipe, "--gpu-memory", "80")
    assert status == 1
    assert out.startswith("error --gpu-memory: 80 is no number of bytes: write a number and its unit, e.g. 80G")
    (tmp_path / "config.json").write_text('{"model_type": "llama", "num_hidden_layers": 1, "hidden_size": 32}')
    status, out, _ = pollard("estimate", recipe, f"model={tmp_path}")
    assert status == 1 and out.startswith("error llama has no MoE block")


@pytest.mark.parametrize("verb", VERBS, ids=[verb.name for verb in VERBS])
def test_the_help_of_a_verb_shows_an_example_that_it_understands(pollard, verb) -> None:
    status, out, _ = pollard(verb.name, "--help")
    assert status == 0 and f"Example: {verb.example}\n" in out
    words = shlex.split(verb.example)
    assert words[:2] == ["pollard", verb.name]
    assert cli.command_parser().parse_args(words[1:]).verb == verb.name


@pytest.mark.parametrize("arguments", [[], ["inspect"], ["prun", "r.yaml"], ["select"], ["select", "r.yaml", "--frsh"]])
def test_wrong_usage_is_told_with_the_usage(pollard, arguments: list[str]) -> None:
    status, _, err = pollard(*arguments)
    assert status == 2 and err.startswith("usage: pollard")


def test_a_mistake_in_the_recipe_is_one_message_and_exit_status_1(pollard, recipe: str) -> None:
    status, out, err = pollard("select", recipe, "pruning.keeep=2")
    assert (status, err) == (1, "")
    assert out == (
        "error command line (pruning.keeep=2): `pruning.keeep` is not a key of a recipe. Did you mean `keep`? "
        f"Allowed here: {', '.join(PruningRecipe.model_fields)}.\n"
    )


# Rich would take [8] for markup and swallow it.
def test_a_message_is_printed_as_it_is(pollard, recipe: str) -> None:
    assert "(given: [8])" in pollard("select", recipe, "pruning.keep=[8]")[1]


def test_a_missing_recipe_is_an_error(pollard, tmp_path: Path) -> None:
    status, out, _ = pollard("prune", str(tmp_path / "none.yaml"))
    assert status == 1 and out.startswith("error No recipe at ")


@pytest.mark.parametrize("verb", running.LAST_STAGES)
def test_a_verb_runs_the_pipeline_as_far_as_its_stage(pollard, recipe: str, verb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from toolkit.cli import last_screen as screen
    from toolkit.pipeline import runner as pipeline
    from toolkit.pipeline import show_fit

    called = {}
    monkeypatch.setattr(running, "join", lambda: None)
    monkeypatch.setattr(screen, "last_screen", lambda *what: None)
    monkeypatch.setattr(pipeline, "run", lambda recipe, **how: called.update(how, keep=recipe.pruning.keep))
    keep, shape = (None, "pruning={fit: {bytes: 1M}}") if verb == "fit" else (2, "pruning.keep=2")
    monkeypatch.setattr(show_fit, "show_fit_of", lambda directory: None)
    for arguments in ([shape, "pruning.refit=true", "--fresh"], ["--fresh", shape, "pruning.refit=true"]):
        assert pollard(verb, recipe, *arguments)[0] == 0
        assert called == {"fresh": True, "until": running.LAST_STAGES[verb], "keep": keep}
        called.clear()


def test_the_verb_of_a_stage_that_the_recipe_lacks_runs_nothing(pollard, recipe: str) -> None:
    status, out, _ = pollard("refit", recipe)
    assert status == 1 and "pruning.refit=true" in out and not Path("runs").exists()


# The launcher puts --local_rank before the verb: deepspeed --module toolkit.cli sweep …
@pytest.mark.parametrize("launcher", [[], ["--local_rank=0"]])
def test_sweep_reads_lists_and_runs_the_sweep(pollard, recipe: str, launcher: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from toolkit.pipeline import sweep

    called = {}
    monkeypatch.setattr(running, "join", lambda: None)

    def ran(grid: Any, fresh: bool) -> Any:
        called.update(cells=len(grid.cells), fresh=fresh)
        return SimpleNamespace(as_json=dict)

    monkeypatch.setattr(sweep, "sweep", ran)
    assert pollard(*launcher, "sweep", recipe, "pruning.keep=4,2", "--fresh", "pruning.criterion=random,reap")[0] == 0
    assert called == {"cells": 4, "fresh": True}


def test_a_sweep_of_nothing_is_an_error(pollard, recipe: str) -> None:
    status, out, _ = pollard("sweep", recipe)
    assert status == 1 and out.startswith("error A sweep needs something to compare")


# The whole command in its own process, started elsewhere than in the checkout.
def test_a_model_that_cannot_be_had_ends_training_with_one_message(recipe: str, tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "toolkit" / "train.py"), recipe]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stdout.startswith("error Cannot open the model no/model. No such folder, and the hub does not have it")
    assert "Traceback" not in done.stdout + done.stderr


# What only one rank finds (it has no GPU, it does not see a file) would else be a run that ends without a word.
def test_a_mistake_that_rank_0_does_not_find_is_told_by_the_rank_that_does(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setattr(exit_status, "FILE_SYSTEM_DELAY", 0)
    error = PollardError("no GPU")
    assert exit_status.report_error(error) == 1
    assert re.fullmatch(r"error rank 3 on \S+: no GPU\n", capsys.readouterr().out)
    error.already_reported = True  # by rank 0
    assert exit_status.report_error(error) == 1 and capsys.readouterr().out == ""


def test_upcycle_makes_a_mixture_of_a_dense_model_and_refuses_the_other_forms_option(pollard, tmp_path: Path) -> None:
    tiny_model("llama").save_pretrained(tmp_path / "dense")
    dense, target = str(tmp_path / "dense"), str(tmp_path / "experts")
    for wrong in (["--redraw", "0.1"], ["--form", "copies", "--width", "8"], ["--experts", "1"], ["--width", "0"]):
        status, out, _ = pollard("upcycle", dense, target, *wrong)
        assert status == 1 and out.startswith("error") and wrong[-2].strip("-") in out
    assert pollard("upcycle", dense, target, "--form", "mixture")[0] == 2
    status, out, _ = pollard("upcycle", dense, target, "--form", "copies", "--experts", "4", "--redraw", "0.5", "--seed", "3")
    assert status == 0 and "a mixtral of 4 experts, 2 per token" in out and "50 % of each expert's channels" in out
    status, out, _ = pollard("inspect", target)
    assert status == 0 and "2, with 4 experts each" in out
    status, out, _ = pollard("upcycle", dense, target)
    assert status == 1 and "--overwrite" in out
    assert pollard("upcycle", dense, target, "--overwrite", "--width", "8")[0] == 0
    status, out, _ = pollard("inspect", target)
    assert status == 0 and "8 channels per expert" in out

"""The stage `layers`: what it asks of the model, what it writes, and that a kill changes nothing of it."""

import json
import os
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from conftest import ROOT, raises, tiny_model
from families import tiny_family
from rank_launcher import RANKS, ranks
from small_run import TASK, small_folder, small_recipe

from toolkit.calibration import CalibrationSource
from toolkit.calibration.layer_similarity import layer_similarities
from toolkit.cuts import LayersCut
from toolkit.evaluation import completion_loss
from toolkit.moe import load_model, load_tokenizer
from toolkit.pipeline import layer_search
from toolkit.pipeline.checks import check
from toolkit.pipeline.context import RunContext
from toolkit.pipeline.layer_choice import ChosenLayers, chosen_layers
from toolkit.pipeline.layer_search import refusal_of
from toolkit.pipeline.runner import run
from toolkit.pipeline.stage_list import stages_of
from toolkit.recipe.file import dump_recipe
from toolkit.recipe.schema import Recipe
from toolkit.selection import LayerEvidence, choose_layers
from toolkit.tasks import Task, encode_all, padded_batches

LAYERS = 4
RUN = Path("runs/small")


def recipe(layers: object = 2, criterion: str | None = None, **changes: object) -> Recipe:
    chosen = {"layer_criterion": criterion} if criterion else {}
    return small_recipe(pruning={"layers": layers, **chosen}, **changes)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with small_folder(tmp_path_factory, "layers") as folder:
        tiny_model("mixtral", vocab_size=768, eos_token_id=1, num_hidden_layers=LAYERS).save_pretrained(folder / "original")
        yield folder


@pytest.fixture(autouse=True)
def _there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


def chosen(one: Recipe, fresh: bool = False) -> dict:
    """What the stage writes, without how long it took."""
    run(one, fresh=fresh, until="layers")
    found = json.loads((RUN / "layers.json").read_text())
    assert found.pop("seconds") >= 0
    return found


def dev_loss_without(gone: set[int]) -> float:
    """By hand: the layers taken out of the loaded model's list."""
    task, tokenizer, model = Task(recipe().task), load_tokenizer("original"), load_model("original")
    encoded, _ = encode_all(tokenizer, task.examples("dev")[:8], 1024)
    layers = [layer for number, layer in enumerate(model.model.layers) if number not in gone]
    model.model.layers = torch.nn.ModuleList(layers)
    model.config.num_hidden_layers = len(layers)
    return completion_loss(model, padded_batches(encoded, 4, int(tokenizer.pad_token_id))).mean


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """One item per measurement of the dev loss."""
    calls: list[None] = []
    real = layer_search.completion_loss
    monkeypatch.setattr(layer_search, "completion_loss", lambda *arguments: calls.append(None) or real(*arguments))
    return calls


def test_dev_loss_drops_one_after_the_other_what_the_dev_slice_misses_least(measured: list[None]) -> None:
    found = chosen(recipe(), fresh=True)
    alone = {layer: dev_loss_without({layer}) for layer in range(LAYERS)}
    first = min(alone, key=lambda layer: alone[layer])
    pairs = {layer: dev_loss_without({first, layer}) for layer in range(LAYERS) if layer != first}
    second = min(pairs, key=lambda layer: pairs[layer])
    assert found["removed"] == [
        {"layer": first, "loss": pytest.approx(alone[first], abs=1e-5)},
        {"layer": second, "loss": pytest.approx(pairs[second], abs=1e-5)},
    ]
    assert found["kept"] == sorted(set(range(LAYERS)) - {first, second}) and found["dev_examples"] == 8
    assert found["loss"] == pytest.approx(dev_loss_without(set()), abs=1e-5)
    assert len(measured) == 1 + 4 + 3


def test_a_finished_measurement_serves_every_number_of_layers(measured: list[None]) -> None:
    fewest = chosen(recipe(1), fresh=True)
    measured.clear()
    for number in (3, 2):
        found = chosen(recipe(number))
        assert found["removed"] == fewest["removed"][: LAYERS - number] and set(found["kept"]) > set(fewest["kept"])
    assert not measured
    chosen(recipe(2, calibration={"examples": 4, "batch_size": 4}))  # measured on others
    assert len(measured) == 1 + 4 + 3


@pytest.mark.parametrize("calls", [1, 2, 6, 8])
def test_killed_anywhere_and_resumed_it_chooses_what_an_undisturbed_run_does(calls: int, monkeypatch: pytest.MonkeyPatch) -> None:
    undisturbed = chosen(recipe(), fresh=True)
    real, made = layer_search.completion_loss, []

    def killed(*arguments):
        made.append(None)
        if len(made) == calls:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(layer_search, "completion_loss", killed)
    with pytest.raises(KeyboardInterrupt):
        chosen(recipe(), fresh=True)
    assert chosen(recipe()) == undisturbed
    assert len(made) == 8 + 1  # nothing but the measurement that was killed is made again


@pytest.mark.parametrize("criterion", ["influence", "angular"])
def test_similarities_are_those_of_the_calibration_examples_and_measured_once(criterion: str, monkeypatch) -> None:
    found = chosen(recipe(2, criterion), fresh=True)
    tokenizer = load_tokenizer("original")
    examples = random.Random(0).sample(Task(recipe().task).examples("train"), 8)
    batches = padded_batches(encode_all(tokenizer, examples, 1024)[0], 4, int(tokenizer.pad_token_id))
    similarities = layer_similarities(load_model("original"), [CalibrationSource("", batches)])
    if criterion == "influence":
        assert found["scores"] == pytest.approx((1 - similarities.mean_cosine()).tolist(), abs=1e-6)
    else:
        angles = similarities.mean_angle().diagonal(2)
        start = int(angles.argmin())
        assert [removed["layer"] for removed in found["removed"]] == [start, start + 1]
    monkeypatch.setattr(layer_search, "layer_similarities", None)  # not to be called again
    assert len(chosen(recipe(3, "influence"))["kept"]) == 3 and len(chosen(recipe(1, "angular"))["kept"]) == 1


@pytest.mark.parametrize(
    ("layers", "criterion", "kept"), [([0, 3], None, [0, 3]), (2, "top", [0, 3]), (0.75, "top", [0, 1, 3]), (2, "random", None)]
)
def test_nothing_is_loaded_where_nothing_is_measured(layers, criterion, kept, monkeypatch: pytest.MonkeyPatch) -> None:
    for function in ("with_model", "with_layers"):
        monkeypatch.setattr(layer_search, function, None)
    found = chosen(recipe(layers, criterion), fresh=True)
    assert found["kept"] == kept if kept else len(found["kept"]) == 2
    assert found["criterion"] == (criterion or "given") and found["loss"] is None
    assert not list((RUN / "layers").iterdir())


def test_the_same_seed_draws_the_same_layers_and_others_draw_others() -> None:
    draws = [chosen(recipe(2, "random", seed=seed))["kept"] for seed in range(8)]
    assert draws[3] == chosen(recipe(2, "random", seed=3), fresh=True)["kept"]
    assert len({tuple(kept) for kept in draws}) > 2


def test_what_calibration_and_selection_read_of_it() -> None:
    found = chosen(recipe(2, "influence"), fresh=True)
    context = RunContext(recipe(2, "influence"))
    cut = chosen_layers(context)
    assert cut == LayersCut.of(context.meta_model, found["kept"], "influence", found["scores"])
    assert chosen_layers(RunContext(small_recipe())) is None  # the file is another recipe's
    (RUN / "layers.json").write_text("{")
    with raises("layers.unreadable", "layers.json"):
        ChosenLayers.load(RUN / "layers.json")


def test_only_recipes_with_fewer_layers_have_the_stage() -> None:
    def names(one: Recipe) -> list[str]:
        return [stage.name for stage in stages_of(RunContext(one))]

    assert names(recipe())[:2] == ["layers", "calibrate"]
    assert "layers" not in names(small_recipe()) and "layers" not in names(recipe(LAYERS))


def test_a_task_whose_answers_are_written_is_cautioned_with_what_the_dev_slice_says(capsys: pytest.CaptureFixture[str]) -> None:
    answers = chosen(recipe(), fresh=True)["dev_answers"]
    assert answers["n"] == 12  # all there are
    said = capsys.readouterr().out
    assert "answers are written" in said
    assert f"{answers['after']} of 12 dev questions are right before recovery, with all layers {answers['before']}" in said
    chosen(recipe(2, "top"), fresh=True)
    assert "the dev slice was not asked" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("layers", "code", "named"),
    [(5, "selection.layers", "has 4 decoder layers"), ([0, 4], "selection.layers", "names layer 4")],
)
def test_what_no_such_model_can_do_is_known_before_anything_starts(layers, code: str, named: str) -> None:
    with raises(code, "pruning.layers", named):
        check(RunContext(recipe(layers)))


@pytest.mark.parametrize(
    ("family", "kept", "stays", "reason"),
    [
        ("hy_v4", [1, 3], 1, "layer 3 (shared) uses what layer 1 computes"),
        ("nemotron_h", [1, 2, 3], 2, "no attention layer would stay"),
    ],
)
def test_what_a_family_cannot_do_without_stays_for_the_reason_that_its_cut_gives(family, kept, stays, reason) -> None:
    evidence = LayerEvidence(LAYERS, refusal_of(tiny_family(family)))
    choice = choose_layers("top", len(kept), evidence)
    assert choice.kept == kept and reason in choice.refused[stays]


def test_where_layers_alternate_none_goes_alone_and_a_run_can() -> None:
    model = tiny_family("jamba")
    with raises("selection.layers-refused", "2: ", "1: ", "0: ", "layer 3, as layer 2, would"):
        choose_layers("top", 2, LayerEvidence(LAYERS, refusal_of(model)))
    ids = torch.arange(3, 27).view(2, 12)
    similarities = layer_similarities(
        model, [CalibrationSource("", [{"input_ids": ids, "attention_mask": torch.ones_like(ids)}])]
    )
    choice = choose_layers("angular", 2, LayerEvidence(LAYERS, refusal_of(model), similarities))
    assert len(choice.kept) == 2 and choice.removed[1].layer == choice.removed[0].layer + 1


def test_without_a_dev_slice_there_is_no_dev_loss() -> None:
    lines = Path("train.jsonl").read_text().splitlines(keepends=True)
    Path("few.jsonl").write_text("".join(lines[:4]))  # a fifth of four is none
    task = {**TASK, "train": "few.jsonl"}
    with raises("sweep.no-dev"):
        check(RunContext(recipe(2, task=task)))
    check(RunContext(recipe(2, "influence", task=task)))
    with raises("sweep.no-dev"):  # where a shape is searched, it is measured there
        check(RunContext(small_recipe(pruning={"fit": {"bytes": 350_000}}, task=task)))


@pytest.mark.launcher
def test_two_ranks_choose_what_one_does(tmp_path: Path) -> None:
    alone = chosen(recipe(), fresh=True)
    (tmp_path / "original").symlink_to(Path("original").absolute())
    for file in ("train.jsonl", "test.jsonl"):
        (tmp_path / file).write_bytes(Path(file).read_bytes())
    (tmp_path / "two.yaml").write_text(dump_recipe(recipe()))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = ranks(RANKS, "--module", "toolkit.cli", "calibrate", "two.yaml")
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / RUN / "layers.json").read_text())
    assert found["kept"] == alone["kept"] and found["dev_answers"] == alone["dev_answers"]
    assert [each["loss"] for each in found["removed"]] == pytest.approx([each["loss"] for each in alone["removed"]], abs=1e-5)

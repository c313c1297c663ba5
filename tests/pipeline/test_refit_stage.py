"""A run that refits: the refitted model is one of the run's, recovery starts from it, and it is made again only where it must."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from conftest import raises
from small_run import small_folder, small_recipe

from toolkit.cuts import Plan
from toolkit.moe import load_config, load_model
from toolkit.pipeline.checks import check
from toolkit.pipeline.cleaning import removable
from toolkit.pipeline.context import RunContext
from toolkit.pipeline.run_directory import RunDirectory
from toolkit.pipeline.run_facts import read_run_facts
from toolkit.pipeline.run_models import chosen_models, find_run
from toolkit.pipeline.runner import run
from toolkit.pipeline.stage_list import stages_of
from toolkit.pipeline.stages import refit as stage_file
from toolkit.recipe.roles import Role
from toolkit.recipe.schema import Recipe
from toolkit.recovery.refit.layer_files import LayerFiles
from toolkit.report import card, render
from toolkit.runtime.signed_folders import read_provenance
from toolkit.tasks import encode

TRAINER = {"max_steps": 1, "per_device_train_batch_size": 2, "eval_strategy": "no"}
ALL = ["original", "pruned", "refitted", "recovered"]


def recipe(name: str = "refit", refit: object = True, models: list[str] = ALL[:3], **changes: object) -> Recipe:
    values: dict = {
        "pruning": {"keep": 4, "refit": refit} | changes.pop("pruning", {}),  # type: ignore[operator]
        "calibration": {"examples": 24, "batch_size": 4},
        "finetuning": {"zero": 0, "examples": 8, "trainer": TRAINER},
        "evaluation": {"examples": 2, "max_new_tokens": 2, "off_task": False, "batch_size": 2, "models": models},
    }
    return small_recipe(name=name, **(values | changes))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with small_folder(tmp_path_factory, "refit") as folder:
        yield folder


@pytest.fixture(scope="module")
def finished(folder: Path) -> RunDirectory:
    return run(recipe(models=ALL))


def done_in(capsys: pytest.CaptureFixture[str], one: Recipe, until: str | None = None) -> list[str]:
    """The stages that a run of the recipe does; what they said is read away."""
    capsys.readouterr()
    run(one, until=until)
    lines = capsys.readouterr().out.splitlines()
    ends = ("(not done yet)", "done again)", "is made again)", "not finished)", "needed again)")
    return [line.split()[0] for line in lines if line.rstrip().endswith(ends)]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_model(str(folder)).state_dict()


def test_the_refitted_model_is_a_stock_checkpoint_of_the_pruned_ones_shape(finished: RunDirectory) -> None:
    assert load_config(str(finished.refitted)).num_local_experts == 4
    pruned, refitted = weights(finished.pruned), weights(finished.refitted)
    changed = [name for name, tensor in refitted.items() if not torch.equal(tensor, pruned[name])]
    assert changed and all(".experts." in name for name in changed)
    assert {name: tensor.shape for name, tensor in refitted.items()} == {name: t.shape for name, t in pruned.items()}
    assert (finished.refitted / "tokenizer.json").read_bytes() == (finished.pruned / "tokenizer.json").read_bytes()


def test_recovery_starts_from_it(finished: RunDirectory) -> None:
    facts = read_provenance(finished.recovered)
    assert facts and facts["source"] == str(finished.refitted)
    assert "prune" not in finished.entries()["recover"]["made_from"] and "refit" in finished.entries()["recover"]["made_from"]


def test_the_manifest_and_refit_json_say_how_near_it_came(finished: RunDirectory) -> None:
    entry, layers = finished.entries()["refit"], json.loads(finished.refit.read_text())["blocks"]
    assert entry["examples"] == 24 and entry["layers"] == len(layers) == 2 and entry["changed"] >= 1
    assert entry["tokens"] > entry["held_out"] > 0
    assert entry["error_after"] < entry["error_before"] == pytest.approx(sum(e["error_before"] for e in layers) / 2)


def test_report_and_card_show_it_beside_the_others(finished: RunDirectory) -> None:
    facts = read_run_facts(finished.path)
    assert list(facts.models) == [Role(role) for role in ALL] and facts.refit and facts.result is Role.RECOVERED
    assert facts.refit.sentence in facts.summary and "24 training examples" in facts.refit.sentence
    assert {(pair.first, pair.second) for pair in facts.pairs} >= {(Role.REFITTED, Role.PRUNED), (Role.RECOVERED, Role.REFITTED)}
    page, text = render(facts), card(facts, "here")
    assert '<h2 id="refit">Refit' in page and 'data-fact="refit/layers/1/error_after"' in page
    assert "| `model.layers.1` | residual stream |" in text and "fitted what stays" in text


def test_it_reads_training_examples_only(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context = RunContext(recipe("data", refit={"examples": 1000}), RunDirectory("data"))
    run(context.recipe, until="prune")
    read: list[list[int]] = []

    class Read(Exception):
        pass

    def record(original: str, pruned: Path, target: Path, batches: list, *arguments: object, **options: object) -> None:
        for batch in batches:
            read.extend(row[mask.bool()].tolist() for row, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True))
        raise Read

    monkeypatch.setattr(stage_file, "refit_checkpoint", record)
    (stage,) = (stage for stage in stages_of(context) if stage.name == "refit")
    with pytest.raises(Read):
        stage.run()
    train = [encode(context.tokenizer, example).input_ids for example in context.task.examples("train")]
    assert sorted(read) == sorted(train) and len(train) == 48  # of 60 lines, without the 12 of the dev slice


def test_killed_in_the_middle_it_goes_on_and_ends_as_if_undisturbed(
    finished: RunDirectory, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    one, real = recipe("killed", models=ALL[1:3]), LayerFiles.save

    def save(files: LayerFiles, number: int, *arguments: object) -> None:
        real(files, number, *arguments)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(LayerFiles, "save", save)
        with pytest.raises(KeyboardInterrupt):
            run(one, until="refit")
    killed = RunDirectory("killed")
    assert not killed.refitted.exists() and "refit" not in killed.done()
    capsys.readouterr()
    run(one, until="refit")
    assert "1 of 2 layers" in capsys.readouterr().out
    assert (killed.refitted / "model.safetensors").read_bytes() == (finished.refitted / "model.safetensors").read_bytes()
    assert killed.refit.read_text() == finished.refit.read_text()
    assert not (killed.path / "refitted.tmp").exists()
    assert done_in(capsys, one, until="refit") == []


def test_fresh_does_not_go_on_from_layers_of_before(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = RunDirectory("fresh")
    run(recipe("fresh"), until="prune")
    (one.path / "refitted.tmp").mkdir()
    (one.path / "refitted.tmp" / "pollard.json").write_text('{"format": 1, "unfinished": "x"}')
    one.forget([])
    assert not (one.path / "refitted.tmp").exists()


def test_a_change_redoes_what_it_decides(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def done(**changes: object) -> list[str]:
        return done_in(capsys, recipe("changed", **changes))  # type: ignore[arg-type]

    assert done(refit=False, models=ALL[:2])[:3] == ["calibrate", "select", "prune"]
    assert done() == ["refit", "evaluate/refitted", "report"]
    assert done(refit={"examples": 24}) == []  # what true stands for
    assert done(refit={"examples": 23}) == ["refit", "evaluate/refitted", "report"]
    # Without a refit its model is of other settings: it is named as stale, and nothing takes it
    assert done(refit=False, models=ALL[:2]) == ["report"]
    there = find_run("changed")
    assert list(there.stale) == ["refitted"] and [model.name for model in chosen_models(there)] == ["original", "pruned"]
    facts = read_run_facts("runs/changed")
    assert Role.REFITTED not in facts.models and facts.refit is None
    assert ["refitted/", "evaluation/refitted.json"] in [stale.parts for stale in facts.stale]


def test_without_fine_tuning_the_run_ends_with_it(folder: Path) -> None:
    one = run(recipe("ends", pruning={"skipping": "median"}))
    facts = read_run_facts(one.path)
    assert facts.result is Role.REFITTED and "by refit, without fine-tuning" in facts.headline
    assert (one.refitted / "skipping.json").exists() and not (one.pruned / "skipping.json").exists()
    assert (one.refitted / "README.md").read_text() == (one.path / "README.md").read_text()
    assert [model.name for model in chosen_models(find_run("ends"))] == ["original", "refitted"]
    parts = {part.part for part in removable(one)}
    assert "pruned" in parts and "refitted" not in parts  # it is what the run has made so far


def test_every_round_refits_before_it_recovers(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pruning = {"keep": 4, "schedule": [6, 4]}
    one = recipe("rounds", pruning=pruning)
    first = RunDirectory("6", run(one).rounds)
    facts = read_provenance(first.recovered)
    assert first.refit.exists() and facts and facts["source"] == str(first.refitted)
    assert Plan.load(RunDirectory("rounds").plan).keep == 4 and RunDirectory("rounds").refitted.exists()
    assert done_in(capsys, one) == []


def test_what_cannot_be_refit_is_said_before_anything_is_observed(folder: Path) -> None:
    config = json.loads((folder / "original" / "config.json").read_text())
    (folder / "quantized").mkdir()
    for file in (folder / "original").iterdir():
        (folder / "quantized" / file.name).write_bytes(file.read_bytes())
    quantized = config | {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}
    (folder / "quantized" / "config.json").write_text(json.dumps(quantized))
    with raises("refit.quantized", "pruning.refit", "quantized"):
        check(RunContext(recipe("quantized", model="quantized")))
    with raises("refit.too-few-examples", "pruning.refit.examples"):
        run(recipe("few", refit={"examples": 1}))
    assert not Path("runs/few/refitted").exists()

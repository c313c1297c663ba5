"""Runs that end with a dense model: every stage after pruning, recovery by both methods, and what is refused."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from conftest import logits_of, raises, tiny_model
from small_run import small_folder, small_recipe, small_values
from transformers import AutoModelForCausalLM

from toolkit.cuts import Plan, masked, with_fixed_gates
from toolkit.moe import blocks_in, load_model
from toolkit.pipeline.checks import check
from toolkit.pipeline.context import RunContext
from toolkit.pipeline.estimator import Estimator
from toolkit.pipeline.run_directory import RunDirectory
from toolkit.pipeline.run_facts import read_run_facts
from toolkit.pipeline.runner import run
from toolkit.pipeline.sweep_grid import load_grid
from toolkit.recipe.file import load_recipe
from toolkit.recipe.schema import Recipe
from toolkit.runtime.signed_folders import read_provenance

TRAINER = {"max_steps": 2, "per_device_train_batch_size": 2, "eval_strategy": "no", "warmup_steps": 0, "learning_rate": 1e-2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with small_folder(tmp_path_factory, "dense") as folder:
        yield folder


def recipe_of(name: str, method: str = "full", **changes: object) -> Recipe:
    values: dict = {
        "pruning": {"keep": 4, "form": "dense"},
        "finetuning": {"zero": 0, "examples": 8, "trainer": TRAINER, "method": method},
        "evaluation": {"examples": 2, "max_new_tokens": 2, "off_task": False, "batch_size": 2, "fidelity": 2},
    }
    return small_recipe(name=name, **(values | changes))


@pytest.fixture(scope="module")
def finished(folder: Path) -> RunDirectory:
    return run(recipe_of("full"))


def test_the_pruned_model_is_the_original_with_fixed_gates(finished: RunDirectory) -> None:
    assert list(finished.done())[:4] == ["calibrate", "select", "merge", "prune"]
    plan, chosen = Plan.load(finished.dense), Plan.load(finished.plan)
    assert chosen.form is None and plan.without_form == chosen and plan.dense is not None
    original, pruned = load_model("original"), AutoModelForCausalLM.from_pretrained(finished.pruned)
    assert pruned.config.model_type == "mistral"
    with with_fixed_gates(original, plan.dense, {n: b.kept for n, b in plan.blocks.items()}), masked(original, plan):
        expected = logits_of(original)
    assert (logits_of(pruned) - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert not finished.pruned.with_name("pruned.moe").exists()
    assert (read_provenance(finished.pruned) or {})["plan"]["form"] == "dense"


def test_the_report_says_what_it_is(finished: RunDirectory) -> None:
    facts = read_run_facts(finished.path)
    assert facts.pruning and facts.pruning.dense
    assert 0 < facts.pruning.dense.error < facts.pruning.dense.mean_gate_error
    for role in ("pruned", "recovered"):
        result = facts.models[role]  # type: ignore[index]
        assert result and result.parameters == result.active_parameters
    for file in ("report.html", "README.md"):
        assert "as one feed-forward layer" in (finished.path / file).read_text()
    assert "dense" in json.loads((finished.path / "report.json").read_text())["pruning"]


def test_a_run_without_the_form_shares_its_selection_and_knows_nothing_of_it(finished: RunDirectory) -> None:
    dense = RunContext(recipe_of("full")).fingerprints
    experts = RunContext(recipe_of("full", pruning={"keep": 4})).fingerprints
    assert (dense.calibrate, dense.select) == (experts.calibrate, experts.select)
    assert dense.models["pruned"] != experts.models["pruned"]  # type: ignore[index]
    assert "form" not in recipe_of("x", pruning={"keep": 4}).model_dump()["pruning"]


def test_adapters_reach_the_feed_forward_layers_and_are_merged(folder: Path) -> None:
    pytest.importorskip("peft")
    done = run(recipe_of("lora", "lora"))
    before, after = (AutoModelForCausalLM.from_pretrained(path).state_dict() for path in (done.pruned, done.recovered))
    changed = {name.split(".", 3)[-1] for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    assert {"mlp.gate_proj.weight", "mlp.up_proj.weight", "mlp.down_proj.weight", "self_attn.q_proj.weight"} <= changed


def test_of_a_schedule_the_last_step_alone_is_dense(folder: Path) -> None:
    done = run(recipe_of("steps", pruning={"schedule": [6, 4], "form": "dense"}))
    early = load_model(str(done.rounds / "6" / "recovered"))
    assert len(blocks_in(early)) == 2 and blocks_in(early)[0].expert_count == 6
    assert not blocks_in(load_model(str(done.recovered)))


def test_the_estimate_counts_the_twin(finished: RunDirectory) -> None:
    from toolkit.estimate import resolve_machine
    from toolkit.pipeline.recipe_on_machine import RecipeOnMachine

    machine = resolve_machine(0, 1, None, None, "8G")
    sizes = RecipeOnMachine(RunContext(recipe_of("full")), machine)
    facts = read_run_facts(finished.path).models["pruned"]  # type: ignore[index]
    assert facts and sizes.pruned().parameters == sizes.pruned().active == facts.parameters
    names = [stage.name for stage in Estimator(machine).estimate(recipe_of("full")).stages]
    assert names[:4] == ["calibrate", "select", "merge", "prune"]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"pruning": {"keep": 4, "form": "dense", "skipping": "median"}}, "skipping"),
        ({"finetuning": {"method": "router"}}, "router"),
        ({"finetuning": {"method": "experts"}}, "experts"),
        ({"finetuning": {"method": "qlora"}}, "qlora"),
        ({"pruning": {"keep": 4, "form": "sparse"}}, "form"),
    ],
)
def test_what_needs_experts_is_refused(changes: dict, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        recipe_of("refused", **changes)


def test_a_family_without_a_twin_is_refused_before_anything_runs(folder: Path) -> None:
    tiny_model("olmoe", vocab_size=768, eos_token_id=1).save_pretrained(folder / "olmoe")
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (folder / "olmoe" / file).write_bytes((folder / "original" / file).read_bytes())
    with raises("dense.no-twin", "olmoe"):
        check(RunContext(recipe_of("olmoe", model="olmoe")))


def test_a_sweep_measures_routers_and_is_refused(folder: Path) -> None:
    import yaml

    (folder / "sweep.yaml").write_text(yaml.safe_dump(small_values(name="sweep")))
    load_recipe("sweep.yaml")
    with raises("sweep.dense", "pruning.form=moe"):
        load_grid("sweep.yaml", ["pruning.form=dense", "pruning.keep=6,4"])

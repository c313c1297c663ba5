"""A small run directory, written by the project's own classes: what a run leaves that got as far as `roles` says."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from toolkit.cuts.block_plan import BlockPlan
from toolkit.cuts.layers import LayersCut
from toolkit.cuts.plan import Plan
from toolkit.cuts.statistics import BlockStatistics, ChannelFacts, ExpertStatistics, StatisticsFacts
from toolkit.cuts.width import WidthCut
from toolkit.evaluation import EvaluationFacts, Item, Scores
from toolkit.pipeline.run_directory import RunDirectory
from toolkit.pipeline.stages.report import write_alternatives
from toolkit.recipe.file import dump_recipe
from toolkit.recipe.schema import Recipe
from toolkit.runtime.intervals import wilson
from toolkit.selection import WidthChoice, choose_channels

BLOCKS = ("model.layers.0.mlp", "model.layers.1.mlp")
ROLES = ("original", "pruned", "recovered")
KEPT = ([0, 1], [1, 3])
PROMPT = ([10, 20, 0, 10], [0, 30, 10, 0])  # per block, how many prompt tokens chose each expert
COMPLETION = ([30, 20, 0, 10], [0, 10, 50, 0])
RIGHT = {"original": 19, "pruned": 9, "recovered": 18, "control": 20}  # of 20
LOG = [{"step": 10, "loss": 1.5}, {"step": 20, "loss": 0.5}, {"step": 20, "eval_loss": 0.7}, {"step": 20, "train_runtime": 3.1}]


def make_run(folder: Path, roles: Sequence[str] = ROLES, until: str = "evaluate", **changes: Any) -> RunDirectory:
    """A run under `folder` that stopped after stage `until`; `changes` are keys of the recipe."""
    recipe = Recipe.model_validate(
        {"name": "small", "seed": 7, "model": "path/of/model", "task": "playground/logic", "pruning": {"keep": 2}} | changes
    )
    run = RunDirectory(recipe.name, folder)
    run.path.mkdir(parents=True, exist_ok=True)
    run.open(recipe.model.path, recipe.task.name, dump_recipe(recipe), [])
    for stage, write in (("calibrate", _calibrate), ("select", _select), ("prune", lambda *_: {}), ("recover", _recover)):
        if stage != "recover" or "recovered" in roles:
            run.finish(stage, stage, 2.5, seed=7, ranks=2, **write(run, recipe))
        if stage == until:
            return run
    for role in roles:
        evaluate_role(run, role)
    return run


def _calibrate(run: RunDirectory, recipe: Recipe) -> dict[str, Any]:
    vectors, blocks = {}, {}
    for block, *counts in zip(BLOCKS, PROMPT, COMPLETION, strict=True):
        for part, count in zip(("prompt", "completion"), counts, strict=True):
            vectors[f"{block}/count/{part}"] = torch.tensor(count, dtype=torch.float64)
        blocks[block] = BlockStatistics(4, 1, tokens={"prompt": 40, "completion": 60})
    ExpertStatistics(vectors, StatisticsFacts(blocks, recipe.model.path)).save(run.statistics)
    return {"examples": 8, "left_out": 0, "tokens": 100}


def _select(run: RunDirectory, recipe: Recipe) -> dict[str, Any]:
    blocks = {block: BlockPlan(experts=4, kept=kept) for block, kept in zip(BLOCKS, KEPT, strict=True)}
    Plan.of_experts(
        model=recipe.model.path, criterion=recipe.pruning.criterion, tokens=recipe.pruning.tokens, seed=7, keep=2,
        experts_per_token=1, blocks=blocks,
    ).save(run.plan)  # fmt: skip
    return {}


def make_large(run: RunDirectory, blocks: int = 48, experts: int = 128, keep: int = 64, width: int = 0) -> None:
    """Gives the run the statistics and the plan of a large model: a few experts do most of the work. With a `width`, half of the
    channels are cut, too, and every other layer."""
    names = [f"model.layers.{i}.mlp" for i in range(blocks)]
    generator = torch.Generator().manual_seed(0)
    vectors, about, chosen = {}, {}, {}
    for name in names:
        for part in ("prompt", "completion"):
            use = torch.rand(experts, generator=generator, dtype=torch.float64) ** 4
            vectors[f"{name}/count/{part}"] = (1e4 * use).round()
            for statistic in ("gate_sum", "gated_norm_sum", "norm_sum", "max_norm"):
                noise = torch.rand(experts, generator=generator, dtype=torch.float64) + 0.5
                vectors[f"{name}/{statistic}/{part}"] = 1e4 * use * noise
        about[name] = BlockStatistics(experts, 8, tokens={"prompt": 40, "completion": 60})
        count = vectors[f"{name}/count/prompt"] + vectors[f"{name}/count/completion"]
        chosen[name] = BlockPlan(experts=experts, kept=sorted(count.argsort(descending=True)[:keep].tolist()))
    ExpertStatistics(vectors, StatisticsFacts(about, "path/of/model")).save(run.statistics)
    plan = Plan.of_experts(model="path/of/model", criterion="frequency", seed=7, keep=keep, experts_per_token=8, blocks=chosen)
    if width:
        energy = {name: torch.rand(experts, width, generator=generator, dtype=torch.float64) for name in names}
        vectors |= {f"{name}/channel_energy/{part}": energy[name].clone() for name in names for part in ("prompt", "completion")}
        vectors |= {f"{name}/down_norm/weights": torch.ones_like(energy[name]) for name in names}
        facts = StatisticsFacts(about, "path/of/model", channels={name: ChannelFacts(width, experts) for name in names})
        statistics = ExpertStatistics(vectors, facts)
        statistics.save(run.statistics)
        kept = {name: block.kept for name, block in chosen.items()}
        channels = choose_channels(statistics, WidthChoice(width // 2, "energy", "all", 7), kept)
        layers = LayersCut(criterion="top", layers=2 * blocks, kept=list(range(blocks)))
        cuts = [*plan.cuts, WidthCut(criterion="energy", keep=width // 2, channels=channels), layers]
        plan = plan.model_copy(update={"cuts": cuts})
    plan.save(run.plan)


def make_cuts(run: RunDirectory, criterion: str = "energy", **about_layers: Any) -> None:
    """Narrows the run's experts from 8 channels to 4, and drops the middle one of three layers: in its plan, its statistics, and
    what the choice of layers and the report leave. `about_layers`: keys of layers.json."""
    plan, statistics = Plan.load(run.plan), ExpertStatistics.load(run.statistics)
    names = {BLOCKS[0]: BLOCKS[0], BLOCKS[1]: "model.layers.2.mlp"}
    generator, channels = torch.Generator().manual_seed(0), {}
    blocks = {names[name]: block for name, block in plan.blocks.items()}
    vectors = {key.replace(BLOCKS[1], names[BLOCKS[1]]): vector for key, vector in statistics.vectors.items()}
    about = {names[name]: facts for name, facts in statistics.about.blocks.items()}
    for name, block in blocks.items():
        draws = [torch.rand(block.experts, 8, generator=generator, dtype=torch.float64) for _ in range(3)]
        vectors |= {f"{name}/channel_energy/{part}": draw for part, draw in zip(("prompt", "completion"), draws, strict=False)}
        vectors |= {f"{name}/{fact}/weights": draws[2] + 0.5 for fact in ("down_norm", "channel_magnitude")}
        for part in ("prompt", "completion"):
            vectors[f"{name}/channel_energy/{part}"][vectors[f"{name}/count/{part}"] == 0] = 0
    facts = {name: ChannelFacts(8, block.experts) for name, block in blocks.items()}
    whole = ExpertStatistics(vectors, StatisticsFacts(about, statistics.about.model, channels=facts))
    kept = {name: block.kept for name, block in blocks.items()}
    channels = choose_channels(whole, WidthChoice(4, criterion, "all", 7), kept)
    cuts = [WidthCut(criterion=criterion, keep=4, channels=channels), LayersCut(criterion="dev_loss", layers=3, kept=[0, 2])]
    plan.with_experts(blocks).model_copy(update={"cuts": [*plan.with_experts(blocks).cuts, *cuts]}).save(run.plan)
    whole.save(run.statistics)
    chosen = {
        "criterion": "dev_loss",
        "layers": 3,
        "kept": [0, 2],
        "path": "model.layers",
        "scores": [0.9, -0.1, 0.4],
        "loss": 0.5,
    }
    chosen |= {"removed": [{"layer": 1, "loss": 0.4}], "dev_examples": 12, "dev_answers": {"n": 12, "before": 11, "after": 3}}
    _write(run.layers, chosen | about_layers)
    run.finish("layers", "layers", 1.5, seed=7, ranks=2, layers=3, kept=2, written_answers=True)
    size = {
        "layers": 3,
        "experts": 4,
        "experts_per_token": 1,
        "width": 8,
        "parameters": 4_000_000,
        "active_parameters": 2_000_000,
    }
    after = {"layers": 2, "parameters": 3_000_000, "active_parameters": 1_500_000}
    fewer = after | {"experts": 2, "parameters": 2_000_000}
    narrow = fewer | {"width": 4, "parameters": 1_000_000, "active_parameters": 900_000}
    sizes = {"original": size, "layers": size | after, "experts": size | fewer, "width": size | narrow}
    run.finish("select", "select", 2.5, seed=7, ranks=2, sizes=sizes)
    write_alternatives(run)
    asked = json.loads(run.alternatives.read_text())
    _write(run.alternatives, asked | {"layers": {"dev_loss": [0, 2], "top": [0, 2], "random": [1, 2]}})


def _recover(run: RunDirectory, recipe: Recipe) -> dict[str, Any]:
    run.training_log.write_text("".join(json.dumps(entry) + "\n" for entry in LOG))
    return {"steps": 20, "examples": 90, "left_out": 0}


def evaluate_role(run: RunDirectory, role: str, n: int = 20, right: int | None = None, **about: Any) -> None:
    """Saves a result; the first questions are the ones answered rightly (`right` of them)."""
    size = 1.0 if role in ("original", "control") else 0.5
    measures = {
        "split": "test", "tokens_per_second": 123.4, "peak_memory_bytes": 300 * 2**20, "parameters": int(4_000_000 * size),
        "active_parameters": 1_000_000, "checkpoint_bytes": int(16 * 2**20 * size), "device": "cpu", "dtype": "float32",
        "max_new_tokens": 64, "batch_size": 4, "ranks": 2,
    }  # fmt: skip
    right = RIGHT[role] * n // 20 if right is None else right
    items = [Item(i, f"Is {i}?", "yes", "yes" if i < right else "no", i < right, 5, ended=True) for i in range(n)]
    facts = {key: value for key, value in (measures | about).items() if key in EvaluationFacts.__annotations__}
    Scores(items, EvaluationFacts(**facts)).save(run.evaluation, role)
    summary = run.evaluation / f"{role}.json"
    summary.write_text(json.dumps(json.loads(summary.read_text()) | about))
    run.finish(f"evaluate/{role}", role, 1.25, seed=7, ranks=2)


def make_full_run(folder: Path) -> RunDirectory:
    """A run that has everything a report can show: a schedule, skipping, a control, a mix of splits and devices, fidelity, the
    harness, a sweep and a benchmark. What differs from day to day (versions, ids, dates) is made constant."""
    pruning = {"schedule": [3, 2], "tokens": "prompt", "skipping": "median"}
    evaluation = {"fidelity": 8, "harness": ["arc_easy", "piqa"], "examples": 20, "max_new_tokens": 64}
    run = make_run(
        folder, roles=(*ROLES, "control"), name="full", control=True, pruning=pruning, evaluation=evaluation,
        calibration={"max_length": 50}, finetuning={"max_length": 60},
    )  # fmt: skip
    plan = Plan.load(run.plan)
    run.rounds.mkdir()
    blocks = {block: BlockPlan(experts=6, kept=[1, 5]) for block in plan.blocks}
    plan.with_experts(blocks).save(run.rounds / "plan.json")
    evaluate_role(run, "skipping", right=17, skip_rate=0.5, experts_skipped=0.25)
    evaluate_role(
        run, "pruned", split="dev", truncated=3, empty=1, unfinished_reasoning=2, given_up=1, flexible_score=0.5,
        flexible_correct=10, credit=0.44, likelihood_score=0.3, likelihood_correct=6,
    )  # fmt: skip
    evaluate_role(
        run, "recovered", right=6, context_length=512, prompts_beyond_context=2, prompts_without_room=4, device="NVIDIA H100",
        temperature=0.7, samples=3, mean_score=0.85, backend="server",
    )  # fmt: skip
    run.finish("calibrate", "calibrate", 1.0, examples=8, left_out=2, beyond_context=3, bad_lines=3)
    run.finish("recover", "recover", 7201.0, steps=20, examples=90, left_out=10, repeating=7, beyond_context=9, selected_step=10)
    run.finish("control", "control", 61.0, steps=20, examples=90, left_out=10, selected_step=20)
    run.training_log.write_text(
        '{"step": 10, "loss": 2.0}\n{"step": 20, "loss": NaN}\n{"step": 20, "eval_loss": 1}\n{"step": 30, "loss": 0.01}\n'
    )
    run.control_log.write_text("".join(json.dumps(entry) + "\n" for entry in LOG))
    fidelity = {"kl": 0.25, "kl_error": 0.01, "acceptance": 0.9, "acceptance_error": None, "tokens": 1234, "examples": 8}
    for number, role in enumerate(ROLES):
        metrics = {"acc": {"value": 0.5 + number / 10, "error": 0.013}, "acc_norm": {"value": 1, "error": None}}
        choices = {"n": 100, "shots": 0, "metrics": metrics, "output_type": "multiple_choice"}
        _write(run.evaluation / f"{role}.harness.json", {"arc_easy": choices})
        run.finish(f"harness/{role}", f"harness/{role}", 1.0, seed=7, ranks=1)
        _write(run.evaluation / f"{role}.off_task.json", off_task_loss(2.0 + number / 4, None if role == "original" else 0.5))
        run.finish(f"off_task/{role}", f"off_task/{role}", 1.0, seed=7, ranks=1)
        if role != "original":
            _write(run.evaluation / f"{role}.fidelity.json", fidelity | {"split": "test", "left_out": 1})
            run.finish(f"fidelity/{role}", f"fidelity/{role}", 1.0, seed=7, ranks=1)
    _write(run.sweep / "table.json", _sweep_table(fidelity))
    run.finish("sweep", "sweep", 1.0, seed=7, ranks=1, cells=3)
    made_by = {stage: run.done()[stage]["fingerprint"] for stage in ("prune", "recover", "control")}
    _write(run.path / "speed.json", _speed_table() | {"of": made_by})
    chosen = {"reap": dict(zip(BLOCKS, ([0, 1], [0, 2]), strict=True)), "ean": dict(zip(BLOCKS, KEPT, strict=True))}
    _write(run.alternatives, {"format": 1, "fingerprint": "select", "keep": 2, "criteria": chosen})
    manifest = json.loads(run.manifest.read_text())
    for number, entry in enumerate(manifest["stages"].values()):
        entry |= {"id": f"{number:016x}", "finished": "2026-01-01T00:00:00Z", "versions": {"torch": "2"}, "git_commit": "c" * 40}
    run.manifest.write_text(json.dumps(manifest))
    return run


def off_task_loss(loss: float | None, agreement: float | None = None) -> dict[str, Any]:
    """What is written of a model's loss beside its task; `agreement`: None for the original."""
    found = {"name": "Pollard's texts", "loss": loss, "kl": agreement and 1 - agreement, "agreement": agreement}
    return found | {"tokens": 7000, "texts": 64, "left_out": 0, "unknown": 0, "uniform_loss": 6.5}


def _write(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content))


def _sweep_table(fidelity: dict[str, Any]) -> dict[str, Any]:
    """Of two prunings; off the task stands a text, which has a loss and no score."""
    off_task = {"name": "notes.txt", "loss": 2.5, "loss_tokens": 99, "left_out": 0}
    rows = []
    for label, keep, score in (("original", 6, 0.95), ("weighted_ean", 2, 0.5), ("random", 2, 0.0)):
        pruning = {"criterion": label, "schedule": None, "experts_per_token": None, "tokens": "prompt", "mode": "layerwise"}
        task = {"name": "playground/logic", "loss": 0.5, "loss_tokens": 99, "left_out": 0, "score": score}
        task |= {"correct": round(20 * score), "n": 20, "interval": list(wilson(round(20 * score), 20))}
        cell = {"label": label, "keep": keep, **(pruning if label != "original" else {})}
        cell |= {"seed": None if label == "original" else 0, "kept_unobserved": 0, "task": task, "off_task": off_task}
        rows.append(cell | {"fidelity": fidelity, "file": f"keep{keep}-{label}.json"})
    return {
        "format": 2, "task": "playground/logic", "split": "dev", "n": 20, "off_task": "notes.txt", "experts": 6, "rows": rows,
        "holding": {"weighted_ean": None, "random": None}, "recommendation": "No criterion holds.",
    }  # fmt: skip


def _speed_table() -> dict[str, Any]:
    """Of two models; with the second, the larger batch does not fit."""
    first = {"fits": True, "prefill": [1000.0, 900.0, 1100.0], "decode": [100.0, 95.0, 104.0]}
    first |= {"first_token": [0.01, 0.009, 0.012], "peak_memory_bytes": 300 * 2**20}
    ratios = {"prefill": [1.2, 1.1, 1.3], "decode": [1.3, 1.2, 1.4], "first_token": [1, 1, 1], "peak_memory_bytes": 0.5}
    sizes = {"parameters": 4_000_000, "active_parameters": 1_000_000, "checkpoint_bytes": 16 * 2**20}
    same = dict.fromkeys(sizes, 1.0)
    batches = [{"batch_size": 1, **first}, {"batch_size": 8, **first}]
    smaller = [{"batch_size": 1, **first, "ratios": ratios}, {"batch_size": 8, "fits": False}]
    return {
        "format": 1, "device": "cpu", "threads": 2, "batch_sizes": [1, 8], "prompt_tokens": 256, "new_tokens": 64, "repeats": 5,
        "together": True, "models": [
            {"name": "original", **sizes, "path": "path/of/model", "random": False, "ratios": same, "batches": batches},
            {"name": "recovered", **sizes, "path": "recovered", "random": True, "ratios": same, "batches": smaller},
        ],
    }  # fmt: skip

"""A small run directory, written by the project's own classes: what a run leaves that got as far as `roles` says."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from toolkit.cuts.plan import BlockPlan, Plan
from toolkit.cuts.statistics import ExpertStatistics
from toolkit.evaluation import Item, Scores
from toolkit.pipeline.run_directory import RunDirectory
from toolkit.recipe.file import dump_recipe
from toolkit.recipe.schema import Recipe

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
        blocks[block] = {"experts": 4, "experts_per_token": 1, "tokens": {"prompt": 40, "completion": 60}}
    ExpertStatistics(vectors, {"model": recipe.model.path, "blocks": blocks}).save(run.statistics)
    return {"examples": 8, "left_out": 0, "tokens": 100}


def _select(run: RunDirectory, recipe: Recipe) -> dict[str, Any]:
    blocks = {block: BlockPlan(experts=4, kept=kept) for block, kept in zip(BLOCKS, KEPT, strict=True)}
    Plan(
        model=recipe.model.path, criterion=recipe.pruning.criterion, tokens=recipe.pruning.tokens, seed=7, keep=2,
        experts_per_token=1, blocks=blocks,
    ).save(run.plan)  # fmt: skip
    return {}


def make_large(run: RunDirectory, blocks: int = 48, experts: int = 128, keep: int = 64) -> None:
    """Gives the run the statistics and the plan of a large model: a few experts do most of the work."""
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
        about[name] = {"experts": experts, "experts_per_token": 8, "tokens": {"prompt": 40, "completion": 60}}
        count = vectors[f"{name}/count/prompt"] + vectors[f"{name}/count/completion"]
        chosen[name] = BlockPlan(experts=experts, kept=sorted(count.argsort(descending=True)[:keep].tolist()))
    ExpertStatistics(vectors, {"model": "path/of/model", "blocks": about}).save(run.statistics)
    Plan(model="path/of/model", criterion="frequency", seed=7, keep=keep, experts_per_token=8, blocks=chosen).save(run.plan)


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
    Scores(items, measures | about).save(run.evaluation, role)
    run.finish(f"evaluate/{role}", role, 1.25, seed=7, ranks=2)

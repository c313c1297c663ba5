"""Memory and operations of a refit follow hand arithmetic on a tiny model."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from conftest import tiny_model

from toolkit.estimate import DataSize, Machine, RefitSize, RefitUnit, StageEstimate, estimate_refit, model_size
from toolkit.estimate.refit import CUT_PASSES, ORIGINAL_PASSES, group_work
from toolkit.moe import meta_model

G = 2**30
H, LAYERS, TOKENS, BATCH = 32, 2, 10_000, 4
CPU = Machine(gpus=0, nodes=1, gpu_memory=0, cpu_memory=64 * G, gpu=None)
DATA = DataSize(examples=100, mean=100, longest=100, measured=True)
EXPERTS = (RefitUnit(16, 0.5),) * 4  # four experts of 16 channels, of which a token has two
SIZE = RefitSize(layers=[[EXPERTS]] * LAYERS, inputs=H, penalties=3, sweeps=2, held_out=0.2, chunk_tokens=100)


def config() -> Any:
    return tiny_model("mixtral").config


def estimated(size: RefitSize = SIZE, data: DataSize = DATA, machine: Machine = CPU) -> StageEstimate:
    model = model_size(meta_model(config()), torch.float32)
    return estimate_refit("refit", machine, (model, model), data, BATCH, size)


def test_operations_are_those_of_the_sums_the_solutions_and_the_passes() -> None:
    work = group_work(EXPERTS, TOKENS, H, SIZE)
    pairs = 16 * (16 + 32 + 48 + 64)  # each expert's channels with those before it and its own
    sums = 2 * 0.8 * TOKENS * 0.5 * (pairs + 4 * 16 * H)
    assert work.wide == pytest.approx(sums + 3 * 2 * 0.2 * TOKENS * 64 * H + 2 * TOKENS * 64 * H)
    assert work.solving == pytest.approx(3 * (64**3 / 3 + 2 * 64**2 * H))
    assert work.narrow == pytest.approx(2 * 2 * TOKENS * (4 * 0.5) * 16 * 2 * H)
    model = model_size(meta_model(config()), torch.float32)
    passes = 2 * TOKENS * (ORIGINAL_PASSES + CUT_PASSES) * (model.active - model.head)
    assert estimated().flops == pytest.approx(LAYERS * sum(work) + passes)


def test_channels_in_two_groups_are_swept_over_and_share_one_matrix() -> None:
    split = RefitSize(
        layers=[[EXPERTS[:2], EXPERTS[2:]]] * LAYERS, inputs=H, penalties=3, sweeps=2, held_out=0.2, chunk_tokens=100
    )
    assert split.largest_group == 32 and len([*split.turns]) == 2 * 2 * LAYERS
    assert len([*SIZE.turns]) == LAYERS
    assert estimated(split).host["equations"] < estimated().host["equations"]


def test_rounds_of_what_makes_the_channels_add_their_steps_and_solve_once_more() -> None:
    experts = tuple(unit._replace(numbers=32) for unit in EXPERTS)
    size = replace(SIZE, layers=[[experts]] * LAYERS, rounds=2, steps=6)
    once = sum(group_work(EXPERTS, TOKENS, H, SIZE))
    steps = 2 * (6 * 5 + 3) * 2 * TOKENS * (4 * 0.5 * 32) * H
    plain, whole = estimated().flops, estimated(size).flops
    assert plain and whole and whole - plain == pytest.approx(LAYERS * (2 * once + steps))
    assert estimated(size).host["projections"] == CPU.ranks * 4 * 6 * (4 * 32) * H


def test_memory_is_two_layers_of_each_model_one_system_and_the_tokens() -> None:
    found, model = estimated(), model_size(meta_model(config()), torch.float32)
    ranks = CPU.ranks
    assert found.host["weights"] == ranks * 4 * 2 * (model.embeddings + 2 * model.largest_layer)
    assert found.host["equations"] == ranks * (8 * 64 * (64 + 2 * H) + 4 * 64 * 3 * H)
    assert found.host["channels"] == ranks * 4 * 100 * 64
    assert found.host["tokens"] == (4 * H + 2 * 4 * H) * TOKENS
    assert found.host["hidden states"] == 2 * 4 * H * TOKENS
    assert not found.gpu and found.disk == model.bytes


def test_the_number_of_layers_adds_operations_and_no_memory_but_that_of_the_file() -> None:
    deeper = RefitSize(layers=[[EXPERTS]] * 8, inputs=H, penalties=3, sweeps=2, held_out=0.2, chunk_tokens=100)
    assert estimated(deeper).host == estimated().host and estimated(deeper).flops > estimated().flops


def test_what_is_not_known_stays_open() -> None:
    unknown = estimated(data=DataSize(examples=None, mean=100, longest=100, measured=False))
    assert unknown.flops is None and unknown.seconds is None
    assert estimated().seconds is None  # a CPU's speed is not in the table

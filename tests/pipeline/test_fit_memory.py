"""Law: what a fit takes for a GPU, an estimate of the answers on that GPU takes for one that they fit on."""

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import FAMILIES, SMALL, raises
from planned_recipe import recipe_of

from toolkit.cuts.fit_result import FitShape
from toolkit.estimate import GPUS, Machine, StageEstimate
from toolkit.moe import load_config
from toolkit.pipeline.context import RunContext
from toolkit.pipeline.estimator import Estimator
from toolkit.pipeline.fit_choice import recipe_of_shape
from toolkit.pipeline.fit_space import FitSpace

LARGE = {"num_hidden_layers": 4, "hidden_size": 64, "intermediate_size": 256, "moe_intermediate_size": 128, "dtype": "bfloat16"}
SLIDING = {"layer_types": ["sliding_attention", "full_attention"] * 2, "sliding_window": 16, "intermediate_size": 128}
ANSWERS = {"batch_size": 4, "max_new_tokens": 16, "examples": 8}
CASES = {"mixtral": {}, "gpt_oss": SLIDING, "deepseek_v2": {"first_k_dense_replace": 1}}  # full, sliding-window, latent attention


def folder_of(family: str, tmp_path: Path) -> str:
    values = SMALL | FAMILIES[family] | LARGE | CASES[family] | {"model_type": family}
    (tmp_path / "config.json").write_text(json.dumps(values))
    return str(tmp_path)


def recipe_for(model: str, gpu: int, **fit: Any) -> Any:
    limits = {"gpu": gpu, "context": 128, "batch": 4, **fit}
    lengths = {"finetuning": {"max_length": 112}, "calibration": {"max_length": 112}}  # a prompt and 16 new tokens
    return recipe_of(model, pruning={"fit": limits, "width_multiple": 32}, evaluation=ANSWERS, **lengths)


def answering(context: RunContext, space: FitSpace, shape: FitShape, gpu: int) -> tuple[StageEstimate, Machine]:
    recipe = recipe_of_shape(context.asked, shape, space.original, space.by_position[shape.layers])
    machine = Machine(1, 1, gpu, 2**40, GPUS["h100"])
    return Estimator(machine).stage(recipe, "evaluate/recovered").estimate(machine), machine  # type: ignore[return-value]


EVERY_CUT = ["experts", "width", "layers"]


@pytest.mark.parametrize(
    ("family", "cuts"),
    [*((family, EVERY_CUT) for family in CASES), ("mixtral", ["experts", "dense"]), ("deepseek_v2", ["experts", "dense"])],
)
def test_shapes_within_the_limit_fit_that_gpu(family: str, cuts: list[str], tmp_path: Path) -> None:
    model = folder_of(family, tmp_path)
    probe = FitSpace(load_config(model), recipe_for(model, 2**40, cuts=cuts).pruning, model)
    ends = probe.original, probe.values.smallest()
    gpu = sum(probe.limits[0].amount(shape, probe.size(shape)) for shape in ends) // 2
    context = RunContext(recipe_for(model, gpu, cuts=cuts))
    space = context.fit_space
    shapes = [candidate.shape for candidate in space.candidates()]
    tried = {space.largest.shape, *shapes[:2], *shapes[-2:]}
    assert len(tried) > 2 and {shape.form for shape in tried} == ({"moe", "dense"} if "dense" in cuts else {"moe"})
    for shape in tried:
        estimate, machine = answering(context, space, shape, gpu)
        assert not estimate.lacks(machine), shape
    estimate, machine = answering(context, space, space.original, gpu)
    assert estimate.lacks(machine) == ["GPU"]


def test_fewer_layers_need_less_cache(tmp_path: Path) -> None:
    model = folder_of("mixtral", tmp_path)
    space = FitSpace(load_config(model), recipe_for(model, 2**30).pruning, model)
    few, all_ = (space.memory.needed(space.original, kept, 0) for kept in ((0, 3), (0, 1, 2, 3)))
    cache = 4 * 128 * 2 * 2 * 32 * 2 * 2  # answers × tokens × keys and values × heads × size × bytes × layers less
    assert all_ - few == pytest.approx(cache / 0.92, abs=2)


def test_a_gpu_can_be_said_by_its_name(tmp_path: Path) -> None:
    model = folder_of("mixtral", tmp_path)
    assert recipe_for(model, "RTX4090").pruning.fit.gpu == 24 * 2**30  # type: ignore[arg-type]
    for wrong, named in (("rtx4091", "Did you mean `rtx4090`?"), ("24", "24G"), ("radeon", "h100")):
        with pytest.raises(ValueError, match="gpu") as caught:
            recipe_for(model, wrong)  # type: ignore[arg-type]
        assert named in str(caught.value)


def test_cuts_that_a_model_cannot_have_are_named(tmp_path: Path) -> None:
    model = folder_of("gpt_oss", tmp_path)
    with raises("fit.cut-refused", "pruning.fit.cuts names dense", "pruning.fit.cuts=[experts, layers]"):
        FitSpace(load_config(model), recipe_for(model, 2**30, cuts=["experts", "layers", "dense"]).pruning, model)

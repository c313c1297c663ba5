"""Law: what cannot work together is refused before the first stage, with the reason and a way out."""

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from toolkit.recipe.schema import Recipe
from toolkit.recovery.combinations import check_combinations, check_trackers
from toolkit.recovery.settings import sft_config
from toolkit.runtime.errors import PollardError


def recipe(**finetuning: object) -> Recipe:
    return Recipe.model_validate({"name": "t", "model": "m", "task": "gsm8k", "finetuning": finetuning})


@pytest.mark.parametrize(
    ("finetuning", "said"),
    [
        ({"zero": 3, "select_by": "dev_accuracy"}, "ZeRO-3 would gather the whole model for every token"),
        ({"zero": "3-offload", "select_by": "dev_accuracy"}, "say select_by: dev_loss, or finetuning.zero: 2"),
        ({"select_by": "dev_loss", "trainer": {"eval_strategy": "no"}}, "dev_loss chooses among checkpoints measured on the dev"),
        (
            {"select_by": "dev_loss", "trainer": {"save_strategy": "no"}},
            "it needs finetuning.trainer.eval_strategy and save_strat",
        ),
        ({"trainer": {"packing": True}}, "here examples arrive tokenized"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(finetuning: dict, said: str) -> None:
    with pytest.raises(PollardError) as error:
        check_combinations(recipe(**finetuning))
    assert said in str(error.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="pages work here")
@pytest.mark.parametrize(("optim", "instead"), [("paged_adamw_8bit", "adamw_bnb_8bit"), ("paged_adamw_32bit", "adamw_torch")])
def test_paged_optimizers_need_a_gpu(optim: str, instead: str) -> None:
    with pytest.raises(PollardError, match=rf"this machine has no GPU .* say optim: {instead}\."):
        check_combinations(recipe(trainer={"optim": optim}))


def test_everything_that_cannot_work_is_told_at_once() -> None:
    with pytest.raises(PollardError) as error:
        check_combinations(recipe(zero=3, select_by="dev_accuracy", trainer={"packing": True, "eval_strategy": "no"}))
    assert len(str(error.value).splitlines()) == 3


@pytest.mark.parametrize("zero", [0, 1, 2, 3, "3-offload"])
@pytest.mark.parametrize("select_by", ["last", "dev_loss"])
def test_what_works_is_let_through(zero: int | str, select_by: str) -> None:
    check_combinations(
        recipe(zero=zero, select_by=select_by, trainer={"gradient_checkpointing": True, "optim": "adamw_bnb_8bit"})
    )


def test_a_tracker_that_is_not_installed_is_refused_with_the_command() -> None:
    missing = [name for name in ("tensorboard", "trackio", "wandb") if find_spec(name) is None]
    for name in missing:
        with pytest.raises(PollardError, match=f"{name} is not installed: `pip install {name}`"):
            check_trackers([name])
    with pytest.raises(PollardError, match=r"tensorbord is no tracker. Did you mean `tensorboard`\?"):
        check_trackers(["tensorbord"])
    check_trackers([])


def test_keys_that_select_by_decides_are_not_the_trainers(tmp_path: Path) -> None:
    with pytest.raises(PollardError, match=r"load_best_model_at_end is not yours to set here: set `finetuning\.select_by`"):
        sft_config(recipe(trainer={"load_best_model_at_end": True}), tmp_path)

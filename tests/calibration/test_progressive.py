import pytest
import torch
from conftest import tiny_model
from honest import batches_of

import toolkit
from toolkit.calibration import calibrate
from toolkit.calibration.reconstruction import check_progressive_keep
from toolkit.cuts.experts import masked
from toolkit.moe import find_blocks
from toolkit.runtime.errors import PollardError


# The second block's loss is the distance between what it adds in the original and in the model pruned up to it.
@torch.no_grad()
def test_losses_are_measured_on_what_the_pruned_model_really_computes(family: str) -> None:
    model, batches = tiny_model(family), batches_of(3)
    statistics = calibrate(model, batches, reconstruction="progressive", keep=4)
    plan = toolkit.select(statistics, "reconstruction", keep=4, mode="progressive")
    outputs: list[torch.Tensor] = []
    last = find_blocks(model)[-1]
    handle = last.experts.register_forward_hook(lambda module, args, out: outputs.append(out))
    for context in (None, plan):
        for batch in batches:
            if context is None:
                model.base_model(batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False)
            else:
                with masked(model, plan):
                    model.base_model(batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False)
    handle.remove()
    real = [batch["attention_mask"].bool().flatten() for batch in batches]
    loss = sum(float((y - z)[rows].double().norm()) for y, z, rows in zip(outputs[:3], outputs[3:], real, strict=True))
    found = statistics.about["reconstruction"]["progressive"][last.name]["keep"]
    assert list(found) == ["4"] and found["4"]["loss"] == pytest.approx(loss, rel=2e-5)


def test_the_model_is_itself_again() -> None:
    model, batches = tiny_model("mixtral"), batches_of(1)
    before = calibrate(model, batches).vectors
    calibrate(model, batches, reconstruction="progressive", keep=3)
    assert all(torch.equal(vector, before[name]) for name, vector in calibrate(model, batches).vectors.items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("keep", [None, 1, 9])
def test_progressive_needs_a_keep_that_makes_sense(keep: int | None) -> None:
    assert check_progressive_keep(2, 8, 2) == 2
    with pytest.raises(PollardError, match=rf"one pass per number of kept experts: say keep=2…8 \(given: {keep}\)"):
        check_progressive_keep(keep, 8, 2)

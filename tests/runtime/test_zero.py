import pytest
import torch
from deepspeed import comm
from deepspeed.ops.op_builder.builder import OpBuilder

from toolkit.runtime import distributed
from toolkit.runtime.zero import SHARED_MEMORY_MODULE, start_deepspeed

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="GPU ranks use no such module")


def test_ranks_start_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(OpBuilder, "load", lambda builder, verbose=True: asked.append(builder.name))
    distributed.start()
    try:
        start_deepspeed()
        tensor = torch.ones(3)
        comm.all_reduce(tensor)  # what training reduces with
        assert comm.is_initialized() and tensor.tolist() == [1, 1, 1] and not asked
    finally:
        distributed.stop()


def test_the_module_that_is_done_without_still_bears_this_name() -> None:
    from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder

    assert ShareMemCommBuilder.NAME == SHARED_MEMORY_MODULE

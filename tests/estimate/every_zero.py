"""Run by test_training.py on two ranks: trains a model under several ZeRO stages and measures its tensors.

Writes per case the bytes on rank 0 at the end of a backward pass, and the bytes of DeepSpeed's checkpoint on disk.
"""

import gc
import json
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).parents[2])

import deepspeed
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from toolkit.runtime.distributed import is_main, start, stop
from toolkit.runtime.zero import start_deepspeed

Storages = dict[int, int]  # which -> bytes


def storages(tensors) -> Storages:
    found = (tensor.untyped_storage() for tensor in tensors if not tensor.is_meta)
    return {storage._cdata: storage.nbytes() for storage in found}


def living() -> Storages:
    return storages([thing for thing in gc.get_objects() if isinstance(thing, torch.Tensor)])


def measured(engine, before: Storages) -> dict[str, int]:
    """Weights as they lie on the rank (not what is gathered for the moment), master copy and states, and everything else
    that did not live `before`: gradients and the buffers they go through."""
    parameters = list(engine.module.parameters())
    data, partitions = storages([p.data for p in parameters]), [p.ds_tensor for p in parameters if hasattr(p, "ds_tensor")]
    weights = storages(partitions) if partitions else data
    inner = getattr(engine.optimizer, "optimizer", engine.optimizer)
    held = [p for group in inner.param_groups for p in group["params"]]
    held += getattr(engine.optimizer, "fp32_partitioned_groups_flat", [])
    optimizer = storages(held + [value for state in inner.state.values() for value in state.values() if torch.is_tensor(value)])
    everything = living() | storages([p.grad for p in [*parameters, *held] if p.grad is not None])
    rest = {key: size for key, size in everything.items() if key not in data | weights | optimizer | before}
    return {
        "weights": sum(weights.values()),
        "optimizer": sum(size for key, size in optimizer.items() if key not in data | weights),
        "gradients and buckets": sum(rest.values()),
    }


def train(case: dict, folder: Path) -> dict[str, int]:
    before, config = living(), case["config"]
    dtype = torch.bfloat16 if config["bf16"]["enabled"] else torch.float32
    with deepspeed.zero.Init(config_dict_or_path=config, enabled=config["zero_optimization"]["stage"] == 3):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**case["model"]), dtype=dtype)
    with deepspeed.zero.GatheredParameters(list(model.parameters()), modifier_rank=0), torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.02)
    engine, *_ = deepspeed.initialize(model=model, optimizer=torch.optim.AdamW(model.parameters()), config=config)
    ids = torch.arange(32).view(2, 16)
    found: dict[str, int] = {}
    # The embedding's gradient is the last to come: all that a backward pass gathers is there
    last = model.get_input_embeddings().weight
    last.register_post_accumulate_grad_hook(lambda _: found.update(measured(engine, before)))
    for _ in range(2):  # the second step's: by then the optimizer has its states
        engine.backward(engine(input_ids=ids, labels=ids, use_cache=False).loss)
        engine.step()
    engine.save_checkpoint(str(folder))
    torch.distributed.barrier()
    found["checkpoint"] = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    engine.destroy()
    return found


root = Path(sys.argv[-1])
start()
start_deepspeed()
results = {}
for name, case in json.loads((root / "cases.json").read_text()).items():
    results[name] = train(case, root / name)
    gc.collect()
if is_main():
    (root / "measured.json").write_text(json.dumps(results))
stop()

"""How near the greedy search comes where every subset can be counted, and what it does where none could be.

    OMP_NUM_THREADS=1 python benchmarks/search.py

Gaps are those of the loss found to the smallest loss of all subsets: 16 experts (random blocks, and blocks trained here on
two of the playground's tasks) and 8 (the playground's own model). 64 -> 32 and 128 -> 16 are compared with the scores'
choices on the objective itself.
"""

import math
import random
import resource
import statistics
import time
from pathlib import Path
from unittest import mock

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from toolkit import Task, calibrate, select
from toolkit.calibration import reconstruction
from toolkit.moe import find_blocks, load_model, load_tokenizer, restricted
from toolkit.recipe.choices import TaskName
from toolkit.recipe.data import TaskRecipe
from toolkit.tasks import encode_all, padded_batches

PLAYGROUND = str(Path(__file__).parents[1] / "data" / "playground" / "model")
Batches = list[dict[str, torch.Tensor]]


def random_model(seed: int, experts: int, top_k: int, layers: int, hidden: int = 64) -> PreTrainedModel:
    torch.manual_seed(seed)
    config = AutoConfig.for_model(
        "qwen3_moe", vocab_size=512, hidden_size=hidden, moe_intermediate_size=hidden, num_experts=experts, head_dim=16,
        num_experts_per_tok=top_k, num_hidden_layers=layers, num_attention_heads=4, num_key_value_heads=4,
        norm_topk_prob=True,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


def random_batches(seed: int, count: int, size: int, length: int) -> Batches:
    ids = torch.randint(512, (count, size, length), generator=torch.Generator().manual_seed(seed))
    return [{"input_ids": batch, "attention_mask": torch.ones_like(batch)} for batch in ids]


def playground_batches(seed: int = 0, examples: int = 64, tasks: tuple[TaskName, ...] = ("playground/arithmetic",)) -> Batches:
    tokenizer = load_tokenizer(PLAYGROUND)
    everything = [example for task in tasks for example in Task(TaskRecipe(name=task)).examples("train")]
    chosen = random.Random(seed).sample(everything, examples)
    return padded_batches(encode_all(tokenizer, chosen, 256)[0], 16, int(tokenizer.pad_token_id))


def trained_model(seed: int, experts: int, steps: int = 400) -> PreTrainedModel:
    """Trained for a minute or two on all tokens of two tasks: its experts differ, and tokens differ in what they need."""
    torch.manual_seed(seed)
    config = AutoConfig.for_model(
        "mixtral", vocab_size=768, hidden_size=64, intermediate_size=64, num_local_experts=experts, num_experts_per_tok=2,
        num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=4, router_aux_loss_coef=0.01, output_router_logits=True,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    batches = playground_batches(seed, 16 * steps, ("playground/arithmetic", "playground/sorting"))
    for batch in random.Random(seed).sample(batches, len(batches)):  # sorted by length as they come
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        loss = model(batch["input_ids"], attention_mask=batch["attention_mask"], labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    print(f"{experts} experts trained for {steps} steps, seed {seed}: last loss {loss.item():.2f}", flush=True)
    return model.eval()


def gaps(models: list[tuple[PreTrainedModel, Batches]], keeps: tuple[int, ...]) -> dict[int, list[float]]:
    """Per `keep` and block: loss found / smallest loss - 1."""
    found: dict[int, list[float]] = {keep: [] for keep in keeps}
    for model, batches in models:
        best = calibrate(model, batches, reconstruction=True).about.reconstruction["layerwise"]
        with mock.patch.multiple(reconstruction, ENUMERABLE=0, ENUMERABLE_ONE_BY_ONE=0):
            searched = calibrate(model, batches, reconstruction=True).about.reconstruction["layerwise"]
        for block, expected in best.items():
            for keep in keeps:
                loss, least = (entry.keep[keep].loss for entry in (searched[block], expected))
                found[keep].append(_gap(loss, least))
    return found


def _gap(loss: float, least: float) -> float:
    if not least:
        return math.inf if loss else 0.0
    return max(0.0, loss / least - 1)  # equal sets differ by rounding


def show_gaps(what: str, found: dict[int, list[float]]) -> None:
    for keep, values in found.items():
        print(
            f"{what} -> {keep}: gap median {statistics.median(values):.2%}, largest {max(values):.2%}, "
            f"{sum(value < 1e-6 for value in values)} of {len(values)} blocks the best of all"
        )


@torch.no_grad()
def loss_of(model: PreTrainedModel, batches: Batches, kept: list[int]) -> float:
    """The objective of the only block, by running it again."""
    block = find_blocks(model)[0]
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    handle = block.module.register_forward_hook(lambda module, args, out: seen.append((args[0], out)))
    for batch in batches:
        model.base_model(batch["input_ids"], use_cache=False)
    handle.remove()
    with restricted(block, kept):
        return sum(float(torch.linalg.vector_norm(y - block.module(x))) for x, y in seen)


def large(experts: int, top_k: int, keep: int, batches: Batches) -> None:
    model = random_model(0, experts, top_k, layers=1, hidden=256)
    tokens = sum(batch["input_ids"].numel() for batch in batches)
    started = time.perf_counter()
    found = calibrate(model, batches, reconstruction=True)
    seconds = time.perf_counter() - started
    losses = {
        criterion: loss_of(model, batches, select(found, criterion, keep).blocks[found.blocks[0]].kept)
        for criterion in ("reconstruction", "frequency", "reap", "weighted_ean", "random")
    }
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    print(
        f"{experts} -> {keep} (top {top_k}, {tokens:,} tokens, every keep at once): {seconds:.0f} s per block, process peak "
        f"{peak:,.0f} MiB; loss {', '.join(f'{name} {loss:.1f}' for name, loss in losses.items())}",
        flush=True,
    )


def main() -> None:
    print(f"{torch.get_num_threads()} thread(s), torch {torch.__version__}, float32")
    sixteen = [(random_model(seed, 16, 2, layers=4), random_batches(seed, 4, 4, 32)) for seed in range(4)]
    show_gaps("16 experts, random", gaps(sixteen, (4, 8, 12)))
    trained = [(trained_model(seed, 16), playground_batches(seed)) for seed in range(2)]
    show_gaps("16 experts, trained", gaps(trained, (4, 8, 12)))
    show_gaps("8 experts, playground", gaps([(load_model(PLAYGROUND), playground_batches())], (3, 4, 6)))
    large(64, 4, 32, random_batches(0, 4, 4, 64))
    large(128, 8, 16, random_batches(0, 4, 4, 64))


if __name__ == "__main__":
    main()

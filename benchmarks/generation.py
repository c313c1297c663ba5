"""How fast the evaluation's loop answers, beside the two loops that one would write, as ratios measured in one run:

    OMP_NUM_THREADS=1 python benchmarks/generation.py

    one at a time       transformers' generate on one prompt after the other
    unsorted batches    the same on --batch prompts at a time, in the order of the file, padded on the left
    ours                what `pollard evaluate` does, as many prompts at a time

The questions are those of all six playground tasks, mixed, so that prompts and answers have all lengths. The model is the
playground's, made wider with zeros: it gives the same answers with the work of a hidden size of --hidden. All three must give
the same answers. Each ratio is the median over alternated repeats, with its range. Exit status 1 where one is below its target.
"""

import argparse
import copy
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from toolkit.evaluation import Answer, Decoding, greedy
from toolkit.evaluation.answers import Request, read_answer
from toolkit.evaluation.decoding import as_list
from toolkit.evaluation.generation import BatchWriter
from toolkit.moe import load_model, load_tokenizer
from toolkit.recipe.data import TaskRecipe
from toolkit.runtime.distributed import console
from toolkit.tasks import Task, encode_prompt

PLAYGROUND = Path(__file__).parents[1] / "data" / "playground" / "model"
KINDS = ("arithmetic", "sorting", "reversing", "facts", "logic", "code")
TARGETS = {"one at a time": 2.0, "unsorted batches": 1.3}
Answers = dict[int, Answer]


def widened(model: PreTrainedModel, hidden: int) -> PreTrainedModel:
    """The same function of a Mixtral with more channels, heads and expert rows, all of them zero.

    The norms divide by the mean over more channels, so their weights and epsilon are scaled back.
    """
    config, own = copy.deepcopy(model.config), model.config
    factor = hidden // own.hidden_size
    config.head_dim = own.hidden_size // own.num_attention_heads
    for key in ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads"):
        setattr(config, key, factor * getattr(own, key))
    config.rms_norm_eps = own.rms_norm_eps / factor
    wide = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    wide.generation_config = model.generation_config
    small = dict(model.named_parameters())
    with torch.no_grad():
        for name, parameter in wide.named_parameters():
            parameter.zero_()
            if "norm" in name:
                parameter[: len(small[name])] = small[name] / factor**0.5
            elif name.endswith("gate_up_proj"):  # two halves, one after the other
                for into, part in zip(parameter.chunk(2, dim=1), small[name].chunk(2, dim=1), strict=True):
                    into[tuple(map(slice, part.shape))] = part
            else:
                parameter[tuple(map(slice, small[name].shape))] = small[name]
    return wide


def questions(tokenizer: Any, per_task: int) -> list[Request]:
    prompts = [
        encode_prompt(tokenizer, example)
        for kind in KINDS
        for example in Task(TaskRecipe.model_validate({"name": f"playground/{kind}"})).examples("test")[:per_task]
    ]
    random.Random(0).shuffle(prompts)
    return [Request(i, 0, prompt, ()) for i, prompt in enumerate(prompts)]


def loop(model: Any, tokenizer: Any, requests: list[Request], size: int, most: int) -> Answers:
    """transformers' own generate, so many prompts at a time, in their order."""
    settings, found = greedy(model, tokenizer, most), {}
    ends = as_list(settings.eos_token_id)
    for start in range(0, len(requests), size):
        batch = requests[start : start + size]
        padded = tokenizer.pad({"input_ids": [request.prompt for request in batch]}, padding_side="left", return_tensors="pt")
        out = model.generate(**padded, generation_config=settings)[:, padded["input_ids"].shape[1] :]
        for request, row in zip(batch, out.tolist(), strict=True):
            length = next((at + 1 for at, token in enumerate(row) if token in ends), len(row))
            found[request.index] = read_answer(tokenizer, row[:length], ends, (), most)
    return found


def measure(ways: dict[str, Callable[[], Answers]], count: int, repeats: int) -> dict[str, list[float]]:
    """Items per second of every way, repeat by repeat; who comes first changes. Raises SystemExit for other answers."""
    speeds: dict[str, list[float]] = {name: [] for name in ways}
    expected: Answers = {}
    for repeat in range(repeats):
        for name in list(ways)[:: 1 if repeat % 2 else -1]:
            started = time.perf_counter()
            answers = ways[name]()
            speeds[name].append(count / (time.perf_counter() - started))
            expected = expected or answers
            if answers != expected:
                raise SystemExit(f"not the same answers: {name}, repeat {repeat + 1}")
        print(
            f"repeat {repeat + 1}: " + ", ".join(f"{name} {found[-1]:.2f} items/s" for name, found in speeds.items()), flush=True
        )
    return speeds


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, default=512, help="a multiple of 128, the playground's own")
    parser.add_argument("--per-task", type=int, default=32, help="questions of each of the six tasks")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--new", type=int, default=128, help="tokens of an answer at most")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    tokenizer, model = load_tokenizer(str(PLAYGROUND)), widened(load_model(str(PLAYGROUND)), options.hidden)
    requests, decoding = questions(tokenizer, options.per_task), Decoding(options.new)
    ways: dict[str, Callable[[], Answers]] = {
        "one at a time": lambda: loop(model, tokenizer, requests, 1, options.new),
        "unsorted batches": lambda: loop(model, tokenizer, requests, options.batch, options.new),
        "ours": lambda: {r.index: answer for r, answer in BatchWriter(model, tokenizer, decoding, options.batch)(requests)},
    }
    print(
        f"{platform.machine()}, {torch.get_num_threads()} thread(s), torch {torch.__version__}, {options.repeats} repeats\n"
        f"{len(requests)} questions, hidden {options.hidden}, batches of {options.batch}, at most {options.new} new tokens"
    )
    console.quiet = True  # no bars in between
    with torch.no_grad():
        ways["ours"]()  # to warm up
        speeds = measure(ways, len(requests), options.repeats)
    reached = []
    for name, target in TARGETS.items():
        ratios = [ours / theirs for ours, theirs in zip(speeds["ours"], speeds[name], strict=True)]
        median = statistics.median(ratios)
        print(f"ours / {name}: median {median:.2f} ({min(ratios):.2f} to {max(ratios):.2f}), target {target}")
        reached.append(median >= target)
    return 0 if all(reached) else 1


if __name__ == "__main__":
    sys.exit(main())

"""How fast the evaluation's loop answers, beside the loops that one would write, as ratios measured in one run:

    OMP_NUM_THREADS=1 python benchmarks/generation.py                  # or --part shots, say

    questions   one at a time       transformers' generate on one prompt after the other
                unsorted batches    the same on --batch prompts at a time, in the order of the file, padded on the left
                ours                what `pollard evaluate` does, as many prompts at a time
    shots       every shot          our loop, where each row computes the five solved examples before its question
                shots once          our loop, where they are computed once for all questions of a task
    choices     every shot          the likeliest of three choices, each behind the same five solved examples and its question
                shots once          the same, where the examples are computed once

The questions are those of all six playground tasks: in `questions` mixed, so that prompts and answers have all lengths; in
`shots` task by task, each with shots of its own; in `choices` they are the logic task's, with the names in them to choose from.
The model is the playground's, made wider with zeros: it gives the same answers with the work of a hidden size of --hidden. All
ways of a part must give the same answers. Each ratio is the median over alternated repeats, with its range. Exit status 1 where
one is below its target.
"""

import argparse
import copy
import json
import platform
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from toolkit.evaluation import Answer, Decoding, greedy
from toolkit.evaluation.answers import Request, read_answer
from toolkit.evaluation.decoding import as_list
from toolkit.evaluation.generation import BatchWriter
from toolkit.evaluation.likelihood import likeliest
from toolkit.evaluation.shared_prefix import CommonPrefix
from toolkit.moe import load_model, load_tokenizer
from toolkit.recipe.data import TaskRecipe
from toolkit.runtime.distributed import console, device
from toolkit.tasks import Example, Task, encode_prompt

PLAYGROUND = Path(__file__).parents[1] / "data" / "playground" / "model"
KINDS = ("arithmetic", "sorting", "reversing", "facts", "logic", "code")
SHOTS = 5
TARGETS = {
    "shots": {"every shot": 1.5}, "choices": {"every shot": 1.5}, "questions": {"one at a time": 2.0, "unsorted batches": 1.3},
}  # fmt: skip
Answers = dict[int, Answer]
Ways = dict[str, Callable[[], Answers]]  # the last one is ours


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


def prompts_of(tokenizer: Any, kind: str, count: int, shots: int = 0) -> list[list[int]]:
    task = Task(TaskRecipe.model_validate({"name": f"playground/{kind}", "shots": shots}))
    return [encode_prompt(tokenizer, example) for example in task.examples("test")[:count]]


def questions(tokenizer: Any, per_task: int) -> list[Request]:
    """Of all tasks, mixed."""
    prompts = [prompt for kind in KINDS for prompt in prompts_of(tokenizer, kind, per_task)]
    random.Random(0).shuffle(prompts)
    return requests_for(prompts)


def requests_for(prompts: list[list[int]], start: int = 0) -> list[Request]:
    return [Request(i, 0, prompt, ()) for i, prompt in enumerate(prompts, start)]


def loop(model: Any, tokenizer: Any, requests: list[Request], size: int, most: int) -> Answers:
    """transformers' own generate, so many prompts at a time, in their order."""
    settings, found = greedy(model, tokenizer, most), {}
    ends = as_list(settings.eos_token_id)
    for start in range(0, len(requests), size):
        batch = requests[start : start + size]
        padded = tokenizer.pad({"input_ids": [request.prompt for request in batch]}, padding_side="left", return_tensors="pt")
        length = padded["input_ids"].shape[1]
        out = model.generate(**padded.to(model.device), generation_config=settings)[:, length:]
        for request, row in zip(batch, out.tolist(), strict=True):
            end = next((at + 1 for at, token in enumerate(row) if token in ends), len(row))
            found[request.index] = read_answer(tokenizer, row[:end], ends, (), most)
    return found


def ways_with_questions(model: Any, tokenizer: Any, options: argparse.Namespace) -> tuple[Ways, int]:
    """The three loops, and how many questions each answers."""
    requests = questions(tokenizer, options.per_task)
    return {
        "one at a time": lambda: loop(model, tokenizer, requests, 1, options.new),
        "unsorted batches": lambda: loop(model, tokenizer, requests, options.batch, options.new),
        "ours": lambda: ours(BatchWriter(model, tokenizer, Decoding(options.new), options.batch), requests),
    }, len(requests)


def ways_with_shots(model: Any, tokenizer: Any, options: argparse.Namespace) -> tuple[Ways, int]:
    """Our loop on one task after the other, with and without sharing, and how many questions each answers."""
    by_task = [prompts_of(tokenizer, kind, options.per_task, SHOTS) for kind in KINDS]
    common = [CommonPrefix.of(prompts) for prompts in by_task]
    shared, own = sum(len(c.tokens) for c in common if c) / len(KINDS), sum(len(p) for prompts in by_task for p in prompts)
    count = sum(map(len, by_task))
    print(f"{SHOTS} shots: prompts of {own / count:.0f} tokens, of which {shared:.0f} are a task's shots (means)", flush=True)

    def run(prefixes: list[CommonPrefix | None]) -> Answers:
        found: Answers = {}
        for prompts, prefix in zip(by_task, prefixes, strict=True):
            writer = BatchWriter(model, tokenizer, Decoding(options.new), options.batch, prefix)
            found |= ours(writer, requests_for(prompts, len(found)))
        return found

    return {"every shot": lambda: run([None] * len(KINDS)), "shots once": lambda: run(common)}, count


def ways_with_choices(model: Any, tokenizer: Any, options: argparse.Namespace) -> tuple[Ways, int]:
    """Our scorer of choices, with and without sharing, and how many questions it reads."""
    logic = Task(TaskRecipe(name="playground/logic")).examples("train")[: 3 * options.per_task + SHOTS]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "choices.jsonl")
        path.write_text("".join(json.dumps(with_names(example)) + "\n" for example in logic))
        task = Task(TaskRecipe(name="multiple_choice", train=str(path), test=str(path), shots=SHOTS))
        examples = task.examples("test")[: 3 * options.per_task]

    def chosen() -> Answers:
        found = likeliest(model, tokenizer, examples, options.batch)
        return {i: Answer(examples[i].choices[choice], 0, True) for i, choice in enumerate(found)}

    def without_sharing() -> Answers:
        with mock.patch.object(CommonPrefix, "of", return_value=None):
            return chosen()

    return {"every shot": without_sharing, "shots once": chosen}, len(examples)


def with_names(example: Example) -> dict[str, Any]:
    """A question of the playground's logic, whose answer "Ida > Paul > Jon. #### Ida" holds the names to choose from."""
    order, right = example.completion.split(". #### ")
    names = sorted(order.split(" > "))
    return {"question": example.messages[-1]["content"], "choices": names, "answer": names.index(right)}


def ours(writer: BatchWriter, requests: list[Request]) -> Answers:
    return {request.index: answer for request, answer in writer(requests)}


PARTS = {"shots": ways_with_shots, "choices": ways_with_choices, "questions": ways_with_questions}


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


def reached(name: str, speeds: dict[str, list[float]]) -> bool:
    """Prints the ratios of a part, and says whether every target is met."""
    *others, last = speeds
    found = []
    for other in others:
        ratios, target = [a / b for a, b in zip(speeds[last], speeds[other], strict=True)], TARGETS[name][other]
        median = statistics.median(ratios)
        print(f"{last} / {other}: median {median:.2f} ({min(ratios):.2f} to {max(ratios):.2f}), target {target}", flush=True)
        found.append(median >= target)
    return all(found)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=PARTS, help="all of them unless given")
    parser.add_argument("--hidden", type=int, default=512, help="a multiple of 128, the playground's own")
    parser.add_argument("--per-task", type=int, default=32, help="questions of each of the six tasks")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--new", type=int, default=128, help="tokens of an answer at most")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    tokenizer, model = load_tokenizer(str(PLAYGROUND)), widened(load_model(str(PLAYGROUND)), options.hidden).to(device())
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    print(f"{where}, {torch.get_num_threads()} thread(s), torch {torch.__version__}, {options.repeats} repeats")
    print(f"hidden {options.hidden}, batches of {options.batch}, answers of at most {options.new} tokens")
    results = []
    for name in [options.part] if options.part else PARTS:
        ways, count = PARTS[name](model, tokenizer, options)
        print(f"{name}: {count} questions", flush=True)
        with torch.no_grad(), mock.patch.object(console, "quiet", True):  # no bars in between
            list(ways.values())[-1]()  # to warm up
            results.append(reached(name, measure(ways, count, options.repeats)))
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())

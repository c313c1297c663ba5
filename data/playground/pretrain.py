"""Pre-trains the playground's mixture-of-experts model on all six tasks, from nothing.

Rows of 256 tokens are packed from a fresh mixture of tasks, so every batch holds every task: the load-balancing
loss then asks that the experts share the *mixture* evenly, and leaves them free to specialise on a task.

    python data/playground/pretrain.py               # about 40 minutes on two CPU cores; start again to resume
    python data/playground/pretrain.py --steps 200   # a short trial (of its own schedule)

Leaves a stock checkpoint in data/playground/model and one line per 50 steps in data/playground/training_log.jsonl.
"""

import argparse
import json
import math
import os
import random
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import MixtralConfig, MixtralForCausalLM, PreTrainedTokenizerFast

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
from generate import stream

SEED, ROWS, LENGTH, LEARNING_RATE, WARMUP = 0, 16, 256, 2e-3, 100
PROMPT_WEIGHT = 0.1  # questions are mostly chance; answers are what there is to learn
CHECKPOINT_SECONDS = 600
CHAT_TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'user' %}<|user|>{{ m['content'] }}"
    "{% elif m['role'] == 'assistant' %}<|assistant|>{{ m['content'] }}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@dataclass(frozen=True)
class Pretraining:
    """A model of 4 blocks of `experts` experts of `width` channels, `active` of them per token, and where it is left."""

    model: Path
    log: Path
    resume: Path
    mixture: Mapping[str, int]
    """Relative number of examples by task."""
    experts: int
    active: int
    width: int


PLAYGROUND = Pretraining(
    model=HERE / "model",
    log=HERE / "training_log.jsonl",
    resume=HERE / "checkpoints" / "last.pt",
    mixture={"arithmetic": 42, "sorting": 18, "reversing": 7, "facts": 10, "logic": 11, "code": 12},
    experts=8,
    active=2,
    width=256,
)


def examples(mixture: Mapping[str, int], seed: int) -> Iterator[tuple[str, str]]:
    """Endless (question, answer) pairs of the training sides of the tasks in `mixture`."""
    streams = {task: stream(task, "train", seed) for task in mixture}
    rng = random.Random(seed)
    while True:
        example = next(streams[rng.choices(list(mixture), list(mixture.values()))[0]])
        yield example.question, example.answer


def train_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE of 768 entries in which a digit is always one token."""
    tokenizer = Tokenizer(models.BPE())
    words = Regex(r" ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(words, "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=768,
        special_tokens=["<|pad|>", "<|end|>", "<|user|>", "<|assistant|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    pairs = examples(PLAYGROUND.mixture, SEED + 1)
    tokenizer.train_from_iterator((text for _ in range(50_000) for text in next(pairs)), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|pad|>",
        eos_token="<|end|>",
        additional_special_tokens=["<|user|>", "<|assistant|>"],
        chat_template=CHAT_TEMPLATE,
        padding_side="left",
        model_max_length=512,
    )


def new_model(asked: Pretraining, tokenizer: PreTrainedTokenizerFast) -> MixtralForCausalLM:
    torch.manual_seed(SEED)
    config = MixtralConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=asked.width,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        num_local_experts=asked.experts,
        num_experts_per_tok=asked.active,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        router_aux_loss_coef=0.01,
        sliding_window=None,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = MixtralForCausalLM(config)
    model.set_experts_implementation("grouped_mm")
    return model


def batches(asked: Pretraining, tokenizer: PreTrainedTokenizerFast, seed: int) -> Iterator[dict[str, torch.Tensor]]:
    """Packed rows [ROWS, LENGTH]: token ids, positions that restart with each example (so that attention stays inside
    it), and the weight of each token in the loss."""
    pairs = examples(asked.mixture, seed)
    while True:
        rows: list[list[tuple[int, int, float]]] = []
        for _ in range(ROWS):
            row: list[tuple[int, int, float]] = []
            while len(row) < LENGTH:
                question, answer = next(pairs)
                prompt = tokenizer(f"<|user|>{question}<|assistant|>")["input_ids"]
                completion = tokenizer(f"{answer}<|end|>")["input_ids"]
                weights = [0.0] + [PROMPT_WEIGHT] * (len(prompt) - 1) + [1.0] * len(completion)
                row += zip(prompt + completion, range(len(weights)), weights, strict=True)
            rows.append(row[:LENGTH])
        ids, positions, weight = torch.tensor(rows, dtype=torch.float64).unbind(-1)
        yield {"input_ids": ids.long(), "position_ids": positions.long(), "weights": weight.float()}


def save(model: MixtralForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    model.generation_config.max_new_tokens = 96
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def train(asked: Pretraining, tokenizer: PreTrainedTokenizerFast, steps: int) -> None:
    """From nothing, or from where a training that was killed has left off."""
    model = new_model(asked, tokenizer)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {ROWS * LENGTH:,} tokens a step, {steps:,} steps")
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: min((s + 1) / WARMUP, 0.5 * (1 + math.cos(math.pi * min(s / steps, 1.0))))
    )
    first = 0
    if asked.resume.exists():
        state = torch.load(asked.resume, weights_only=False)
        if state["steps"] != steps:
            raise SystemExit(
                f"{asked.resume} belongs to a schedule of {state['steps']} steps: pass --steps {state['steps']} or delete it"
            )
        for target, name in ((model, "model"), (optimizer, "optimizer"), (schedule, "schedule")):
            target.load_state_dict(state[name])
        first = state["step"]
    elif asked.log.exists():
        asked.log.unlink()
    asked.resume.parent.mkdir(parents=True, exist_ok=True)
    data = batches(asked, tokenizer, SEED + 2)
    for _ in range(first):  # the data is a stream: resuming walks to where it stood
        next(data)
    model.train()
    saved = logged = time.monotonic()
    for step in range(first, steps):
        batch = next(data)
        weights = batch.pop("weights")[:, 1:]
        out = model(**batch, output_router_logits=True, use_cache=False)
        losses = F.cross_entropy(out.logits[:, :-1].transpose(1, 2), batch["input_ids"][:, 1:], reduction="none")
        language = (losses * weights).sum() / weights.sum()
        (language + model.config.router_aux_loss_coef * out.aux_loss).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        done = step + 1
        if done % 50 == 0:
            now = time.monotonic()
            entry = {
                "step": done,
                "loss": round(language.item(), 4),
                "balance": round(out.aux_loss.item(), 4),
                "learning_rate": schedule.get_last_lr()[0],
                "tokens_per_second": round(50 * ROWS * LENGTH / (now - logged)),
            }
            logged = now
            with asked.log.open("a") as log:
                log.write(json.dumps(entry) + "\n")
            print(entry, flush=True)
        if time.monotonic() - saved > CHECKPOINT_SECONDS or done == steps:
            state = {"model": model, "optimizer": optimizer, "schedule": schedule}
            partial = asked.resume.with_suffix(".tmp")
            save(model, tokenizer, asked.model)  # first: what has been resumed at its last step saves nothing
            torch.save({name: thing.state_dict() for name, thing in state.items()} | {"step": done, "steps": steps}, partial)
            os.replace(partial, asked.resume)
            saved = time.monotonic()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=4500)
    train(PLAYGROUND, train_tokenizer(), parser.parse_args().steps)

"""What the playground's model can do and which experts each task uses: the two tables of data/playground/README.md.

python data/playground/describe.py          # about five minutes on two CPU cores
"""

import random
from pathlib import Path

import torch

from toolkit import Task, calibrate, evaluate
from toolkit.moe import load_model, load_tokenizer
from toolkit.recipe.schema import TaskRecipe
from toolkit.tasks import encode_all, padded_batches

MODEL = str(Path(__file__).parent / "model")
TASKS = ("arithmetic", "sorting", "reversing", "facts", "logic", "code")
WATCHED, BUSIEST = 512, 4  # training examples watched; experts named per block


def main() -> None:
    model, tokenizer = load_model(MODEL), load_tokenizer(MODEL)
    print("| task | exact match on test | n | 95 % interval |\n|---|---|---|---|")
    for name in TASKS:
        task = Task(TaskRecipe(name=f"playground/{name}"))  # type: ignore[arg-type]
        scores = evaluate(model, tokenizer, task, batch_size=64, max_new_tokens=96)
        low, high = scores.interval
        print(f"| {name} | {scores.score:.1%} | {scores.n:,} | {low:.1%} to {high:.1%} |", flush=True)

    shares: dict[str, dict[str, torch.Tensor]] = {}
    for name in TASKS:
        examples = Task(TaskRecipe(name=f"playground/{name}")).examples("train")  # type: ignore[arg-type]
        encoded, _ = encode_all(tokenizer, random.Random(0).sample(examples, WATCHED), 512)
        statistics = calibrate(model, padded_batches(encoded, 32, tokenizer.pad_token_id))
        gates = {block: statistics.get(block, "gate_sum") for block in statistics.blocks}
        shares[name] = {block: gate / gate.sum() for block, gate in gates.items()}
    blocks = list(shares[TASKS[0]])
    print(f"\n| task | {' | '.join(f'block {i}' for i in range(len(blocks)))} |\n|---|{'---|' * len(blocks)}")
    for name in TASKS:
        cells = []
        for block in blocks:
            share, order = shares[name][block].sort(descending=True)
            cells.append(f"{' '.join(map(str, order[:BUSIEST].tolist()))} ({share[:BUSIEST].sum():.0%})")
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()

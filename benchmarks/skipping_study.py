"""What skipping costs in accuracy, on checkpoints of one recipe's task:

    python benchmarks/skipping_study.py recipes/playground.yaml data/playground/model runs/playground/{pruned,recovered}

Every checkpoint answers the recipe's questions without skipping and with each rule, by thresholds found on itself over the
recipe's calibration examples. The difference to not skipping is question by question, with Newcombe's 95 % interval.
"""

import argparse
import random

from toolkit.calibration import skipping_thresholds
from toolkit.evaluation import evaluate
from toolkit.moe import load_model, load_tokenizer, skipping
from toolkit.recipe.file import load_recipe
from toolkit.runtime.intervals import pair
from toolkit.tasks import Task, encode_all, padded_batches

RULES = ("median", 0.25, 0.75)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("checkpoints", nargs="+")
    parser.add_argument("--examples", type=int, default=500, help="questions of the test set")
    given = parser.parse_args()
    recipe = load_recipe(given.recipe, [])
    task, settings = Task(recipe.task), recipe.evaluation
    print("| checkpoint | skipping | skipped of all | right | against not skipping |\n|---|---|---|---|---|")
    for path in given.checkpoints:
        model, tokenizer = load_model(path, skipping=False), load_tokenizer(path)
        chosen = random.Random(recipe.seed).sample(task.examples("train"), recipe.calibration.examples)
        encoded, _ = encode_all(tokenizer, chosen, recipe.calibration.max_length)
        batches = padded_batches(encoded, recipe.calibration.batch_size, int(tokenizer.pad_token_id))

        questions = (task, "test", given.examples, settings.batch_size, settings.max_new_tokens)
        before = [item.correct for item in evaluate(model, tokenizer, *questions).items]
        print(f"| {path} | no | | {sum(before) / len(before):.1%} | |", flush=True)
        for rule in RULES:
            with skipping(model, skipping_thresholds(model, batches, rule)):
                scores = evaluate(model, tokenizer, *questions)
            after = [item.correct for item in scores.items]
            outcomes = list(zip(after, before, strict=True))
            found = pair(*(outcomes.count(both) for both in ((True, True), (True, False), (False, True), (False, False))))
            low, high = found.interval
            print(
                f"| {path} | {rule} | {scores.facts.experts_skipped:.1%} | {sum(after) / len(after):.1%} "
                f"| {100 * found.difference:+.1f} ({100 * low:+.1f} to {100 * high:+.1f}) |",
                flush=True,
            )


if __name__ == "__main__":
    main()

"""Do the scorers find the published answers right? Gold answers of GSM8K, SVAMP and MATH, strictly and flexibly.

    python benchmarks/gold_answers.py path/to/data            # gsm8k/test.jsonl, svamp/test.jsonl, math/test.jsonl

Each gold solution is judged as if a model had written it, and MATH's solutions also against the published `answer` column,
which was written apart from them. Every miss is printed.
"""

import sys
from pathlib import Path

from toolkit.proportions import wilson
from toolkit.recipe_data import TaskRecipe
from toolkit.tasks import Task

CASES = {
    "gsm8k": TaskRecipe(name="gsm8k"),
    "svamp": TaskRecipe(name="svamp"),
    "math": TaskRecipe(name="math"),
    "math, answer column": TaskRecipe(name="math", answer="{answer}"),
}


def main(folder: Path) -> None:
    print(f"{'task':<22}{'n':>6}{'strict':>9}{'flexible':>10}   95 % interval (strict)")
    for name, recipe in CASES.items():
        task = Task(recipe.model_copy(update={"test": str(folder / recipe.name / "test.jsonl")}))
        examples = task.examples("test")
        verdicts = task.scorer.verdicts([(example.completion, example.gold) for example in examples])
        strict, flexible = (sum(getattr(verdict, reading) for verdict in verdicts) for reading in ("strict", "flexible"))
        low, high = wilson(strict, len(examples))
        shares = f"{strict / len(examples):>9.1%}{flexible / len(examples):>10.1%}"
        print(f"{name:<22}{len(examples):>6,}{shares}   {low:.1%} to {high:.1%}")
        for example, verdict in zip(examples, verdicts, strict=True):
            if not verdict.strict:
                print(f"  {example.where}: gold {example.gold[-60:]!r}, solution ends {example.completion[-80:]!r} {verdict}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

"""Do the scorers find the published answers right, and only those? GSM8K, SVAMP and MATH, strictly and flexibly.

    python benchmarks/gold_answers.py path/to/data            # gsm8k/test.jsonl, svamp/test.jsonl, math/test.jsonl

Gold solutions are judged as if a model had written them: as they are; without their mark or box, where only the flexible
reading may find them; and against the next item's gold answer, where being right is chance. MATH's solutions are also
judged against the `answer` column, which was written apart from them. Equal texts are equal without math-verify; here it
judges them all the same. Every miss is printed.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from unittest import mock

from toolkit.recipe.data import TaskRecipe
from toolkit.tasks import Example, Task, Verdict, math_scorer
from toolkit.tasks.scorer import BOX, MARK, boxed

CASES = {
    "gsm8k": TaskRecipe(name="gsm8k"),
    "svamp": TaskRecipe(name="svamp"),
    "math": TaskRecipe(name="math"),
    "math, answer column": TaskRecipe(name="math", answer="{answer}"),
}
Pair = tuple[str, str]


def unmarked(text: str) -> str:
    """The same solution by somebody who does not keep to the format."""
    box = boxed(text)
    if box is None:
        return text.replace(MARK, "The answer is")
    before = text[: text.rindex(BOX)]
    return f"{before}{'$' * (before.count('$') % 2)}\n\nThe answer is ${box}$."


def told(name: str, examples: Sequence[Example], pairs: Sequence[Pair], task: Task, right: bool) -> list[Verdict]:
    """Prints one line, and the pairs whose flexible reading is not as it must be."""
    verdicts = task.scorer.verdicts(pairs)
    strict, flexible = (sum(getattr(verdict, reading) for verdict in verdicts) for reading in ("strict", "flexible"))
    n = len(pairs)
    print(f"{name:<48}{n:>6,}{strict:>7,}{strict / n:>8.1%}{flexible:>7,}{flexible / n:>8.1%}")
    for example, (prediction, gold), verdict in zip(examples, pairs, verdicts, strict=True):
        if right and not verdict.flexible:
            print(f"    {example.where}: gold {gold[-50:]!r}, solution ends {prediction[-70:]!r}, {verdict.note or 'wrong'}")
    return verdicts


def main(folder: Path) -> None:
    print(f"{'gold solutions':<48}{'n':>6}{'strict':>15}{'flexible':>15}")
    with mock.patch.object(math_scorer, "verdict_by_text", lambda prediction, gold: None):
        for name, recipe in CASES.items():
            judge_all(name, Task(recipe.model_copy(update={"test": str(folder / recipe.name / "test.jsonl")})))


def judge_all(name: str, task: Task) -> None:
    examples = task.examples("test")
    golds = [example.gold for example in examples]
    solutions = [example.completion for example in examples]
    told(name, examples, list(zip(solutions, golds, strict=True)), task, True)
    told(f"{name}, without mark or box", examples, list(zip(map(unmarked, solutions), golds, strict=True)), task, True)
    others = [*golds[1:], golds[0]]
    told(f"{name}, against the next item's gold", examples, list(zip(solutions, others, strict=True)), task, False)


if __name__ == "__main__":
    main(Path(sys.argv[1]))

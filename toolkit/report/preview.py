"""`pollard preview`: what the model sees of a task, in the terminal."""

from collections.abc import Mapping, Sequence

from rich import box
from rich.table import Table
from rich.text import Text
from transformers import PreTrainedTokenizerBase

from toolkit.runtime.distributed import console, say
from toolkit.tasks import Example, encode, encode_prompt, gold_of
from toolkit.tasks.token_checks import Lengths, LengthSummary

COMPLETION = "black on green"
MARKS = "⟦", "⟧"  # around what counts as completion, where there are no colours


def show_examples(tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example]) -> None:
    """Each as the tokens it becomes read back: whatever a template, a shot or the tokenizer adds is there."""
    coloured = console.color_system is not None and not console.no_color
    for number, example in enumerate(examples, start=1):
        say(f"[bold]example {number}[/] [dim]{len(encode_prompt(tokenizer, example)):,} prompt tokens[/]")
        console.print(as_seen(tokenizer, example, coloured))
        if example.cloze:
            right = f"right: {example.choices[example.right]!r}"
            said = str(tokenizer.decode(encode_prompt(tokenizer, example.as_cloze())))
            console.print(
                Text(f"and for the likelihood of each of {len(example.choices)} choices ({right}):\n{said}", style="dim")
            )
        say(f"[dim]judged by[/] {Text(repr(gold_of(tokenizer, example))).markup}\n")


def as_seen(tokenizer: PreTrainedTokenizerBase, example: Example, coloured: bool) -> Text:
    """Prompt and completion with all special tokens; what is learnt and counted as completion stands out."""
    encoded = encode(tokenizer, example)
    prompt, completion = encoded.input_ids[: encoded.prompt_length], encoded.input_ids[encoded.prompt_length :]
    before, after = ("", "") if coloured else MARKS
    return Text.assemble(
        str(tokenizer.decode(prompt)), (f"{before}{tokenizer.decode(completion)}{after}", COMPLETION if coloured else "")
    )


def show_lengths(splits: Mapping[str, Lengths], limits: Mapping[str, int]) -> None:
    """One row per split; `limits` are what an example may be too long for, with their numbers: keys of the recipe that leave
    longer ones out, and the model's context."""
    by_number: dict[int, list[str]] = {}
    for name, limit in limits.items():
        by_number.setdefault(limit, []).append(name)
    table = Table(box=box.SIMPLE, show_edge=False, pad_edge=False)
    table.add_column("split", no_wrap=True)
    for column in ("n", "prompt tokens", "completion tokens", *(f"> {limit:,}" for limit in by_number)):
        table.add_column(column, justify="right", no_wrap=True)
    for split, found in splits.items():
        over = (f"{found.longer_than(limit):,}" for limit in by_number)
        table.add_row(split, f"{len(found.whole):,}", _told(found.prompt), _told(found.completion), *over)
    console.print(table)
    say("[dim]tokens: least / median / 95 % / most[/]")
    for limit, names in by_number.items():
        say(f"[dim]> {limit:,}: prompt and completion longer than {' and '.join(names)}[/]")


def _told(spread: LengthSummary | None) -> str:
    return " / ".join(f"{value:,}" for value in spread) if spread else "-"

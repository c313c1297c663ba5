"""`pollard generate RUN|CHECKPOINT "prompt" [--draft]`: what a model writes, and whether drafting would be faster."""

import argparse

from toolkit.cli.verbs.verb import Verb
from toolkit.runtime.distributed import console, say
from toolkit.runtime.errors import PollardError


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="a run directory, a checkpoint's folder, or a hub id")
    parser.add_argument("prompt", help="what the user says; with a chat template, it is put into it")
    parser.add_argument(
        "--by",
        metavar="MODEL",
        help="original, pruned, recovered, control, or a path (unless given: recovered, else pruned)",
    )
    parser.add_argument(
        "--draft", action="store_true", help="the original writes; the model named by --by drafts, and both speeds are measured"
    )
    parser.add_argument("--max-new-tokens", type=int, default=256)


def run(arguments: argparse.Namespace) -> None:
    from toolkit.evaluation import greedy
    from toolkit.evaluation.drafting import compare_drafting, timed_answer
    from toolkit.moe import load_model, load_tokenizer
    from toolkit.pipeline.run_models import original_and
    from toolkit.runtime.distributed import device
    from toolkit.tasks import Example, encode_prompt

    original, by = original_and(arguments.model, arguments.by)
    if arguments.draft and original == by:
        raise PollardError(
            f"--draft needs a second, smaller model, and {arguments.model} has none: give it with --by, e.g. --by runs/…/pruned."
        )
    first = original if arguments.draft else by
    tokenizer = load_tokenizer(first.path, first.revision)
    model = load_model(first.path, first.revision, device=device())
    question = Example(({"role": "user", "content": arguments.prompt},), "", "")
    prompt, settings = encode_prompt(tokenizer, question), greedy(model, tokenizer, arguments.max_new_tokens)
    if not arguments.draft:
        written = timed_answer(model, prompt, settings)
        console.print(str(tokenizer.decode(written.tokens, skip_special_tokens=True)), markup=False)
        say(f"[dim]{first.name}: {len(written.tokens):,} tokens, {written.speed:,.1f} per second, the first pass included[/]")
        return
    found = compare_drafting(model, load_model(by.path, by.revision, device=device()), prompt, settings)
    console.print(str(tokenizer.decode(found.drafted.tokens, skip_special_tokens=True)), markup=False)
    for name, (middle, low, high) in (
        (original.name, found.speed_alone),
        (f"{original.name}, drafted by {by.name}", found.speed_drafted),
    ):
        say(f"[dim]{name}: {middle:,.1f} tokens/s ({low:,.1f} to {high:,.1f})[/]")
    middle, low, high = found.ratio
    words = "faster" if low > 1 else "slower" if high < 1 else "neither clearly faster nor slower"
    say(f"[dim]drafting: {middle:.2f} times the speed ({low:.2f} to {high:.2f}): {words}[/]")
    _, _, drafted, accepted = found.drafted
    share = f"{accepted / drafted:.1%}" if drafted else "none"
    say(f"[dim]{accepted:,} of {drafted:,} drafted tokens accepted ({share}), of {len(found.drafted.tokens):,} written[/]")
    if not found.same:
        at = next((i for i, (a, b) in enumerate(zip(found.alone.tokens, found.drafted.tokens, strict=False)) if a != b), None)
        say(
            f"[yellow]Alone the original writes something else from token {at} on[/]: two tokens are as likely as each other "
            "within the precision of its numbers (try float32)."
        )


GENERATE = Verb(
    "generate",
    "what a model writes; with --draft, the original verifying what a smaller one drafts, and its speed",
    'pollard generate runs/playground "What is 17 + 25?" --draft',
    arguments,
    run,
)

"""Verbs for the models of finished runs: `pollard compare`, `push`, `chat` and `generate`."""

import argparse
import json

from toolkit.cli.verbs.verb import Verb
from toolkit.runtime.distributed import console, hide_progress_bars, say
from toolkit.runtime.errors import PollardError


def add_compare_arguments(parser: argparse.ArgumentParser) -> None:
    for name in ("first", "second"):
        parser.add_argument(name, help="a run (its recovered model), or one of its models: runs/math/original")
    parser.add_argument("--stale", action="store_true", help="also models that are not what their run's recipe asks for by now")
    parser.add_argument("--json", action="store_true", help="print the facts as JSON")


def run_compare(arguments: argparse.Namespace) -> None:
    from toolkit.pipeline.compare import compare
    from toolkit.report.terminal import show_comparison

    facts = compare(arguments.first, arguments.second, arguments.stale)
    print(json.dumps(facts.as_json(), indent=1)) if arguments.json else show_comparison(facts)


def add_push_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", help="a run directory, e.g. runs/playground")
    parser.add_argument("repository", help="user/name or organisation/name; made where it is not there yet")
    parser.add_argument("--public", action="store_true", help="for everybody to see, where it is made (default: private)")


def run_push(arguments: argparse.Namespace) -> None:
    from toolkit.pipeline.push import push

    say(push(arguments.run, arguments.repository, arguments.public))


def add_chat_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", help="a run directory, or its name in runs/")
    parser.add_argument("--models", help="e.g. original,pruned,recovered (default: original and recovered)")
    parser.add_argument("--raw", action="store_true", help="ask what is typed as it stands, not in the task's prompt")
    parser.add_argument("--max-new-tokens", type=int, help="of an answer (default: the recipe's)")


def run_chat(arguments: argparse.Namespace) -> None:
    """Questions come from the keyboard, or one a line through a pipe."""
    from toolkit.pipeline.run_models import chosen_models, find_run

    run = find_run(arguments.run)
    models = chosen_models(run, arguments.models.split(",") if arguments.models else ())
    from toolkit.cli.chat_session import chat, load_speakers

    hide_progress_bars()
    max_new_tokens = arguments.max_new_tokens or run.recipe.evaluation.max_new_tokens
    chat(load_speakers(models), run, arguments.raw, max_new_tokens)


def add_generate_arguments(parser: argparse.ArgumentParser) -> None:
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


def run_generate(arguments: argparse.Namespace) -> None:
    from toolkit.evaluation import greedy
    from toolkit.evaluation.drafting import compare_drafting, timed_answer
    from toolkit.moe import load_model, load_tokenizer
    from toolkit.pipeline.run_models import original_and
    from toolkit.runtime.distributed import device
    from toolkit.tasks import Example, encode_prompt

    original, by = original_and(arguments.model, arguments.by)
    if arguments.draft and original == by:
        raise PollardError(
            f"--draft needs a second, smaller model, and {arguments.model} has none: give it with --by, e.g. --by runs/…/pruned.",
            code="cli.no-draft-model",
        )
    writer = original if arguments.draft else by
    tokenizer = load_tokenizer(writer.path, writer.revision)
    model = load_model(writer.path, writer.revision, device=device())
    question = Example(({"role": "user", "content": arguments.prompt},), "", "")
    prompt, settings = encode_prompt(tokenizer, question), greedy(model, tokenizer, arguments.max_new_tokens)
    if not arguments.draft:
        written = timed_answer(model, prompt, settings)
        console.print(str(tokenizer.decode(written.tokens, skip_special_tokens=True)), markup=False)
        say(f"[dim]{writer.name}: {len(written.tokens):,} tokens, {written.speed:,.1f} per second, the first pass included[/]")
        return
    comparison = compare_drafting(model, load_model(by.path, by.revision, device=device()), prompt, settings)
    console.print(str(tokenizer.decode(comparison.drafted.tokens, skip_special_tokens=True)), markup=False)
    for name, (middle, low, high) in (
        (original.name, comparison.speed_alone),
        (f"{original.name}, drafted by {by.name}", comparison.speed_drafted),
    ):
        say(f"[dim]{name}: {middle:,.1f} tokens/s ({low:,.1f} to {high:,.1f})[/]")
    middle, low, high = comparison.ratio
    verdict = "faster" if low > 1 else "slower" if high < 1 else "neither clearly faster nor slower"
    say(f"[dim]drafting: {middle:.2f} times the speed ({low:.2f} to {high:.2f}): {verdict}[/]")
    _, _, drafted, accepted = comparison.drafted
    share = f"{accepted / drafted:.1%}" if drafted else "none"
    say(f"[dim]{accepted:,} of {drafted:,} drafted tokens accepted ({share}), of {len(comparison.drafted.tokens):,} written[/]")
    if not comparison.same:
        pairs = zip(comparison.alone.tokens, comparison.drafted.tokens, strict=False)
        position = next((i for i, (alone, draft) in enumerate(pairs) if alone != draft), None)
        say(
            f"[yellow]Alone the original writes something else from token {position} on[/]: two tokens are as likely as each "
            "other within the precision of its numbers (try float32)."
        )


COMPARE = Verb(
    "compare",
    "two models of any runs on the same questions: paired difference, interval, McNemar's test",
    "pollard compare runs/playground/recovered runs/playground/original",
    run_compare,
    add_compare_arguments,
)
PUSH = Verb(
    "push",
    "upload the recovered model and its card to the hub (private unless --public)",
    "pollard push runs/playground me/playground-half",
    run_push,
    add_push_arguments,
)
CHAT = Verb(
    "chat",
    "ask the original and the smaller model the same questions",
    "pollard chat runs/playground --models original,pruned,recovered",
    run_chat,
    add_chat_arguments,
)
GENERATE = Verb(
    "generate",
    "what a model writes; with --draft, the original verifying what a smaller one drafts, and its speed",
    'pollard generate runs/playground "What is 17 + 25?" --draft',
    run_generate,
    add_generate_arguments,
)

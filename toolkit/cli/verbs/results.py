"""Verbs for the models of finished runs: `pollard compare`, `push` and `chat`."""

import argparse
from typing import Any

from toolkit.cli.verbs.verb import Verb
from toolkit.runtime.distributed import hide_progress_bars, say


def add_compare_arguments(parser: argparse.ArgumentParser) -> None:
    for name in ("first", "second"):
        parser.add_argument(name, help="a run (its recovered model), or one of its models: runs/math/original")
    parser.add_argument("--stale", action="store_true", help="also models that are not what their run's recipe asks for by now")


def run_compare(arguments: argparse.Namespace) -> Any:
    from toolkit.pipeline.compare import compare
    from toolkit.report.terminal import show_comparison

    facts = compare(arguments.first, arguments.second, arguments.stale)
    if not arguments.json:
        show_comparison(facts)
    return facts.as_json()


def add_push_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", help="a run directory, e.g. runs/playground")
    parser.add_argument("repository", help="user/name or organisation/name; made where it is not there yet")
    parser.add_argument("--public", action="store_true", help="for everybody to see, where it is made (default: private)")


def run_push(arguments: argparse.Namespace) -> Any:
    from toolkit.pipeline.push import push

    address = push(arguments.run, arguments.repository, arguments.public)
    say(address)
    return {"address": address}


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
    has_facts=False,
)

"""`pollard chat RUN`: the original and the smaller model answer the same questions."""

import argparse

from toolkit.cli.verbs.verb import Verb
from toolkit.runtime.distributed import quiet_bars


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", help="a run directory, or its name in runs/")
    parser.add_argument("--models", help="e.g. original,pruned,recovered (default: original and recovered)")
    parser.add_argument("--raw", action="store_true", help="ask what is typed as it stands, not in the task's prompt")
    parser.add_argument("--max-new-tokens", type=int, help="of an answer (default: the recipe's)")


def run(arguments: argparse.Namespace) -> None:
    """Questions come from the keyboard, or one a line through a pipe."""
    from toolkit.pipeline.run_models import chosen_models, find_run

    found = find_run(arguments.run)
    models = chosen_models(found, arguments.models.split(",") if arguments.models else ())
    from toolkit.cli.chat_session import chat, load_speakers

    quiet_bars()
    longest = arguments.max_new_tokens or found.recipe.evaluation.max_new_tokens
    chat(load_speakers(models), found, arguments.raw, longest)


CHAT = Verb(
    "chat",
    "ask the original and the smaller model the same questions",
    "pollard chat runs/playground --models original,pruned,recovered",
    arguments,
    run,
)

"""pollard VERB …: `pollard --help` lists the verbs, `pollard VERB --help` shows an example of each.

Exit status: 0 done; 1 a mistake that you can mend; 2 wrong usage; 3 a bug of Pollard's; 130 interrupted.
"""

import argparse
import logging
import os
import socket
import sys
import time
import traceback
import warnings
from collections.abc import Callable

from toolkit.cli.bugs import BUG, Bug, tracebacks_in
from toolkit.cli.interrupt import INTERRUPTED
from toolkit.cli.verbs import VERBS
from toolkit.cli.verbs.verb import add_common_options
from toolkit.runtime.distributed import PATIENCE, console, is_main, rank, say, stop
from toolkit.runtime.errors import PollardError


def guarded(work: Callable[[], None], debug: bool = False) -> int:
    """Works, and returns the exit status. What goes wrong becomes one message on rank 0: of a PollardError its words, of
    anything else that it is a bug, and where the traceback is. `debug` shows the traceback, too."""
    _quieten()
    try:
        with tracebacks_in():
            work()
    except (PollardError, Bug) as error:
        if debug:
            traceback.print_exception(error)
        return _explain(error)
    except KeyboardInterrupt:
        if debug:
            traceback.print_exc()
        say("\n[bold yellow]stopped[/] by Ctrl-C")
        return INTERRUPTED
    except BrokenPipeError:  # pollard … | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    finally:
        if "torch" in sys.modules:
            stop()
    return 0


def parsed(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The command line, with overrides wherever they stand (argparse alone refuses them behind an option)."""
    arguments, rest = parser.parse_known_args()
    overrides = [word for word in rest if "=" in word and not word.startswith("-")]
    if len(overrides) < len(rest) or (overrides and not hasattr(arguments, "overrides")):
        parser.error(f"unrecognized arguments: {' '.join(word for word in rest if word not in overrides) or ' '.join(rest)}")
    if overrides:
        arguments.overrides = [*arguments.overrides, *overrides]
    return arguments


def _explain(error: PollardError | Bug) -> int:
    status = BUG if isinstance(error, Bug) else 1
    if isinstance(error, PollardError) and error.already_reported and not is_main():
        return status
    where = ""
    if not is_main():  # what all ranks find rank 0 tells; then the launcher ends the others
        time.sleep(PATIENCE)
        where = f"rank {rank()} on {socket.gethostname()}: "
    console.print("[bold red]error[/] ", end="")
    console.print(where + str(error), markup=False)
    return status


def _quieten() -> None:
    """Libraries talk a lot while they start; what matters is said by us."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("DEEPSPEED_LOG_LEVEL", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it misses a faster kernel, on machines without a GPU
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=UserWarning, module="torch")


def parser_of_verbs() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="pollard", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_common_options(parser)  # also before the verb: deepspeed --module toolkit.cli VERB … puts --local_rank there
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for verb in VERBS:
        told = f"{verb.purpose[0].upper()}{verb.purpose[1:]}.\n\nExample: {verb.example}"
        own = verbs.add_parser(
            verb.name, help=verb.purpose, description=told, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        verb.arguments(own)
        add_common_options(own)
    parser.set_defaults(verbs=verbs.choices)  # for the verb that completes them
    return parser


def main() -> int:
    arguments = parsed(parser_of_verbs())
    verb = next(verb for verb in VERBS if verb.name == arguments.verb)
    return guarded(lambda: verb.run(arguments), getattr(arguments, "debug", False))

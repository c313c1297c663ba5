"""`pollard upcycle DENSE TARGET`: a stock mixture of experts from a dense model."""

import argparse
from typing import Any

from toolkit.cli.verbs.verb import Verb
from toolkit.runtime.distributed import is_main, join
from toolkit.runtime.errors import PollardError

OWN_OPTION = {"shared": "width", "copies": "redraw"}  # by form


def add_upcycle_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dense", help="a folder with a dense transformers checkpoint, a hub id, or a GGUF file")
    parser.add_argument("target", help="the folder to be made")
    parser.add_argument(
        "--form", choices=list(OWN_OPTION), default="shared",
        help="shared (default): the dense layers as shared experts, beside narrow experts that give nothing at first; copies: "
        "every expert a copy of the dense layer, in part drawn anew",
    )  # fmt: skip
    parser.add_argument("--experts", type=int, default=8, help="of every layer (default: 8)")
    parser.add_argument("--experts-per-token", type=int, default=2, help="default: 2")
    parser.add_argument("--width", type=int, help="channels of each expert, with --form shared (default: 64)")
    parser.add_argument(
        "--redraw", type=float, help="share of each expert's channels that is drawn anew, with --form copies (default: 0.1)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of all that is drawn (default: 0)")
    parser.add_argument("--revision", help="of a hub model")
    parser.add_argument("--overwrite", action="store_true", help="replace a checkpoint that Pollard wrote to TARGET before")


def run_upcycle(arguments: argparse.Namespace) -> Any:
    own = OWN_OPTION[arguments.form]
    for other, option in OWN_OPTION.items():
        if option != own and getattr(arguments, option) is not None:
            raise PollardError(
                f"--{option} is an option of --form {other}, and this is --form {arguments.form}: leave one of the two out.",
                code="upcycle.other-form",
            )
    join()
    # Imported here for start-up time: it imports torch
    from toolkit.cuts.upcycling import FORMS, upcycle

    settings = {own: getattr(arguments, own)} if getattr(arguments, own) is not None else {}
    form = FORMS[arguments.form](
        experts=arguments.experts, experts_per_token=arguments.experts_per_token, seed=arguments.seed, **settings
    )
    upcycle(arguments.dense, arguments.target, form, arguments.revision, arguments.overwrite)
    if not (arguments.json and is_main()):
        return None
    from toolkit.cuts.model_summary import model_summary

    return {"target": arguments.target, "form": form, "model": model_summary(arguments.target)}


UPCYCLE = Verb(
    "upcycle",
    "a stock mixture of experts from a dense model: equal to it at first, or of copies that differ",
    "pollard upcycle Qwen/Qwen2.5-1.5B experts/qwen --experts 8 --width 64",
    run_upcycle,
    add_upcycle_arguments,
)

"""pollard VERB …: `pollard --help` lists the verbs, `pollard VERB --help` shows an example of each.

Exit status: 0 done; 1 a mistake that you can mend; 2 wrong usage; 3 a bug of Pollard's; 130 interrupted.
"""

import argparse

from toolkit.cli.verbs import VERBS
from toolkit.cli.verbs.verb import add_common_options, add_json_option, run_verb
from toolkit.runtime.versions import versions


def parse_command_line(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Parses `sys.argv`. Overrides may stand anywhere (argparse alone refuses them after an option)."""
    arguments, rest = parser.parse_known_args()
    overrides = [word for word in rest if "=" in word and not word.startswith("-")]
    if len(overrides) < len(rest) or (overrides and not hasattr(arguments, "overrides")):
        parser.error(f"unrecognized arguments: {' '.join(word for word in rest if word not in overrides) or ' '.join(rest)}")
    if overrides:
        arguments.overrides = [*arguments.overrides, *overrides]
    return arguments


class _PrintVersions(argparse.Action):
    """Looks them up only when asked."""

    def __call__(self, parser: argparse.ArgumentParser, *arguments: object) -> None:
        print(versions())
        parser.exit()


def command_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="pollard", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--version", action=_PrintVersions, nargs=0, help="print the versions of Pollard and what it stands on")
    add_common_options(parser)  # also before the verb: deepspeed --module toolkit.cli VERB … puts --local_rank there
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for verb in VERBS:
        description = f"{verb.description}\n\nExample: {verb.example}"
        verb_parser = verbs.add_parser(
            verb.name, help=verb.purpose, description=description, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        verb.add_arguments(verb_parser)
        if verb.has_facts:
            add_json_option(verb_parser)
        add_common_options(verb_parser)
    parser.set_defaults(parser=parser, verb_parsers=verbs.choices)  # for `pollard completion`
    return parser


def main() -> int:
    arguments = parse_command_line(command_parser())
    verb = next(verb for verb in VERBS if verb.name == arguments.verb)
    return run_verb(verb.run, arguments)

"""`pollard completion SHELL`: what the shell needs to complete a command line."""

import argparse
import sys

from toolkit.cli.verbs.verb import Verb

SHELLS = {
    "bash": 'eval "$(pollard completion bash)", in ~/.bashrc',
    "zsh": 'eval "$(pollard completion zsh)" behind compinit, in ~/.zshrc',
    "fish": "pollard completion fish > ~/.config/fish/completions/pollard.fish",
}


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=SHELLS, help="; ".join(SHELLS.values()))


def run(arguments: argparse.Namespace) -> None:
    from toolkit.cli.completion_script import script

    sys.stdout.write(script(arguments.shell, arguments.verbs))


COMPLETION = Verb(
    "completion",
    "print the completion of a shell: verbs, options, recipes, keys and their values",
    "pollard completion bash",
    arguments,
    run,
)

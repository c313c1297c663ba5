"""Runs the whole recipe, on every rank.

deepspeed toolkit/train.py RECIPE [key.path=value …] [--fresh]
python toolkit/train.py RECIPE                                     # one rank
"""

import argparse
import sys
from pathlib import Path

# Python puts a script's own folder first on the import path: replace it by the folder above, which holds the package.
sys.path[0] = str(Path(__file__).parents[1])

from toolkit.cli.main import parse_command_line
from toolkit.cli.verbs.running import run_recipe
from toolkit.cli.verbs.verb import add_common_options, add_json_option, add_run_arguments, run_verb


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_run_arguments(parser)
    add_json_option(parser)
    add_common_options(parser)
    arguments = parse_command_line(parser)
    return run_verb(run_recipe, arguments)


if __name__ == "__main__":
    sys.exit(main())

"""The whole recipe, on every rank.

deepspeed toolkit/train.py RECIPE [key.path=value …] [--fresh]
python toolkit/train.py RECIPE                                     # one rank
"""

import argparse
import sys
from pathlib import Path

# Run as a script, Python puts this folder first on the import path; what is wanted there is the folder above.
sys.path[0] = str(Path(__file__).parents[1])

from toolkit.cli.main import guarded, parsed
from toolkit.cli.verbs.runs import run
from toolkit.cli.verbs.verb import add_common_options, add_run_arguments


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_run_arguments(parser)
    add_common_options(parser)
    arguments = parsed(parser)
    return guarded(lambda: run(arguments, until=None), getattr(arguments, "debug", False))


if __name__ == "__main__":
    sys.exit(main())

"""`pollard compare RUN_A RUN_B`: two models, question by question."""

import argparse
import json

from toolkit.cli.verbs.verb import Verb


def arguments(parser: argparse.ArgumentParser) -> None:
    for name in ("first", "second"):
        parser.add_argument(name, help="a run (its recovered model), or one of its models: runs/math/original")
    parser.add_argument("--stale", action="store_true", help="also models that are not what their run's recipe asks for by now")
    parser.add_argument("--json", action="store_true", help="print the facts as JSON")


def run(arguments: argparse.Namespace) -> None:
    from toolkit.pipeline.compare import compare
    from toolkit.report.terminal import show_comparison

    facts = compare(arguments.first, arguments.second, arguments.stale)
    print(json.dumps(facts.as_json(), indent=1)) if arguments.json else show_comparison(facts)


COMPARE = Verb(
    "compare",
    "two models of any runs on the same questions: paired difference, interval, McNemar's test",
    "pollard compare runs/playground/recovered runs/playground/original",
    arguments,
    run,
)

"""`pollard VERB …`, one small file for each; VERBS is all there is, in the order of `pollard --help`."""

from toolkit.cli.verbs.benchmark import BENCHMARK
from toolkit.cli.verbs.chat import CHAT
from toolkit.cli.verbs.compare import COMPARE
from toolkit.cli.verbs.completion import COMPLETION
from toolkit.cli.verbs.criteria import CRITERIA_VERB
from toolkit.cli.verbs.estimate import ESTIMATE
from toolkit.cli.verbs.generate import GENERATE
from toolkit.cli.verbs.inspect import INSPECT
from toolkit.cli.verbs.preview import PREVIEW
from toolkit.cli.verbs.push import PUSH
from toolkit.cli.verbs.recipes import RECIPES
from toolkit.cli.verbs.run_list import RUN_LIST
from toolkit.cli.verbs.runs import RUNS
from toolkit.cli.verbs.sweep import SWEEP
from toolkit.cli.verbs.tasks import TASKS
from toolkit.cli.verbs.verb import Verb

VERBS: list[Verb] = [
    *RUNS,
    RUN_LIST,
    SWEEP,
    COMPARE,
    PUSH,
    CHAT,
    GENERATE,
    BENCHMARK,
    ESTIMATE,
    INSPECT,
    PREVIEW,
    CRITERIA_VERB,
    TASKS,
    RECIPES,
    COMPLETION,
]

__all__ = ["VERBS", "Verb"]

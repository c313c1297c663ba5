"""`pollard VERB …`, one small file for each; VERBS is all there is, in the order of `pollard --help`."""

from toolkit.verbs.benchmark import BENCHMARK
from toolkit.verbs.chat import CHAT
from toolkit.verbs.compare import COMPARE
from toolkit.verbs.completion import COMPLETION
from toolkit.verbs.criteria import CRITERIA_VERB
from toolkit.verbs.estimate import ESTIMATE
from toolkit.verbs.generate import GENERATE
from toolkit.verbs.inspect import INSPECT
from toolkit.verbs.preview import PREVIEW
from toolkit.verbs.push import PUSH
from toolkit.verbs.recipes import RECIPES
from toolkit.verbs.run_list import RUN_LIST
from toolkit.verbs.runs import RUNS
from toolkit.verbs.sweep import SWEEP
from toolkit.verbs.tasks import TASKS
from toolkit.verbs.verb import Verb

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

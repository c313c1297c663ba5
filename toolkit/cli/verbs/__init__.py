"""`pollard VERB …`. VERBS lists them all, in the order of `pollard --help`; each file is a chapter of related verbs."""

from toolkit.cli.verbs.benchmark import BENCHMARK
from toolkit.cli.verbs.drafting import DRAFTS, GENERATE
from toolkit.cli.verbs.exporting import EXPORT
from toolkit.cli.verbs.init import INIT
from toolkit.cli.verbs.lists import COMPLETION, CRITERIA_VERB, RECIPES, TASKS
from toolkit.cli.verbs.planning import ESTIMATE, INSPECT, PREVIEW
from toolkit.cli.verbs.results import CHAT, COMPARE, PUSH
from toolkit.cli.verbs.running import STAGE_VERBS, SWEEP
from toolkit.cli.verbs.runs import RUNS
from toolkit.cli.verbs.upcycle import UPCYCLE
from toolkit.cli.verbs.verb import Verb

VERBS: list[Verb] = [
    *STAGE_VERBS,
    RUNS,
    SWEEP,
    COMPARE,
    EXPORT,
    PUSH,
    CHAT,
    GENERATE,
    DRAFTS,
    BENCHMARK,
    INIT,
    ESTIMATE,
    INSPECT,
    PREVIEW,
    UPCYCLE,
    CRITERIA_VERB,
    TASKS,
    RECIPES,
    COMPLETION,
]

__all__ = ["VERBS", "Verb"]

"""What each criterion would have kept: from the statistics alone, so it costs no model.

    alternatives.json    {"format": 1, "fingerprint": …, "keep": 4, "criteria": {"reap": {"model.layers.0.mlp": [0, 2, 5, 7]}, …}}

Same number, same tokens, same seed as the plan. A criterion that the statistics cannot serve is absent.
"""

import json
from contextlib import suppress
from typing import cast

from toolkit.cuts.plan import Plan
from toolkit.cuts.statistics import ExpertStatistics, Tokens
from toolkit.pipeline.run_directory import RunDirectory
from toolkit.runtime.errors import PollardError
from toolkit.runtime.files import write_text
from toolkit.selection import CRITERIA, select
from toolkit.selection.criteria import Mode


def alternatives(statistics: ExpertStatistics, plan: Plan) -> dict[str, dict[str, list[int]]]:
    """Per criterion and block the experts it keeps."""
    found = {}
    for criterion, rule in CRITERIA.items():
        tokens = cast(Tokens, "all" if rule.all_tokens_only else plan.tokens)
        mode = cast(Mode, plan.mode or "layerwise")
        with suppress(PollardError):  # not watched in this family, or no search was run: select() would say so
            chosen = select(statistics, criterion, plan.keep, tokens, mode, plan.seed, plan.experts_per_token)
            found[criterion] = {name: block.kept for name, block in chosen.blocks.items()}
    return found


def write_alternatives(run: RunDirectory) -> None:
    """Where the run has chosen, and its statistics are still there."""
    chosen = run.read_manifest()["stages"].get("select")
    if not (chosen and run.plan.exists() and (run.statistics / "statistics.json").exists()):
        return
    plan = Plan.load(run.plan)
    facts = {"format": 1, "fingerprint": chosen["fingerprint"], "keep": plan.keep}
    facts["criteria"] = alternatives(ExpertStatistics.load(run.statistics), plan)
    write_text(run.alternatives, json.dumps(facts) + "\n")

"""What `pollard drafts` found, in the terminal and in a JSON file; and the commands by which servers draft like that.

Costs are in passes of the target over one token; a speed-up is against the target alone.
"""

import json
import shlex
from collections.abc import Sequence
from typing import NamedTuple

from rich import box
from rich.markup import escape
from rich.table import Table

from toolkit.report.measurements import Facts, Timing
from toolkit.runtime.distributed import console, say
from toolkit.runtime.formatting import percent, size

WIDTH = 130  # of a table in a log file
NO_SERVER = {
    "k1": "a server runs a checkpoint with one number of experts per token; a copy of it whose config.json says 1 takes the "
    "memory of a second model",
    "plan": "a server cannot run a part of a checkpoint beside the whole: the run's pruned/ is this very model, with memory of "
    "its own",
    "blocks": "no server leaves out experts of single blocks",
    "layers": "a server cannot run a part of a checkpoint beside the whole: pruned to these layers it is a model of its own",
}


class DraftLength(Facts):
    """What drafting so many tokens at a time comes to on the target's answers. `predicted`: the speed-up."""

    length: int
    passes: int
    drafted: int
    accepted: int
    predicted: float


class MeasuredDraft(Facts):
    """transformers' own assisted generation. `same`: every answer was the target's; `passes_as_replayed`: and took as many passes
    as the replay says."""

    length: int
    answers: int
    speed_up: Timing
    same: bool
    passes_as_replayed: bool


class DraftFacts(Facts):
    """A draft. `kind`: k1, plan, blocks, layers, lookup, or the role of a checkpoint, whose folder is `path`. `more_bytes`: of
    weights beside the target's. `cost`: of a token; lookup has none worth counting."""

    kind: str
    description: str
    path: str | None
    more_bytes: int
    cost: Timing | None
    lengths: list[DraftLength]
    measured: MeasuredDraft | None = None

    @property
    def best(self) -> DraftLength:
        return max(self.lengths, key=lambda each: each.predicted)


class DraftsFacts(Facts):
    """`verifying`: by the number of drafted tokens, the cost of a pass over them and the one before. `agreement`: how many of its
    own tokens the target finds likeliest when it reads them in one pass: less than 1 where its numbers are imprecise."""

    format: int = 1
    run: str
    target: str
    path: str
    device: str
    dtype: str
    threads: int
    questions: int
    tokens: int
    agreement: float
    pass_seconds: Timing
    verifying: dict[int, Timing]
    drafts: list[DraftFacts]
    left_out: dict[str, str]

    @property
    def best_of_kinds(self) -> list[DraftFacts]:
        """Of every kind the best, the best first."""
        best: dict[str, DraftFacts] = {}
        for draft in sorted(self.drafts, key=lambda draft: -draft.best.predicted):
            best.setdefault(draft.kind, draft)
        return list(best.values())


def show_drafts(facts: DraftsFacts) -> None:
    """A row for the best draft of every kind at its best length, what was left out and why, and the commands for servers."""
    if not console.is_terminal:
        console.width = max(console.width, WIDTH)
    table = Table(box=box.SIMPLE, show_edge=False, pad_edge=False, collapse_padding=True)
    for column in ("draft", "", "weights", "cost", "length", "accepted", "tokens per pass", "predicted", "measured"):
        table.add_column(column, justify="left" if column in ("draft", "") else "right", overflow="fold")
    for draft in facts.best_of_kinds:
        table.add_row(*_cells(draft, facts.tokens))
    console.print(table)
    say()
    say(explanation(facts))
    for name, why in facts.left_out.items():
        say(f"[dim]no {escape(name)}: {escape(why)}[/]")
    say()
    for line in server_lines(facts):
        console.print(str(line), markup=False)


def _cells(draft: DraftFacts, tokens: int) -> list[str]:
    best, measured = draft.best, draft.measured
    speed = f"{measured.speed_up[0]:.2f} ({measured.speed_up[1]:.2f}–{measured.speed_up[2]:.2f})" if measured else ""
    return [
        draft.kind, escape(draft.description), f"+{size(draft.more_bytes)}" if draft.more_bytes else "shared",
        f"{draft.cost[0]:.2f}" if draft.cost else "–", str(best.length),
        percent(best.accepted / best.drafted, 0) if best.drafted else "–", f"{tokens / best.passes:.2f}",
        f"{best.predicted:.2f}", speed,
    ]  # fmt: skip


def explanation(facts: DraftsFacts) -> str:
    """What the figures are, in words."""
    threads = f"CPU, {facts.threads} thread{'s' * (facts.threads > 1)}"
    where = threads if facts.device == "cpu" else facts.device
    shown = [length for length in (1, 2, 4, 8) if length in facts.verifying]
    verifying = ", ".join(f"{length + 1}: {facts.verifying[length][0]:.2f}" for length in shown)
    about_counts = ""
    if facts.agreement < 1:
        about_counts = (
            f" Reading its own answers, the target finds {percent(facts.agreement, 2)} of their tokens likeliest: for the rest "
            f"two are as likely as each other in {facts.dtype}, and counts are as exact as that."
        )
    measured = [draft.measured for draft in facts.drafts if draft.measured]
    if measured and all(each.passes_as_replayed for each in measured):
        about_counts += " What was measured took exactly as many passes as replayed."
    wrong = [draft.kind for draft in facts.drafts if draft.measured and not draft.measured.same]
    if wrong:
        about_counts += f" Drafted by {', '.join(wrong)}, an answer differed from the target's own: two tokens were as likely."
    return (
        f"Target: {facts.target} ({facts.dtype}, {where}); its own answers to {facts.questions:,} questions of the dev slice, "
        f"{facts.tokens:,} tokens. Counts are exact. Costs are in passes over one token ({1000 * facts.pass_seconds[0]:,.1f} "
        f"ms); of several tokens ({verifying}). Predicted: tokens / (cost of all passes + drafted tokens × cost), the prompt "
        f"not counted; measured: whole answers by transformers' generate, with its own work between the passes.{about_counts}"
    )


class ServerLine(NamedTuple):
    """How a server drafts like that; or why none does."""

    kind: str
    server: str
    command: str

    def __str__(self) -> str:
        return f"{self.kind}, {self.server}: {self.command}"


def server_lines(facts: DraftsFacts) -> list[ServerLine]:
    """For the best draft of every kind. What a server's passes cost, it alone can tell."""
    lines = []
    for draft in facts.best_of_kinds:
        if draft.kind in NO_SERVER:
            lines.append(ServerLine(draft.kind, "no server", NO_SERVER[draft.kind]))
        else:
            lines += _lines_of(draft, facts)
    return lines


def _lines_of(draft: DraftFacts, facts: DraftsFacts) -> Sequence[ServerLine]:
    length, target = draft.best.length, facts.path
    if draft.path is None:
        config = {"method": "ngram", "num_speculative_tokens": length, "prompt_lookup_max": 2, "prompt_lookup_min": 1}
        drafting = f"--spec-type ngram-simple --draft-max {length}"
        note = " (it looks up longer n-grams, and the latest match: other counts than these)"
    else:
        config = {"method": "draft_model", "model": draft.path, "num_speculative_tokens": length}
        drafting, note = f"-md {draft.kind}.gguf --draft-max {length}", " (both by its convert_hf_to_gguf.py)"
    return [
        ServerLine(
            draft.kind, "vLLM", f"vllm serve {shlex.quote(target)} --speculative-config {shlex.quote(json.dumps(config))}"
        ),
        ServerLine(draft.kind, "llama.cpp", f"llama-server -m {facts.target}.gguf {drafting}{note}"),
    ]

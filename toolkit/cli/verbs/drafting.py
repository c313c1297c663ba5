"""`pollard generate`: what a model writes, alone or with a draft. `pollard drafts`: which draft would pay."""

import argparse
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.cli.verbs.verb import Verb, check_figures_file
from toolkit.runtime.distributed import console, say
from toolkit.runtime.errors import PollardError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from toolkit.evaluation.drafting import DraftingComparison
    from toolkit.pipeline.run_models import NamedModel

DRAFT_KINDS = ("model", "plan", "k1", "lookup")


def add_generate_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="a run directory, a checkpoint's folder, or a hub id")
    parser.add_argument("prompt", help="what the user says; with a chat template, it is put into it")
    parser.add_argument(
        "--by",
        metavar="MODEL",
        help="who writes, or drafts with `--draft model`: original, pruned, recovered, control, or a path (unless given: "
        "recovered, else pruned; with another draft the original)",
    )
    parser.add_argument(
        "--draft", nargs="?", const="model", choices=DRAFT_KINDS,
        help="write the model's own words in fewer passes of it, and measure both speeds. model (unless another is named): the "
        "original writes, and the model named by --by drafts; plan: the original as if pruned by the run's plan; k1: the writer "
        "itself with one expert per token; lookup: n-grams of the prompt and the answer",
    )  # fmt: skip
    parser.add_argument(
        "--draft-tokens", type=int, metavar="N",
        help="drafted at a time, always (unless given: as many as transformers thinks, at most 20; with lookup 10)",
    )  # fmt: skip
    parser.add_argument("--max-new-tokens", type=int, default=256)


def run_generate(arguments: argparse.Namespace) -> Any:
    from toolkit.evaluation import greedy
    from toolkit.evaluation.drafting import Draft, compare_drafting, timed_answer
    from toolkit.moe import load_model, load_tokenizer
    from toolkit.runtime.distributed import device
    from toolkit.tasks import Example, encode_prompt

    kind, length = arguments.draft, arguments.draft_tokens
    if length is not None and (length < 1 or kind is None):
        raise PollardError("--draft-tokens N: from 1 on, and only with --draft.", code="cli.draft-tokens")
    writer, drafting = _writer_and_draft(arguments)
    tokenizer = load_tokenizer(writer.path, writer.revision)
    question = Example(({"role": "user", "content": arguments.prompt},), "", "")
    prompt = encode_prompt(tokenizer, question)
    model = load_model(writer.path, writer.revision, device=device())
    settings = greedy(model, tokenizer, arguments.max_new_tokens)
    if kind is None:
        written = timed_answer(model, prompt, settings)
        text = str(tokenizer.decode(written.tokens, skip_special_tokens=True))
        console.print(text, markup=False)
        say(f"[dim]{writer.name}: {len(written.tokens):,} tokens, {written.speed:,.1f} per second, the first pass included[/]")
        return {"model": writer.name, "text": text, "tokens": len(written.tokens), "tokens_per_second": written.speed}
    with _drafting_model(kind, arguments.model, model, drafting) as draft:
        comparison = compare_drafting(model, Draft(draft, length), prompt, settings)
    text, name = str(tokenizer.decode(comparison.drafted.tokens, skip_special_tokens=True)), drafting.name if drafting else kind
    console.print(text, markup=False)
    _show(comparison, writer.name, name)
    speeds = {"alone": comparison.speed_alone, "drafted": comparison.speed_drafted}
    return {
        "model": writer.name, "draft": name, "text": text, "tokens": len(comparison.drafted.tokens), "same": comparison.same,
        "passes": comparison.drafted.passes, "proposed": comparison.drafted.drafted, "accepted": comparison.drafted.accepted,
        "tokens_per_second": {key: _range(values) for key, values in speeds.items()}, "ratio": _range(comparison.ratio),
    }  # fmt: skip


def _range(values: list[float]) -> dict[str, float]:
    return dict(zip(("median", "low", "high"), values, strict=True))


def _writer_and_draft(arguments: argparse.Namespace) -> "tuple[NamedModel, NamedModel | None]":
    """Who writes, and the checkpoint that drafts where it is one. Raises PollardError where there is no second model."""
    from toolkit.pipeline.run_models import original_and

    kind, where, named = arguments.draft, arguments.model, arguments.by
    original, by = original_and(where, named)
    if kind is None:
        return by, None
    if kind != "model":
        if kind == "plan" and named not in (None, "original"):
            raise PollardError(
                f"--draft plan: the plan is of the original's experts, so the original writes, not {named}. Leave --by out.",
                code="cli.plan-of-original",
            )
        return (by if named else original), None
    if original == by:
        raise PollardError(
            f"--draft needs a second, smaller model, and {where} has none: give it with --by, e.g. --by runs/…/pruned; or let "
            "the model draft for itself (--draft k1), or its words (--draft lookup).",
            code="cli.no-draft-model",
        )
    return original, by


@contextmanager
def _drafting_model(
    kind: str, where: str, model: "PreTrainedModel", checkpoint: "NamedModel | None"
) -> "Iterator[PreTrainedModel | None]":
    """The model that drafts; None for lookup. Raises PollardError where there is no plan, or not enough memory."""
    from toolkit.cuts import masked_in_form
    from toolkit.moe import find_blocks, override_top_k, shared_copy
    from toolkit.pipeline.drafts import load_if_it_fits, plan_of
    from toolkit.pipeline.run_models import find_run

    if kind == "lookup":
        yield None
    elif checkpoint is not None:
        yield load_if_it_fits(checkpoint._replace(dtype="auto"), f"The draft, {checkpoint.path},")
    elif kind == "k1":
        find_blocks(model)  # refuses a dense model
        with override_top_k(shared_copy(model), 1) as draft:
            yield draft
    else:
        with masked_in_form(shared_copy(model), plan_of(find_run(where))) as draft:
            yield draft


def _show(comparison: "DraftingComparison", writer: str, draft: str) -> None:
    for name, (middle, low, high) in (
        (writer, comparison.speed_alone),
        (f"{writer}, drafted by {draft}", comparison.speed_drafted),
    ):
        say(f"[dim]{name}: {middle:,.1f} tokens/s ({low:,.1f} to {high:,.1f})[/]")
    middle, low, high = comparison.ratio
    verdict = "faster" if low > 1 else "slower" if high < 1 else "neither clearly faster nor slower"
    say(f"[dim]drafting: {middle:.2f} times the speed ({low:.2f} to {high:.2f}): {verdict}[/]")
    written = comparison.drafted
    share = f"{written.accepted / written.drafted:.1%}" if written.drafted else "none"
    say(
        f"[dim]{written.accepted:,} of {written.drafted:,} drafted tokens accepted ({share}), of {len(written.tokens):,} "
        f"written, in {written.passes:,} passes[/]"
    )
    if not comparison.same:
        pairs = zip(comparison.alone.tokens, written.tokens, strict=False)
        position = next((i for i, (alone, drafted) in enumerate(pairs) if alone != drafted), None)
        say(
            f"[yellow]Alone the {writer} writes something else from token {position} on[/]: two tokens are as likely as each "
            "other within the precision of its numbers (try float32)."
        )


def add_drafts_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", help="a run directory, or its name in runs/")
    parser.add_argument(
        "--for", dest="target", default="original", choices=("original", "pruned", "refitted", "recovered"), metavar="MODEL",
        help="whose words: original, pruned, refitted or recovered (default: original)",
    )  # fmt: skip
    parser.add_argument("--questions", type=int, default=32, help="of the dev slice, which the model answers once (default: 32)")
    parser.add_argument("--save", metavar="FILE", help="also write all figures there: every draft, every length")


def run_drafts(arguments: argparse.Namespace) -> Any:
    """Nothing of the run changes but its folder drafts/, where the model's answers are kept."""
    from toolkit.pipeline.drafts import compare_drafts
    from toolkit.report.draft_table import server_lines, show_drafts
    from toolkit.runtime.files import write_text

    if arguments.questions < 1:
        raise PollardError("--questions must be at least 1.", code="cli.no-questions")
    if arguments.save:
        check_figures_file(Path(arguments.save), {"drafts", "verifying"}, "drafts")
    facts = compare_drafts(arguments.run, arguments.target, arguments.questions)
    if not arguments.json:
        show_drafts(facts)
    figures = facts.as_json() | {"servers": [line._asdict() for line in server_lines(facts)]}
    if arguments.save:
        write_text(arguments.save, json.dumps(figures, indent=1) + "\n")
    return figures


GENERATE = Verb(
    "generate",
    "what a model writes; with --draft, its own words in fewer passes, by what drafts for it, and both speeds",
    'pollard generate runs/playground "What is 17 + 25?" --draft',
    run_generate,
    add_generate_arguments,
)
DRAFTS = Verb(
    "drafts",
    "which draft would make a model write faster, and by how much: exact counts from one pass each, and measured speed",
    "pollard drafts runs/playground --for pruned --save drafts.json",
    run_drafts,
    add_drafts_arguments,
)

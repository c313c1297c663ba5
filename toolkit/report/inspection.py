"""What models and tasks are made of, in the terminal: `pollard inspect` and `pollard preview`."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich import box
from rich.markup import escape
from rich.table import Table
from rich.text import Text
from transformers import PreTrainedTokenizerBase

from toolkit.cuts import Plan, ShapeSize
from toolkit.cuts.model_summary import CutSizes, ModelSummary
from toolkit.moe import Sizes
from toolkit.report.size_table import described_cuts, size_table
from toolkit.runtime.distributed import console, say
from toolkit.runtime.files import JsonObject
from toolkit.runtime.formatting import MISSING, amount, ranges, size
from toolkit.runtime.signed_folders import read_provenance
from toolkit.tasks import Example, encode, encode_prompt, gold_of
from toolkit.tasks.token_checks import Lengths, LengthSummary

DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8",
    "I32": "int32",
    "U8": "uint8",
}
"""Number formats: safetensors' names, and torch's."""
WHAT = {"experts": "experts", "width": "channels", "layers": "layers"}
"""What there is less of after a cut, by its kind."""
COMPLETION_STYLE = "black on green"
COMPLETION_MARKS = "⟦", "⟧"  # around what counts as completion, where there are no colours


def show_model_summary(summary: ModelSummary) -> None:
    """Prints the parts of the model, and how large it would be with less of each kind."""
    groups = f", from the best {summary.groups_per_token} of {summary.groups} groups" if summary.groups > 1 else ""
    shared = f"{amount(summary.shared_parameters)} parameters, never removed" if summary.shared_parameters else "none"
    share = summary.expert_parameters / summary.parameters
    facts = {
        "family": summary.family,
        "layers": MISSING if summary.layers is None else f"{summary.layers:,}",
        "MoE blocks": f"{summary.blocks}, with {summary.experts} experts each",
        "per token": f"{summary.experts_per_token} experts{groups}",
        "width": "differs from block to block" if summary.width is None else f"{summary.width:,} channels per expert",
        "shared experts": shared,
        "parameters": f"{amount(summary.parameters)}, {amount(summary.active_parameters)} of them active per token",
        "in experts": f"{amount(summary.expert_parameters)} ({share:.0%})",
        "checkpoint": checkpoint_text(summary),
    }
    for name, value in facts.items():
        say(f"[bold]{name:<16}[/]{value}")
    say()
    table = Table(box=box.SIMPLE, show_edge=False, pad_edge=False, collapse_padding=True)
    table.add_column("fewer", no_wrap=True)
    for column in ("kept", "parameters", "active", "checkpoint", "of the original"):
        table.add_column(column, justify="right", no_wrap=True)
    for cut in summary.cuts.values():
        for keep, left in cut.sizes.items():
            part = f"{left.parameters / summary.parameters:.0%}"
            bytes_left = _bytes_left(summary, cut, keep)
            name = WHAT[cut.kind] if keep == next(iter(cut.sizes)) else ""
            table.add_row(name, f"{keep:,}", amount(left.parameters), amount(left.active_parameters), bytes_left, part)
    console.print(table)
    for cut in summary.cuts.values():
        if cut.refusal:
            say(f"{WHAT[cut.kind]}: [yellow]not possible[/]. {escape(cut.refusal)}.")
    if summary.cuts["layers"].sizes:
        say("[dim]layers: without the last ones; where layers differ, others leave another size[/]")


def _bytes_left(summary: ModelSummary, cut: CutSizes, keep: int) -> str:
    """What would be written; unknown of files that cannot be read off, and of a quantized model without files."""
    if summary.stored or summary.quantization:
        return size(cut.stored.get(keep))
    return size(cut.sizes[keep].parameters * summary.bytes_per_parameter)


def show_plan(plan: Plan, sizes: Mapping[str, ShapeSize]) -> None:
    """Prints what a plan keeps, kind by kind, and the size of the model after each cut."""
    say(f"[bold]{'plan for':<16}[/]{escape(plan.model)}")
    for kind, line in described_cuts(plan).items():
        say(f"[bold]{kind:<16}[/]{escape(line)}")
    say()
    console.print(size_table(sizes))


def plan_of_checkpoint(path: str) -> JsonObject | None:
    """What a checkpoint that Pollard pruned says of its plan; None of any other."""
    plan = (read_provenance(Path(path)) or {}).get("plan")
    return plan if isinstance(plan, dict) else None


def show_pruned_by(plan: JsonObject | None) -> None:
    """Prints what a pruned checkpoint was cut of; nothing about any other."""
    if plan is None:
        return
    cuts = plan.get("cuts") or [{"kind": "experts", "criterion": plan.get("criterion"), "keep": plan.get("keep")}]
    say(f"[bold]{'pruned from':<16}[/]{escape(str(plan.get('model')))}")
    for cut in cuts:
        kept = cut.get("keep", len(cut.get("kept", ())))
        of = cut.get("experts") or cut.get("layers")
        which = f": {ranges(cut['kept'])}" if "kept" in cut else ""
        text = f"{kept:,}{f' of {of:,}' if of else ''} {WHAT[cut['kind']]} stay, by {cut['criterion']}{which}"
        say(f"[bold]{'':<16}[/]{escape(text)}")
    if plan.get("form") == "dense":
        say(f"[bold]{'':<16}[/]written as a dense model: every token passes all experts that stay")


def is_dense_form(path: str) -> bool:
    """Whether a checkpoint is one that Pollard wrote in the dense form, or fine-tuned from one."""
    facts = read_provenance(Path(path)) or {}
    plan = facts.get("plan")
    if isinstance(plan, dict):
        return plan.get("form") == "dense"
    source = facts.get("source")
    return facts.get("what") != "pruned checkpoint" and isinstance(source, str) and source != path and is_dense_form(source)


def show_dense_model(sizes: Sizes, family: str, stored: int) -> None:
    """Prints what there is to say of a model without experts."""
    for name, value in {
        "family": f"{family}, dense: no experts to prune",
        "parameters": f"{amount(sizes.parameters)}, all of them active per token",
        "checkpoint": size(stored),
    }.items():
        say(f"[bold]{name:<16}[/]{value}")


def checkpoint_text(summary: ModelSummary) -> str:
    """How large the files are, and in which numbers: as their headers say, or as the configuration makes them."""
    plain = str(summary.dtype).removeprefix("torch.")
    if summary.stored is None:
        if summary.quantization:
            return f"{summary.quantization}, computed in {plain}; how large is said by its files, which are not here"
        return f"{size(summary.parameters * summary.bytes_per_parameter)} in {plain}"
    shares = {DTYPES.get(name, name): count / summary.stored.bytes for name, count in summary.stored.dtypes.items()}
    parts = ", ".join(f"{name} {share:.0%}" for name, share in shares.items() if round(share, 2) > 0)
    formats = next(iter(shares)) if len(shares) == 1 or next(iter(shares.values())) > 0.995 else parts
    return f"{size(summary.stored.bytes)} in {f'{summary.quantization} ({formats})' if summary.quantization else formats}"


def show_examples(tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example]) -> None:
    """Prints each example as its tokens, decoded: with whatever a template, a shot or the tokenizer adds."""
    coloured = console.color_system is not None and not console.no_color
    for number, example in enumerate(examples, start=1):
        say(f"[bold]example {number}[/] [dim]{len(encode_prompt(tokenizer, example)):,} prompt tokens[/]")
        console.print(rendered_example(tokenizer, example, coloured))
        if example.cloze:
            right = f"right: {example.choices[example.right]!r}"
            prompt = str(tokenizer.decode(encode_prompt(tokenizer, example.as_cloze())))
            console.print(
                Text(f"and for the likelihood of each of {len(example.choices)} choices ({right}):\n{prompt}", style="dim")
            )
        say(f"[dim]judged by[/] {Text(repr(gold_of(tokenizer, example))).markup}\n")


def rendered_example(tokenizer: PreTrainedTokenizerBase, example: Example, coloured: bool) -> Text:
    """Prompt and completion with all special tokens; what is trained on as completion is coloured, or stands between marks."""
    encoded = encode(tokenizer, example)
    prompt, completion = encoded.input_ids[: encoded.prompt_length], encoded.input_ids[encoded.prompt_length :]
    before, after = ("", "") if coloured else COMPLETION_MARKS
    return Text.assemble(
        str(tokenizer.decode(prompt)), (f"{before}{tokenizer.decode(completion)}{after}", COMPLETION_STYLE if coloured else "")
    )


def example_facts(tokenizer: PreTrainedTokenizerBase, example: Example) -> JsonObject:
    """An example's tokens, decoded, and what its answer is judged by."""
    encoded = encode(tokenizer, example)
    prompt, completion = encoded.input_ids[: encoded.prompt_length], encoded.input_ids[encoded.prompt_length :]
    texts = {"prompt": str(tokenizer.decode(prompt)), "completion": str(tokenizer.decode(completion))}
    return {**texts, "prompt_tokens": len(prompt), "completion_tokens": len(completion), "gold": gold_of(tokenizer, example)}


def length_facts(lengths: Lengths, limits: Mapping[str, int]) -> JsonObject:
    """Of one split: how many examples, the spread of their tokens, and how many are longer than each limit."""
    longer = {name: lengths.longer_than(limit) for name, limit in limits.items()}
    return {"n": len(lengths.whole), "prompt": lengths.prompt, "completion": lengths.completion, "longer_than": longer}


def show_lengths(splits: Mapping[str, Lengths], limits: Mapping[str, int]) -> None:
    """One row per split; `limits` are what an example may be too long for, with their numbers: keys of the recipe that leave
    longer ones out, and the model's context."""
    by_number: dict[int, list[str]] = {}
    for name, limit in limits.items():
        by_number.setdefault(limit, []).append(name)
    table = Table(box=box.SIMPLE, show_edge=False, pad_edge=False)
    table.add_column("split", no_wrap=True)
    for column in ("n", "prompt tokens", "completion tokens", *(f"> {limit:,}" for limit in by_number)):
        table.add_column(column, justify="right", no_wrap=True)
    for split, lengths in splits.items():
        over = (f"{lengths.longer_than(limit):,}" for limit in by_number)
        table.add_row(split, f"{len(lengths.whole):,}", _spread(lengths.prompt), _spread(lengths.completion), *over)
    console.print(table)
    say("[dim]tokens: least / median / 95 % / most[/]")
    for limit, names in by_number.items():
        say(f"[dim]> {limit:,}: prompt and completion longer than {' and '.join(names)}[/]")


def _spread(spread: LengthSummary | None) -> str:
    return " / ".join(f"{value:,}" for value in spread) if spread else "-"

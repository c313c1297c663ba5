"""The sentences of the report: computed from its facts, each with its numbers, and claiming no more than they show."""

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

from toolkit.recipe.roles import Role
from toolkit.recipe.schema import Recipe
from toolkit.report.cautions import warnings
from toolkit.report.cut_facts import CutFacts, WidthFacts
from toolkit.report.facts import RunFacts
from toolkit.report.first_task import FirstTaskFacts
from toolkit.report.paired import PairedComparison
from toolkit.runtime.formatting import amount, p_value, percent, points, ranges

SHARES = {Fraction(1, 2): "half", Fraction(1, 4): "a quarter", Fraction(3, 4): "three quarters"}


def with_sentences(
    facts: RunFacts, recipe: Recipe | None, bad_lines: Mapping[str, int], further_warnings: Sequence[str] = ()
) -> RunFacts:
    """The facts with headline, summary, comparisons and warnings (`recipe`, `bad_lines`: see there); `further_warnings` come
    last."""
    sentences = {
        "headline": headline(facts),
        "summary": summary(facts),
        "comparisons": comparisons(facts),
        "warnings": (*warnings(facts, recipe, bad_lines), *further_warnings),
    }
    return facts.model_copy(update=sentences)


def headline(facts: RunFacts) -> str:
    """The answer in one line: what was cut, how much smaller that is, and what it did to the score."""
    original, end = facts.models.get(Role.ORIGINAL), facts.evaluated_result
    cut = _cut(facts, end or Role.PRUNED)
    if end and original:
        after = facts.evaluated[end]
        alone = {Role.PRUNED: " without fine-tuning", Role.REFITTED: " by refit, without fine-tuning"}.get(end, "")
        return f"{cut}: {percent(original.score)} -> {percent(after.score)}{alone}{_in_brackets(facts, end)}."
    if not facts.evaluated:
        return f"{cut}; no model has been evaluated."
    return f"{cut}: " + ", ".join(f"{percent(result.score)} {role}" for role, result in facts.evaluated.items()) + "."


def _cut(facts: RunFacts, role: Role) -> str:
    """ "Half the experts, half as wide, 9 of 12 layers, 5.1× smaller"."""
    cut, others = facts.pruning, facts.cuts
    if not cut:
        return "No experts chosen yet"
    what = []
    if cut.keep < cut.experts or others is None:
        share = SHARES.get(Fraction(cut.keep, cut.experts))
        of = " of" if share in ("a quarter", "three quarters") else ""
        what.append(f"{share}{of} the experts".capitalize() if share else f"{cut.keep} of {cut.experts} experts")
    if others and others.width:
        what.append(_width(others.width, first=not what))
    if others and others.layers:
        what.append(f"{len(others.layers.kept)} of {others.layers.layers} layers")
    ratio = facts.ratios.get(role, {}).get("parameters")
    return ", ".join([*what, *([f"{1 / ratio:.1f}× smaller"] if ratio else [])])


def _width(width: WidthFacts, first: bool) -> str:
    share = SHARES.get(Fraction(width.keep, width.width)) if width.width else None
    if share:
        return f"{'experts ' * first}{share} as wide".capitalize() if first else f"{share} as wide"
    return f"{width.keep}{f' of {width.width}' if width.width else ''} channels per expert"


def _in_brackets(facts: RunFacts, role: Role) -> str:
    pair = facts.pair_of(role, Role.ORIGINAL)
    return f" (difference {'' if pair.significant else 'not '}significant)" if pair else ""


def summary(facts: RunFacts) -> str:
    """What the headline leaves out: the budget in numbers, the other models, and on which questions all this was measured."""
    cut, sentences = facts.pruning, []
    if cut:
        rounds = f", in rounds ({', '.join(map(str, cut.schedule))})" if cut.schedule else ""
        kept = f"{cut.keep} of {cut.experts} experts kept" if cut.keep < cut.experts or not facts.cuts else "All experts kept"
        if cut.onto:
            kept = f"{cut.keep} of {cut.experts} experts, {cut.held} of them as {cut.onto} has them and the others added,"
        sentences.append(f"{kept} in each of {cut.blocks} blocks{rounds}.")
        if cut.dense:
            sentences.append(
                "Written as a dense model: every token passes all of them, as one feed-forward layer, whose output was off by "
                f"{percent(cut.dense.error)} of the original block's before any training (squared)."
            )
    if facts.fit:
        sentences.append(facts.fit.sentence)
    if facts.cuts:
        sentences += _about_cuts(facts.cuts)
    if facts.refit:
        sentences.append(facts.refit.sentence)
    evaluated = facts.evaluated.values()
    if not evaluated:
        return " ".join(sentences)
    each = [f"{role} {percent(result.score) if result else 'not evaluated'}" for role, result in facts.models.items()]
    sizes = sorted({result.n for result in evaluated})
    n = f"{sizes[0]:,}" if len(sizes) == 1 else f"{sizes[0]:,} to {sizes[-1]:,}"
    splits = " and ".join(sorted({str(result.split) for result in evaluated}))
    sentences.append(f"On {n} {splits} questions of {facts.task}: {', '.join(each)}.")
    return " ".join(sentences)


def _about_cuts(cuts: CutFacts) -> list[str]:
    """What stays of the width and of the layers, and how many parameters each token still meets."""
    sentences = []
    if width := cuts.width:
        of = f" of its {width.width:,}" if width.width else ""
        mlps = f", and {len(width.mlps)} MLPs of the same setting as much narrower" if width.mlps else ""
        sentences.append(f"Each expert keeps {width.keep:,}{of} channels{mlps}.")
    if layers := cuts.layers:
        sentences.append(f"{len(layers.kept)} of {layers.layers} layers stay ({ranges(layers.kept)}).")
    if cuts.sizes:
        before, *_, after = cuts.sizes.values()
        active = f"{amount(before.active_parameters)} -> {amount(after.active_parameters)}"
        sentences.append(f"Active per token: {active} parameters.")
    return sentences


def comparisons(facts: RunFacts) -> tuple[str, ...]:
    """Whether the evaluation tells the result from the original, and from the control, as far as it can."""
    end = facts.evaluated_result or Role.PRUNED
    pairs = [facts.pair_of(end, Role.ORIGINAL), facts.pair_of(end, Role.CONTROL)]
    found = [verdict(pair, f"the {pair.first} model", f"the {pair.second}") for pair in pairs if pair]
    return (*found, *_about_first_task(facts.first_task))


def _about_first_task(first: FirstTaskFacts | None) -> list[str]:
    if not first or not first.before or not first.after or not first.pair:
        return []
    scores = f"{percent(first.before.score)} -> {percent(first.after.score)}"
    compared = verdict(first.pair, "the grown model", "the one before")
    return [f"The first task, {first.task} ({first.onto}): {scores}. {compared} {first.sentence}".rstrip()]


def verdict(pair: PairedComparison[Any], first: str, second: str) -> str:
    """What a paired comparison of the models called `first` and `second` shows, and what it does not."""
    sentence = (
        f"Question by question, {first} alone is right on {pair.only_first:,}, {second} alone on {pair.only_second:,} of "
        f"{pair.n:,}: {points(pair.difference)} points (95 % interval {' to '.join(map(points, pair.interval))}), "
    )
    p = f"McNemar {p_value(pair.p)}"
    if pair.significant:
        return f"{sentence}a significant difference ({p}): more than the choice of questions explains.{_credit(pair)}"
    left_open = _left_open(pair)
    return f"{sentence}difference not significant ({p}). That does not prove them equally good: {left_open}{_credit(pair)}"


def _credit(pair: PairedComparison[Any]) -> str:
    if pair.credit_difference is None or pair.credit_interval is None:
        return ""
    ends = " to ".join(map(points, pair.credit_interval))
    return f" In mean credit: {points(pair.credit_difference)} points (95 % interval {ends})."


def _left_open(pair: PairedComparison[Any]) -> str:
    low, _ = pair.interval
    questions = f"{pair.n:,} questions"
    if low < 0:
        return f"{questions} cannot rule out a loss of {points(-low).lstrip('+')} points."
    return f"{questions} are too few to tell."

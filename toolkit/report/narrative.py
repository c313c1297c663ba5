"""The sentences of the report: computed from its facts, each with its numbers, and claiming no more than they show."""

from fractions import Fraction
from typing import Any

from toolkit.runtime.formatting import p_value, percent, points

Facts = dict[str, Any]
SHARES = {
    Fraction(1, 2): "Half the experts",
    Fraction(1, 4): "A quarter of the experts",
    Fraction(3, 4): "Three quarters of the experts",
}


def headline(facts: Facts) -> str:
    """The answer in one line: what was cut, how much smaller that is, and what it did to the score."""
    original, ends = facts["models"].get("original"), ("recovered", "pruned")
    end = next((role for role in ends if facts["models"].get(role)), None)
    cut = _cut(facts, end or "pruned")
    if end and original:
        after = facts["models"][end]
        alone = " without fine-tuning" * (end == "pruned")
        return f"{cut}: {percent(original['score'])} -> {percent(after['score'])}{alone}{_in_brackets(facts, end)}."
    known = {role: found for role, found in facts["models"].items() if found}
    if not known:
        return f"{cut}; no model has been evaluated."
    return f"{cut}: " + ", ".join(f"{percent(found['score'])} {role}" for role, found in known.items()) + "."


def _cut(facts: Facts, role: str) -> str:
    cut = facts["pruning"]
    if not cut:
        return "No experts chosen yet"
    what = SHARES.get(Fraction(cut["keep"], cut["experts"]), f"{cut['keep']} of {cut['experts']} experts")
    ratio = facts["ratios"].get(role, {}).get("parameters")
    return f"{what}, {1 / ratio:.1f}× smaller" if ratio else what


def _in_brackets(facts: Facts, role: str) -> str:
    found = pair_of(facts, role, "original")
    return f" (difference {'' if found['significant'] else 'not '}significant)" if found else ""


def pair_of(facts: Facts, first: str, second: str) -> dict[str, Any] | None:
    """The comparison of two of the models; None where they did not answer the same questions."""
    return next((found for found in facts["pairs"] if (found["first"], found["second"]) == (first, second)), None)


def summary(facts: Facts) -> str:
    """What the headline leaves out: the budget in numbers, the other models, and on which questions all this was measured."""
    cut, said = facts["pruning"], []
    if cut:
        rounds = f", in rounds ({', '.join(map(str, cut['schedule']))})" if cut["schedule"] else ""
        said.append(f"{cut['keep']} of {cut['experts']} experts kept in each of {cut['blocks']} blocks{rounds}.")
    evaluated = {role: found for role, found in facts["models"].items() if found}
    if not evaluated:
        return " ".join(said)
    each = [f"{role} {percent(found['score']) if found else 'not evaluated'}" for role, found in facts["models"].items()]
    sizes = sorted({found["n"] for found in evaluated.values()})
    n = f"{sizes[0]:,}" if len(sizes) == 1 else f"{sizes[0]:,} to {sizes[-1]:,}"
    splits = " and ".join(sorted({str(found["split"]) for found in evaluated.values()}))
    said.append(f"On {n} {splits} questions of {facts['task']}: {', '.join(each)}.")
    return " ".join(said)


def comparisons(facts: Facts) -> list[str]:
    """Whether the evaluation tells the result from the original, and from the control, as far as it can."""
    end = "recovered" if facts["models"].get("recovered") else "pruned"
    found = [pair_of(facts, end, "original"), pair_of(facts, end, "control")]
    return [verdict(one, f"the {one['first']} model", f"the {one['second']}") for one in found if one]


def verdict(found: Facts, first: str, second: str) -> str:
    """What a paired comparison shows, and what it does not."""
    said = (
        f"Question by question, {first} alone is right on {found['only_first']:,}, {second} alone on {found['only_second']:,} of "
        f"{found['n']:,}: {points(found['difference'])} points (95 % interval {_range(found)}), "
    )
    p = f"McNemar {p_value(found['p'])}"
    if found["significant"]:
        return f"{said}a significant difference ({p}): more than the choice of questions explains."
    return f"{said}difference not significant ({p}). That does not prove them equally good: {_left_open(found)}"


def _range(found: Facts) -> str:
    return " to ".join(points(end) for end in found["interval"])


def _left_open(found: Facts) -> str:
    low = found["interval"][0]
    questions = f"{found['n']:,} questions"
    if low < 0:
        return f"{questions} cannot rule out a loss of {points(-low).lstrip('+')} points."
    return f"{questions} are too few to tell."

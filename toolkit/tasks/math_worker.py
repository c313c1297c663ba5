"""A process that compares formulas, one a line: what hangs or dies here hangs or kills nobody else.

It is run as a script and imports nothing of this package. SymPy may compute 9^(9^9) until memory ends, so memory has a limit;
time is the parent's to watch.

    {"prediction": "so \\boxed{0.5}", "boxed": "0.5", "named": null, "gold": "\\frac12"}  ->  {"strict": true, "flexible": true}

math-verify parses and compares. Three things it is not trusted with: a formula that cannot be parsed is compared as text alone,
not by a number in it; numbers that it takes for equal are compared again, relative to their size (it rounds differences to
zero); and mixed numbers in a line (2 2/3), which it reads as 2. Roots of quotients are equal where both are real.
"""

import itertools
import json
import logging
import re
import resource
import sys
from typing import Any, TypedDict

BYTES = 4 * 2**30
DIGITS = 40
EXACT = 1e-25  # relative; of numbers without decimals
DECIMALS = 1.5e-6  # 0.333333 is a third
SAMPLES = (0.7, 1.9)  # by which roots are compared, with either sign

_LETTER = re.compile(r"\\(?:mathrm|text|textrm|rm|operatorname)\s*\{\s*([ei])\s*\}")
_MIXED = re.compile(r"(?<![\d.,/^_}\w])(\d{1,9})(?:\s|\\[ ,;]|~)+(\d{1,9})\s?/\s?(\d{1,9})(?![\d/.]\d|\d)")

_PROSE = re.compile(r"(?<![\\A-Za-z])(?:[A-Za-z]{3,}|(?:of|it|in|is|so|to|at|as|an|if|we|by|on|no|be|do|up|us|am|pm|[ap]\.m)\b)")
_REPEATING = re.compile(r"(?<![\d.])(\d{1,20})\.(\d{0,20})\\overline\s*\{?(\d{1,20})\}?")


def prepared(text: str) -> str:
    """With Euler's number, mixed numbers and repeating decimals as math-verify reads them, and no full stop in a formula."""
    text = re.sub(r"[.,;]\s*(?=\$|\\[\])])", "", text)
    return _REPEATING.sub(_as_fraction, _MIXED.sub(_as_sum, _LETTER.sub(r"{\1}", text)))


def _as_fraction(found: re.Match[str]) -> str:
    whole, once, again = found.groups()
    return f"\\frac{{{int(whole + once + again) - int(whole + once)}}}{{{10 ** len(once) * (10 ** len(again) - 1)}}}"


def _as_sum(found: re.Match[str]) -> str:
    return f"({found[1]}+{found[2]}/{found[3]})" if int(found[2]) < int(found[3]) else found[0]


class Comparison(TypedDict):
    """What is asked, one JSON object a line."""

    prediction: str
    boxed: str | None  # the formula in the format of the gold answer
    prose: bool  # `boxed` came from no box, and may be a sentence
    named: str | None  # what the prediction itself names as its answer
    gold: str


class Reply(TypedDict, total=False):
    """`ready` or `fatal` once at the beginning; then the two verdicts, or an `error`, for each line."""

    ready: bool
    fatal: str
    strict: bool
    flexible: bool
    error: str


class FormulaComparer:
    """Whether formulas mean the same. Raises ImportError without math-verify."""

    def __init__(self) -> None:
        import sympy
        from math_verify import LatexExtractionConfig, parse, verify

        self._sympy, self._parse, self._verify = sympy, parse, verify
        self._latex = [LatexExtractionConfig()]

    def formula(self, text: str) -> list[Any]:
        """A formula as a whole; nothing where it cannot be parsed."""
        how = {"extraction_config": self._latex, "extraction_mode": "first_match", "fallback_mode": "no_fallback"}
        return list(self._parse(f"${prepared(text)}$", parsing_timeout=None, **how))

    def formula_within(self, text: str) -> list[Any]:
        """The likeliest formula in a text; nothing where that one cannot be parsed."""
        how = {"extraction_mode": "first_match", "fallback_mode": "no_fallback"}
        return list(self._parse(prepared(text), parsing_timeout=None, **how))

    def same(self, gold: list[Any], found: list[Any]) -> bool:
        if not gold or not found:
            return False
        if self._verify(gold, found, timeout_seconds=None):
            return not self._differ(gold[0], found[0])
        return self._same_where_real(gold[0], found[0])

    def _differ(self, gold: Any, found: Any) -> bool:
        """Whether numbers, alone or in pairs, sets and matrices, are not equal relative to their size."""
        sympy = self._sympy
        if isinstance(gold, sympy.MatrixBase) and isinstance(found, sympy.MatrixBase):
            return any(map(self._differ, gold.flat(), found.flat()))
        if isinstance(gold, sympy.FiniteSet) and isinstance(found, sympy.FiniteSet):
            return not all(any(not self._differ(one, other) for other in found.args) for one in gold.args)
        if isinstance(gold, (sympy.Tuple, sympy.Interval)) and type(gold) is type(found):
            return any(map(self._differ, gold.args, found.args))
        if isinstance(found, sympy.Eq) and not isinstance(gold, sympy.Eq):
            return self._differ(gold, found.rhs)
        if isinstance(gold, sympy.Eq):
            return self._differ(gold.rhs, found.rhs if isinstance(found, sympy.Eq) else found)
        if isinstance(gold, sympy.core.relational.Relational):
            return type(gold) is type(found) and self._differ(gold.lhs - gold.rhs, found.lhs - found.rhs)
        if isinstance(gold, sympy.Expr) and isinstance(found, sympy.Expr) and (gold.free_symbols or found.free_symbols):
            apart = sympy.expand(gold.doit() - found.doit())
            return bool(apart.is_number and not apart.has(sympy.Float) and sympy.simplify(apart) != 0)
        pairs = list(itertools.product(self._values(gold), self._values(found)))
        return bool(pairs) and all(self._apart(*pair) for pair in pairs)

    def _values(self, expression: Any) -> list[Any]:
        """The number that an expression is; of a percentage also the number before the sign. None for anything else."""
        sympy = self._sympy
        if not isinstance(expression, sympy.Expr) or expression.free_symbols or not expression.is_number:
            return []
        percent = isinstance(expression, sympy.Mul) and expression.args[-1] == sympy.UnevaluatedExpr(sympy.Rational(1, 100))
        return [expression, expression.args[0]] if percent else [expression]

    def _apart(self, one: Any, other: Any) -> bool:
        one, other = one.doit(), other.doit()
        if one == other:
            return False
        values = [value.evalf(DIGITS) for value in (one, other)]
        if not all(value.is_Number or value.is_number for value in values) or not all(value.is_finite for value in values):
            return False
        close = DECIMALS if one.has(self._sympy.Float) or other.has(self._sympy.Float) else EXACT
        if abs(values[0] - values[1]) <= close * max(map(abs, values)):
            return False
        return self._sympy.simplify(one - other) != 0

    def _same_where_real(self, gold: Any, found: Any) -> bool:
        """Whether two formulas with roots are equal for positive variables, and for others wherever both are real."""
        sympy = self._sympy
        if not all(isinstance(side, sympy.Expr) and side.has(sympy.Pow) and not side.has(sympy.Abs) for side in (gold, found)):
            return False
        symbols = sorted(gold.free_symbols, key=str)
        if not symbols or gold.free_symbols != found.free_symbols or len(symbols) > 4:
            return False
        positive = {symbol: sympy.Symbol(f"positive{i}", positive=True) for i, symbol in enumerate(symbols)}
        if sympy.simplify(gold.doit().xreplace(positive) - found.doit().xreplace(positive)) != 0:
            return False
        for values in itertools.product([sign * value for value in SAMPLES for sign in (1, -1)], repeat=len(symbols)):
            at = dict(zip(symbols, values, strict=True))
            roots = [root.subs(at).evalf(DIGITS) for root in (gold.doit() + found.doit()).atoms(sympy.Pow)]
            one, other = (side.doit().subs(at).evalf(DIGITS) for side in (gold, found))
            if all(value.is_real for value in (*roots, one, other)) and abs(one - other) > DECIMALS * max(abs(one), abs(other)):
                return False
        return True


def is_formula(text: str) -> bool:
    """No prose: no word of three letters or more, apart from LaTeX commands, and none of the short ones."""
    bare = re.sub(r"\\(?:text|mathrm|begin|end)\s*\{[^}]*\}|\\\$", "", text)
    return "$" not in bare and not _PROSE.search(bare)


def judge(compare: FormulaComparer, comparison: Comparison) -> Reply:
    gold, answer = compare.formula(comparison["gold"]), comparison["boxed"]
    if answer is not None:
        prose = comparison["prose"] and not is_formula(answer)
        if compare.same(gold, compare.formula(answer)) or (prose and compare.same(gold, compare.formula_within(answer))):
            return {"strict": True, "flexible": True}
    named = (comparison["named"] or "").strip(" .,;*")
    if named and is_formula(named):
        return {"strict": False, "flexible": compare.same(gold, compare.formula(named))}
    texts = [text for text in (comparison["named"], comparison["prediction"]) if text]
    return {"strict": False, "flexible": any(compare.same(gold, compare.formula_within(text)) for text in texts)}


def main() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES))
    logging.disable(logging.CRITICAL)
    replies, sys.stdout = sys.stdout, sys.stderr  # whatever a library prints is no reply
    try:
        compare = FormulaComparer()
    except ImportError as error:
        print(json.dumps({"fatal": str(error)}), file=replies, flush=True)
        return
    print(json.dumps({"ready": True}), file=replies, flush=True)
    for line in sys.stdin:
        try:
            reply = judge(compare, json.loads(line))
        except Exception as error:
            reply = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(reply), file=replies, flush=True)


if __name__ == "__main__":
    main()

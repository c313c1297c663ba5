import datetime
import decimal
import json
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import raises

from toolkit.tasks.templates import column, fill_template, text_of


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("as it is ", "as it is "),
        (True, "true"),
        (np.False_, "false"),
        (72, "72"),
        (np.int64(72), "72"),
        (3.0, "3.0"),
        (0.1, "0.1"),
        (1e-05, "0.00001"),
        (1e16, "10000000000000000"),
        (-2.5e-7, "-0.00000025"),
        (1.7976931348623157e308, "17976931348623157" + "0" * 292),
        (np.float32(0.1), "0.1"),
        (np.float64(1e-9), "0.000000001"),
        (decimal.Decimal("1.50"), "1.50"),
        (decimal.Decimal("1E+3"), "1000"),
        (["x", "y"], '["x", "y"]'),
        (("é", 1e-05), '["é", 0.00001]'),
        (np.array([[1, 2], [3, 4]]), "[[1, 2], [3, 4]]"),
        ({"urgent": True, "due": None, "n": [1e16]}, '{"urgent": true, "due": null, "n": [10000000000000000]}'),
        ({"on": datetime.date(2024, 2, 29)}, '{"on": "2024-02-29"}'),
        ({1: 'a "quote"'}, '{"1": "a \\"quote\\""}'),
        (datetime.datetime(2024, 2, 29, 12, 30), "2024-02-29T12:30:00"),
        (pd.Timestamp("2024-02-29"), "2024-02-29T00:00:00"),
        (datetime.time(12, 30), "12:30:00"),
    ],
)  # fmt: skip
def test_a_value_becomes_the_text_that_data_have_for_it(value: Any, text: str) -> None:
    assert text_of(value) == text == fill_template("{x}", {"x": value}, "here")


@pytest.mark.parametrize("value", [0.1, 1e-05, 1e16, 123456789.125, 5e-324, -0.0, 2.5e22])
def test_the_text_of_a_number_reads_back_as_the_same_number(value: float) -> None:
    assert float(text_of(value)) == value and "e" not in text_of(value)
    assert float(json.loads(text_of([value]))[0]) == value


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (None, "is null"),
        (float("nan"), "is null (NaN)"),
        (np.float32("nan"), "is null (NaN)"),
        (pd.NaT, "is null (NaN)"),
        (pd.NA, "is null (NaN)"),
        (float("inf"), "is infinite"),
        (-np.inf, "is infinite"),
        (["a", float("nan")], "is null (NaN)"),
        ("cut \ud83d", "holds half a surrogate pair"),
        ({"a": ["cut \ud83d"]}, "holds half a surrogate pair"),
        ({"cut \ud83d": 1}, "holds half a surrogate pair"),
        ("a\0b", "holds the character NUL"),
        (b"bytes", "is of the type bytes, which is no text"),
        (object(), "is of the type object, which is no text"),
    ],
)
def test_what_has_no_text_is_refused_by_name(value: Any, why: str) -> None:
    code = "data.null" if why.startswith("is null") and not isinstance(value, list) else "data.no-text"
    with raises(code, "a.jsonl, line 3: ", "`x`", why) as caught:
        fill_template("{x}", {"x": value}, "a.jsonl, line 3")
    str(caught.value).encode()


@pytest.mark.parametrize(("template", "at"), [("{x[y]}", "x[y]"), ("{x[y]!s:>9}", "x[y]"), ("{x[z][1]}", "x[z][1]")])
def test_nothing_inside_a_column_is_nothing(template: str, at: str) -> None:
    with raises("data.no-text", f"`{at}`", "is null"):
        fill_template(template, {"x": {"y": None, "z": [1, None]}}, "here")


@pytest.mark.parametrize(
    ("template", "value", "text"),
    [
        ("{x:.2f}", 3.14159, "3.14"),
        ("{x:.2f}", "3.14159", "3.14"),  # as a CSV file has it
        ("{x:03d}", "7", "007"),
        ("{x:,}", 1234567, "1,234,567"),
        ("{x:>6}", True, "  true"),
        ("{x:>8}", ["a"], '   ["a"]'),
        ("{x!s:.4}", 1e-05, "0.00"),
        ("{x:%Y}", datetime.date(2024, 2, 29), "2024"),
        ("{x!r}", "a", "'a'"),
        ("{x[0]:.1f}", [2.55], "2.5"),
        ("{{x}}", 1, "{x}"),
    ],
)
def test_formats_work_as_in_python(template: str, value: Any, text: str) -> None:
    assert fill_template(template, {"x": value}, "here") == text


def test_a_column_may_have_a_dot_or_a_space_in_its_name() -> None:
    assert fill_template("{meta.answer} {my field}", {"meta.answer": 7, "my field": True}, "here") == "7 true"


def test_a_column_whose_name_is_no_text_can_be_told() -> None:
    with raises("data.no-field") as caught:
        column("x", {"cut \ud83d": 1}, "here")
    assert str(caught.value).encode()


@pytest.mark.parametrize(
    ("template", "columns", "code", "named"),
    [
        ("{q[0]}", {"q": "hello"}, "data.no-part", "`q` is a text"),
        ("{q[v][0]}", {"q": {"v": "hello"}}, "data.no-part", "`q[v]` is a text"),
        ("{q[v][0]}", {"q": {"v": None}}, "data.no-part", "`q[v]` is null"),
        ("{q[v]}", {"q": True}, "data.no-part", "the type bool"),
        ("{q.__class__}", {"q": "x"}, "data.no-field", "`q[__class__]`"),
        ("{q.__doc__}", {"q": 1}, "data.no-field", "`q[__doc__]`"),
        ("{q.real}", {"q": 1}, "data.no-field", "`q[real]`"),
        ("{q.k}", {"q": {"k": "v"}}, "data.no-field", "`q[k]`"),
        ("{answer}", {"q": "x", " answer": "y"}, "data.no-field", "Did you mean ` answer`?"),
        ("{}", {"q": "x"}, "task.template", "'{}'"),
        ("{0}", {"q": "x"}, "task.template", "'{0}'"),
        ("{q[0}", {"q": ["x"]}, "task.template", "'{q[0}'"),
        ("{q[1]}", {"q": ["x"]}, "task.template", "IndexError"),
        ("{q[x]}", {"q": {"y": 1}}, "task.template", "KeyError: 'x'"),
    ],
)
def test_only_columns_and_parts_of_lists_and_objects_can_be_named(
    template: str, columns: dict[str, Any], code: str, named: str
) -> None:
    with raises(code, "here: ", named):
        fill_template(template, columns, "here")


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{x[a][1]}", "n"),
        ("{x[0]}", "zero"),
        ("{x[a][-1]}", "n"),
        ("{0}", "named 0"),
        ("{x[a b]}", "spaced"),
        ("{y.z[0]}", "dot"),
    ],
)
def test_parts_of_columns_are_found_by_key_and_number(template: str, text: str) -> None:
    columns = {"x": {"a": ["m", "n"], "0": "zero", "a b": "spaced"}, "0": "named 0", "y.z": ["dot"]}
    assert fill_template(template, columns, "here") == text

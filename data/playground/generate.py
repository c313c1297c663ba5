"""Six small text tasks that need different knowledge, drawn from one seed.

    {"question": "Mia has 6 boxes with 4 pens each and gives away 9 pens. How many pens are left?",
     "answer": "6 * 4 = 24. 24 - 9 = 15. #### 15"}

Every answer is worked out step by step and ends in `#### result`, as GSM8K's do. An example's *key* is what makes
it that example (template and numbers; names and things are decoration). The key's hash decides between train and
test, so no number combination of a template is ever in both, however many examples are drawn.

    python data/playground/generate.py        # writes data/playground/<task>/{train,test}.jsonl
"""

import hashlib
import json
import random
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent
SEED = 0
SIZES = {"train": 8000, "test": 2000}
SMALL_SIZES = {"train": 3000, "test": 500}
TEST_SHARE = 10  # one key in ten belongs to the test set


class Example(NamedTuple):
    key: tuple  # what must not be shared between train and test
    question: str
    answer: str


NAMES = "Mia Tom Ava Ben Lea Max Zoe Sam Eva Leo Ida Jon Nora Paul Rosa Carl Lucy Omar Anna Finn".split()
THINGS = "pens books coins cards stamps apples shells stones eggs cups beads balls".split()
WORDS = (
    "acorn badge cabin daisy eagle fable giant honey igloo jelly kayak lemon maple night olive piano "
    "queen river salad tiger uncle vapor wagon yacht zebra"
).split()

# Question, the range of each number, and the steps; `r` is the result of the step before, `q` of the one before that.
ARITHMETIC = [
    ("{n} has {a} boxes with {b} {t} each and gives away {c} {t}. How many {t} are left?", "a:2-9 b:2-9 c:2-20", "a*b r-c"),
    ("{n} has {a} bags with {b} {t} each and finds {c} more {t}. How many {t} does {n} have?", "a:2-9 b:2-9 c:2-18", "a*b r+c"),
    ("{n} has {a} {t}. {m} has {b} more {t} than {n}. How many {t} do they have together?", "a:2-30 b:2-30", "a+b a+r"),
    ("{n} has {a} {t}. {m} has {b} fewer {t} than {n}. How many {t} do they have together?", "a:12-45 b:2-11", "a-b a+r"),
    ("{n} has {a} {t}. {m} has {b} times as many. How many {t} do they have together?", "a:2-12 b:2-7", "a*b a+r"),
    ("{n} had {a} {t}, lost {b} and then bought {c}. How many {t} does {n} have now?", "a:15-60 b:2-14 c:2-30", "a-b r+c"),
    ("{n} had {a} {t}, won {b} and then sold {c}. How many {t} does {n} have now?", "a:5-50 b:2-30 c:2-20", "a+b r-c"),
    ("{n} puts {a} {t} and {b} {t} together and makes {c} equal piles. How many {t} are in a pile?", "a:2-40 b:2-40 c:2-9", "a+b r/c"),
    ("{n} takes {b} {t} out of {a} {t} and shares the rest among {c} friends. How many {t} does a friend get?", "a:10-80 b:2-20 c:2-9", "a-b r/c"),
    ("One shelf holds {a} {t}. {n} fills {b} shelves and {m} fills {c} shelves. How many {t} is that?", "a:2-9 b:2-5 c:2-5", "b+c r*a"),
    ("{n} pays {a} dollars for each of {b} {t} and {c} dollars for a bag. How many dollars is that?", "a:2-9 b:2-9 c:2-15", "a*b r+c"),
    ("{n} has {d} dollars and buys {b} {t} for {a} dollars each. How many dollars are left?", "a:2-9 b:2-9 d:20-95", "a*b d-r"),
    ("{n} reads {a} pages a day for {b} days, then {c} pages a day for {d} days. How many pages is that?", "a:2-9 b:2-6 c:2-9 d:2-6", "a*b c*d q+r"),
    ("{n} sells {a} {t} for {b} dollars each and spends {c} dollars, then {d} dollars. How many dollars are left?", "a:2-9 b:3-9 c:2-9 d:2-9", "a*b r-c r-d"),
    ("{n} finds {a} {t} on Monday, {b} on Tuesday and {c} on Friday. How many {t} is that?", "a:2-33 b:2-33 c:2-33", "a+b r+c"),
    ("{n} packs {a} {t} into boxes of {b} and sells {c} boxes. How many boxes are left?", "a:12-81 b:2-9 c:2-7", "a/b r-c"),
    ("{n} has {a} {t}, twice as many as {m}. How many {t} do they have together?", "a:4-60", "a/2 a+r"),
    ("{n} earns {a} dollars an hour. After {b} hours {n} spends half. How many dollars are left?", "a:2-9 b:2-10", "a*b r/2"),
    ("{a} cars carry {b} people each and {c} vans carry {d} people each. How many people is that?", "a:2-9 b:2-5 c:2-9 d:4-8", "a*b c*d q+r"),
    ("{n} had {a} {t}. {m} gave {n} {b}, {o} gave {n} {c}, and {n} lost {d}. How many {t} are left?", "a:2-30 b:2-20 c:2-20 d:2-20", "a+b r+c r-d"),
]  # fmt: skip


def work_out(steps: str, values: dict[str, int]) -> list[tuple[str, int]] | None:
    """[("6 * 4", 24), …], or None where a result is not an integer in 1…99."""
    worked: list[tuple[str, int]] = []
    for step in steps.split():
        left, sign, right = step[0], step[1], step[2:]
        a, b = (int(x) if x.isdigit() else values[x] for x in (left, right))
        if sign == "/" and a % b:
            return None
        result = {"+": a + b, "-": a - b, "*": a * b, "/": a // b}[sign]
        if not 1 <= result <= 99:
            return None
        worked.append((f"{a} {sign} {b}", result))
        values = values | {"q": values.get("r", 0), "r": result}
    return worked


def arithmetic(rng: random.Random) -> Example:
    """Word problems of two or three steps."""
    while True:
        template = rng.randrange(len(ARITHMETIC))
        text, ranges, steps = ARITHMETIC[template]
        spans = {name: map(int, span.split("-")) for name, span in (r.split(":") for r in ranges.split())}
        values = {name: rng.randint(*span) for name, span in spans.items()}
        worked = work_out(steps, values)
        if worked is None:
            continue
        n, m, o = rng.sample(NAMES, 3)
        question = text.format(n=n, m=m, o=o, t=rng.choice(THINGS), **values)
        answer = " ".join(f"{step} = {result}." for step, result in worked)
        return Example((template, *values.values()), question, f"{answer} #### {worked[-1][1]}")


def sorting(rng: random.Random) -> Example:
    """Words into alphabetical order."""
    words = rng.sample(WORDS, rng.randint(3, 5))
    return Example(tuple(words), f"Sort these words: {' '.join(words)}", f"#### {' '.join(sorted(words))}")


def reversing(rng: random.Random) -> Example:
    """Letters in reverse order."""
    letters = [rng.choice("abcdefghijklmnop") for _ in range(rng.randint(4, 7))]
    return Example(tuple(letters), f"Reverse: {' '.join(letters)}", f"#### {' '.join(letters[::-1])}")


PLACES = "Arvon Belmir Corvia Dunmar Elwick Fenrow Gralia Hovent Istrel Jorund Kelmoor Lindar".split()
PEOPLE = ("Abbo Brisk Corlo Dwin Ebra Fosk Grell Hupp Ixo Jarl Kemp Lurr Mosk Nell Orlo Prin Quil Rask Stev Turl").split()
FACTS = {
    "home": (PLACES, ["Where does {p} live?", "What is the home of {p}?", "Which town is {p} from?", "{p} lives in which town?"]),
    "job": (
        ["baker", "smith", "pilot", "tailor", "miner", "farmer", "singer", "weaver", "doctor", "sailor"],
        ["What is the job of {p}?", "What does {p} work as?", "How does {p} earn a living?", "{p} works as what?"],
    ),
    "pet": (
        ["goat", "otter", "raven", "toad", "ferret", "camel", "heron", "lynx", "mule", "newt"],
        ["Which pet does {p} have?", "What is the pet of {p}?", "What animal lives with {p}?", "{p} keeps which animal?"],
    ),
    "colour": (
        ["red", "green", "blue", "amber", "pink", "black", "white", "grey", "violet", "brown"],
        ["Which colour does {p} like?", "What is the colour of {p}?", "What colour does {p} wear?", "{p} likes which colour?"],
    ),
}  # fmt: skip
ASIDES = [
    "", "Tell me: ", "Quick question: ", "Do you know this? ", "Please answer: ", "One more: ", "I forgot. ", "Say it briefly: ",
]  # fmt: skip


def fact_of(person: str, kind: str) -> str:
    """The invented truth: fixed for ever by the hash of the question."""
    choices = FACTS[kind][0]
    return choices[bucket(("fact", person, kind), len(choices))]


def facts(rng: random.Random) -> Example:
    """Invented facts: the test asks known facts in wordings that train does not use for them."""
    person, kind = rng.choice(PEOPLE), rng.choice(list(FACTS))
    wording, aside = rng.choice(FACTS[kind][1]), rng.choice(ASIDES)
    question = aside + wording.format(p=person)
    return Example((question,), question, f"#### {fact_of(person, kind)}")


def logic(rng: random.Random) -> Example:
    """Who is tallest or shortest of three, from two comparisons in any order."""
    people = rng.sample(NAMES, 3)  # tallest first
    pairs = list(pairwise(people))
    claims = [f"{a} is taller than {b}." for a, b in pairs]
    if rng.random() < 0.5:
        claims = [f"{b} is shorter than {a}." for a, b in pairs]
    rng.shuffle(claims)
    most = rng.random() < 0.5
    question = f"{' '.join(claims)} Who is the {'tallest' if most else 'shortest'}?"
    return Example((question,), question, f"{' > '.join(people)}. #### {people[0] if most else people[-1]}")


def code(rng: random.Random) -> Example:
    """The output of a few assignments."""
    variable = rng.choice("xyzuvw")
    value = rng.randint(1, 9)
    lines, trace = [f"{variable} = {value}"], []
    for _ in range(rng.randint(2, 4)):
        sign, operand = rng.choice("+-*"), rng.randint(2, 9)
        if (sign == "*" and value * operand > 50) or (sign == "-" and operand >= value):
            sign = "+"
        result = {"+": value + operand, "-": value - operand, "*": value * operand}[sign]
        lines.append(f"{variable} = {variable} {sign} {operand}")
        trace.append(f"{value} {sign} {operand} = {result}")
        value = result
    program = "; ".join([*lines, f"print({variable})"])
    return Example((program,), f"Run: {program}", f"{'; '.join(trace)}. #### {value}")


TASKS: dict[str, Callable[[random.Random], Example]] = {
    f.__name__: f for f in (arithmetic, sorting, reversing, facts, logic, code)
}


def bucket(key: tuple, buckets: int) -> int:
    """A number in 0…buckets-1 that is the same on every machine and in every process."""
    return int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:8]) % buckets


def stream(task: str, split: str, seed: int = SEED) -> Iterator[Example]:
    """Endless examples of one split of a task; the splits share no key."""
    rng = random.Random(f"{task}/{split}/{seed}")
    while True:
        example = TASKS[task](rng)
        if (bucket((task, *example.key), TEST_SHARE) == 0) == (split == "test"):
            yield example


def distinct(task: str, split: str, size: int) -> list[Example]:
    """At most `size` examples, no key twice (`facts` has fewer distinct questions than others)."""
    found: dict[tuple, Example] = {}
    for tried, example in enumerate(stream(task, split)):
        found.setdefault(example.key, example)
        if len(found) == size or tried > 40 * size:
            break
    return list(found.values())


def main() -> None:
    for task in TASKS:
        sizes = SIZES if task == "arithmetic" else SMALL_SIZES
        (HERE / task).mkdir(exist_ok=True)
        for split, size in sizes.items():
            lines = [json.dumps({"question": e.question, "answer": e.answer}) for e in distinct(task, split, size)]
            (HERE / task / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
            print(f"{task:>10} {split:<5} {len(lines):>6,} examples")


if __name__ == "__main__":
    main()

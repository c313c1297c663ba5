"""Messages to a shop's support, and the queue that each belongs to, drawn from one seed.

    {"text": "Hello, I was charged twice for the kettle. That has been put right, thank you. But now the box with the lamp has
              not come, and it was due on Monday.",
     "label": "delivery"}

Most messages speak of two things, of which one is settled: the queue is that of the other. A message's *key* is what it
speaks of: which wording is open and which is settled. The key's hash decides between train and test, so no test message
has a pair of wordings that training shows, whatever the products, names, greetings and days.

    python data/tickets/generate_tickets.py           # writes data/tickets/{train,test}.jsonl
"""

import hashlib
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent
SEED = 0
SIZES = {"train": 3000, "test": 400}
PASSED_OVER = {"train": 0, "test": 200}
"""Tickets that are drawn before a split's own and not written: the settings of recipes/smollm.yaml were chosen when 200 test
tickets had been seen. The test set holds others, of other keys."""
TEST_SHARE = 5  # one key in five belongs to the test set
ALONE = 0.15  # this share of the messages speaks of one thing


class Ticket(NamedTuple):
    key: tuple[str, str]  # the open wording, and the settled one ("" where there is none)
    text: str
    label: str


PRODUCTS = "kettle lamp toaster radio heater blender camera printer keyboard drill fan scale speaker shaver router clock".split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday".split()

# {p} is a product, {d} a day, {n} a number. Every wording stands behind a capital letter and before a full stop.
WORDINGS = {
    "billing": (
        "I was charged twice for the {p}",
        "the invoice for the {p} shows the old price",
        "my card was refused when I paid for the {p}, and the money is gone all the same",
        "the discount of {n} euros is missing from my bill",
        "our bookkeeper needs the invoice for the {p} with the VAT number on it",
        "on {d} you took {n} euros from my bank, and I do not know what for",
        "I would like to pay for the {p} in three parts",
        "the code from your letter took nothing off the price of the {p}",
        "you sent me a reminder, although I paid for the {p} on {d}",
        "the sum at the bottom of the bill does not match the prices above it",
    ),
    "delivery": (
        "the box with the {p} has not come, and it was due on {d}",
        "the tracking page has said the same since {d}",
        "the driver left my {p} with a neighbour whom nobody here knows",
        "I have moved, and the {p} is on its way to the old address",
        "can the {p} be brought on {d} instead, when somebody is at home",
        "only one of the two parcels has arrived, and the {p} was in the other",
        "the courier says that he rang on {d}, but nobody did",
        "is there a way to pick up the {p} at your store instead of waiting for the van",
        "my order has been in your warehouse for {n} days and nobody sends it off",
        "the parcel shop gave my {p} to somebody else",
    ),
    "returns": (
        "I want to send the {p} back, since it is too large for our kitchen",
        "you have had my {p} back since {d}, and the refund has not come",
        "please send me a label, so that I can give the {p} back",
        "I ordered the {p} in black and would rather have it in white",
        "the {p} was a present, and she has one already: how do I give it back",
        "how many days do I have if I do not like the {p}",
        "you sent a {p} that I never ordered, and somebody should fetch it",
        "I threw away the box of the {p}: will you still take it back",
        "I would like to swap the {p} for the next size",
        "you wrote that my {p} came back too late, but I posted it on {d}",
    ),
    "account": (
        "I cannot log in since {d}, although the password is right",
        "the link for a new password never arrives",
        "please change the e-mail address that I sign in with",
        "I want all that you know about me to be deleted",
        "somebody else seems to have signed in under my name on {d}",
        "I have two user names by mistake, and would like to have one",
        "the page says that I am locked out for {n} hours",
        "the code for signing in comes to my old phone",
        "your newsletter comes every day, although I have signed off",
        "my name is spelt wrongly in my profile, and I cannot change it",
    ),
    "fault": (
        "the {p} does not switch on any more",
        "since {d} the {p} makes a loud noise",
        "the {p} worked for {n} days and then began to smell of burning",
        "the app loses the connection to the {p} again and again",
        "a part of the {p} broke off when I cleaned it",
        "the {p} shows error {n}, and the booklet does not know it",
        "the {p} gets so hot that I dare not touch it",
        "the new version of the software has made the {p} slow",
        "the battery of the {p} is empty after {n} minutes",
        "there is a crack in the {p}, which I saw when I had used it for a week",
    ),
    "advice": (
        "I am looking for a {p} for a flat of {n} square metres: which one would you take",
        "will the {p} be cheaper in the sale on {d}",
        "what is the difference between the two kinds of {p} on your page",
        "does the {p} go with the stand that you sell",
        "when will you have the {p} in stock again",
        "is the {p} right for a child of {n}",
        "how much power does the {p} take in a year",
        "do you have a {p} that is made in Europe",
        "I would buy {n} of the {p} for our school, if they are easy to use",
        "can the {p} be used outside, too",
    ),
}

GREETINGS = ("", "", "Hello, ", "Good morning, ", "Dear team, ", "Hi there, ", "To whom it may concern: ")
ENDINGS = ("", "", "", " Thank you.", " Please answer soon.", " Best wishes, {name}.", " Yours, {name}.")
NAMES = "Mia Tom Ava Ben Lea Max Zoe Sam Eva Leo".split()
TWO = (  # how a settled thing (s) and an open one (o) are told
    "{s}. That has been put right, thank you. But now {o}.",
    "{o}. What I wrote before is settled ({s}).",
    "last week I wrote: {s}. Your colleague has helped me with that. Today it is about something else: {o}.",
    "{o}. You need not answer my first message any more, in which I said that {s}.",
    "two things. First, {s}: no need to do anything, it is solved. Second, {o}.",
    "two things. First, {o}. Second, {s}, but that is done with by now.",
    "I had a question, namely {s}, and found the answer myself. What is left: {o}.",
)


def ticket(rng: random.Random) -> Ticket:
    label, other = rng.sample(sorted(WORDINGS), 2)
    wording, settled = rng.choice(WORDINGS[label]), rng.choice(WORDINGS[other])
    if rng.random() < ALONE:
        settled, body = "", f"{filled(wording, rng)}."
    else:
        body = rng.choice(TWO).format(s=filled(settled, rng), o=filled(wording, rng))
    greeting, ending = rng.choice(GREETINGS), rng.choice(ENDINGS).format(name=rng.choice(NAMES))
    text = f"{greeting}{body}{ending}"
    return Ticket((wording, settled), text[0].upper() + text[1:], label)


def filled(wording: str, rng: random.Random) -> str:
    return wording.format(p=rng.choice(PRODUCTS), d=rng.choice(DAYS), n=rng.randint(3, 40))


def in_test(key: tuple[str, str]) -> bool:
    """The same on every machine and in every process."""
    return int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:8]) % TEST_SHARE == 0


def stream(split: str, seed: int = SEED) -> Iterator[Ticket]:
    """Endless tickets of one split; the splits share no key."""
    rng = random.Random(f"tickets/{split}/{seed}")
    while True:
        drawn = ticket(rng)
        if in_test(drawn.key) == (split == "test"):
            yield drawn


def distinct(split: str, size: int) -> list[Ticket]:
    """No key twice in the test set, no text twice in either."""
    first = PASSED_OVER[split]
    found: dict[object, Ticket] = {}
    for drawn in stream(split):
        found.setdefault(drawn.key if split == "test" else drawn.text, drawn)
        if len(found) == first + size:
            return list(found.values())[first:]
    raise AssertionError("a stream has no end")


def main() -> None:
    for split, size in SIZES.items():
        lines = [json.dumps({"text": each.text, "label": each.label}) for each in distinct(split, size)]
        (HERE / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        print(f"{split:<5} {len(lines):>6,} tickets")


if __name__ == "__main__":
    main()

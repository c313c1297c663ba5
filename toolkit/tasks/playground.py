"""The embedded tasks of data/playground: small, seeded, learnt by the model beside them.

{"question": "Mia has 6 boxes with 4 pens each and gives away 9 pens. How many pens are left?",
 "answer": "6 * 4 = 24. 24 - 9 = 15. #### 15"}
"""

from pathlib import Path

from toolkit.tasks.preset import Preset

FOLDER = Path(__file__).parents[2] / "data" / "playground"
ABOUT = {
    "arithmetic": "small sums in words",
    "sorting": "words into the order of the alphabet",
    "reversing": "letters, backwards",
    "facts": "what is true of made-up people, learnt by heart",
    "logic": "who is the tallest of three",
    "code": "what a few lines of a program print",
}
SUBJECTS = tuple(ABOUT)


PLAYGROUND = {
    f"playground/{subject}": Preset(
        about=f"embedded: {ABOUT[subject]}",
        train=str(FOLDER / subject / "train.jsonl"),
        test=str(FOLDER / subject / "test.jsonl"),
        prompt="{question}",
        completion="{answer}",
        scorer="exact",
    )
    for subject in SUBJECTS
}

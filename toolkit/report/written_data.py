"""What models wrote to be trained on: the student answers, the original new questions and answers to them."""

from toolkit.report.measurements import Facts


class StudentFacts(Facts):
    """What the student wrote to be trained on, before one training: answers that were drawn, those that differ, the right ones
    of all that were drawn."""

    drawn: int
    kept: int
    right: int


class NewQuestionsFacts(Facts):
    """New questions that the original wrote for the training: the texts that it wrote; those of another form, those that repeat
    a question, and those that overlap with the test set or the dev slice; what remains; and how many its answers agree on."""

    texts: int
    malformed: int
    repeated: int
    overlapping: int
    questions: int
    agreed: int

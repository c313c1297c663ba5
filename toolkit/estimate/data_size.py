"""How much data a stage reads, in examples and tokens."""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class DataSize:
    """Examples of a data set and their lengths in tokens."""

    examples: int | None  # None: not known before the data is on this machine
    mean: float  # tokens per example
    longest: int  # tokens of the longest example
    measured: bool  # lengths are those of a tokenized sample, not the upper bound `max_length`
    completion: float | None = None  # tokens per example that the loss counts; None: not known, all of them are assumed

    @property
    def tokens(self) -> int | None:
        """Of all examples together."""
        return None if self.examples is None else round(self.examples * self.mean)

    @property
    def completion_tokens(self) -> float:
        """Tokens per example that the loss counts, at most."""
        return self.mean if self.completion is None else self.completion

    def limited(self, examples: int | None) -> "DataSize":
        """The size of a sample of at most `examples`; None: of all."""
        number = self.examples if examples is None else min(examples, self.examples or examples)
        return replace(self, examples=number)

    def times(self, number: int) -> "DataSize":
        """The size with every example repeated `number` times."""
        return replace(self, examples=None if self.examples is None else number * self.examples)


@dataclass(frozen=True)
class DataSizes:
    """What the stages of a recipe read."""

    calibration: DataSize
    training: DataSize  # of the pruned model
    evaluation: DataSize  # prompts only
    answers: DataSize | None  # prompts that the original model answers for training, repeated per sample; None: no such stage
    student: "StudentSizes | None" = None  # None: the student writes nothing

    @property
    def shared(self) -> DataSize:
        """Of the training data what the student does not write: the control's, and the teacher's before there is a student."""
        return self.student.others if self.student else self.training

    @property
    def all_measured(self) -> bool:
        return all(part.measured for part in (self.calibration, self.training, self.evaluation))


@dataclass(frozen=True)
class StudentSizes:
    """Of a recipe whose student writes training data."""

    others: DataSize  # the other training data; no examples where there is none
    prompts: DataSize  # that the student answers, repeated per sample
    written: DataSize  # its answers with their prompts, at most

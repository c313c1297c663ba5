"""One step of a run: everything that is known about it, so that the pipeline, the estimator and the screens are loops over
stages and know no names.

A new stage is a file in stages/ and a line in stage_list.py.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import ClassVar, Literal, NamedTuple, Self

from toolkit.estimate import Machine, StageEstimate
from toolkit.pipeline.context import RunContext
from toolkit.pipeline.recipe_changes import DECIDING
from toolkit.pipeline.relief import BatchSection, Relief, half, other_placements, smaller_batches
from toolkit.pipeline.run_directory import RunDirectory
from toolkit.pipeline.stage_names import stage_name
from toolkit.recipe.roles import Role


@dataclass(frozen=True)
class Facts:
    """What the manifest notes of a stage, beside what it notes of each: the fields are the keys of its entry."""


class Shown(NamedTuple):
    """A line of the last screen about what a stage leaves."""

    place: int  # what people look for first has the smallest number
    what: str
    path: str = ""  # the stage's output unless given


class Stage(ABC):
    """Bound to its context. Paths are relative to the run directory."""

    kind: ClassVar[str]
    """What it does: "evaluate". Its name is the kind, and the role where it has one: "evaluate/recovered"."""
    role: Role | None
    """The model that it is about, where each model has such a stage."""
    sections: tuple[str, ...] = DECIDING[Role.RECOVERED]
    """The sections of a recipe that decide its result."""
    needs: tuple[str, ...] = ()
    """The names of the stages whose results it reads; those that a recipe does not ask for do not count."""
    inside: str = ""
    """Of `needs`, the one into whose folder it writes: made again, that folder is without it."""
    result: Literal["by fingerprint", "by plan", "unique"] = "by fingerprint"
    """What two results must have in common to be the same: the fingerprint; the chosen experts; nothing, since each training
    comes out another."""
    output: str = ""
    """The file or folder that it leaves."""
    checkpoints: tuple[str, ...] = ()
    """The folders with checkpoints that it replaces."""
    scratch: str = ""
    """What it needs only until it is done."""
    resumes: tuple[str, ...] = ()
    """The folders whose files an interrupted stage goes on from; --fresh empties them."""
    remaking: str = ""
    """What making it again takes, where its output can be removed to save space."""
    always_shows: ClassVar[bool] = False
    """Whether it is run, without a new entry, also where it is done already: it is cheap, and what people came for."""
    last_screen: ClassVar[Shown | None] = None
    batch_section: ClassVar[BatchSection | None] = None
    """The section of the recipe with the `batch_size` that its model answers or reads in; None: no model does."""

    def __init__(self, context: RunContext, role: Role | None = None) -> None:
        self.context, self.role = context, role

    @classmethod
    def planned(cls, context: RunContext, role: Role | None, before: Sequence["Stage"]) -> Sequence["Stage"]:
        """The stages at this place of the list that the recipe asks for, after those in `before`."""
        stage = cls(context, role)
        return [stage] if stage.is_asked_for() else []

    def is_asked_for(self) -> bool:
        """Whether the recipe has this stage."""
        return True

    @property
    def name(self) -> str:
        """In manifests and messages."""
        return stage_name(self.kind, self.role)

    @abstractmethod
    def purpose(self) -> str:
        """What it does, in one line for people."""

    @abstractmethod
    def fingerprint(self) -> str:
        """What decides its result; where it changes, the stage is done again."""

    @abstractmethod
    def run(self) -> Facts:
        """Files in, files out; called on every rank. Raises PollardError for what the user can mend."""

    def outlook(self) -> str:
        """What it will do, in numbers that are known before any weights are read: its line on the first screen."""
        return ""

    def estimate(self, machine: Machine) -> StageEstimate | None:
        """Memory, time and disk on a machine, from the model's configuration alone; None where it takes next to nothing.

        Raises PollardError as the stage would: for numbers that the routers cannot serve, for local data that is not there.
        """
        return None

    def cannot_fit(self, machine: Machine) -> bool:
        """Whether it is certain, without a full estimate, that it does not fit: quick."""
        return False

    def relief(self, machine: Machine) -> Relief:
        """Changes of the recipe that may make it fit; they are tried before one is recommended."""
        recipe, section = self.context.recipe, self.batch_section
        estimate = self.estimate(machine) if section else None
        if section is None or estimate is None:
            return Relief()
        return Relief(smaller_batches(recipe, section, estimate, machine), placements=other_placements(recipe, machine))

    def smaller(self) -> str:
        """The overrides to try where a GPU's memory is full while it runs."""
        recipe = self.context.recipe
        if self.batch_section == "calibration":
            return f"calibration.batch_size={half(recipe.calibration.batch_size)}"
        batch = recipe.evaluation.batch_size
        return f"evaluation.batch_size={8 if batch == 'auto' else half(batch)}, or model.placement=spread"

    def with_context(self, context: RunContext) -> Self:
        """The same stage of another recipe."""
        return type(self)(context, self.role)

    @property
    def is_small(self) -> bool:
        """Whether it leaves a file, which nobody removes to save space, and which the report is made of."""
        return bool(PurePath(self.output).suffix)

    def is_gone(self, directory: RunDirectory) -> bool:
        """Whether somebody has removed what it left, or everything in it."""
        path = directory.path / self.output
        return bool(self.output) and not (any(path.iterdir()) if path.is_dir() else path.exists())


class Slot(NamedTuple):
    """A place in the list of stages: a class, and the model that it is about."""

    stage: type[Stage]
    role: Role | None = None

    @property
    def name(self) -> str:
        return stage_name(self.stage.kind, self.role)

"""A kind of cut: what it checks, removes and masks in a model, and what stays of each tensor in a checkpoint's files.

The plan's functions (apply.py), the writer, its resume and its verification loop over a plan's cuts and know no kind. A new
kind is one file with a subclass of `Cut` and one line in `plan.KINDS`. What calibration must observe for a cut is known by
the criteria that choose it (toolkit/selection).

The law for every kind, family and combination: masked ≡ applied ≡ written and reloaded by stock transformers.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict
from transformers import PreTrainedModel

from toolkit.moe.completeness import Source
from toolkit.runtime.display import Displayed, Overview

Shape = tuple[int, ...]
ConfigFile = dict[str, Any]  # the content of a config.json
Indices = Mapping[int, npt.NDArray[np.int64]]  # per axis of a stored tensor what stays, as in `Piece`


class UnknownLayoutError(Exception):
    """The files store what is cut in a way that can only be understood by loading the checkpoint."""


class AffectedTensor(NamedTuple):
    """A tensor of the original's files whose parameter a plan changes: another shape, another name, or gone."""

    name: str
    shape: Shape
    parameter: str  # of the original model: what the tensor becomes (part of), or belongs to as its scale
    before: Shape  # the parameter's shape in the original model
    after: Shape | None  # and in the model with all cuts applied; None where it is gone
    converted: bool  # merged, split or transposed on the way from the file to the model
    reordered: bool  # or put into another order within


class PlanView(Protocol):
    """What a cut may ask of the plan that holds it."""

    @property
    def experts_per_token(self) -> int: ...

    @property
    def cuts(self) -> Sequence["Cut"]: ...


class Mask(Protocol):
    """A part of a model that answers as if cut, for itself."""

    @property
    def name(self) -> str:
        """Of the module that it changes, as in `named_modules()`; empty where that is the model as a whole."""

    def applied(self) -> AbstractContextManager[None]:
        """Inside the context it is masked. It is entered where its module has weights."""


class Cut(Displayed, BaseModel, ABC):
    """One entry of a plan's `cuts`. All indices are the original's."""

    model_config = ConfigDict(extra="forbid")
    kind: str
    criterion: str

    @abstractmethod
    def check(self, model: PreTrainedModel, plan: PlanView) -> None:
        """Raises PollardError unless the cut fits `model`, which may be without weights."""

    @abstractmethod
    def apply(self, model: PreTrainedModel, plan: PlanView) -> None:
        """Removes what does not stay from a checked `model`, in place, also on the meta device."""

    @abstractmethod
    def masks(self, model: PreTrainedModel, plan: PlanView) -> Sequence[Mask]:
        """What has to be masked for a checked `model` to answer as if cut, one by one, in the order in which they are entered;
        weights are neither copied nor removed. The model may be without weights until then."""

    @contextmanager
    def masked(self, model: PreTrainedModel, plan: PlanView) -> Iterator[None]:
        """Inside the context a checked `model` answers as if cut."""
        with ExitStack() as stack:
            for mask in self.masks(model, plan):
                stack.enter_context(mask.applied())
            yield

    @abstractmethod
    def takes(self, model: PreTrainedModel, plan: PlanView, tensors: Sequence[AffectedTensor]) -> Mapping[str, Indices]:
        """By name, which part of stored tensors of the original `model` (without weights) stays: of those that this cut
        shortens. Tensors that a cut drops are not asked for. Raises UnknownLayoutError where that cannot be said without loading
        them."""

    @abstractmethod
    def rename(self, name: str, parameter: str) -> str | None:
        """The new name of `name`, a stored tensor or module that becomes `parameter` or is part of it; None where it is gone."""

    @abstractmethod
    def refuses(self, name: str) -> str | None:
        """Why a stored tensor that becomes no parameter cannot be copied as it is; None where it can."""

    @abstractmethod
    def check_stored(self, sources: Mapping[str, Sequence[Source]], affected: Mapping[str, Shape]) -> None:
        """Raises PollardError where the files do not hold what the cut must take apart: `sources` per parameter, and of the
        `affected` parameters their shapes in the original model."""

    @classmethod
    @abstractmethod
    def config(cls, config: Any) -> ConfigFile:
        """The keys of a configuration file that this kind changes, in every spelling that readers use, with their values in
        `config`, the configuration of a model to which cuts have been applied."""

    @classmethod
    def update_config(cls, written: ConfigFile, config: Any) -> None:
        """Brings this kind's keys in `written`, the content of a configuration file, to their values in `config`."""
        written.update(cls.config(config))

    @abstractmethod
    def choice(self) -> Any:
        """What of this cut decides the pruned weights, as JSON: for fingerprints."""

    @abstractmethod
    def summary(self) -> dict[str, object]:
        """Its criterion and its numbers, for the folder of a pruned checkpoint."""

    def in_words(self) -> str:
        """How much stays, and by which criterion, in a few words."""
        return f"{self.kind} by {self.criterion}"

    def overview(self) -> Overview:
        return Overview([self.in_words()])

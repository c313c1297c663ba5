"""Safetensors files, byte by byte: a header that says where each tensor's bytes lie, then the bytes.

    8 bytes: length of the header
    {"lm_head.weight": {"dtype": "BF16", "shape": [32000, 4096], "data_offsets": [0, 262144000]}, …}
    the bytes

The library reads and writes tensors; to copy some rows of a file larger than memory into another one, whatever their type
(torch need not know it), the bytes are enough. Format: https://huggingface.co/docs/safetensors
"""

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from toolkit.moe.disk_writer import DiskWriter, shortened
from toolkit.moe.model_files import SINGLE, checkpoint_files, read_index
from toolkit.runtime.errors import PollardError
from toolkit.runtime.files import RESUME_ADVICE, explain_full_disk

LENGTH_BYTES = 8  # of the number that a file begins with
SHORT_RUN = 4096  # bytes: below, reading what lies between costs less than a system call for each
GATHERED = 2**25  # bytes that are read at once of what lies in short runs
FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""Types that rows can be converted between."""


class StoredTensor(NamedTuple):
    """Where a tensor lies."""

    file: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int  # bytes from the file's start
    end: int

    @property
    def bytes(self) -> int:
        return self.end - self.begin


class Piece(NamedTuple):
    """A tensor to be written: `source` under a new name, whole or in part.

    `indices`: per axis the indices that stay, int64 [n]; other axes stay whole. Where they differ along the first axis (channels
    of experts that are stored in one tensor), [m, n]: one row for each of the m indices of the first axis that stay.
    """

    name: str
    source: StoredTensor
    indices: Mapping[int, npt.NDArray[np.int64]] = {}

    @property
    def dtype(self) -> str:
        return self.source.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        kept = {axis: indices.shape[-1] for axis, indices in self.indices.items()}
        return tuple(kept.get(axis, size) for axis, size in enumerate(self.source.shape))

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.source.bytes // max(math.prod(self.source.shape), 1)

    def parts(self) -> Iterator["Piece"]:
        """Pieces with one set of indices per axis, whose bytes are this one's one after the other."""
        if all(indices.ndim == 1 for indices in self.indices.values()):
            yield self
            return
        each = self.source.bytes // self.source.shape[0]
        for row, index in enumerate(self.indices.get(0, np.arange(self.source.shape[0]))):
            begin = self.source.begin + int(index) * each
            source = self.source._replace(shape=self.source.shape[1:], begin=begin, end=begin + each)
            rest = {axis - 1: found if found.ndim == 1 else found[row] for axis, found in self.indices.items() if axis}
            yield Piece(self.name, source, rest)

    @property
    def run_bytes(self) -> int:
        """Bytes that lie together whatever stays: of one index along the last axis that is cut."""
        return self.source.bytes // math.prod(self.source.shape[: max(self.indices, default=-1) + 1])

    def ranges(self) -> Iterator[tuple[int, int]]:
        """Begin and length of what to copy, in the source file's bytes, where only the first axis is cut; neighbours are one
        range."""
        rows = self.indices.get(0, np.arange(1))
        for run in np.split(rows, np.flatnonzero(np.diff(rows) != 1) + 1):
            yield self.source.begin + int(run[0]) * self.run_bytes, len(run) * self.run_bytes


class JoinedPiece(NamedTuple):
    """A tensor to be written: rows of several tensors, one behind the other, in one type.

    `rows` follow each other along `axis`, before which every axis is 1 long: their bytes are the tensor's. Each names its
    indices along that axis and no other.
    """

    name: str
    dtype: str
    axis: int
    rows: tuple[Piece, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        first = self.rows[0].shape
        return (*first[: self.axis], sum(piece.shape[self.axis] for piece in self.rows), *first[self.axis + 1 :])

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * FLOATS[self.dtype].itemsize if self.is_cast else sum(piece.bytes for piece in self.rows)

    @property
    def is_cast(self) -> bool:
        """Whether some rows are stored in another type."""
        return any(piece.dtype != self.dtype for piece in self.rows)

    def parts(self) -> Iterator[Piece]:
        """As those of a piece."""
        for piece in self.rows:
            yield from piece.parts()


def row_axis(shape: Sequence[int]) -> int:
    """The first axis longer than 1 (Ernie's correction bias is [1, experts]): rows along it are neighbours in memory."""
    return next((axis for axis, size in enumerate(shape) if size > 1), 0)


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """All tensors of a checkpoint folder's safetensors files (`checkpoint_files`), from the files' headers.

    Raises PollardError where a file is missing, cut off or damaged, or an index names a tensor that is not in its file.
    """
    files = checkpoint_files(folder)
    found: dict[str, StoredTensor] = {}
    for file in files.weights or (folder / SINGLE,):
        found |= read_header(file)
    if files.index_file:
        index = read_index(files.index_file)
        if any(name not in found or found[name].file != folder / file for name, file in index.items()):
            raise PollardError(_misled(files.index_file, index, found), code="checkpoint.misleading-index")
        return {name: found[name] for name in [*index, *found]}
    return found


def _misled(path: Path, index: dict[str, str], found: dict[str, StoredTensor]) -> str:
    """The message for an index whose tensors are not where it says, or also in a second file that is read later."""
    twice = [name for name, file in index.items() if name in found and name in read_header(path.parent / file)]
    twice = [name for name in twice if found[name].file != path.parent / index[name]]
    if twice:
        name = twice[0]
        return (
            f"{name} is in two files, {index[name]}, where {path} says, and {found[name].file.name}, which transformers reads "
            "last. Fetch the checkpoint again, into an empty folder."
        )
    absent = sorted(name for name, file in index.items() if name not in found or found[name].file != path.parent / file)
    return (
        f"{path} names {len(absent)} tensor(s) that are not in their file, such as {absent[0]} in {index[absent[0]]}. The "
        "checkpoint is damaged: fetch it again."
    )


def read_header(file: Path) -> dict[str, StoredTensor]:
    """The tensors of one file. Raises PollardError where it is missing, cut off or no safetensors file."""
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            size = os.fstat(stream.fileno()).st_size
            if not 2 <= length <= size - 8:
                raise ValueError("no header")
            header = json.loads(stream.read(length))
        start = 8 + length
        tensors = {
            name: StoredTensor(file, name, part["dtype"], tuple(part["shape"]), *(start + at for at in part["data_offsets"]))
            for name, part in header.items()
            if name != "__metadata__"
        }
    except OSError as error:
        raise PollardError(
            f"Cannot read {file}: {error.strerror}. Is the checkpoint complete?", code="checkpoint.missing-file"
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise PollardError(
            f"{file} is no whole safetensors file: its header is damaged. Fetch it again.", code="checkpoint.damaged-file"
        ) from None
    needed = max((tensor.end for tensor in tensors.values()), default=start)
    if size < needed:
        raise PollardError(
            f"{file} is cut off: it has {size:,} bytes of {needed:,}. Fetch it again.", code="checkpoint.damaged-file"
        )
    return tensors


def file_bytes(pieces: Iterable[Piece | JoinedPiece]) -> int:
    """The size of the file that `write_file` makes of them."""
    ordered = _in_order(pieces)
    return LENGTH_BYTES + len(_header(ordered)) + sum(piece.bytes for piece in ordered)


def _in_order(pieces: Iterable[Piece | JoinedPiece]) -> list[Piece | JoinedPiece]:
    """Wide numbers first: with a header of whole words, every tensor is aligned to its type for those who map the file."""
    return sorted(pieces, key=lambda piece: -piece.bytes / max(math.prod(piece.shape), 1))


def _header(ordered: Sequence[Piece | JoinedPiece]) -> bytes:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    at = 0
    for piece in ordered:
        header[piece.name] = {
            "dtype": piece.dtype,
            "shape": list(piece.shape),
            "data_offsets": [at, at := at + piece.bytes],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    return text + b" " * (-len(text) % 8)


def write_file(path: Path, pieces: Iterable[Piece | JoinedPiece]) -> None:
    """Writes one file under a temporary name that it loses when it is whole and on the disk."""
    ordered = _in_order(pieces)
    text = _header(ordered)
    partial = path.with_name(path.name + ".tmp")
    with ExitStack() as stack, partial.open("wb", buffering=0) as file:
        target = DiskWriter(file)
        target.write(len(text).to_bytes(LENGTH_BYTES, "little") + text)
        sources: dict[Path, IO[bytes]] = {}
        for piece in ordered:
            for part in piece.parts():
                stored_in = part.source.file
                if stored_in not in sources:
                    sources[stored_in] = stack.enter_context(stored_in.open("rb", buffering=0))
                source = sources[stored_in]
                if part.dtype != piece.dtype:
                    for rows in _gathered(source, part):
                        target.write(_converted(rows, FLOATS[part.dtype], FLOATS[piece.dtype]))
                elif not part.indices or (part.indices.keys() == {0} and part.run_bytes >= SHORT_RUN):
                    for begin, count in part.ranges():
                        target.copy(source, begin, count)
                else:
                    for rows in _gathered(source, part):
                        target.write(rows)
        target.finish()
    partial.replace(path)


def _gathered(source: IO[bytes], piece: Piece) -> Iterator[bytes]:
    """The same for what lies in many short runs (some columns of a matrix): some rows at a time are read whole."""
    if os.fstat(source.fileno()).st_size < piece.source.end:
        raise shortened(source)
    shape, each = piece.source.shape[: max(piece.indices) + 1], piece.run_bytes
    number = f"u{each}" if each in (1, 2, 4, 8) else f"V{each}"  # bytes of any meaning; numpy is fast with numbers
    runs: Any = np.memmap(source, number, "r", piece.source.begin, shape)  # type: ignore[call-overload]
    rows = piece.indices.get(0, np.arange(shape[0]))
    at_once = max(1, GATHERED * shape[0] // piece.source.bytes)
    for start in range(0, len(rows), at_once):
        part = runs[rows[start : start + at_once]]
        for axis, indices in piece.indices.items():
            part = part.take(indices, axis) if axis else part
        yield part.tobytes()


def _converted(rows: bytes, before: torch.dtype, after: torch.dtype) -> bytes:
    numbers = torch.frombuffer(bytearray(rows), dtype=before).to(after)
    return numbers.view(torch.uint8).numpy().tobytes()


@contextmanager
def explain_write_errors(target: Path) -> Iterator[None]:
    """Turns errors of the operating system into PollardErrors that say what to do."""
    try:
        with explain_full_disk(target, lambda: RESUME_ADVICE):
            yield
    except OSError as error:
        what = f"Cannot write {error.filename or target}: {error.strerror or error}."
        raise PollardError(f"{what} Give a place where this user may write.", code="checkpoint.cannot-write") from error

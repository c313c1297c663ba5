"""Read the next part of a model while this one runs.

    main thread     wait for layer 0 │ run layer 0 ·········│ wait │ drop 0 │ run layer 1 ·········│ wait │ drop 1 │ …
    reader                           │ read layer 1 ·····│           │ read layer 2 ·····│

One reader at a time, and only while a layer runs: two layers are in memory, never three. It ends before the layer that runs is
dropped, so on a GPU no memory changes hands between the two streams while either is at work. What goes wrong in it is
raised where the layer that it reads is asked for, as if it were read there.
"""

from collections.abc import Callable, Iterable
from threading import Thread

import torch
from torch import nn

PAGE = 4096


class ReadAhead(Thread):
    """Calls `load`, which fills the layer of that number; `stream`: of a GPU, the same for all layers, since each stream keeps
    the memory that it once had."""

    def __init__(self, number: int, layer: nn.Module, load: Callable[[], None], stream: torch.cuda.Stream | None) -> None:
        super().__init__(daemon=True, name=f"reader of layer {number}")
        self.number, self.layer, self.load, self.stream = number, layer, load, stream
        self.error: BaseException | None = None
        if stream:  # memory that it gets was perhaps in use until now
            stream.wait_stream(torch.cuda.current_stream(stream.device))
        self.start()

    def run(self) -> None:
        try:
            torch.set_num_threads(1)  # of this thread: it copies, and the others compute
            with torch.cuda.stream(self.stream):  # does nothing for None
                self.load()
            if self.stream:
                self.stream.synchronize()
            else:
                touch(self.layer.parameters())
        except BaseException as error:
            self.error = error

    def finish(self) -> None:
        """Waits until it is read. Raises what the reading raised."""
        self.join()
        if self.error:
            raise self.error

    def drop(self) -> None:
        """Nobody asks for the layer."""
        self.join()
        self.layer.to("meta")


def touch(tensors: Iterable[torch.Tensor]) -> None:
    """Looks at a byte of every page: tensors that nothing had to be made of are the mapped file itself, which is read from the
    disk when somebody looks."""
    for tensor in tensors:
        if tensor.is_contiguous() and not tensor.is_meta:
            tensor.detach().flatten().view(torch.uint8)[::PAGE].sum()

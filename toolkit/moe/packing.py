"""Several examples in one row, one behind the other: what a model is told, and whether it keeps them apart.

    input_ids       5 17  3  9  5 22  8  ·  ·
    position_ids    0  1  2  3  0  1  2  0  0        from 0 in every example; the last two are padding

There is no attention mask: where positions begin anew, attention (eager, sdpa) sees an example begin, and no token looks behind
that; a sliding window counts positions. Layers that hand on a state, or convolve, know nothing of that.

Shape legend: B rows, S positions, V vocabulary.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from toolkit.moe.layers import decoder_layers
from toolkit.runtime.errors import PollardError

LENGTHS = (11, 9, 6)  # tokens of the examples that a model is tried with
NEXT_TO_EACH_OTHER = 3  # positions of which the middle difference counts: rounding may tip a router's choice at one of them
TOLERANCE = {torch.float32: 1e-3}  # of the logits' spread; another example changes them by more than these
HALF_TOLERANCE = 0.1  # of two bytes
# Layer types. An index of keys is not among them: it chooses a number of them before the mask is looked at, and so shows only in
# long rows that it does not keep examples apart
KEPT_APART = {"full_attention", "sliding_attention", "chunked_attention"}


def real_positions(position_ids_BS: torch.Tensor) -> torch.Tensor:
    """Which of packed rows' positions [B, S] are no padding: all but zeros that no 1 follows. An example of a single token is
    read as padding; it has nothing to be trained on."""
    followed_BS = nn.functional.pad(position_ids_BS[:, 1:] == 1, (0, 1))
    return (position_ids_BS != 0) | followed_BS


def packed_inputs(rows: Sequence[Sequence[Sequence[int]]], pad_token_id: int = 0) -> dict[str, torch.Tensor]:
    """The inputs of rows of examples, each a list of token ids."""
    ids = [torch.tensor([token for example in row for token in example]) for row in rows]
    positions = [torch.cat([torch.arange(len(example)) for example in row]) for row in rows]
    pad = nn.utils.rnn.pad_sequence
    return {"input_ids": pad(ids, True, pad_token_id), "position_ids": pad(positions, True, 0)}


def check_packable(model: PreTrainedModel) -> None:
    """Of a model that may be without weights. Raises PollardError where it has layers that mix positions without a mask."""
    config: Any = model.config
    types = set(getattr(config.get_text_config(), "layer_types", None) or ()) - KEPT_APART
    mixing = [name for name, module in decoder_layers(model)[1].named_modules() if isinstance(module, nn.Conv1d)]
    if types or mixing:
        what = f"layers of the type {min(types)}" if types else f"a convolution over positions ({mixing[0]})"
        raise _cannot(f"this family has {what}, which would carry one example over into the next")


@torch.no_grad()
def check_kept_apart(model: Any, vocabulary: int, device: torch.device | str) -> None:
    """Compares the logits of examples in one row with those of each alone, on the model as it will be trained (any wrapper around
    it; under ZeRO-3 every rank takes part). Four small forward passes; random numbers are left as they were.

    Raises PollardError where they differ, and where the model cannot read packed rows.
    """
    generator = torch.Generator().manual_seed(0)
    first, second, third = (torch.randint(vocabulary, (n,), generator=generator).tolist() for n in LENGTHS)
    training = model.training
    model.eval()

    def logits(inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        on_device = {name: tensor.to(device) for name, tensor in inputs.items()}
        found: torch.Tensor = model(**on_device, use_cache=False).logits
        return found

    try:
        alone = [logits({"input_ids": torch.tensor([example])})[0] for example in (first, second, third)]
        packed_BSV = _explained(lambda: logits(packed_inputs([[first, second], [third]])))
    finally:
        model.train(training)
    packed = [*packed_BSV[0].split(LENGTHS[:2]), packed_BSV[1][: LENGTHS[2]]]
    tolerance = TOLERANCE.get(alone[0].dtype, HALF_TOLERANCE)
    apart = max(difference(*pair) for pair in zip(packed, alone, strict=True))
    if not apart <= tolerance:  # also where it is no number
        raise _cannot(f"its logits of an example change by {apart:.1g} of their spread when another stands before it in the row")


def difference(found_SV: torch.Tensor, expected_SV: torch.Tensor) -> float:
    """Of two examples' logits, as a share of their spread: the middle one of the first three and of the last three positions."""
    found_SV, expected_SV = found_SV.float(), expected_SV.float()
    apart_S = (found_SV - expected_SV).abs().amax(-1) / expected_SV.std().clamp(min=1e-12)
    return max(float(part.median()) for part in (apart_S[:NEXT_TO_EACH_OTHER], apart_S[-NEXT_TO_EACH_OTHER:]))


def _explained(run: Callable[[], torch.Tensor]) -> torch.Tensor:
    try:
        return run()
    except (RuntimeError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise _cannot(f"this family cannot read such rows ({type(error).__name__}: {str(error).splitlines()[0]})") from error


def _cannot(why: str) -> PollardError:
    return PollardError(f"finetuning.packing cannot work here: {why}. Leave it out.", code="model.no-packing")

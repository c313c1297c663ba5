"""How many channels stay: what `pruning.width` means for a model of a given width."""

from toolkit.runtime.errors import PollardError

USUAL_MULTIPLE = 128  # fused kernels read channels in steps of it
FEWEST_STEPS = 4  # so many widths are possible at least: a quarter, a half, three quarters and all


def width_multiple(width: int) -> int:
    """What the new width of experts of `width` channels is a multiple of, unless a recipe says otherwise.

    The largest power of two that divides it, up to 128, with which a quarter of it is possible: 14336 -> 128, 256 -> 64.
    """
    multiple = USUAL_MULTIPLE
    while multiple > 1 and (width % multiple or width // multiple < FEWEST_STEPS):
        multiple //= 2
    return multiple


def channels_to_keep(keep: int | float, width: int, multiple: int | None = None) -> int:
    """The number of channels per expert that `keep` means, of `width`: itself, or the multiple nearest to that fraction.

    Raises PollardError when it is none or more than there are, no multiple of `multiple`, or a fraction of less than half a one.
    """
    step = multiple or width_multiple(width)
    if step > width:
        raise PollardError(
            f"pruning.width_multiple is {step}, but experts of this model have {width} channels: give a smaller one.",
            code="selection.width",
        )
    if isinstance(keep, float):
        if 2 * keep * width < step:
            raise PollardError(
                f"pruning.width is {keep}, {keep * width:.3g} of {width} channels, and the width is a multiple of {step}: give "
                f"{step}, or say pruning.width_multiple=1 where speed does not matter.",
                code="selection.width-multiple",
            )
        return min(max(1, round(keep * width / step)) * step, width)
    if not 1 <= keep <= width:
        raise PollardError(
            f"pruning.width is {keep}, but experts of this model have {width} channels: give 1…{width}, or a fraction in (0, 1).",
            code="selection.width",
        )
    if keep % step and keep != width:
        near = sorted({max(step, keep // step * step), min(width, -(-keep // step) * step)})
        raise PollardError(
            f"pruning.width is {keep}, which is no multiple of {step}: give {' or '.join(map(str, near))}, or say "
            "pruning.width_multiple=1 where speed does not matter.",
            code="selection.width-multiple",
        )
    return keep

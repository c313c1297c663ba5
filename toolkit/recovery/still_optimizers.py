"""Which optimizers leave a number where it is that has no gradient: so zeros stay zeros, and old experts' rows what they are."""

LOW_BITS = ("8bit", "4bit")
PROJECTING = ("galore", "apollo")  # how their names begin
ROUNDING, MIXING = "rounds its moments in blocks", "mixes a tensor's rows"
"""What an optimizer does by which such a number moves."""


def why_it_moves(optimizer: str) -> str:
    """By transformers' name of it; empty where nothing is known that would move what has no gradient."""
    if any(bits in optimizer for bits in LOW_BITS):
        return ROUNDING
    return MIXING if optimizer.startswith(PROJECTING) else ""

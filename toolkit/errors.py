"""The one exception users see: what is wrong, where, and what to do. Entry points print it without a traceback."""


class PollardError(Exception):
    """A mistake in the input or the machine that its reader can mend."""

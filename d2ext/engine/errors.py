"""Exit codes, and the error of a loss that is not a number."""

__all__ = ["EXIT_NONFINITE", "EXIT_PREEMPTED", "NonFiniteLossError"]

EXIT_PREEMPTED = 75
"""A signal stopped the run, a checkpoint is written: start it again with --resume. (The number is
the system's own word for "temporary failure, try again".)"""

EXIT_NONFINITE = 76
"""A loss became infinite or NaN; starting again as it is would meet it again."""


class NonFiniteLossError(FloatingPointError):
    """A loss became infinite or NaN; the message names term, iteration, lr and files."""

    exit_code = EXIT_NONFINITE

"""What systems and studies of copying have in common: sequences, and heads."""

import math
from typing import Literal

import equinox as eqx

from ...errors import InputError
from ...tasks import CopyingTask
from ..base import AbstractSetting

# Up to this many, every gradient covers all sequences.
_MOST_SEQUENCES = 50_000


class AbstractCopying(AbstractSetting):
    """Sequences to copy: ordered draws of `length` out of `vocabulary` words."""

    length: int | None = eqx.field(static=True, default=None)
    """Words in a sequence, n; None: 4, reduced 40, sequence models by their size."""
    vocabulary: int | None = eqx.field(static=True, default=None)
    """Words to draw from, m; None: half as many again as a sequence has."""

    def __check_init__(self):
        self.task  # noqa: B018 (raises for invalid numbers)

    @property
    def usual_length(self) -> int:
        """The default length."""
        return 4

    @property
    def task(self) -> CopyingTask:
        """The sequences."""
        length = self.usual_length if self.length is None else self.length
        more = length + length // 2
        vocabulary = more if self.vocabulary is None else self.vocabulary
        return CopyingTask(length, vocabulary)


class AbstractHeads(AbstractCopying):
    """Heads with free positional scores and word-to-word logits, which learn to
    copy.
    """

    heads: int = eqx.field(static=True, default=1)
    """Attention heads, whose logits are averaged."""
    shared_values: bool = eqx.field(static=True, default=False)
    """One matrix of word-to-word logits for all heads, or one for each."""
    scores: Literal["free", "factorised"] = eqx.field(static=True, default="free")
    """Scores that are parameters themselves, or products of queries and keys."""
    sequences: int | None = eqx.field(static=True, default=None)
    """Number of drawn sequences; None: all. The reduction of a draw is approximate."""

    def __check_init__(self):
        for name in ("heads", "sequences"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name} must be at least 1, got {value}")

    @property
    def factorised(self) -> bool:
        """Whether scores are products."""
        return self.scores == "factorised"

    def require_few(self) -> None:
        """Raises `InputError` for more sequences than can be enumerated."""
        task = self.task
        # log₁₀ m!/(m − n)!: the number itself may have millions of digits.
        power = math.lgamma(task.vocabulary + 1)
        power -= math.lgamma(task.vocabulary - task.length + 1)
        power /= math.log(10)
        if self.sequences is None and power > math.log10(_MOST_SEQUENCES) + 1e-6:
            count = f"{10 ** (power % 1):.1f}e+{int(power):02d}"
            raise InputError(
                f"there are {count} sequences of {task.length} of "
                f"{task.vocabulary} words, too many for the exact expectation "
                f"(at most {_MOST_SEQUENCES:,}): give a number of sequences to draw, "
                "or use the reduced equations"
            )

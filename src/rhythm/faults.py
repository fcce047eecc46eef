"""What to do when numbers or memory give out, or the system asks to stop."""

from __future__ import annotations

import logging
import math
import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")
log = logging.getLogger(__name__)
# torch.OutOfMemoryError is a RuntimeError; libraries beneath it, and torch on the CPU, raise plain ones.
OUT_OF_MEMORY = ("out of memory", "not enough memory", "can't allocate memory")


class Interrupted(BaseException):
    """A signal asked the run to stop; its checkpoint is written. Not an Exception, so that nothing swallows it."""

    def __init__(self, signum: int, run: Path):
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.signum = signum
        self.run = run  # the folder whose last checkpoint goes on


def first_not_finite(tensors: Iterable[tuple[str, Tensor]]) -> str | None:
    """The name of the first tensor that holds a NaN or an infinity."""
    return next((name for name, tensor in tensors if not tensor.isfinite().all()), None)


def not_finite_in(loss: float, gradients: Iterable[tuple[str, Tensor]]) -> str:
    """Where a NaN or an infinity is: in the loss, or else in the first of the gradients."""
    if not math.isfinite(loss):
        return "the loss"
    name = first_not_finite(gradients)
    return f"the gradient of {name}" if name else "the loss of another process"


def is_out_of_memory(error: RuntimeError) -> bool:
    return any(words in str(error) for words in OUT_OF_MEMORY)


@contextmanager
def short_of_memory(mend: str) -> Iterator[None]:
    """Turns running out of memory inside into one line that says which settings to lower."""
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise MemoryError(f"out of memory; lower {mend}") from error


def halved_until_it_fits(compute: Callable[[int], T], size: int, *, least: int = 1) -> tuple[T, int]:
    """compute(size), begun again with half the size for as long as it runs out of memory.

    Args:
        compute: of a micro-batch size; gives the same result for each, and may be begun again at any point.
        least: a size that is not halved any more.
    Returns:
        Its result, and the size that fitted.

    Raises:
        MemoryError: it does not fit at `least` either.
    """
    while size > least:
        try:
            return compute(size), size
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        # Outside of the except clause: the error's traceback keeps the tensors of the pass that failed.
        smaller = max(size // 2, least)
        log.warning(f"out of memory: from here on micro_batch_size={smaller} instead of {size}, for the same result")
        size = smaller
    with short_of_memory("max_completion_tokens" if size == 1 else "micro_batch_size"):
        return compute(size), size

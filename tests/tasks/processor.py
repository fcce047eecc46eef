"""Bounds on the time that text takes which somebody wrote to cost it."""

import time
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def takes_less_than(seconds: float) -> Iterator[None]:
    """Inside, the processor works for less than so many seconds: what a busy machine gives to others does not count.

    A bound lies at ten times or more of what reading once takes, and below what reading again from each place takes.
    """
    started = time.process_time()
    yield
    taken = time.process_time() - started
    assert taken < seconds, f"took {taken:.2f} s of the processor's time, not less than {seconds} s"

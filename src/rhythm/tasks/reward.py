"""A reward function of the user's, in a child process with a deadline: whatever it does, the run goes on.

It is the user's own code and runs with the user's rights: the child keeps a hang, an exit or a crash away from the
training, and is no sandbox. What it sends back is JSON, so nothing that an answer brings about there is executed here.

The other end of the pipe is this file too: `python -m rhythm.tasks.reward my.module.function one`.
"""

from __future__ import annotations

import importlib
import json
import logging
import math
import os
import pickle
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

START_SECONDS = 120  # for importing the function's module
MAX_LOST = 10  # child processes that one call may cost
FAILED = math.nan
log = logging.getLogger(__name__)


class RewardFunction:
    """Calls `function(problem, completion) -> float`, or one for a whole batch, and returns NaN where it failed.

    A sample fails where the function raises, exits or outlasts its deadline, or returns None, NaN or anything else that
    is no finite number. GRPO leaves such samples out and counts them in `reward/failed`. A call that has lost MAX_LOST
    child processes, each to a sample that hung or ended it, does not try what remains: an iteration is not held up by
    hundreds of deadlines.

    Args:
        function: dotted name, `my.module.function`, importable from where the run was started.
        batch: it is `function(problems, completions) -> list of floats`; where it fails, every sample of the batch has.
        seconds: deadline of one call.

    Raises:
        ValueError: at the first call, where the function cannot be imported; and where a batch function returns another
            number of rewards than it was given completions, since then nobody knows whose they are.
    """

    def __init__(self, function: str, *, batch: bool = False, seconds: float = 10.0):
        if not seconds > 0:
            raise ValueError(f"task.seconds={seconds}: must be above 0")
        self.function = function
        self.batch = batch
        self.seconds = seconds
        self._child: _Child | None = None

    def __call__(self, problems: Sequence[Mapping[str, Any]], completions: Sequence[str]) -> list[float]:
        """One reward for each completion, in their order."""
        rewards = self.tried(problems, completions)
        return rewards + [FAILED] * (len(completions) - len(rewards))

    def tried(self, problems: Sequence[Mapping[str, Any]], completions: Sequence[str]) -> list[float]:
        """The same without the completions at the end that were not tried."""
        rewards: list[float] = []
        failures: list[str] = []
        lost_children = 0
        while len(rewards) < len(completions) and lost_children < MAX_LOST:
            try:
                self._score(problems, completions, rewards, failures)
            except _ChildError as failure:  # the next child goes on behind what this one died of
                self.close()
                lost_children += 1
                lost = len(completions) - len(rewards) if self.batch else 1
                rewards += [FAILED] * lost
                failures += [str(failure)] * lost
        if failures:
            counted = f"{len(failures)} of {len(rewards)} completions"
            untried = len(completions) - len(rewards)
            rest = f"; after {MAX_LOST} that ended their process {untried} more were not tried" if untried else ""
            log.warning(f"reward function {self.function} failed on {counted}, first: {failures[0]}{rest}")
        return rewards

    def close(self) -> None:
        """Ends the child process; the next call starts another."""
        if self._child is not None:
            self._child.kill()
            self._child = None

    def _score(self, problems: Any, completions: Any, rewards: list[float], failures: list[str]) -> None:
        """Appends the rewards that are missing; raises _ChildError where the child does not come to an end of them."""
        if self._child is None:
            self._child = _Child(self.function, self.batch)
        done = len(rewards)
        self._child.ask(list(problems[done:]), list(completions[done:]))
        if self.batch:
            answers = self._child.answer(self.seconds)["answers"]
            if len(answers) != len(completions):
                counted = f"{len(answers)} rewards for {len(completions)} completions"
                raise ValueError(f"reward function {self.function} returned {counted}")
            for answer in answers:
                _take(answer, rewards, failures)
        else:
            while len(rewards) < len(completions):
                _take(self._child.answer(self.seconds), rewards, failures)


def _take(answer: dict[str, Any], rewards: list[float], failures: list[str]) -> None:
    if answer["failure"] is None:
        rewards.append(answer["value"])
    else:
        rewards.append(FAILED)
        failures.append(answer["failure"])


class _ChildError(Exception):
    """The child process ended or was ended; the message says why."""


class _Child:
    """The parent's end: a process that has imported the function and answers a line of JSON for each call of it."""

    def __init__(self, function: str, batch: bool):
        mode = "batch" if batch else "one"
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "rhythm.tasks.reward", function, mode],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([*(path or "." for path in sys.path), "."])},
            start_new_session=True,  # a Ctrl-C is ours; and its children end with it
        )
        self._buffer = b""
        try:
            failure = self.answer(START_SECONDS)["failure"]
        except _ChildError as error:
            failure = str(error)
        if failure:
            self.kill()
            raise ValueError(f"reward function {function} cannot be used: {failure}")

    def ask(self, problems: list[Any], completions: list[str]) -> None:
        message = pickle.dumps((problems, completions))
        try:
            self._write(len(message).to_bytes(8, "big") + message)
        except BrokenPipeError as error:
            raise _ChildError("its process ended between two calls") from error

    def answer(self, seconds: float) -> dict[str, Any]:
        """The next line, within a number of seconds."""
        deadline = time.monotonic() + seconds
        while b"\n" not in self._buffer:
            ready, _, _ = select.select([self._process.stdout], [], [], max(deadline - time.monotonic(), 0))
            if not ready:
                raise _ChildError(f"no answer within {seconds:g} seconds")
            piece = os.read(self._process.stdout.fileno(), 1 << 16)
            if not piece:
                raise _ChildError(f"its process ended with code {self._process.wait()}")
            self._buffer += piece
        line, _, self._buffer = self._buffer.partition(b"\n")
        return json.loads(line)

    def kill(self) -> None:
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._process.stdin.close()
        self._process.stdout.close()

    def _write(self, data: bytes) -> None:
        while data:
            data = data[self._process.stdin.write(data) :]


# ---- the child


def serve(function: str, mode: str) -> None:
    """Answers calls until the parent closes the pipe."""
    # What the function prints must not stand between the answers: it goes to stderr, as does what its children print.
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    questions = os.fdopen(os.dup(0), "rb")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()

    def send(**answer: Any) -> None:
        answers.write(json.dumps(answer).encode() + b"\n")

    try:
        call = _find(function)
    except Exception as error:  # an import may fail in any way
        send(failure=_described(error))
        return
    send(failure=None)
    while length := int.from_bytes(questions.read(8), "big"):
        problems, completions = pickle.loads(questions.read(length))
        if mode == "one":
            for problem, completion in zip(problems, completions, strict=True):
                send(**_one(call, problem, completion))
        else:
            send(answers=_batch(call, problems, completions))


def _one(call: Callable[..., Any], problem: Any, completion: str) -> dict[str, Any]:
    try:
        return _number(call(problem, completion))
    except Exception as error:  # whatever the user's function raises is a failed sample
        return _failed(_described(error))


def _batch(call: Callable[..., Any], problems: list[Any], completions: list[str]) -> list[dict[str, Any]]:
    try:
        values = call(problems, completions)
        if isinstance(values, Iterable):
            return [_number(value) for value in values]
        failure = f"it returned {ascii(values)[:80]}, which is no list"
    except Exception as error:
        failure = _described(error)
    return [_failed(failure)] * len(completions)


def _number(value: Any) -> dict[str, Any]:
    try:
        number = math.nan if isinstance(value, str) else float(value)  # NumPy's and torch's scalars too
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if math.isfinite(number):
        return {"value": number, "failure": None}
    return _failed(f"it returned {ascii(value)[:80]}, which is no finite number")


def _failed(failure: str) -> dict[str, Any]:
    return {"value": None, "failure": failure}


def _find(function: str) -> Callable[..., Any]:
    module, _, name = function.rpartition(".")
    if not module:
        raise ValueError("give it as my.module.function")
    found = getattr(importlib.import_module(module), name)
    if not callable(found):
        raise TypeError(f"{name} is no function")
    return found


def _described(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def _end_with(parent: int) -> None:
    """Ends this process and its children when the run is gone: a function that hangs would stay for ever."""
    while os.getppid() == parent:
        time.sleep(1)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    serve(*sys.argv[1:])

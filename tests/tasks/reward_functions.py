"""Reward functions as users write them, some of them badly. A completion says what is to happen to it."""

import os
import subprocess
import sys
import time

import numpy as np


def one(problem, completion):
    """The problem's value and the completion's length; or what the completion asks for."""
    if completion in ACTIONS:
        return ACTIONS[completion]()
    return problem["value"] + len(completion)


def batch(problems, completions):
    return [one(problem, completion) for problem, completion in zip(problems, completions, strict=True)]


def parity(problem, completion):
    return len(completion) % 2


def as_array(problems, completions):
    return np.ones(len(completions), dtype=np.float32)


def one_short(problems, completions):
    return [1.0] * (len(completions) - 1)


def one_for_all(problems, completions):
    return 1.0


def nothing(problems, completions):
    return None


def process_id(problem, completion):
    return os.getpid()


def beside_children(problem, completion):
    """Leaves a child of its own behind, whose number is the reward; then hangs."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    open(completion, "w").write(f"{os.getpid()} {child.pid}")  # noqa: SIM115, PTH123
    time.sleep(600)


def _hang():
    time.sleep(600)


def _spin():
    while True:
        pass


def _raise():
    raise KeyError("no\nsuch key")


def _recurse():
    return _recurse()


def _print():
    print('{"value": 100.0, "failure": null}', flush=True)
    os.system("echo loud")
    return 7.0


ACTIONS = {
    "hang": _hang,
    "spin": _spin,
    "raise": _raise,
    "recurse": _recurse,
    "print": _print,
    "none": lambda: None,
    "nan": lambda: float("nan"),
    "inf": lambda: float("inf"),
    "huge": lambda: 10**400,
    "text": lambda: "1.0",
    "list": lambda: [1.0],
    "exit": lambda: sys.exit(0),
    "die": lambda: os._exit(3),
    "abort": os.abort,
    "close": lambda: os.close(1) or 8.0,
    "true": lambda: True,
    "numpy": lambda: np.float32(0.5),
}
no_function = 3

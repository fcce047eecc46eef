"""Starts entry points in processes of their own without importing the libraries for each: a process that forks.

`python tests/nursery.py` reads lines of JSON, a file for the output, the name of a script and its
arguments; for each it prints the id of the process and, when that has ended, its exit status.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


class Nursery:
    """The process that forks, and what a test asks of it."""

    def __init__(self) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
        pipe = subprocess.PIPE
        command = [sys.executable, "tests/nursery.py"]
        self.process = subprocess.Popen(command, cwd=ROOT, env=environment, stdin=pipe, stdout=pipe, text=True)

    def start(self, output: Path | str, script: str, *arguments: object) -> int:
        """The id of a process that runs the script; what it prints goes to `output`."""
        self.process.stdin.write(json.dumps([str(output), script, list(map(str, arguments))]) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def status(self) -> int:
        """The exit status of the process started last, once it has ended."""
        return int(self.process.stdout.readline())

    def run(self, output: Path, script: str, *arguments: object) -> str:
        """What a script that succeeds prints."""
        self.start(output, script, *arguments)
        assert self.status() == 0, output.read_text()
        return output.read_text()

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait(timeout=120)


def main() -> None:
    import eval as eval_script
    import rhythm.callbacks.attention_signals
    import rhythm.callbacks.evaluation
    import rhythm.callbacks.export
    import rhythm.callbacks.inspection
    import rhythm.callbacks.progress
    import rhythm.data
    import rhythm.tasks.countdown  # noqa: F401
    import train as train_script
    from rhythm import cli, runs

    scripts = {"train.py": (train_script.train, "train"), "eval.py": (eval_script.evaluate_adapter, "eval")}
    for line in sys.stdin:
        output, script, arguments = json.loads(line)
        child = os.fork()
        if child == 0:
            os.dup2(os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), 1)
            os.dup2(1, 2)
            os.environ.pop(runs.SHARED, None)
            sys.argv = [script, *arguments]
            cli.main(*scripts[script])
            sys.exit(0)
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    main()

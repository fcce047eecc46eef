"""What a run shows while it runs, in a terminal and without one."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

ROOT = Path(__file__).parents[2]
SMOKE = ["train.py", "experiment=anchor", "debug=smoke", "logger=csv"]


def in_a_terminal(columns, *arguments):
    """What a command writes to a terminal of so many columns."""
    own, given = pty.openpty()
    fcntl.ioctl(given, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TERM": "xterm"}
    process = subprocess.Popen(
        [sys.executable, *arguments], cwd=ROOT, env=environment, stdin=given, stdout=given, stderr=given
    )
    os.close(given)
    written = b""
    while True:
        try:
            chunk = os.read(own, 65536)
        except OSError:  # on Linux, the other end is closed
            break
        if not chunk:
            break
        written += chunk
    os.close(own)
    assert process.wait(timeout=300) == 0
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", written.decode())  # without colours


def test_the_bar_is_one_line_of_80_columns(tmp_path):
    written = in_a_terminal(80, *SMOKE, f"output_dir={tmp_path / 'run'}")
    bars = [line.strip() for line in re.split(r"[\r\n]+", written) if "s/it:" in line]
    assert bars
    assert all(len(bar) <= 80 for bar in bars)
    assert re.search(r"2/2 .*reward: \d\.\d\d pass@1: \d\.\d\d kl: \d\.\d\d s/it: \d+\.\d\d$", bars[-1])
    assert "tensorboard" not in written  # nothing is logged for it
    assert re.search(r"pass@1 .* \d\.\d{3} \[", written)  # the table at the end
    assert str(tmp_path / "run") in written

"""What keeping freed memory saves an iteration on a CPU: `python experiments/throughput/allocator.py`, four minutes.

Our side of the benchmark at 16 × 8, with `rhythm.allocator` and without, by turns.
"""

from __future__ import annotations

import os
import sys
from statistics import median

from run import EMBEDDED, LEARNING_RATE, run_once

PAIRS = 4
SPEC = {"policy": str(EMBEDDED), "prompts": 16, "group": 8, "updates": 2, "max_tokens": 200, "micro_batch": 16}
SPEC |= {"threads": 2, "device": "cpu", "learning_rate": LEARNING_RATE, "warmup": 2, "timed": 4, "reward": "countdown"}


def main() -> None:
    ratios = []
    for pair in range(1, PAIRS + 1):
        rows = {}
        for name in ("kept", "returned"):
            # A setting of glibc's own, at its default, is a user's: the allocator is left alone.
            os.environ.pop("MALLOC_PERTURB_", None)
            if name == "returned":
                os.environ["MALLOC_PERTURB_"] = "0"
            rows[name] = run_once(sys.executable, "ours.py", SPEC | {"seed": pair})["row"]
        seconds = {name: row["seconds"] for name, row in rows.items()}
        memory = {name: row["peak_memory_mb"] for name, row in rows.items()}
        ratios.append(seconds["kept"] / seconds["returned"])
        print(f"pair {pair}: seconds {seconds}, MB {memory}, ratio {ratios[-1]:.2f}", flush=True)
    print(f"median {median(ratios):.2f}")


if __name__ == "__main__":
    main()

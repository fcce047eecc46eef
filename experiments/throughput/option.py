"""What an option saves an iteration on a CPU: `python experiments/throughput/option.py allocator` or `compile`.

Our side of the benchmark at 16 × 8, with the option and without, by turns; five minutes.
"""

from __future__ import annotations

import argparse
import os
import sys
from statistics import median

from run import EMBEDDED, LEARNING_RATE, run_once

SPEC = {"policy": str(EMBEDDED), "prompts": 16, "group": 8, "updates": 2, "max_tokens": 200, "micro_batch": 16}
SPEC |= {"threads": 2, "device": "cpu", "learning_rate": LEARNING_RATE, "warmup": 2, "timed": 4, "reward": "countdown"}


def run(option: str, used: bool, seed: int) -> dict:
    """The row of a run with the option or without it."""
    os.environ.pop("MALLOC_PERTURB_", None)
    if option == "allocator" and not used:
        os.environ["MALLOC_PERTURB_"] = "0"  # a setting of glibc's own, at its default, is a user's: it is left alone
    spec = SPEC | {"seed": seed, "compile": option == "compile" and used}
    return run_once(sys.executable, "ours.py", spec)["row"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("option", choices=("allocator", "compile"), help="rhythm.allocator, or policy.compile")
    parser.add_argument("--pairs", type=int, default=4)
    args = parser.parse_args()
    ratios: dict[str, list[float]] = {"seconds": [], "time/update": []}
    for pair in range(1, args.pairs + 1):
        used, left = (run(args.option, used, pair) for used in (True, False))
        for name, of in ratios.items():
            of.append(used[name] / left[name])
        told = (f"{name} {used[name]:.2f} with, {left[name]:.2f} without" for name in (*ratios, "peak_memory_mb"))
        print(f"pair {pair}: {'; '.join(told)}", flush=True)
    for name, of in ratios.items():
        print(f"{name}: ratios {', '.join(f'{ratio:.2f}' for ratio in of)}, median {median(of):.2f}")


if __name__ == "__main__":
    main()

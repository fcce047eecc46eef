"""What both workers measure, by the same code in both environments."""

from __future__ import annotations

import json
import os
import sys
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from statistics import mean, median
from time import perf_counter, process_time

import torch


class Log:
    """What happened, iteration by iteration. An iteration is timed from the end of the one before to its own end."""

    def __init__(self):
        self.ends: list[float] = []
        self.others: list[float] = []  # CPU seconds that everything but this process had used by then
        self.lengths: list[list[int]] = []  # of each completion
        self.rewards: list[list[float]] = []

    def sampled(self, lengths: list[int], rewards: list[float]) -> None:
        self.lengths.append(lengths)
        self.rewards.append(rewards)

    def ended(self) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.ends.append(perf_counter())
        self.others.append(machine_seconds() - process_time())

    def row(self, spec: dict, trainer: str) -> dict:
        """One row of results.csv, of the timed iterations only; the batch is what was counted, not what was asked."""
        timed = slice(spec["warmup"], spec["warmup"] + spec["timed"])
        ends = self.ends[spec["warmup"] - 1 :]
        seconds = [end - start for start, end in pairwise(ends)]
        lengths, rewards = self.lengths[timed], self.rewards[timed]
        groups = [batch[i : i + spec["group"]] for batch in rewards for i in range(0, len(batch), spec["group"])]
        assert len(seconds) == len(lengths) == spec["timed"]
        assert torch.get_num_threads() == spec["threads"]
        return {
            "seconds": round(median(seconds), 4),
            "other_load": round((self.others[-1] - self.others[spec["warmup"] - 1]) / (ends[-1] - ends[0]), 3),
            "completions": mean(len(batch) for batch in lengths),
            "mean_length": round(mean(length for batch in lengths for length in batch), 2),
            "longest": round(mean(max(batch) for batch in lengths), 1),
            "reward": round(mean(reward for batch in rewards for reward in batch), 4),
            "equal_groups": round(mean(len(set(group)) == 1 for group in groups), 4),
            "peak_memory_mb": peak_memory_mb(spec["device"]),
            "hardware": torch.cuda.get_device_name() if spec["device"] == "cuda" else "",
            "versions": " ".join(f"{name}={version(name)}" for name in ("torch", "transformers", "peft", trainer)),
        }


def machine_seconds() -> float:
    """CPU seconds that the machine has spent on anything since it started, stolen time included. Linux only."""
    user, nice, system, _, _, *interrupts = map(int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9])
    return (user + nice + system + sum(interrupts)) / os.sysconf("SC_CLK_TCK")


def peak_memory_mb(device: str) -> int:
    """Of this process; on a GPU, of its tensors. Linux only; `getrusage` would count the parent's at the fork."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() // 2**20
    status = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in status if line.startswith("VmHWM")).split()[1]) // 1024


def read_spec() -> dict:
    return json.loads(Path(sys.argv[1]).read_text())


def write_result(result: dict) -> None:
    Path(sys.argv[2]).write_text(json.dumps(result))

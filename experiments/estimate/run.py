"""Holds the estimate of memory against the peak of real runs: `python experiments/estimate/run.py`, about four minutes.

Each case trains for one iteration on a random base, in a process of its own. Measured is its largest resident set less
that of a run on a base of a few thousand weights: imports and libraries cancel. The allocator returns what is freed
(MALLOC_MMAP_THRESHOLD_), or the resident set would tell of its habits. On a GPU, with `--device cuda --output FOLDER`,
bases are larger and measured is what torch's allocator held at most.
"""

from __future__ import annotations

import argparse
import csv
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import transformers

from rhythm.loading import find_source

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SMALL = {"hidden_size": 384, "intermediate_size": 1152, "num_hidden_layers": 6, "vocab_size": 8000}
WIDE = {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 4, "vocab_size": 32000}
NOTHING = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "vocab_size": 300}
QWEN3 = {"hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28, "vocab_size": 151936}
QWEN3 |= {"num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128}  # the shape of Qwen3-0.6B
LARGER = ["policy.dtype=bfloat16", "max_completion_tokens=384", "callbacks=attention", "credit=anchor"]
CHECKPOINTED = ["policy.activation_checkpointing=true"]
CASES = {  # device, name: base, overrides
    "cpu": {
        "LoRA": (SMALL, []),
        "activation checkpointing": (SMALL, CHECKPOINTED),
        "every weight": (SMALL, ["policy.full=true", "learning_rate=1e-5"]),
        "signals": (SMALL, ["callbacks=attention", "credit=anchor"]),
        "large vocabulary": (WIDE, CHECKPOINTED),
    },
    "cuda": {
        "Qwen3-0.6B": (QWEN3, LARGER),
        "activation checkpointing": (QWEN3, [*LARGER, *CHECKPOINTED]),
        "most in sampling": (QWEN3, [*LARGER, *CHECKPOINTED, "prompts_per_iteration=32", "micro_batch_size=1"]),
    },
}
RUN = ["policy=local", "iterations=1", "prompts_per_iteration=4", "group_size=8", "updates_per_iteration=2"]
RUN += [
    "max_completion_tokens=128",
    "micro_batch_size=8",
    "prompt_tokens=16",
    "~callbacks.inspection",
    "algorithm.objective.beta=0.01",
]
# No completion of a random base is right, and without differing rewards only the penalty teaches anything.
RUN += ["~callbacks.export", "callbacks.evaluation.problems=4", "callbacks.evaluation.prompts_at_once=4"]


def save_base(folder: Path, sizes: dict[str, int]) -> Path:
    """A random Qwen3 with the embedded policy's tokenizer, which hardly ever ends: completions reach their limit."""
    torch.manual_seed(0)
    heads = {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 32}
    config = transformers.Qwen3Config(**heads | sizes, tie_word_embeddings=True)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(find_source("embedded:tiny_countdown")).save_pretrained(folder)
    return folder


def peak(folder: Path, overrides: list[str], output: str, device: str) -> float:
    """The largest resident set of a training, or what torch's allocator held at most on a GPU, in MiB."""
    own = [*RUN, *overrides, f"policy.path={folder}", f"output_dir={output}"]
    if device == "cuda":
        command = [sys.executable, __file__, "--train", *own, "trainer=gpu"]
        return float(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()[-1])
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    command = [sys.executable, "train.py", *own]
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    assert status == 0, command
    return usage.ru_maxrss / 1024


def train_here(overrides: list[str]) -> None:
    """train.py in this process, then what torch's allocator held at most, in MiB."""
    sys.path.insert(0, str(ROOT))
    from rhythm import cli
    from train import train

    sys.argv = ["train.py", *overrides]
    cli.main(train, "train")
    print(torch.cuda.max_memory_allocated() / 2**20)


def predicted(folder: Path, overrides: list[str]) -> float:
    """What `estimate=true` says to the same command, in MiB."""
    command = [sys.executable, "train.py", *RUN, *overrides, f"policy.path={folder}", "estimate=true"]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return float(re.search(r"([\d.]+) GiB  at most", told)[1]) * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--output", type=Path, default=HERE, help="folder of results.csv")
    parser.add_argument("--train", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.train:
        train_here(args.train)
        return
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        nothing = save_base(Path(scratch) / "nothing", NOTHING)
        floor = peak(nothing, [], f"{scratch}/floor", args.device) if args.device == "cpu" else 0.0
        for number, (name, (sizes, overrides)) in enumerate(CASES[args.device].items()):
            folder = save_base(Path(scratch) / f"base-{number}", sizes)
            measured = peak(folder, overrides, f"{scratch}/run-{number}", args.device) - floor
            told = predicted(folder, overrides)
            rows.append([name, round(told), round(measured), f"{told / measured:.2f}"])
            print(*rows[-1], sep="  ", flush=True)
    args.output.mkdir(parents=True, exist_ok=True)
    with (args.output / "results.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["case", "estimated_mib", "measured_mib", "ratio"], *rows])


if __name__ == "__main__":
    main()

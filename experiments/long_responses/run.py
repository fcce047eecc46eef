"""Time and memory of an iteration by response length: `python experiments/long_responses/run.py`.

A small random policy that never ends a completion, so that every response has exactly the asked length. Each length
has a process of its own, which trains for two iterations and reports the second.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import subprocess
import sys
import tempfile
from itertools import pairwise
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from datasets import Dataset
from lightning.pytorch import Trainer
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, Qwen3Config

from rhythm.callbacks.attention_signals import AttentionSignals
from rhythm.credit import AnchorCredit
from rhythm.data import PromptData
from rhythm.module import GRPOModule
from rhythm.objective import Objective
from rhythm.policy import Policy
from rhythm.tasks.base import Problem, Task
from rhythm.types import Rollout

HERE = Path(__file__).parent
STAGES = ("sample", "score", "signals", "update")
COLOURS = ("#0072B2", "#009E73", "#D55E00", "#CC79A7", "#222222")
WORDS = 64  # the model's vocabulary; the tokenizer's end of sequence lies beyond it and is never drawn
COMPLETIONS = 2  # of one prompt


class Halves(Task):
    """One prompt; the first half of its group is right, whatever it says."""

    def train_problems(self) -> Dataset:
        return Dataset.from_list([{"text": "w1 w2 w3 w4 w5 w6 w7 w8"}] * 4)

    test_problems = train_problems

    def prompt(self, problem: Problem) -> str:
        return problem["text"]

    def extract(self, completion: str) -> str | None:
        return None

    def reward(self, problem: Problem, completion: str) -> float:
        return 0.0

    def rewards(self, rollout: Rollout) -> Tensor:
        return (torch.arange(len(rollout.completions)) < COMPLETIONS // 2).float()


def save_policy(folder: Path, longest: int) -> None:
    """A random Qwen3 of 4 layers, 4 heads of 32 that share 2 keys, and an MLP of 3 times the width."""
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=WORDS,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=2 * longest,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    vocabulary = {"<pad>": 0, **{f"w{i}": i for i in range(1, WORDS)}, "<eos>": WORDS}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>").save_pretrained(folder)


def peak_mb() -> float:
    """Of this process so far. Linux only."""
    status = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return int(next(line for line in status if line.startswith("VmHWM")).split()[1]) / 1024


def train(length: int) -> dict[str, float]:
    """Seconds of the second iteration by stage, and what training added to the peak memory, in MB."""
    with tempfile.TemporaryDirectory() as folder:
        save_policy(Path(folder), length)
        policy = Policy(folder)
    task, before = Halves(), peak_mb()
    module = GRPOModule(
        policy,
        task,
        AnchorCredit(),
        Objective(),
        lambda parameters: torch.optim.AdamW(parameters, lr=1e-6),
        iterations=2,
        group_size=COMPLETIONS,
        updates_per_iteration=1,
        max_completion_tokens=length,
        micro_batch_size=1,
    )
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[AttentionSignals()],
    )
    trainer.fit(module, PromptData(task, policy.tokenizer, prompts_per_iteration=1, iterations=2, seed=0))
    assert module.metrics["completions/mean_length"] == length
    seconds = {name: round(module.metrics[f"time/{name}"], 4) for name in (*STAGES, "iteration")}
    return seconds | {"extra_mb": round(peak_mb() - before, 1)}


def measure(lengths: list[int], threads: int) -> list[dict[str, float]]:
    rows = []
    for length in lengths:
        command = [sys.executable, __file__, "--one", str(length), "--threads", str(threads)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            sys.exit(done.stderr[-3000:])
        rows.append({"tokens": length, "threads": threads, **json.loads(done.stdout.splitlines()[-1])})
        print("  ".join(f"{name} {value}" for name, value in rows[-1].items()), flush=True)
    return rows


def exponent(first: dict[str, float], last: dict[str, float], name: str) -> float:
    """p of ~ tokens^p, between two rows."""
    return math.log(last[name] / first[name]) / math.log(last["tokens"] / first["tokens"])


def table(rows: list[dict[str, float]]) -> str:
    """Markdown: seconds by stage, memory, and the exponents of each step in length."""
    names = (*STAGES, "iteration", "extra_mb")
    lines = [f"| tokens | {', s | '.join(names[:-1])}, s | memory, MB |", "|---" * (len(names) + 1) + "|"]
    for row in rows:
        cells = [f"{row['tokens']:.0f}", *(f"{row[name]:.2f}" for name in names[:-1]), f"{row['extra_mb']:.0f}"]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", f"| exponent | {' | '.join(names[:-1])} | memory |", "|---" * (len(names) + 1) + "|"]
    for pair in pairwise(rows):
        cells = [f"{exponent(*pair, name):.2f}" for name in names]
        lines.append(f"| {pair[0]['tokens']:.0f} → {pair[1]['tokens']:.0f} | {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(rows: list[dict[str, float]], path: Path) -> None:
    """Seconds of each stage and memory by length, all axes logarithmic."""
    figure, (time, memory) = plt.subplots(1, 2, figsize=(8, 3.2), layout="constrained")
    tokens = [row["tokens"] for row in rows]
    for name, colour in zip((*STAGES, "iteration"), COLOURS, strict=True):
        time.plot(tokens, [row[name] for row in rows], "o-", color=colour, label=name, markersize=4)
    memory.plot(tokens, [row["extra_mb"] for row in rows], "o-", color=COLOURS[-1], markersize=4)
    time.set(title="an iteration", ylabel="seconds")
    memory.set(title="peak memory that training adds", ylabel="MB")
    for axis in (time, memory):
        axis.set(xscale="log", yscale="log", xlabel="response tokens")
        axis.set_xticks(tokens, [f"{n / 1024:.3g}K" if n >= 1024 else f"{n:.0f}" for n in tokens])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    time.legend(frameon=False)
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=[256, 1024, 4096, 16384])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--one", type=int, metavar="LENGTH", help="measure this length here and print it as JSON")
    parser.add_argument("--report", action="store_true", help="table and figure of results.csv, without measuring")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.one:
        print(json.dumps(train(args.one)))
        return
    if not args.report:
        rows = measure(args.lengths, args.threads)
        with (HERE / "results.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    with (HERE / "results.csv").open(newline="", encoding="utf-8") as file:
        rows = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
    print(table(rows))
    draw(rows, HERE / "lengths.png")


if __name__ == "__main__":
    main()

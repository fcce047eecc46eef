"""What reading attention costs a forward pass: `python experiments/signal_cost/run.py`.

One random model of 15 layers, 8 heads of 64, and three ways through it: `plain` SDPA; `signals`, the same with the
middle layers read as in training, head groups known; `maps`, an eager pass that keeps all attention maps, which is what
there is otherwise. Passes alternate in one process for the times; memory is the peak of a process that makes one pass.
"""

from __future__ import annotations

import argparse
import copy
import csv
import json
import subprocess
import sys
from pathlib import Path
from statistics import median
from time import perf_counter

import matplotlib.pyplot as plt
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, Qwen3Config

from rhythm.attention import SignalCollector, SignalSettings
from rhythm.types import HeadGroups

HERE = Path(__file__).parent
WAYS = ("plain", "signals", "maps")
LAYERS, HEADS, WIDTH = 15, 8, 64
LONGEST_MAPS = 4096  # tokens; at 8192 the maps of this model take 32 GB
PROMPT = 64  # tokens; the rest is response
COLOURS = {"plain": "#0072B2", "signals": "#D55E00", "maps": "#999999"}


def build(device: str) -> tuple[nn.Module, nn.Module]:
    """The model, and an eager copy that shares its weights."""
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=1024,
        hidden_size=HEADS * WIDTH,
        intermediate_size=3 * HEADS * WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        head_dim=WIDTH,
        max_position_embeddings=2**15,
    )
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval().to(device)
    eager = copy.deepcopy(model, {id(weight): weight for weight in model.parameters()})
    eager.set_attn_implementation("eager")
    return model, eager


def known_heads(model: nn.Module) -> HeadGroups:
    """Groups as a first iteration would have found them."""
    collector = SignalCollector(model, SignalSettings())
    ids, mask = inputs(256, model.device)
    with torch.no_grad(), collector.reading(mask):
        model.model(input_ids=ids, use_cache=False)
    return collector.finish().heads


def inputs(length: int, device: torch.device) -> tuple[Tensor, Tensor]:
    ids = torch.randint(1024, (1, length), generator=torch.Generator().manual_seed(0))
    return ids.to(device), (torch.arange(length)[None] >= PROMPT).to(device)


@torch.no_grad()
def once(way: str, model: nn.Module, eager: nn.Module, heads: HeadGroups, length: int) -> float:
    """Seconds of one pass through the layers, without the LM head."""
    ids, mask = inputs(length, model.device)
    started = perf_counter()
    if way == "plain":
        model.model(input_ids=ids, use_cache=False)
    elif way == "maps":
        eager.model(input_ids=ids, use_cache=False, output_attentions=True)
    else:
        collector = SignalCollector(model, SignalSettings(), heads=heads)
        with collector.reading(mask):
            model.model(input_ids=ids, use_cache=False)
        collector.finish()
    if model.device.type == "cuda":
        torch.cuda.synchronize()
    return perf_counter() - started


def peak_mb(device: str) -> float:
    """Of this process so far; on a GPU, of its tensors. Linux only."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    status = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return int(next(line for line in status if line.startswith("VmHWM")).split()[1]) / 1024


def memory_of(way: str, length: int, device: str) -> float:
    """MB that one pass adds to the peak of a process of its own."""
    done = subprocess.run(
        [sys.executable, __file__, "--memory", way, "--lengths", str(length), "--device", device],
        check=True,
        capture_output=True,
        text=True,
    )
    return json.loads(done.stdout)


def measure(lengths: list[int], repeats: int, device: str) -> list[dict[str, object]]:
    """A row a length and way. Ratios are medians over passes that followed each other."""
    model, eager = build(device)
    heads = known_heads(model)
    rows = []
    for length in lengths:
        ways = [way for way in WAYS if way != "maps" or length <= LONGEST_MAPS]
        for way in ways:
            once(way, model, eager, heads, length)
        seconds = {way: [] for way in ways}
        for _ in range(repeats if length < 4096 else max(3, repeats // 4)):
            for way in ways:
                seconds[way].append(once(way, model, eager, heads, length))
        maps_mb = LAYERS * HEADS * length**2 * 4 / 2**20
        plain_mb = memory_of("plain", length, device)
        for way in ways:
            extra = 0.0 if way == "plain" else memory_of(way, length, device) - plain_mb
            ratios = {
                f"of_{other}": f"{median(a / b for a, b in zip(seconds[way], seconds[other], strict=True)):.3f}"
                for other in ("plain", "maps")
                if other in seconds
            }
            row = {"length": length, "way": way, "seconds": f"{median(seconds[way]):.4f}", "n": len(seconds[way])}
            row |= ratios | {"extra_mb": f"{extra:.1f}", "maps_mb": f"{maps_mb:.1f}"}
            rows.append(row)
            print("  ".join(f"{name} {value}" for name, value in row.items()), flush=True)
    return rows


def draw(rows: list[dict[str, str]], path: Path) -> None:
    """Seconds and memory by length, both on logarithmic axes."""
    figure, (time, memory) = plt.subplots(1, 2, figsize=(8, 3.2), layout="constrained")
    for way in WAYS:
        mine = [row for row in rows if row["way"] == way]
        lengths = [int(row["length"]) for row in mine]
        time.plot(lengths, [float(row["seconds"]) for row in mine], "o-", color=COLOURS[way], label=way, markersize=4)
        if way != "plain":
            extra = [mb if (mb := float(row["extra_mb"])) > 0 else float("nan") for row in mine]  # the axis has no 0
            memory.plot(lengths, extra, "o-", color=COLOURS[way], label=way, markersize=4)
    time.set(title="a pass", ylabel="seconds")
    memory.set(title="peak memory beyond the plain pass", ylabel="MB")
    for axis in (time, memory):
        axis.set(xscale="log", yscale="log", xlabel="tokens")
        axis.set_xticks([512, 1024, 2048, 4096, 8192], ["512", "1K", "2K", "4K", "8K"])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False)
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=[512, 1024, 2048, 4096, 8192])
    parser.add_argument("--repeats", type=int, default=12, help="passes of each way; a quarter from 4096 tokens on")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--output", type=Path, default=HERE, help="folder of results.csv and cost.png")
    parser.add_argument("--memory", choices=WAYS, help="one pass, and print what it adds to the peak in MB")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.memory:
        model, eager = build(args.device)
        heads = known_heads(model)
        before = peak_mb(args.device)
        once(args.memory, model, eager, heads, args.lengths[0])
        print(peak_mb(args.device) - before)
        return
    rows = measure(args.lengths, args.repeats, args.device)
    args.output.mkdir(parents=True, exist_ok=True)
    with (args.output / "results.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(dict.fromkeys(name for row in rows for name in row)))
        writer.writeheader()
        writer.writerows(rows)
    with (args.output / "results.csv").open(newline="", encoding="utf-8") as file:
        draw(list(csv.DictReader(file)), args.output / "cost.png")


if __name__ == "__main__":
    main()

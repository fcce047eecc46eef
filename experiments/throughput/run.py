"""Seconds an iteration, TRL's GRPOTrainer against ours: `python experiments/throughput/run.py --trl-python PATH`.

Runs alternate, each in its own process: ours, TRL, ours, TRL, ... A pair shares its seed, and TRL is handed the
problems that ours has just met. One row a run goes to results.csv in --output as soon as its pair is done; rows of
other shapes and pairs stay.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from report import SHAPE, report
from rewards import REWARDS

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
EMBEDDED = ROOT / "src/rhythm/assets/tiny_countdown"
LEARNING_RATE = 1e-6  # so small that the policy stays what it is, and the lengths with it


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--trl-python", type=Path, required=True, help="python of an environment with TRL; see README")
    parser.add_argument("--policy", type=Path, default=EMBEDDED, help="folder of a transformers model")
    parser.add_argument("--prompts", type=int, default=16, help="of an iteration")
    parser.add_argument("--group", type=int, default=8, help="completions of a prompt")
    parser.add_argument("--updates", type=int, default=2, help="optimizer steps of an iteration")
    parser.add_argument("--max-tokens", type=int, default=200, help="of a completion")
    parser.add_argument("--micro-batch", type=int, default=16, help="sequences in one training pass, on both sides")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="of both sides")
    parser.add_argument("--pairs", type=int, nargs="+", default=[1, 2, 3], help="numbers of the pairs, their seeds")
    parser.add_argument(
        "--reward", choices=REWARDS, default="countdown", help="parity: for a policy that is never right"
    )
    parser.add_argument("--warmup", type=int, default=2, help="iterations of a run that are not timed, at least 1")
    parser.add_argument("--timed", type=int, default=8, help="iterations of a run that are")
    parser.add_argument("--output", type=Path, default=HERE, help="folder of results.csv and throughput.png")
    args = parser.parse_args()
    if args.warmup < 1:
        parser.error("--warmup must be at least 1: an iteration is timed from the end of the one before it")
    if args.prompts * args.group % (args.updates * args.micro_batch):
        parser.error("--prompts x --group must be a multiple of --updates x --micro-batch, or the batches would differ")
    return args


def run_once(python: Path | str, script: str, spec: dict) -> dict:
    """One worker process on a spec. What it wrote: its row and, on our side, what TRL is to share."""
    environment = os.environ | {
        "OMP_NUM_THREADS": str(spec["threads"]),
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        **({"CUDA_VISIBLE_DEVICES": ""} if spec["device"] == "cpu" else {}),
        "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])]),
    }
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "spec.json").write_text(json.dumps(spec))
        command = [str(python), str(HERE / script), "spec.json", "result.json"]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{script} failed:\n{done.stderr[-4000:]}")
        return json.loads(Path(folder, "result.json").read_text())


def measure(args: argparse.Namespace, pair: int) -> list[dict]:
    """Both runs of a pair, as rows."""
    shape = {name: getattr(args, name) for name in SHAPE} | {"policy": args.policy.resolve().name}
    rows = []
    own = {"policy": str(args.policy.resolve()), "seed": pair, "learning_rate": LEARNING_RATE}
    spec = shape | own | {"warmup": args.warmup, "timed": args.timed, "reward": args.reward}
    for side, python, script in (("ours", sys.executable, "ours.py"), ("TRL", args.trl_python, "trl_grpo.py")):
        result = run_once(python, script, spec)
        spec |= result.get("shared", {})
        row = {"side": side, "pair": pair, **shape, **result["row"]}
        told = f"{row['seconds']:.3f} s  {row['mean_length']:.1f} tokens  others: {row['other_load']:.2f} cores"
        print(f"pair {pair}  {side:4}  {told}", flush=True)
        rows.append(row)
    return rows


def save(rows: list[dict], path: Path) -> None:
    """Writes the rows of a pair among those that the file holds, shape by shape; rows of the same pair are replaced."""
    own = {name: str(rows[0][name]) for name in ("pair", *SHAPE)}
    kept = []
    if path.exists():
        with path.open(newline="") as file:
            kept = [row for row in csv.DictReader(file) if any(row[name] != own[name] for name in own)]
    rows = sorted([*kept, *rows], key=lambda row: ([str(row[name]) for name in SHAPE], int(row["pair"])))
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(dict.fromkeys(name for row in rows for name in row)))
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    args = arguments()
    for pair in args.pairs:
        save(measure(args, pair), args.output / "results.csv")
    print(report(args.output))

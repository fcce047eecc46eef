"""Trains against a real vLLM server on CPUs, and tells how far it samples from what is scored.

`python experiments/vllm/run.py /tmp/vllm/bin/python` takes the interpreter of vLLM's environment and six minutes; it
writes results.csv.
"""

from __future__ import annotations

import csv
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from urllib.request import urlopen

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from rhythm.loading import find_source

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
URL = "http://127.0.0.1:8765"
SERVED = "--enable-lora --max-lora-rank 16 --max-model-len 512 --logprobs-mode processed_logprobs --enforce-eager"
CASES = {  # the precisions of server and scorer
    "float32 float32": ("float32", "float32"),
    "bfloat16 float32": ("bfloat16", "float32"),
    "bfloat16 bfloat16": ("bfloat16", "bfloat16"),
}
RUN = ["policy=local", "sampler=vllm", f"sampler.url={URL}", "logger=csv", "iterations=5", "max_completion_tokens=200"]
RUN += ["~callbacks.inspection", "~callbacks.export", "callbacks.evaluation.problems=2", "eval_every=100"]
NUMBERS = {
    "reward": "reward",
    "sampling/sampling_logp_difference/mean": "mean",
    "sampling/sampling_logp_difference/max": "max",
    "sampling/kl": "kl",
    "sampling/importance_sampling_ratio/mean": "weight",
    "sampling/importance_sampling_ratio/truncated": "truncated",
    "time/sample": "seconds",
}


@torch.no_grad()
def save_wide(folder: Path) -> None:
    """The embedded policy with heads of 32 instead of 16, for which vLLM has no kernel on CPUs; the same function.

    The numbers that a head has are spread over its even places, so that each keeps its frequency of rotation, and the
    others are zero. That halves the mean square in the norm of queries and keys, and the scaling of attention by √2.
    """
    source = find_source("embedded:tiny_countdown")
    base, config = AutoModelForCausalLM.from_pretrained(source), AutoConfig.from_pretrained(source)
    width, config.head_dim = config.head_dim, 2 * config.head_dim
    wide = AutoModelForCausalLM.from_config(config)

    def spread(rows: torch.Tensor) -> torch.Tensor:
        """[heads · width, n] to [heads · 2 width, n]."""
        heads = rows.view(-1, width, 1, rows.shape[1])
        return torch.cat([heads, torch.zeros_like(heads)], 2).reshape(-1, rows.shape[1])

    state = base.state_dict()
    for name, tensor in state.items():
        if name.endswith(("q_proj.weight", "k_proj.weight", "v_proj.weight")):
            state[name] = spread(tensor)
        elif name.endswith("o_proj.weight"):
            state[name] = spread(tensor.T.contiguous()).T
        elif name.endswith(("q_norm.weight", "k_norm.weight")):
            state[name] = spread(tensor[:, None])[:, 0] * (1.0 if "q_norm" in name else 0.5**0.5)
    wide.load_state_dict(state)
    ids = torch.arange(2, 200)[None]
    torch.testing.assert_close(wide(ids).logits, base(ids).logits, atol=1e-4, rtol=0)
    wide.save_pretrained(folder)
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)


def start(python: str, base: Path, dtype: str, log: Path) -> subprocess.Popen:
    """A server that answers."""
    flags = {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True", "VLLM_SERVER_DEV_MODE": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
    words = ["-m", "vllm.entrypoints.openai.api_server", "--model", base, "--dtype", dtype, *SERVED.split()]
    port = int(URL.rpartition(":")[2])
    words += ["--host", "127.0.0.1", "--port", port]
    with socket.create_server(("127.0.0.1", port)):
        pass  # the port is free: OSError where another server would be measured
    with log.open("w") as output:
        server = subprocess.Popen(
            [python, *map(str, words)], env=os.environ | flags, stdout=output, stderr=output, start_new_session=True
        )
    until = time.monotonic() + 300
    while time.monotonic() < until and server.poll() is None:
        try:
            urlopen(f"{URL}/health", timeout=10).close()
            if server.poll() is None:
                return server
        except OSError:
            time.sleep(1)
    stop(server, signal.SIGKILL)
    raise OSError(f"the server did not start: {log.read_text()[-2000:]}")


def stop(server: subprocess.Popen, how: signal.Signals) -> None:
    with suppress(ProcessLookupError):  # it has ended by itself, with its workers
        os.killpg(server.pid, how)
    server.wait(60)


def train(base: Path, dtype: str, folder: Path) -> list[dict[str, str]]:
    """The numbers of each iteration."""
    command = [sys.executable, "train.py", *RUN, f"policy.path={base}", f"policy.dtype={dtype}", f"output_dir={folder}"]
    subprocess.run(command, cwd=ROOT, check=True)
    rows: dict[int, dict[str, str]] = {}
    with next(folder.glob("**/metrics.csv")).open(newline="") as file:
        for row in csv.DictReader(file):
            rows.setdefault(int(row["step"]), {}).update({key: value for key, value in row.items() if value})
    return [
        {"iteration": str(i), **{NUMBERS[tag]: rounded(tag, rows[i][tag]) for tag in NUMBERS}}
        for i in sorted(rows)
        if i
    ]


def rounded(tag: str, number: str) -> str:
    """To four digits; a ratio is near one, and what it is off takes two more."""
    return f"{float(number):.{6 if 'ratio' in tag else 4}g}"


def main(python: str) -> None:
    lines = []
    with tempfile.TemporaryDirectory() as scratch:
        base = Path(scratch) / "base"
        save_wide(base)
        for name, (served, scored) in CASES.items():
            server = start(python, base, served, Path(scratch) / "server.log")
            try:
                rows = train(base, scored, Path(scratch) / name.replace(" ", "-"))
            finally:
                stop(server, signal.SIGTERM)
            lines += [{"server": served, "scorer": scored, **row} for row in rows]
    with (HERE / "results.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, lines[0].keys(), lineterminator="\n")
        table.writeheader()
        table.writerows(lines)


if __name__ == "__main__":
    main(sys.argv[1])

"""Two gloo processes do together what one does alone."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.distributed.split import CASES, PROMPTS, fit
from tests.samplers.server import Server

ROOT = Path(__file__).parents[2]
PATHS = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": PATHS}


@pytest.fixture(scope="module")
def server():
    server = Server()
    yield server
    server.close()


@pytest.fixture(scope="module")
def together(tmp_path_factory, server):
    """The folder of what two processes did in each case."""
    folder = tmp_path_factory.mktemp("together")
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "tests/distributed/split.py"]
    command = [sys.executable, *launcher, str(folder), server.url]
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    return folder


@pytest.mark.parametrize("case", CASES)
def test_two_processes_take_the_step_of_one_with_twice_the_prompts(case, together):
    first, second = (torch.load(together / f"{case}-{rank}.pt", weights_only=True) for rank in (0, 1))
    alone = fit(1, case)
    largest = max(float(step.abs().max()) for step in alone["moved"].values())
    assert largest > 1e-4
    for name, step in alone["moved"].items():
        torch.testing.assert_close(first["moved"][name], step, rtol=0, atol=1e-6 + 1e-5 * largest)
        assert torch.equal(first["moved"][name], second["moved"][name])
    assert first["heads"] == second["heads"] == alone["heads"]
    for layer, total in alone["distance"].items():
        torch.testing.assert_close(first["distance"][layer], total, rtol=1e-6, atol=1e-4)
        assert torch.equal(first["distance"][layer], second["distance"][layer])
    for name in ("reward", "credit/mean", "grad_norm", "completions/max_length"):
        assert first["metrics"][name] == pytest.approx(alone["metrics"][name], rel=1e-4)


def test_the_first_process_alone_gives_a_server_the_adapter_and_the_second_waits(together, server):
    events = [event.split()[0] for event in server.events]
    assert events == ["load", "reset", *PROMPTS * ["complete"], "load", "reset", "unload", *PROMPTS * ["complete"]]
    prompts = [tuple(request["prompt"]) for request in server.requests]
    assert len(set(prompts[:PROMPTS])) == PROMPTS  # each process has its share, and each prompt its own seed
    assert len({request["seed"] for request in server.requests}) == 2 * PROMPTS
    first, second = (torch.load(together / f"served-{rank}.pt", weights_only=True) for rank in (0, 1))
    assert all(torch.equal(first["moved"][name], second["moved"][name]) for name in first["moved"])
    assert 0 < first["metrics"]["sampling/sampling_logp_difference/max"] <= 1e-4


def test_what_fails_in_the_first_process_is_raised_in_both(together):
    first, second = ((together / f"failed-{rank}").read_text() for rank in (0, 1))
    assert first == second
    assert "sampler.url=http://127.0.0.1:1: no answer to /v1/models" in first


def test_a_checkpoint_that_the_first_process_cannot_write_ends_both(together):
    first, second = ((together / f"full-{rank}").read_text() for rank in (0, 1))
    assert first == second
    assert "last.ckpt could not be written, File too large; there is none before" in first


def train(*overrides):
    command = [sys.executable, "train.py", "experiment=anchor", "trainer=ddp", "trainer.accelerator=cpu", "debug=smoke"]
    return subprocess.Popen(
        [*command, *overrides],
        cwd=ROOT,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_run_of_two_processes_stops_on_a_signal_and_goes_on(tmp_path):
    folder = tmp_path / "run"
    process = train("iterations=30", "checkpoint_every=1", "eval_every=30", f"output_dir={folder}")
    last = folder / "checkpoints" / "last.ckpt"
    deadline = time.time() + 100
    while not last.is_file() and process.poll() is None and time.time() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, err[-2000:]
    assert "Traceback" not in err
    stopped = torch.load(last, weights_only=True)["iteration"]
    assert 1 <= stopped < 30
    end = stopped + 2
    process = train(f"iterations={end}", "eval_every=30", f"output_dir={folder}", "ckpt_path=last")
    _, err = process.communicate(timeout=100)
    assert process.returncode == 0, err[-2000:]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]  # one output folder
    rewards = EventAccumulator(str(folder)).Reload().Scalars("reward")
    assert [event.step for event in rewards] == list(range(1, end + 1))  # one TensorBoard, each iteration once

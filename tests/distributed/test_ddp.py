"""Two gloo processes do together what one does alone."""

import functools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rhythm.policy import Policy
from tests.distributed.split import PROMPTS, SPLITS, fit
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
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return folder


def outcomes(folder, name):
    """Of the first process and of the second."""
    return [torch.load(folder / f"{name}-{rank}.pt", weights_only=True) for rank in (0, 1)]


@functools.cache
def by_one(case):
    return fit(1, case)


@pytest.mark.parametrize(("strategy", "case"), SPLITS)
def test_two_processes_take_the_step_of_one_with_twice_the_prompts(strategy, case, together):
    first, second = outcomes(together, f"{strategy}-{case}")
    alone = by_one(case)
    largest = max(float(step.abs().max()) for step in alone["moved"].values())
    assert largest > 1e-4
    for name, step in alone["moved"].items():
        torch.testing.assert_close(first["moved"][name], step, rtol=0, atol=1e-6 + 1e-5 * largest)
        assert torch.equal(first["moved"][name], second["moved"][name])
    assert first["heads"] == second["heads"] == alone["heads"]
    for layer, total in alone["distance"].items():
        torch.testing.assert_close(first["distance"][layer], total, rtol=1e-6, atol=1e-4)
        assert torch.equal(first["distance"][layer], second["distance"][layer])
    told = {name for name in alone["metrics"] if not name.startswith("time/")}
    assert {"entropy", "credit/amplified_end", "signals/fai", "clip_ratio/low_mean", "loss"} <= told
    for name in told:
        assert first["metrics"][name] == pytest.approx(alone["metrics"][name], rel=1e-4, abs=1e-6), name


def test_with_frozen_weights_in_shards_two_processes_do_what_they_do_by_ddp(together):
    pairs = zip(outcomes(together, "ddp-own"), outcomes(together, "fsdp-own"), strict=True)
    for plain, shards in pairs:
        for whole, cut in zip(plain["completions"], shards["completions"], strict=True):
            assert torch.equal(whole, cut)
        largest = max(float(step.abs().max()) for step in plain["moved"].values())
        assert largest > 1e-4
        for name, step in plain["moved"].items():
            torch.testing.assert_close(shards["moved"][name], step, rtol=0, atol=1e-6 * largest)
        told = {name: value for name, value in plain["metrics"].items() if not name.startswith("time/")}
        assert {"eval/kl", "reward", "signals/fai", "grad_norm"} <= told.keys()
        for name, value in told.items():
            assert shards["metrics"][name] == pytest.approx(value, rel=1e-6, abs=1e-9), name


def test_numbers_of_two_processes_are_those_of_everything_that_they_are_over(together):
    for told in (outcome["metrics"] for outcome in outcomes(together, "ddp-own")):
        assert told["told/weighted"] == pytest.approx(3.0)
        assert told["told/by_one"] == 4.0
        assert (told["told/by_none"], told["told/plain"], told["told/max"]) == (1.0, 1.0, 2.0)


def test_a_process_holds_half_of_the_frozen_weights_between_stages(together):
    pairs = zip(outcomes(together, "ddp-own"), outcomes(together, "fsdp-own"), strict=True)
    for plain, shards in pairs:
        assert len(plain["bytes"]) == len(shards["bytes"]) == 4  # after scoring and at the end of two iterations
        for whole, cut in zip(plain["bytes"], shards["bytes"], strict=True):
            assert (whole - cut) / plain["frozen"] == pytest.approx(0.5, abs=0.005)


def test_the_first_process_alone_gives_a_server_the_adapter_and_the_second_waits(together, server):
    events = [event.split()[0] for event in server.events]
    assert events == ["load", "reset", *PROMPTS * ["complete"], "load", "reset", "unload", *PROMPTS * ["complete"]]
    prompts = [tuple(request["prompt"]) for request in server.requests]
    assert len(set(prompts[:PROMPTS])) == PROMPTS  # each process has its share, and each prompt its own seed
    assert len({request["seed"] for request in server.requests}) == 2 * PROMPTS
    first, second = outcomes(together, "served")
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


SHORT = ["debug=smoke", "policy.fold=false", "eval_every=30", "inspect_every=30", "callbacks.evaluation.problems=2"]
SHORT += ["task._target_=tests.training.EasyCountdown", "max_completion_tokens=40"]  # rewards without a trace's end


def train(trainer, *overrides):
    command = [sys.executable, "train.py", "experiment=anchor", f"trainer={trainer}", "trainer.accelerator=cpu"]
    return subprocess.Popen(
        [*command, *SHORT, *overrides],
        cwd=ROOT,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture(scope="module")
def gone_on(tmp_path_factory):
    """Makes a run that a signal stops and that goes on for two iterations; its folder, and the iteration of its end."""

    @functools.cache
    def make(trainer):
        folder = tmp_path_factory.mktemp(trainer) / "run"
        process = train(trainer, "iterations=30", "checkpoint_every=1", f"output_dir={folder}")
        last = folder / "checkpoints" / "last.ckpt"
        deadline = time.monotonic() + 300
        while not last.is_file() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=300)
        assert process.returncode == 128 + signal.SIGTERM, err[-2000:]
        assert "Traceback" not in err
        stopped = torch.load(last, weights_only=True)["iteration"]
        assert 1 <= stopped < 30
        end = stopped + 2
        process = train(trainer, f"iterations={end}", f"output_dir={folder}", "ckpt_path=last")
        _, err = process.communicate(timeout=300)
        assert process.returncode == 0, err[-2000:]
        return folder, end

    return make


def scalars(folder):
    """The curves of a run, but for times."""
    board = EventAccumulator(str(folder)).Reload()
    return {tag: board.Scalars(tag) for tag in board.Tags()["scalars"] if not tag.startswith("time/")}


@pytest.mark.parametrize("trainer", ["ddp", "fsdp"])
def test_a_run_of_two_processes_stops_on_a_signal_and_goes_on(trainer, gone_on):
    folder, end = gone_on(trainer)
    assert sorted(path.name for path in folder.parent.iterdir()) == ["run"]  # one output folder
    steps = [event.step for event in scalars(folder)["reward"]]
    assert steps == list(range(1, end + 1))  # one board, each iteration once
    policy = Policy("embedded:tiny_countdown", adapter=str(folder / "adapter"))
    saved = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(tensor, saved[name]) for name, tensor in policy.adapter_state().items())


def test_runs_with_and_without_shards_have_the_same_curves(gone_on):
    plain, shards = (scalars(gone_on(trainer)[0]) for trainer in ("ddp", "fsdp"))
    assert {"reward", "loss", "signals/fai", "eval/pass@1"} <= plain.keys() == shards.keys()
    assert max(event.value for event in plain["grad_norm"]) > 0.01
    for tag, events in plain.items():
        values = {event.step: event.value for event in shards[tag]}
        for event in events:
            if event.step in values:  # one may have been stopped later than the other
                assert values[event.step] == pytest.approx(event.value, rel=1e-6, abs=1e-8), (tag, event.step)

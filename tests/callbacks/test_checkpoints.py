"""Checkpoints under signals in every phase of an iteration, and on a disk that is full."""

import os
import resource
import signal
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from rhythm import cli
from rhythm.callbacks.checkpoints import Checkpoints
from rhythm.callbacks.observer import RolloutObserver
from rhythm.objective import Objective
from rhythm.policy import Policy
from rhythm.runs import read_checkpoint
from tests.training import run

SETTINGS = {"prompts": 2, "max_completion_tokens": 30, "iterations": 3, "optimizer": torch.optim.AdamW, "lr": 1e-3}
SETTINGS["objective"] = Objective(beta=0.1)  # every iteration has something to learn


def saved(folder, name="last"):
    return read_checkpoint(folder / f"{name}.ckpt")


def assert_equal(one, other):
    assert one["state_dict"].keys() == other["state_dict"].keys()
    assert all(torch.equal(tensor, other["state_dict"][name]) for name, tensor in one["state_dict"].items())
    states = [checkpoint["optimizer_states"][0]["state"] for checkpoint in (one, other)]
    assert states[0].keys() == states[1].keys()
    for number, state in states[0].items():
        assert all(torch.equal(value, states[1][number][name]) for name, value in state.items())


class Signalled(RolloutObserver):
    """Sends this process a signal in one phase of iteration 2, once."""

    def __init__(self, signum, phase):
        self.signum, self.phase = signum, phase
        self.sent_in = None

    def on_train_start(self, trainer, module):
        self.module = module
        module.policy.model.get_output_embeddings().register_forward_hook(self.phase_of)

    def phase_of(self, head, inputs, logits):
        updating = "updating" if self.module.policy.training else "scoring"
        self.now("sampling" if logits.shape[1] == 1 else updating)

    def now(self, phase):
        if phase == self.phase and self.module.iteration == 2 and self.sent_in is None:
            self.sent_in = phase
            os.kill(os.getpid(), self.signum)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The checkpoints of a run that nobody stopped."""
    folder = tmp_path_factory.mktemp("finished")
    run(**SETTINGS, callbacks=[Checkpoints(str(folder), every=1)])
    return folder


@pytest.mark.parametrize("phase", ["sampling", "scoring", "updating"])
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_in_any_phase_ends_the_run_after_its_iteration(finished, tmp_path, monkeypatch, signum, phase):
    handler = signal.getsignal(signum)
    signalled, checkpoints = Signalled(signum, phase), Checkpoints(str(tmp_path), every=50)
    monkeypatch.setattr(sys, "argv", ["train.py"])
    with pytest.raises(SystemExit) as stop:
        cli.main(lambda cfg: run(**SETTINGS, callbacks=[signalled, checkpoints]), "train")
    assert stop.value.code == {signal.SIGTERM: 143, signal.SIGINT: 130}[signum]
    assert signalled.sent_in == phase
    assert signal.getsignal(signum) == handler
    assert saved(tmp_path)["iteration"] == 2
    run(**SETTINGS, callbacks=[Checkpoints(str(tmp_path), every=1)], ckpt_path=tmp_path / "last.ckpt")
    assert_equal(saved(tmp_path), saved(finished))


def test_the_checkpoint_before_the_last_is_kept_and_resumed_from_where_the_last_is_damaged(finished, tmp_path):
    assert [saved(finished, name)["iteration"] for name in ("previous", "last")] == [2, 3]
    assert not list(finished.glob("*.tmp"))
    for name in ("previous", "last"):
        (tmp_path / f"{name}.ckpt").write_bytes((finished / f"{name}.ckpt").read_bytes())
    os.truncate(tmp_path / "last.ckpt", 5000)
    message = rf"last.ckpt is damaged, or no checkpoint; of iteration 2 is ckpt_path={tmp_path}/previous.ckpt$"
    with pytest.raises(ValueError, match=message):
        saved(tmp_path)
    run(**SETTINGS, callbacks=[Checkpoints(str(tmp_path), every=1)], ckpt_path=tmp_path / "previous.ckpt")
    assert_equal(saved(tmp_path), saved(finished))


class Full(RolloutObserver):
    """From an iteration on no file may grow beyond so many bytes: the disk is full."""

    def __init__(self, size, iteration=2):
        self.size, self.iteration = size, iteration

    def learned(self, module, rollout):
        if module.iteration == self.iteration:
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, resource.RLIM_INFINITY))


@contextmanager
def limited_files():
    """Takes back what was limited inside."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("size", [0, 100_000])
def test_where_the_disk_is_full_the_earlier_checkpoint_stays_and_one_line_says_so(finished, tmp_path, size):
    whole = (finished / "last.ckpt").stat().st_size
    assert size < whole
    folder = tmp_path / "run" / "checkpoints"
    line = f"{folder}/last.ckpt could not be written, File too large; the one before is whole: ckpt_path=last "
    with limited_files(), pytest.raises(OSError, match=f"^{line}output_dir={tmp_path}/run goes on from it$"):
        run(**SETTINGS, callbacks=[Full(size), Checkpoints(str(folder), every=1)])
    assert [path.name for path in folder.iterdir()] == ["last.ckpt"]
    assert saved(folder)["iteration"] == 1
    run(**SETTINGS, callbacks=[Checkpoints(str(folder), every=1)], ckpt_path=folder / "last.ckpt")
    assert_equal(saved(folder), saved(finished))


def test_every_file_is_on_the_disk_before_it_takes_the_place_of_another(tmp_path, monkeypatch):
    """A machine that loses its power keeps what was synced: the kills of other tests cannot tell."""
    events, fsync, replace = [], os.fsync, Path.replace

    def synced(descriptor):
        events.append(("synced", Path(f"/proc/self/fd/{descriptor}").readlink().name))
        fsync(descriptor)

    def renamed(path, target):
        events.append(("renamed", path.name, Path(target).name))
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", renamed)
    run(**SETTINGS | {"iterations": 2}, callbacks=[Checkpoints(str(tmp_path), every=1)])
    last = [("synced", "last.tmp"), ("renamed", "last.tmp", "last.ckpt")]
    previous = [("synced", "previous.tmp"), ("renamed", "previous.tmp", "previous.ckpt")]
    assert events == [*last, last[0], *previous, last[1]]


def test_a_first_checkpoint_that_cannot_be_written_says_that_there_is_none(tmp_path):
    (tmp_path / "last.tmp").write_text("left behind by a kill")
    line = r"last.ckpt could not be written, File too large; there is none before$"
    with limited_files(), pytest.raises(OSError, match=line):
        run(**SETTINGS, callbacks=[Full(100, iteration=1), Checkpoints(str(tmp_path), every=1)])
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_is_not_resumed_on_other_base_weights(finished, monkeypatch):
    init = Policy.__init__

    def changed(policy, *args, **settings):
        init(policy, *args, **settings)
        next(p for p in policy.model.parameters() if not p.requires_grad).data.mul_(1.01)

    monkeypatch.setattr(Policy, "__init__", changed)  # as where a folder's files were replaced
    with pytest.raises(ValueError, match=r"^policy.path=embedded:tiny_countdown: the checkpoint belongs to other"):
        run(**SETTINGS, ckpt_path=finished / "last.ckpt")

"""Checkpoints that hold: written beside the target and renamed, at the end of an iteration and on a signal."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Checkpoint

from rhythm.faults import Interrupted
from rhythm.module import GRPOModule

MONITOR = "eval/pass@1"


class Checkpoints(Checkpoint):
    """Keeps `last.ckpt`, the `previous.ckpt` before it, and `best.ckpt` by held-out pass@1.

    Each holds adapter, optimizer and counters in plain containers. Where one cannot be written, the earlier one stays.
    There is a best one from the first evaluation on that is better than that of the untrained policy.

    On SIGTERM or SIGINT the iteration under way is finished, `last.ckpt` written, and the run stops. A second signal
    stops it at once.

    Args:
        folder: where the files go.
        every: iterations between two writings of last.ckpt; the last iteration is always saved.
        keep_every: iterations between two files iteration_000020.ckpt that stay, for what is asked of a run afterwards;
            None keeps none.
    """

    def __init__(self, folder: str, *, every: int = 10, keep_every: int | None = None):
        if every < 1:
            raise ValueError(f"checkpoint_every={every}: must be at least 1")
        if keep_every is not None and keep_every < 1:
            raise ValueError(f"callbacks.checkpoints.keep_every={keep_every}: must be at least 1, or null for never")
        self.folder = Path(folder)
        self.every = every
        self.keep_every = keep_every
        self.best: float | None = None
        self._signum = 0
        self._handlers: dict[int, Any] = {}

    def on_train_start(self, trainer: Trainer, pl_module: GRPOModule) -> None:
        # Lightning's own handlers exit with 0 and save nothing; ours replace them for the time of the training.
        self._handlers = {signum: signal.signal(signum, self._remember) for signum in (signal.SIGTERM, signal.SIGINT)}

    def on_train_epoch_start(self, trainer: Trainer, pl_module: GRPOModule) -> None:
        if pl_module.evaluated_at == 0:
            self.best = pl_module.metrics[MONITOR]

    def on_train_batch_end(self, trainer: Trainer, pl_module: GRPOModule, *args: Any) -> None:
        signum = int(pl_module.over_ranks(torch.tensor(self._signum), "max"))
        iteration = pl_module.iteration
        evaluated = pl_module.evaluated_at == iteration
        if evaluated and (self.best is None or pl_module.metrics[MONITOR] > self.best):
            self.best = pl_module.metrics[MONITOR]
            self.save(trainer, pl_module, "best.ckpt")
        ended = iteration == pl_module.iterations
        if signum or iteration % self.every == 0 or ended:
            self.save(trainer, pl_module, "last.ckpt")
        if self.keep_every and iteration % self.keep_every == 0:
            self.save(trainer, pl_module, f"iteration_{iteration:06}.ckpt")
        if signum and not ended:  # after the last iteration there is nothing to stop
            raise Interrupted(signum, self.folder.parent)

    def save(self, trainer: Trainer, module: GRPOModule, name: str) -> None:
        """Writes beside the target, syncs and renames: a kill at any moment leaves the earlier file or the new one.

        Raises OSError where it cannot be written, ValueError with the same message in the other processes.
        """
        target = self.folder / name
        staged = target.with_suffix(".tmp")
        failed: OSError | None = None
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            trainer.save_checkpoint(staged, weights_only=False)  # with optimizer and counters, not weights alone
        except OSError as error:
            failed = error
            trainer.strategy.barrier()  # at which the other processes have arrived
        module.on_first_rank(lambda: self._place(staged, target, failed))

    def _place(self, staged: Path, target: Path, failed: OSError | None) -> None:
        previous = self.folder / "previous.ckpt"
        copied = previous.with_suffix(".tmp")
        try:
            if failed is not None:
                raise failed
            sync(staged)
            if target.name == "last.ckpt" and target.is_file():
                shutil.copyfile(target, copied)  # a hard link would do, but not every file system has them
                sync(copied)
                copied.replace(previous)
            staged.replace(target)
        except OSError as error:
            for path in (staged, copied):
                path.unlink(missing_ok=True)
            mend = f"the one before is whole: ckpt_path=last output_dir={self.folder.parent} goes on from it"
            mend = mend if target.is_file() else "there is none before"
            raise OSError(f"{target} could not be written, {error.strerror or error}; {mend}") from error

    def teardown(self, trainer: Trainer, pl_module: GRPOModule, stage: str) -> None:
        for signum, handler in self._handlers.items():
            signal.signal(signum, handler)
        self._handlers = {}

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best = state_dict["best"]

    def _remember(self, signum: int, frame: FrameType | None) -> None:
        self._signum = signum
        signal.signal(signum, signal.SIG_DFL)
        print(
            f"\n{signal.Signals(signum).name}: finishing this iteration, then saving; once more to stop at once",
            flush=True,
        )


def sync(file: Path) -> None:
    """Returns when what was written is on the disk."""
    with file.open("rb") as opened:
        os.fsync(opened.fileno())

"""Looks at every start whether what the run builds on holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer

from rhythm import doctor
from rhythm.module import GRPOModule


class StartupCheck(Callback):
    """Runs the checks of `rhythm.doctor` before the first iteration, and looks for its tags after it.

    What does not hold ends the run in one line that says what to change.

    Args:
        folder: the run's.
        verbose: print what each check found, and at the end what a first run makes people wonder about.
    """

    def __init__(self, folder: str, *, verbose: bool = False):
        self.folder = Path(folder)
        self.verbose = verbose
        self._tags_seen = False

    def on_train_start(self, trainer: Trainer, pl_module: GRPOModule) -> None:
        policy = pl_module.policy
        prompts = trainer.datamodule.transfer_batch_to_device(next(iter(trainer.train_dataloader)), pl_module.device, 0)
        rollout = doctor.small_rollout(prompts, policy.tokenizer)
        exact = trainer.precision == "32-true" and policy.model.dtype == torch.float32
        checks = {
            "adapter": lambda: doctor.check_adapter(policy, *trainer.optimizers),
            "reference": lambda: doctor.check_reference(policy, rollout),
            "update": lambda: doctor.check_first_update(policy, rollout, pl_module.temperature, exact=exact),
            "verifier": lambda: doctor.check_verifier(pl_module.task),
            "layers": lambda: doctor.check_layers(policy.model, trainer.callbacks),
            "disk": lambda: doctor.check_disk(self.folder, policy.adapter_state()),
        }
        with trainer.precision_plugin.train_step_context():
            for name, check in checks.items():
                self._tell(trainer, name, check())

    def on_train_batch_end(self, trainer: Trainer, pl_module: GRPOModule, *args: Any) -> None:
        if not self._tags_seen:
            pl_module.on_first_rank(
                lambda: self._tell(trainer, "tags", doctor.check_tags(trainer.loggers, pl_module.metrics))
            )
        self._tags_seen = True

    def on_train_end(self, trainer: Trainer, pl_module: GRPOModule) -> None:
        if self.verbose and trainer.is_global_zero:
            print(doctor.NEAR_ZERO, flush=True)

    def _tell(self, trainer: Trainer, name: str, found: str) -> None:
        if self.verbose and trainer.is_global_zero:
            print(f"ok  {name:9}  {found}", flush=True)

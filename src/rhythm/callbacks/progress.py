"""Progress: a rich bar in a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.callbacks.progress.rich_progress import ProcessingSpeedColumn
from rich.progress import BarColumn, ProgressColumn

from rhythm.module import GRPOModule

SHOWN = {"reward": "reward", "eval/pass@1": "pass@1", "eval/kl": "kl", "time/iteration": "s/it"}


class Progress(RichProgressBar):
    """Reward, held-out pass@1, KL to the reference and seconds an iteration.

    Without a terminal a line is printed every `line_every` iterations and at each evaluation, which alone shows what is
    held out. Before the first evaluation a line says what is about to run.
    """

    def __init__(self, *, line_every: int = 10):
        super().__init__(leave=True)
        if line_every < 1:
            raise ValueError(f"callbacks.progress.line_every={line_every}: must be at least 1")
        self.line_every = line_every

    @property
    def is_terminal(self) -> bool:
        return sys.stdout.isatty()

    def on_fit_start(self, trainer: Trainer, pl_module: GRPOModule) -> None:
        if trainer.is_global_zero:
            task, base = type(pl_module.task).__name__, pl_module.policy.path
            left = pl_module.iterations - pl_module.iteration
            print(f"{pl_module.credit.name} credit, {task}, {base}: {left} iterations", flush=True)

    def on_train_start(self, trainer: Trainer, pl_module: GRPOModule) -> None:
        if self.is_terminal:
            super().on_train_start(trainer, pl_module)

    def on_train_batch_start(self, trainer: Trainer, pl_module: GRPOModule, *args: Any) -> None:
        if self.is_terminal:
            super().on_train_batch_start(trainer, pl_module, *args)
        elif trainer.is_global_zero and pl_module.iteration == pl_module.evaluated_at == 0:
            self._print_line(trainer, pl_module)

    def on_train_batch_end(self, trainer: Trainer, pl_module: GRPOModule, *args: Any) -> None:
        if self.is_terminal:
            super().on_train_batch_end(trainer, pl_module, *args)
        elif trainer.is_global_zero and self._is_due(pl_module):
            self._print_line(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: GRPOModule) -> None:
        super().on_train_end(trainer, pl_module)
        if self.is_terminal:
            self._stop_progress()  # what is printed next begins on a line of its own

    def get_metrics(self, trainer: Trainer, pl_module: GRPOModule) -> dict[str, str]:
        digits = 2 if self.is_terminal else 3
        new = self.is_terminal or pl_module.evaluated_at == pl_module.iteration
        tags = [tag for tag in SHOWN if tag in pl_module.metrics and (new or not tag.startswith("eval/"))]
        return {SHOWN[tag]: f"{pl_module.metrics[tag]:.{digits}f}" for tag in tags}

    def configure_columns(self, trainer: Trainer) -> list[ProgressColumn]:
        """Narrow enough for one line of 80 columns: a short bar, and no speed beside the seconds an iteration."""
        columns = super().configure_columns(trainer)
        for column in columns:
            if isinstance(column, BarColumn):
                column.bar_width = 8
        return [column for column in columns if not isinstance(column, ProcessingSpeedColumn)]

    def _get_train_description(self, current_epoch: int) -> str:
        return ""

    def _print_line(self, trainer: Trainer, module: GRPOModule) -> None:
        shown = "  ".join(f"{name} {value}" for name, value in self.get_metrics(trainer, module).items())
        print(f"iteration {module.iteration}/{module.iterations}  {shown}", flush=True)

    def _is_due(self, module: GRPOModule) -> bool:
        return module.iteration % self.line_every == 0 or module.evaluated_at == module.iteration

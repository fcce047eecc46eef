"""What a finished run leaves behind: the adapter with its card, metrics.json, and a table in the terminal."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from time import perf_counter
from typing import Any

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from rich.console import Console
from rich.table import Table

from rhythm.callbacks.evaluation import HeldOutEvaluation
from rhythm.module import GRPOModule
from rhythm.sharing import card, cells, check_login, check_mergeable, merge, push


class ExportCheck(Callback):
    """Refuses before the first iteration what an export could not do after the last.

    Args:
        merged, push_to_hub: see Export.
    """

    def __init__(self, *, merged: bool = False, push_to_hub: str | None = None):
        self.merged = merged
        self.push_to_hub = push_to_hub

    def on_fit_start(self, trainer: Trainer, pl_module: GRPOModule) -> None:
        if not any(isinstance(callback, HeldOutEvaluation) for callback in trainer.callbacks):
            raise ValueError("callbacks.export reports what callbacks.evaluation measures; leave out both or neither")
        if self.merged:
            check_mergeable(pl_module.policy)
        if self.push_to_hub and trainer.is_global_zero:
            check_login(self.push_to_hub)


class Export(ExportCheck):
    """Writes `adapter/` and `metrics.json` when the last iteration is done, and prints before and after.

    TensorBoard's table of hyperparameters gets the run's final pass@1.

    Args:
        folder: the run's folder.
        command: what makes the same run again, for the card.
        merged: write `merged/` too, the base with the adapter folded in, and compare the two.
        push_to_hub: a repository of the hub, `name/of-it`, that `adapter/` goes to; made private where it is new.
    """

    def __init__(
        self, folder: str, *, command: str | None = None, merged: bool = False, push_to_hub: str | None = None
    ):
        super().__init__(merged=merged, push_to_hub=push_to_hub)
        self.folder = Path(folder)
        self.command = command
        self.seconds = 0.0  # of training with evaluations, over all processes that had a part in the run

    def on_fit_start(self, trainer: Trainer, pl_module: GRPOModule) -> None:
        super().on_fit_start(trainer, pl_module)
        self._started = perf_counter()
        if trainer.is_global_zero:
            self._print_board(trainer)

    def on_train_batch_end(self, trainer: Trainer, pl_module: GRPOModule, *args: Any) -> None:
        now = perf_counter()
        self.seconds += now - self._started
        self._started = now
        # Before the last checkpoint is written: a run that is killed between the two does its last iterations again.
        if pl_module.iteration == pl_module.iterations:
            pl_module.on_first_rank(lambda: self._write(pl_module, self._outcome(trainer, pl_module)))

    def on_train_end(self, trainer: Trainer, pl_module: GRPOModule) -> None:
        if trainer.is_global_zero and pl_module.iteration == pl_module.iterations:
            console = Console()
            console.print(table(self._outcome(trainer, pl_module)))
            console.print(f"{self.seconds:.0f} s, evaluations included. Everything is in {self.folder}", soft_wrap=True)
            self._print_board(trainer)
            if self.push_to_hub:  # last: the checkpoint is written, whatever the hub says
                print(f"pushed to {push(self.folder / 'adapter', self.push_to_hub)}", flush=True)

    def _outcome(self, trainer: Trainer, module: GRPOModule) -> dict[str, Any]:
        (evaluation,) = (callback for callback in trainer.callbacks if isinstance(callback, HeldOutEvaluation))
        ends = {"first": evaluation.first, "last": evaluation.last}
        return {"iterations": module.iteration, "seconds": self.seconds, **ends}

    def _write(self, module: GRPOModule, outcome: dict[str, Any]) -> None:
        module.policy.save_adapter(self.folder / "adapter")
        card(module, outcome, self.command).save(self.folder / "adapter" / "README.md")
        (self.folder / "metrics.json").write_text(json.dumps(outcome, indent=2) + "\n", encoding="utf-8")
        if self.merged:
            folder = self.folder / "merged"
            shutil.rmtree(folder, ignore_errors=True)  # of an earlier end of a run that was extended
            problems = module.task.test_problems().to_list()[:4]
            kl = merge(module.policy, folder, [module.task.prompt(problem) for problem in problems])
            print(f"{folder}: {kl:.1e} nats a token from the adapter", flush=True)
        final = {"final/pass@1": outcome["last"]["metrics"]["eval/pass@1"]}
        for logger in module.loggers:
            if isinstance(logger, TensorBoardLogger):  # its table of hyperparameters, a row a run
                logger.log_hyperparams(dict(logger.hparams), final, step=module.iteration)

    def _print_board(self, trainer: Trainer) -> None:
        if any(isinstance(logger, TensorBoardLogger) for logger in trainer.loggers):
            print(f"tensorboard --logdir {self.folder}", flush=True)

    def state_dict(self) -> dict[str, Any]:
        return {"seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.seconds = state_dict["seconds"]


def table(outcome: dict[str, Any]) -> Table:
    """Held-out numbers before and after, with 95% intervals where there are some."""
    last = outcome["last"]
    title = f"{last['problems']} held-out problems, {last['samples']} samples of each [95% interval]"
    shown = Table(title=title, title_justify="left")
    shown.add_column("")
    shown.add_column("before", justify="right")
    shown.add_column(f"after {outcome['iterations']} iterations", justify="right")
    before = cells(outcome["first"])
    for name, value in cells(last).items():
        shown.add_row(name, before[name], value)
    return shown

"""What a finished run leaves behind: the adapter with its card, metrics.json, and a table in the terminal."""

from __future__ import annotations

import json
from pathlib import Path
from time import perf_counter
from typing import Any

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from rich.console import Console
from rich.table import Table

from rhythm.callbacks.evaluation import HeldOutEvaluation
from rhythm.module import GRPOModule
from rhythm.version import VERSION

ROWS = {
    "eval/pass@1": "pass@1",
    "eval/pass@8": "pass@8",
    "eval/pass@1_well_formed": "pass@1 of well-formed",
    "eval/well_formed": "share of well-formed",
    "eval/mean_length": "tokens a completion",
    "eval/kl": "KL to the reference, nats",
}


class Export(Callback):
    """Writes `adapter/` and `metrics.json` when the last iteration is done, and prints before and after.

    TensorBoard's table of hyperparameters gets the run's final pass@1.

    Args:
        folder: the run's folder.
    """

    def __init__(self, folder: str):
        self.folder = Path(folder)
        self.seconds = 0.0  # of training with evaluations, over all processes that had a part in the run

    def on_fit_start(self, trainer: Trainer, pl_module: GRPOModule) -> None:
        if not any(isinstance(callback, HeldOutEvaluation) for callback in trainer.callbacks):
            raise ValueError("callbacks.export reports what callbacks.evaluation measures; leave out both or neither")
        self._started = perf_counter()
        if trainer.is_global_zero:
            self._print_board(trainer)

    def on_train_batch_end(self, trainer: Trainer, pl_module: GRPOModule, *args: Any) -> None:
        now = perf_counter()
        self.seconds += now - self._started
        self._started = now
        # Before the last checkpoint is written: a run that is killed between the two does its last iterations again.
        if trainer.is_global_zero and pl_module.iteration == pl_module.iterations:
            outcome = self._outcome(trainer, pl_module)
            self._write(pl_module, outcome)
            final = {"final/pass@1": outcome["last"]["metrics"]["eval/pass@1"]}
            for logger in trainer.loggers:
                if isinstance(logger, TensorBoardLogger):  # its table of hyperparameters, a row a run
                    logger.log_hyperparams(dict(logger.hparams), final, step=pl_module.iteration)

    def on_train_end(self, trainer: Trainer, pl_module: GRPOModule) -> None:
        if trainer.is_global_zero and pl_module.iteration == pl_module.iterations:
            console = Console()
            console.print(table(self._outcome(trainer, pl_module)))
            console.print(f"{self.seconds:.0f} s, evaluations included. Everything is in {self.folder}", soft_wrap=True)
            self._print_board(trainer)

    def _outcome(self, trainer: Trainer, module: GRPOModule) -> dict[str, Any]:
        (evaluation,) = (callback for callback in trainer.callbacks if isinstance(callback, HeldOutEvaluation))
        ends = {"first": evaluation.first, "last": evaluation.last}
        return {"iterations": module.iteration, "seconds": self.seconds, **ends}

    def _write(self, module: GRPOModule, outcome: dict[str, Any]) -> None:
        module.policy.save_adapter(self.folder / "adapter")
        (self.folder / "adapter" / "README.md").write_text(card(module, outcome), encoding="utf-8")
        (self.folder / "metrics.json").write_text(json.dumps(outcome, indent=2) + "\n", encoding="utf-8")

    def _print_board(self, trainer: Trainer) -> None:
        if any(isinstance(logger, TensorBoardLogger) for logger in trainer.loggers):
            print(f"tensorboard --logdir {self.folder}", flush=True)

    def state_dict(self) -> dict[str, Any]:
        return {"seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.seconds = state_dict["seconds"]


def table(outcome: dict[str, Any]) -> Table:
    """Held-out numbers before and after, with 95% intervals where there are some."""
    first, last = outcome["first"], outcome["last"]
    title = f"{last['problems']} held-out problems, {last['samples']} samples of each [95% interval]"
    shown = Table(title=title, title_justify="left")
    shown.add_column("")
    shown.add_column("before", justify="right")
    shown.add_column(f"after {outcome['iterations']} iterations", justify="right")
    for tag, name in ROWS.items():
        if tag in last["metrics"]:
            shown.add_row(name, *(_cell(evaluation, tag) for evaluation in (first, last)))
    return shown


def card(module: GRPOModule, outcome: dict[str, Any]) -> str:
    """The adapter's model card: what it belongs to, what made it, what it scored."""
    last = outcome["last"]
    low, high = last["intervals"]["eval/pass@1"]
    base, credit, task = module.policy.path, module.credit.name, type(module.task).__name__
    before = outcome["first"]["metrics"]["eval/pass@1"]
    return f"""---
library_name: peft
tags: [rhythm, grpo, lora]
---

# LoRA adapter trained with {credit} credit

A PEFT adapter for the base model `{base}`, trained by rhythm {VERSION} with GRPO and {credit} credit (arXiv:2510.13554)
on {task}: {outcome["iterations"]} iterations, seed {module.seed}.

Held-out pass@1 {last["metrics"]["eval/pass@1"]:.3f} [{low:.3f}, {high:.3f}], {before:.3f} before training, over
{last["problems"]} problems with {last["samples"]} samples each. The settings are in `config.yaml` beside this folder.
"""


def _cell(evaluation: dict[str, Any], tag: str) -> str:
    value = f"{evaluation['metrics'][tag]:.3f}"
    if tag in evaluation["intervals"]:
        low, high = evaluation["intervals"][tag]
        value += f" [{low:.3f}, {high:.3f}]"
    return value

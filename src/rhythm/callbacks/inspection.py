"""What the credit did, in TensorBoard: completions as text, and histograms."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING

from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor

from rhythm.callbacks.observer import RolloutObserver
from rhythm.types import Rollout

if TYPE_CHECKING:
    from rhythm.module import GRPOModule


class Inspection(RolloutObserver):
    """Writes completions with their rewards, and histograms of credit, signals and advantages.

    Args:
        every: iterations between two looks; the first iteration is always looked at.
        completions: how many are shown.
    """

    def __init__(self, *, every: int = 20, completions: int = 4):
        if every < 1:
            raise ValueError(f"inspect_every={every}: must be at least 1")
        self.every = every
        self.completions = completions

    def learned(self, module: GRPOModule, rollout: Rollout) -> None:
        if module.iteration != 1 and module.iteration % self.every:
            return
        for logger in module.loggers:
            if isinstance(logger, TensorBoardLogger) and module.trainer.is_global_zero:
                board = logger.experiment
                board.add_text(
                    "completions", completion_table(rollout, module.group_size, self.completions), module.iteration
                )
                for tag, values in histograms(rollout).items():
                    board.add_histogram(tag, values, module.iteration)
                logger.save()


def completion_table(rollout: Rollout, group_size: int, count: int) -> str:
    """A Markdown table of the first completions of as many prompts; text written by the model is escaped."""
    rows = ["| problem | completion | reward | advantage | tokens |", "|---|---|---|---|---|"]
    for i in range(0, len(rollout.completions), group_size)[:count]:
        cells = [
            ", ".join(f"{key} {value}" for key, value in rollout.problems[i].items()),
            rollout.completions[i],
            f"{float(rollout.rewards[i]):g}",
            f"{float(rollout.advantages[i]):+.2f}",
            str(int(rollout.completion_mask[i].sum())),
        ]
        rows.append("| " + " | ".join(escape(cell) for cell in cells) + " |")
    return "\n".join(rows)


def escape(text: str) -> str:
    """Text that a Markdown table shows as it is, on one line."""
    text = html.escape(text).replace("\\", "&#92;").replace("|", "&#124;").replace("*", "&#42;").replace("_", "&#95;")
    return text.replace("`", "&#96;").replace("\n", "<br>")


def histograms(rollout: Rollout) -> dict[str, Tensor]:
    """Values over the defined tokens of the rollout, by tag."""
    mask, signals = rollout.completion_mask, rollout.signals
    tokens = {"credit/weights": rollout.credit, "signals/entropy": signals.entropy}
    tokens |= {f"signals/{name}": getattr(signals, name) for name in ("waad", "waad_drop", "fai")}
    found = {tag: values[mask & ~values.isnan()] for tag, values in tokens.items() if values is not None}
    found["advantages"] = rollout.advantages
    return {tag: values for tag, values in found.items() if values.numel()}

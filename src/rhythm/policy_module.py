"""What Lightning asks of a policy that is trained: its optimizer, its checkpoints, its numbers over the ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.strategies import ParallelStrategy
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from rhythm.metrics import Mean
from rhythm.policy import Policy


class PolicyModule(LightningModule):
    """A policy whose adapter is trained, an iteration a batch; the algorithm is its subclass's `training_step`.

    Args:
        policy: base weights, adapter and tokenizer.
        optimizer: makes the optimizer from the adapter's parameters.
        scheduler: makes a schedule from the optimizer and `num_training_steps`, counted in updates; None is constant.
        iterations: how many the whole run has; a schedule and a resume read it.
        updates_per_iteration: optimizer steps.
    """

    def __init__(
        self,
        policy: Policy,
        optimizer: Callable[[Iterable[Tensor]], Optimizer],
        scheduler: Callable[..., LRScheduler] | None,
        *,
        iterations: int,
        updates_per_iteration: int,
    ):
        super().__init__()
        self.automatic_optimization = False
        self.policy = policy
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.iterations = iterations
        self.updates_per_iteration = updates_per_iteration
        self.base = policy.fingerprint()  # while its weights are whole
        self.iteration = 0  # the last one finished or, inside training_step, the one under way
        self.not_finite = 0  # updates in a row that were skipped, up to the latest
        self.metrics: dict[str, float] = {}  # the latest value of each
        self.evaluated_at: int | None = None  # the iteration of the latest held-out evaluation

    def configure_optimizers(self) -> Any:
        optimizer = _make("algorithm.optimizer", self.optimizer, self.policy.adapter_parameters())
        if self.scheduler is None:
            return optimizer
        # A warm-up begins at a rate of 0 and a decay ends there; an update at 0 would be lost, so neither is taken.
        updates = self.iterations * self.updates_per_iteration
        scheduler = _make("algorithm.scheduler", self.scheduler, optimizer=optimizer, num_training_steps=updates + 1)
        scheduler.step()
        return [optimizer], [scheduler]

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """The adapter alone: the base is named by the run's config."""
        return self.policy.adapter_state()

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> None:
        self.policy.load_adapter_state(dict(state_dict))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["iteration"] = self.iteration
        checkpoint["not_finite"] = self.not_finite
        checkpoint["base"] = self.base

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.policy.check_base(checkpoint["base"])
        self.iteration = checkpoint["iteration"]
        self.not_finite = checkpoint["not_finite"]
        # The trainer asks whether the epoch, which is the run, was over; a run whose `iterations` was raised goes on.
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        progress["is_last_batch"] = self.iteration >= self.iterations

    # ---- numbers

    def record(self, metrics: dict[str, float | Mean]) -> None:
        """Logs scalars at this iteration: averaged over the ranks, but the largest of what is called a maximum.

        A `Mean` is averaged by its weight; where that is zero on every rank, as any other number.
        """
        weighted = [metric if isinstance(metric, Mean) else Mean(metric, 1.0) for metric in metrics.values()]
        values, weights = torch.tensor(weighted, dtype=torch.float64, device=self.device).unbind(1)
        sums = torch.stack([torch.where(weights > 0, values * weights, 0.0), weights])
        (total, weight), plain = self.over_ranks(sums, "sum"), self.over_ranks(values, "mean")
        means = torch.where(weight > 0, total / weight, plain).tolist()
        pairs = zip(metrics, means, self.over_ranks(values, "max").tolist(), strict=True)
        reduced = {name: most if "/max" in name else mean for name, mean, most in pairs}
        self.metrics |= reduced
        for logger in self.loggers:
            logger.log_metrics(reduced, step=self.iteration)
            logger.save()

    def synchronised(self, now: bool) -> AbstractContextManager:
        """Ranks share their gradients in the last backward pass of a step only; alone there is nothing to share."""
        strategy = self.trainer.strategy
        return nullcontext() if now or not isinstance(strategy, ParallelStrategy) else strategy.block_backward_sync()

    def passes(self, needed: int) -> int:
        """Backward passes of this rank where it needs some: at least one, and with shards as many as any rank needs."""
        if self.policy.sharded:
            needed = int(self.over_ranks(torch.tensor(needed), "max"))
        return max(needed, 1)

    def over_ranks(self, value: Tensor, operation: str) -> Tensor:
        """ "mean", "sum" or "max" of a tensor over the ranks; the tensor itself where there is one rank."""
        return self.trainer.strategy.reduce(value.to(self.device, copy=True), reduce_op=operation)

    def on_first_rank(self, act: Callable[[], None]) -> None:
        """Acts on the first rank while the others wait. OSError or ValueError there is raised on every rank."""
        failed: Exception | None = None
        if self.trainer.is_global_zero:
            try:
                act()
            except (OSError, ValueError) as error:
                failed = error
        message = self.trainer.strategy.broadcast(failed and str(failed))
        if message is not None:
            raise failed or ValueError(message)


def _make(key: str, factory: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """What a factory of the config makes; ValueError names the key where it refuses its settings."""
    try:
        return factory(*args, **kwargs)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{key}: {error}") from error

"""Held-out evaluation by iteration: before the first, every so many, and after the last."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, Trainer

from rhythm.evaluation.evaluate import evaluate
from rhythm.module import GRPOModule


class HeldOutEvaluation(Callback):
    """Evaluates on the task's held-out problems with the same seeds every time.

    A callback rather than Lightning's validation loop, which loses an evaluation to a kill and misses the last one. It
    computes in the trainer's precision, as training does; eval.py has that of policy.dtype.

    Args:
        every: iterations between evaluations.
        problems: how many held-out problems, evenly spaced over all; at most what the task has.
        samples: completions of each.
        prompts_at_once: problems sampled together.
    """

    def __init__(self, *, every: int = 20, problems: int = 128, samples: int = 8, prompts_at_once: int = 64):
        if every < 1:
            raise ValueError(f"eval_every={every}: must be at least 1")
        for name, value in {"problems": problems, "samples": samples, "prompts_at_once": prompts_at_once}.items():
            if value < 1:
                raise ValueError(f"callbacks.evaluation.{name}={value}: must be at least 1")
        self.every = every
        self.problems = problems
        self.samples = samples
        self.prompts_at_once = prompts_at_once
        self.first: dict[str, Any] = {}
        self.last: dict[str, Any] = {}

    def setup(self, trainer: Trainer, pl_module: GRPOModule, stage: str) -> None:
        self._held_out = pl_module.task.held_out(self.problems)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: GRPOModule) -> None:
        if pl_module.iteration == 0:
            self.first = self.evaluate(trainer, pl_module)

    def on_train_batch_end(self, trainer: Trainer, pl_module: GRPOModule, *args: Any) -> None:
        if pl_module.iteration % self.every == 0 or pl_module.iteration == pl_module.iterations:
            self.evaluate(trainer, pl_module)

    def evaluate(self, trainer: Trainer, module: GRPOModule) -> dict[str, Any]:
        with trainer.precision_plugin.train_step_context():  # which Lightning enters for steps, not for hooks
            measured = evaluate(
                module.policy,
                module.task,
                self._held_out,
                samples=self.samples,
                max_completion_tokens=module.max_completion_tokens,
                micro_batch_size=module.micro_batch_size,
                prompts_at_once=self.prompts_at_once,
                rank=trainer.global_rank,
                world_size=trainer.world_size,
                all_sum=lambda total: module.over_ranks(total, "sum"),
            )
        module.record(measured.metrics())
        module.evaluated_at = module.iteration
        self.last = {"iteration": module.iteration, **measured.summary()}
        return self.last

    def state_dict(self) -> dict[str, Any]:
        return {"first": self.first, "last": self.last}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.first, self.last = state_dict["first"], state_dict["last"]

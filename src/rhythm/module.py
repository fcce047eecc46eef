"""GRPO with credit (arXiv:2402.03300, arXiv:2510.13554): one Lightning batch is one iteration, top to bottom."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable
from typing import Any, get_args

import torch
from lightning.pytorch.strategies import ParallelStrategy
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from rhythm.advantages import Kind, Sign, group_advantages, shape_advantages
from rhythm.callbacks.observer import Observers, check_signals
from rhythm.credit import CreditStrategy
from rhythm.faults import halved_until_it_fits, not_finite_in, short_of_memory
from rhythm.metrics import Mean, credit_metrics, rollout_metrics
from rhythm.objective import Objective
from rhythm.policy import Policy
from rhythm.policy_module import PolicyModule
from rhythm.samplers import LocalSampler, Sampler
from rhythm.scoring import completion_logps, micro_batches, score
from rhythm.seeding import derive_seed, generator
from rhythm.stopwatch import Stopwatch
from rhythm.tasks.base import Task
from rhythm.types import AttentionSignals, Prompts, Rollout

log = logging.getLogger(__name__)


class GRPOModule(PolicyModule):
    """Group relative policy optimization of a LoRA policy, its advantages shaped token by token by a credit strategy.

    Args:
        policy: base weights, adapter and tokenizer.
        task: the verifier.
        credit: γ_t of each token.
        objective: clipping, KL penalty, aggregation.
        optimizer: makes the optimizer from the adapter's parameters.
        scheduler: makes a schedule from the optimizer and `num_training_steps`, counted in updates; None is constant.
        sampler: writes the completions that are learned from; None is the policy itself.
        iterations: how many the whole run has.
        group_size: G, completions of each prompt.
        updates_per_iteration: optimizer steps, each on its share of the iteration's completions.
        max_completion_tokens: a completion without an end by then is truncated.
        micro_batch_size: sequences in one forward or backward pass; bounds the memory, changes no result. It is halved
            for the rest of the run where a pass runs out of memory.
        temperature: of sampling; log-probabilities and entropies are of logits / temperature.
        advantage: "std", "mean" or "leave_one_out"; see `group_advantages`.
        sign: which advantages credit scales: "both", "positive" or "negative".
        mask_truncated: leave truncated completions out of the loss (DAPO's overlong filtering).
        exclude_eos: credit leaves the end of sequence at 1 and selects among the other tokens.
        max_grad_norm: gradients are clipped to this norm.
        max_not_finite: the run stops after so many updates in a row whose loss or gradient was NaN or infinite; each is
            skipped.
        seed: of the run; every draw follows from it and the iteration.
    """

    def __init__(
        self,
        policy: Policy,
        task: Task,
        credit: CreditStrategy,
        objective: Objective,
        optimizer: Callable[[Iterable[Tensor]], Optimizer],
        scheduler: Callable[..., LRScheduler] | None = None,
        sampler: Sampler | None = None,
        *,
        iterations: int,
        group_size: int = 8,
        updates_per_iteration: int = 2,
        max_completion_tokens: int = 256,
        micro_batch_size: int = 32,
        temperature: float = 1.0,
        advantage: Kind = "std",
        sign: Sign = "both",
        mask_truncated: bool = False,
        exclude_eos: bool = False,
        max_grad_norm: float = 1.0,
        max_not_finite: int = 5,
        seed: int = 0,
    ):
        sizes = {"iterations": iterations, "updates_per_iteration": updates_per_iteration}
        super().__init__(policy, optimizer, scheduler, **sizes)
        counts = {
            "iterations": iterations,
            "group_size": group_size,
            "updates_per_iteration": updates_per_iteration,
            "max_completion_tokens": max_completion_tokens,
            "micro_batch_size": micro_batch_size,
            "algorithm.max_not_finite": max_not_finite,
        }
        for name, count in counts.items():
            if count < 1:
                raise ValueError(f"{name}={count}: must be at least 1")
        if temperature <= 0:
            raise ValueError(f"algorithm.temperature={temperature}: must be above 0")
        if max_grad_norm <= 0:
            raise ValueError(f"algorithm.max_grad_norm={max_grad_norm}: must be above 0; .inf clips nothing")
        for name, value, options in (("advantage", advantage, get_args(Kind)), ("sign", sign, get_args(Sign))):
            if value not in options:
                raise ValueError(f"algorithm.{name}={value}: use one of {', '.join(options)}")
        self.task = task
        self.credit = credit
        self.objective = objective
        self.sampler = sampler or LocalSampler()
        self.group_size = group_size
        self.max_completion_tokens = max_completion_tokens
        self.micro_batch_size = micro_batch_size
        self.temperature = temperature
        self.advantage = advantage
        self.sign = sign
        self.mask_truncated = mask_truncated
        self.exclude_eos = exclude_eos
        self.max_grad_norm = max_grad_norm
        self.max_not_finite = max_not_finite
        self.seed = seed

    def on_fit_start(self) -> None:
        check_signals(self.credit, self.trainer.callbacks)
        completions = self.trainer.datamodule.prompts_per_iteration * self.group_size // self.trainer.world_size
        if 0 < completions < self.updates_per_iteration:
            raise ValueError(
                f"updates_per_iteration={self.updates_per_iteration}: an iteration has {completions} completions on "
                f"each of {self.trainer.world_size} devices"
            )
        self.observers = Observers(self)

    def training_step(self, prompts: Prompts, batch_idx: int) -> None:
        self.iteration += 1
        clock = Stopwatch(self.device)
        with clock("iteration"):
            with clock("sample"):
                rollout = self.sample(prompts)
            with clock("reward"):
                rollout.rewards = self.task.rewards(rollout).to(self.device)
                rollout.advantages = group_advantages(rollout.rewards, self.group_size, self.advantage)
            with clock("score"):  # attention is read here ...
                rollout.old_logps, entropy = self.score(rollout, self.observers)
                if self.objective.beta:
                    with self.policy.reference():
                        rollout.ref_logps, _ = self.score(rollout)
                rollout.signals = AttentionSignals(entropy=entropy)
                observed = self.observers.scored(rollout)  # ... and becomes rollout.signals here
            seed = derive_seed(self.seed, "credit", self.iteration, self.global_rank)
            eligible = self.eligible(rollout)
            rollout.credit = self.credit(rollout.signals, eligible, seed=seed)
            rollout.importance_weights = self.sampler.importance_weights(rollout)
            rollout.shaped_advantages = shape_advantages(
                rollout.advantages, rollout.credit, self.sign, rollout.importance_weights
            )
            with clock("update"):
                updated = self.update(rollout)
        clock.seconds["score"] -= observed.get("time/signals", 0.0)
        described = rollout_metrics(rollout, self.group_size)
        described |= credit_metrics(rollout, self.credit, eligible, self.policy.stopping)
        self.record(described | observed | updated | clock.metrics())
        self.observers.learned(rollout)

    def sample(self, prompts: Prompts) -> Rollout:
        self.policy.eval()
        self.on_first_rank(lambda: self.sampler.prepare(self.policy))
        with short_of_memory("prompts_per_iteration, group_size or max_completion_tokens"):
            return self.sampler.sample(
                self.policy,
                prompts,
                group_size=self.group_size,
                max_completion_tokens=self.max_completion_tokens,
                temperature=self.temperature,
                seed=derive_seed(self.seed, "sampling", self.iteration, self.global_rank),
            )

    def score(self, rollout: Rollout, observers: Observers | None = None) -> tuple[Tensor, Tensor]:
        """Log-probabilities and entropies [N, T], under the policy or, inside its context, under the reference."""

        def attempt(micro_batch_size: int) -> tuple[Tensor, Tensor]:
            settings: dict[str, Any] = {"micro_batch_size": micro_batch_size, "temperature": self.temperature}
            if observers is not None:
                observers.begin_scoring()
                settings["around"] = observers.scoring
            return score(self.policy.model, rollout, **settings)

        self.policy.eval()
        with self.policy.folded():
            return self.fitting(attempt)

    def eligible(self, rollout: Rollout) -> Tensor:
        """The tokens [N, T] that credit may tell apart; the others weigh 1."""
        if not self.exclude_eos:
            return rollout.completion_mask
        return rollout.completion_mask & ~self.policy.stopping.is_end(rollout.completion_ids)

    def update(self, rollout: Rollout) -> dict[str, float | Mean]:
        """The iteration's optimizer steps. Returns the means of their metrics.

        One with nothing to learn counts as 0; loss and gradient norm are of those that were finite, NaN if none was.
        """
        self.policy.train()
        mask = rollout.completion_mask & rollout.rewards.isfinite()[:, None]
        if self.mask_truncated:
            mask = mask & ~rollout.truncated[:, None]
        draw = generator(self.seed, "minibatches", self.iteration, self.global_rank)
        order = torch.randperm(len(mask), generator=draw).to(self.device)
        shares = order.tensor_split(self.updates_per_iteration)
        steps = [self.step(rollout, mask, rows) for rows in shares]
        self.policy.eval()
        means = {name: sum(step[name] for step in steps) / len(steps) for name in steps[0]}
        finite = [step for step in steps if not step["updates/not_finite"]]
        for name in ("loss", "grad_norm"):
            means[name] = sum(step[name] for step in finite) / len(finite) if finite else math.nan
        return means | {
            name: Mean(means[name], float(mask.sum())) for name in ("clip_ratio/low_mean", "clip_ratio/high_mean")
        }

    def step(self, rollout: Rollout, mask: Tensor, rows: Tensor) -> dict[str, float]:
        """One optimizer step on some rows; none where no rank has anything to learn or the gradient is not finite."""
        optimizer = self.optimizers()
        advantages = rollout.shaped_advantages
        weights = torch.zeros_like(advantages)
        weights[rows] = self.objective.weights(mask[rows])
        if self.objective.aggregation == "token_mean":  # each rank's share of all ranks' tokens
            tokens = mask[rows].sum().float()
            weights *= tokens / self.over_ranks(tokens, "mean").clamp(min=1 / self.trainer.world_size)
        learning = (mask if self.objective.beta else mask & (advantages != 0)).any(1)
        metrics = {"learning_rate": optimizer.param_groups[0]["lr"], "updates/taken": 0.0, "updates/not_finite": 0.0}
        if self.over_ranks(learning[rows].sum().float(), "max") > 0:
            learners = rows[learning[rows]]
            with self.policy.folded():
                metrics |= self.fitting(lambda size: self.accumulate(rollout, mask, weights, learners, size))
            gradients = [p.grad for p in self.policy.adapter_parameters() if p.grad is not None]
            norm = get_total_norm(gradients)
            taken = self.check_finite(metrics["loss"], norm)
            metrics |= {"grad_norm": float(norm), "updates/taken": float(taken), "updates/not_finite": float(not taken)}
            if taken:
                clip_grads_with_norm_(self.policy.adapter_parameters(), self.max_grad_norm, norm)
                optimizer.step()
            optimizer.zero_grad()
        if self.scheduler is not None:
            self.lr_schedulers().step()
        return {"loss": 0.0, "grad_norm": 0.0, "clip_ratio/low_mean": 0.0, "clip_ratio/high_mean": 0.0} | metrics

    def accumulate(
        self, rollout: Rollout, mask: Tensor, weights: Tensor, rows: Tensor, micro_batch_size: int
    ) -> dict[str, float]:
        """The gradient of Σ weights·losses over the rows that have something to learn.

        A rank where none has still takes part in the ranks' one synchronised backward pass, with a loss of zero.
        """
        self.optimizers().zero_grad()  # an attempt that ran out of memory has left some behind
        batches = list(micro_batches(rollout, rows, micro_batch_size)) if len(rows) else []
        passes = self.passes(len(batches))
        loss, low, high = (torch.zeros((), device=self.device) for _ in range(3))
        for number in range(passes):
            idle = number >= len(batches)
            batch = next(micro_batches(rollout, rows.new_zeros(1), 1)) if idle else batches[number]
            cut = (batch.rows, slice(batch.completion_mask.shape[1]))
            arguments = (rollout.old_logps[cut], rollout.shaped_advantages[cut], mask[cut])
            with self.synchronised(number == passes - 1):
                logps = completion_logps(self.policy.model, batch, self.temperature)
                ref_logps = rollout.ref_logps[cut] if self.objective.beta else None
                share = (weights[cut] * self.objective.losses(logps, *arguments, ref_logps)).sum() * (not idle)
                self.manual_backward(share)
            if not idle:
                below, above = self.objective.clipped(logps.detach(), *arguments)
                loss, low, high = loss + share.detach(), low + below.sum(), high + above.sum()
        tokens = mask.sum().clamp(min=1) / self.updates_per_iteration
        metrics = {"loss": loss, "clip_ratio/low_mean": low / tokens, "clip_ratio/high_mean": high / tokens}
        return {name: float(value) for name, value in metrics.items()}

    def check_finite(self, loss: float, norm: Tensor) -> bool:
        """Whether loss and gradient are finite on every rank. FloatingPointError after too many times in a row."""
        bad = not (math.isfinite(loss) and norm.isfinite())
        if not self.over_ranks(torch.tensor(float(bad)), "max"):
            self.not_finite = 0
            return True
        self.not_finite += 1
        named = self.policy.model.named_parameters()
        culprit = not_finite_in(loss, ((name, p.grad) for name, p in named if p.grad is not None))
        if self.not_finite == self.max_not_finite:
            raise FloatingPointError(
                f"{self.not_finite} updates in a row were not finite, the last in {culprit}; the adapter is as before "
                "them and so are the checkpoints; lower learning_rate, or raise algorithm.max_not_finite"
            )
        if self.trainer.is_global_zero:
            log.warning(f"iteration {self.iteration}: an update is skipped, since {culprit} is not finite")
        return False

    def fitting(self, compute: Callable[[int], Any]) -> Any:
        """compute(micro_batch_size), the size halved from here on where a pass runs out of memory."""
        # Ranks that are in a synchronised backward pass together cannot begin it again.
        least = self.micro_batch_size if isinstance(self.trainer.strategy, ParallelStrategy) else 1
        result, self.micro_batch_size = halved_until_it_fits(compute, self.micro_batch_size, least=least)
        return result

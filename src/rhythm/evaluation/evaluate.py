"""Held-out evaluation of a policy: the same problems, the same seeds, whatever was trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from rhythm.data import collate_prompts
from rhythm.evaluation.metrics import PassAtK
from rhythm.faults import halved_until_it_fits, short_of_memory
from rhythm.losses import kl_estimate
from rhythm.policy import Policy
from rhythm.rollout import sample
from rhythm.scoring import score
from rhythm.seeding import generator
from rhythm.tasks.base import Task
from rhythm.types import Prompts, Rollout


@dataclass(frozen=True)
class Evaluation:
    """What was measured on P problems with n samples each."""

    correct: Tensor  # [P, n] bool
    parsed: Tensor  # [P, n] bool, the completion ends with an answer that parses
    truncated: Tensor  # [P, n] bool
    lengths: Tensor  # [P, n] tokens
    kl: float  # nats a token, policy to reference, over the first sample of each problem

    def metrics(self) -> dict[str, float]:
        """Scalars by their TensorBoard tags. Well-formed completions parse and ended by themselves."""
        well_formed = self.parsed & ~self.truncated
        metrics = {f"eval/pass@{k}": float(self.pass_at(k).compute()) for k in self.ks}
        return metrics | {
            "eval/pass@1_well_formed": float(self.correct[well_formed].float().mean()) if well_formed.any() else 0.0,
            "eval/well_formed": float(well_formed.float().mean()),
            "eval/parsed": float(self.parsed.float().mean()),
            "eval/truncated": float(self.truncated.float().mean()),
            "eval/mean_length": float(self.lengths.float().mean()),
            "eval/kl": self.kl,
        }

    def summary(self) -> dict[str, Any]:
        """The metrics with 95% intervals and sizes, as it stands in metrics.json and eval.json.

        `correct` counts the right samples of each problem, so that evaluations can be compared problem by problem.
        """
        intervals = {f"eval/pass@{k}": list(self.pass_at(k).interval()) for k in self.ks}
        problems, samples = self.correct.shape
        sizes = {"problems": problems, "samples": samples, "correct": self.correct.sum(1).tolist()}
        return {"metrics": self.metrics(), "intervals": intervals, **sizes}

    @property
    def ks(self) -> tuple[int, ...]:
        samples = self.correct.shape[1]
        return tuple(sorted({k for k in (1, 8, samples) if k <= samples}))

    def pass_at(self, k: int) -> PassAtK:
        metric = PassAtK(k)
        metric.update(self.correct)
        return metric


@torch.no_grad()
def evaluate(
    policy: Policy,
    task: Task,
    problems: list[dict[str, Any]],
    *,
    samples: int = 8,
    max_completion_tokens: int = 256,
    temperature: float = 1.0,
    micro_batch_size: int = 32,
    prompts_at_once: int = 64,
    seed: int = 0,
    rank: int = 0,
    world_size: int = 1,
    all_sum: Callable[[Tensor], Tensor] = lambda x: x,
) -> Evaluation:
    """Samples and verifies. Every batch of problems has its own seed, so ranks that share the work agree with one.

    Args:
        samples: completions of each problem; pass@8 needs 8.
        prompts_at_once: problems that are sampled together.
        all_sum: the sum of a tensor over the ranks.

    Raises:
        MemoryError: sampling, or scoring a single sequence, does not fit.
    """
    was_training = policy.training
    policy.eval()
    outcome = torch.zeros(4, len(problems), samples, device=policy.device)
    divergence = torch.zeros(2, dtype=torch.float64, device=policy.device)
    starts = range(0, len(problems), prompts_at_once)
    short = short_of_memory("the evaluation's prompts_at_once, samples or max_completion_tokens")
    with policy.whole(), policy.folded(), short:
        for number, start in list(enumerate(starts))[rank::world_size]:
            prompts = collate_prompts(task, policy.tokenizer, problems[start : start + prompts_at_once], policy.chat)
            rollout = sample(
                policy.model,
                policy.tokenizer,
                Prompts(
                    prompts.input_ids.to(policy.device), prompts.attention_mask.to(policy.device), prompts.problems
                ),
                group_size=samples,
                max_completion_tokens=max_completion_tokens,
                temperature=temperature,
                stopping=policy.stopping,
                generator=generator(seed, "evaluation", number, device=policy.device),
            )
            parsed = torch.tensor([task.extract(completion) is not None for completion in rollout.completions])
            seen = (task.right(rollout), parsed, rollout.truncated, rollout.completion_mask.sum(1))
            for i, values in enumerate(seen):
                outcome[i, start : start + prompts_at_once] = values.view(-1, samples).to(outcome)
            firsts = torch.arange(0, len(rollout.completions), samples, device=policy.device)
            scored = partial(kl_to_reference, policy, rollout.take(firsts), temperature or 1.0)
            added, micro_batch_size = halved_until_it_fits(scored, micro_batch_size)
            divergence += added
    policy.train(was_training)
    correct, parsed, truncated, lengths = all_sum(outcome)
    total, tokens = all_sum(divergence).tolist()
    return Evaluation(correct.bool(), parsed.bool(), truncated.bool(), lengths.long(), total / max(tokens, 1))


def kl_to_reference(policy: Policy, rollout: Rollout, temperature: float, micro_batch_size: int) -> Tensor:
    """The k3 estimate of KL(policy‖reference) summed over tokens, and the number of tokens: [2] float64."""
    settings = {"micro_batch_size": micro_batch_size, "temperature": temperature}
    logps, _ = score(policy.model, rollout, **settings)
    with policy.reference():
        ref_logps, _ = score(policy.model, rollout, **settings)
    mask = rollout.completion_mask
    return torch.stack([kl_estimate(logps, ref_logps, mask, "k3").double().sum(), mask.double().sum()])

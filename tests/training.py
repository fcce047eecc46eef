"""Short trainings of the embedded policy, and what one iteration should have done by a second way of computing it."""

import copy
import math

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Checkpoint

from rhythm.callbacks.observer import RolloutObserver
from rhythm.credit import CreditStrategy, UniformCredit
from rhythm.data import PromptData
from rhythm.module import GRPOModule
from rhythm.objective import Objective
from rhythm.policy import Policy
from rhythm.seeding import generator, seed_adapter
from rhythm.tasks.countdown import Countdown
from tests.policies import perturb

EMBEDDED = "embedded:tiny_countdown"


class Watcher(RolloutObserver):
    """Keeps the rollout and, before any update, what the adapter was."""

    def scored(self, module, rollout):
        self.before = copy.deepcopy(module.policy.adapter_state())
        return {}

    def learned(self, module, rollout):
        self.rollout = rollout
        self.metrics = dict(module.metrics)


class EasyCountdown(Countdown):
    """Rewards that differ within most groups, whatever the policy can do: the parity of their length."""

    def reward(self, problem, completion):
        return float(len(completion) % 2)

    def known_answers(self):
        return [({}, "odd", 1.0), ({}, "even", 0.0)]


class HopelessCountdown(Countdown):
    def reward(self, problem, completion):
        return 0.0


def countdown(kind=EasyCountdown, template="numbers : {numbers} target : {target} ."):
    return kind(
        count=3,
        number_range=(1, 15),
        largest=150,
        train_size=64,
        template=template,
        answer_pattern="my answer is ([-+*/() 0-9]+)",
    )


def run(
    *,
    policy=None,
    task=None,
    credit=None,
    callbacks=(),
    prompts=4,
    iterations=1,
    lr=1.0,
    optimizer=torch.optim.SGD,
    ckpt_path=None,
    accelerator="cpu",
    precision="32-true",
    logger=False,
    **settings,
):
    """Trains a fresh policy; by SGD at rate 1, unclipped, the adapter moves by minus the gradient."""
    seed_adapter(0)
    task = task or countdown()
    policy = policy or perturb(Policy(EMBEDDED, rank=4, alpha=8))
    settings = {"group_size": 4, "updates_per_iteration": 1, "max_completion_tokens": 60} | settings
    objective = settings.pop("objective", Objective())
    watcher = Watcher()
    module = GRPOModule(
        policy,
        task,
        credit or UniformCredit(),
        objective,
        lambda parameters: optimizer(parameters, lr=lr),
        iterations=iterations,
        max_grad_norm=settings.pop("max_grad_norm", math.inf),
        **settings,
    )
    data = PromptData(
        task, policy.tokenizer, prompts_per_iteration=prompts, iterations=iterations, seed=0, chat=policy.chat
    )
    trainer = Trainer(
        accelerator=accelerator,
        precision=precision,
        devices=1,
        max_epochs=1,
        limit_val_batches=0,
        logger=logger,
        enable_checkpointing=any(isinstance(callback, Checkpoint) for callback in callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[*callbacks, watcher],
    )
    trainer.fit(module, data, ckpt_path=ckpt_path, weights_only=True)
    return module, watcher


def moved(module, watcher):
    """By how much each adapter tensor moved."""
    return {name: tensor - watcher.before[name] for name, tensor in module.policy.adapter_state().items()}


def assert_same(steps, expected, tolerance=1e-5):
    """Equal to 1e-5 of the largest entry of all, which is not nothing."""
    largest = max(float(step.abs().max()) for step in expected.values())
    assert largest > 1e-4
    assert steps.keys() == expected.keys()
    for name, step in steps.items():
        torch.testing.assert_close(step, expected[name], atol=tolerance * largest, rtol=0)


class SteppedCredit(CreditStrategy):
    """1, 1.5, 2, 1, 1.5, ... along each response."""

    def weights(self, signals, mask):
        return 1 + 0.5 * ((mask.cumsum(1) - 1) % 3)


def naive_gradient(rollout, *, aggregation="sequence_mean", max_tokens=60, sign="both", beta=0.0, drop_truncated=False):
    """Eq. 12 with Eq. 13 written down row by row, at a ratio of one; the policy is made and perturbed as in `run`.

    Where the rollout has importance weights, each token's surrogate is multiplied by its own.
    """
    seed_adapter(0)
    policy = perturb(Policy(EMBEDDED, rank=4, alpha=8))
    mask = rollout.completion_mask
    kept = [i for i in range(len(mask)) if not (drop_truncated and rollout.truncated[i])]
    tokens = sum(int(mask[i].sum()) for i in kept)
    loss = 0.0
    for i in kept:
        prompt, length = int(rollout.prompt_lengths[i]), int(mask[i].sum())
        ids = rollout.input_ids[i : i + 1, : prompt + length]
        logps = sequence_logps(policy, ids)[prompt - 1 :]
        weight = 1 + 0.5 * (torch.arange(length) % 3)
        if (sign == "positive" and rollout.advantages[i] < 0) or (sign == "negative" and rollout.advantages[i] >= 0):
            weight = torch.ones(length)
        ratio = (logps - logps.detach()).exp()
        with policy.reference(), torch.no_grad():
            reference = sequence_logps(policy, ids)[prompt - 1 :]
        difference = reference - logps
        importance = 1.0 if rollout.importance_weights is None else rollout.importance_weights[i, :length]
        per_token = -ratio * weight * rollout.advantages[i] * importance + beta * (difference.exp() - 1 - difference)
        divisor = {"sequence_mean": length * len(mask), "token_mean": tokens, "constant": len(mask) * max_tokens}
        loss = loss + per_token.sum() / divisor[aggregation]
    loss.backward()
    named = policy.model.named_parameters()
    return {name.replace(".default.", "."): -p.grad for name, p in named if p.requires_grad}


def naive_updates(rollout, updates, lr):
    """Plain SGD on shares of the rows in turn, each with PPO's clipped surrogate against the rollout's old_logps.

    Returns what the adapter's tensors are afterwards, and the number of clipped tokens.
    """
    seed_adapter(0)
    policy = perturb(Policy(EMBEDDED, rank=4, alpha=8))
    mask = rollout.completion_mask
    clipped = 0
    for rows in torch.randperm(len(mask), generator=generator(0, "minibatches", 1, 0)).tensor_split(updates):
        loss = 0.0
        for i in rows.tolist():
            prompt, length = int(rollout.prompt_lengths[i]), int(mask[i].sum())
            logps = sequence_logps(policy, rollout.input_ids[i : i + 1, : prompt + length])[prompt - 1 :]
            ratio = (logps - rollout.old_logps[i, :length]).exp()
            shaped = rollout.advantages[i] * (1 + 0.5 * (torch.arange(length) % 3))
            surrogate = torch.minimum(ratio * shaped, ratio.clamp(0.8, 1.2) * shaped)
            clipped += int((surrogate != ratio * shaped).sum())
            loss = loss - surrogate.sum() / length / len(rows)
        loss.backward()
        with torch.no_grad():
            for parameter in policy.adapter_parameters():
                parameter -= lr * parameter.grad
                parameter.grad = None
    return policy.adapter_state(), clipped


def sequence_logps(policy, ids):
    """Log-probabilities of the tokens after the first, by one plain forward pass."""
    return policy.model(input_ids=ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]

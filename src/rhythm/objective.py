"""The settings of the objective; its mathematics is in `losses`."""

from __future__ import annotations

from typing import get_args

from torch import Tensor

from rhythm.losses import Aggregation, Estimator, clipped_surrogate, clipped_tokens, kl_estimate, loss_weights


class Objective:
    """Clipped surrogate + beta · KL to the reference, averaged over a minibatch; Eq. 12 of arXiv:2510.13554.

    Args:
        clip_low, clip_high: the ratio is clipped to [1 − clip_low, 1 + clip_high]; DAPO raises clip_high to 0.28.
        dual_clip: bound on the loss of negative advantages, above 1 (3.0 is usual); None is off.
        beta: weight of the KL penalty, which credit never scales; 0 needs no pass of the reference.
        kl_estimator: "k1", "k2" or "k3"; see `kl_estimate` for what each descends.
        aggregation: "sequence_mean" (the paper's), "token_mean" or "constant".
        max_tokens: the longest completion; for "constant".
    """

    def __init__(
        self,
        *,
        clip_low: float = 0.2,
        clip_high: float = 0.2,
        dual_clip: float | None = None,
        beta: float = 0.0,
        kl_estimator: Estimator = "k3",
        aggregation: Aggregation = "sequence_mean",
        max_tokens: int | None = None,
    ):
        for name, value in {"clip_low": clip_low, "clip_high": clip_high, "beta": beta}.items():
            if value < 0:
                raise ValueError(f"{name}={value}: must be at least 0")
        if dual_clip is not None and dual_clip <= 1:
            raise ValueError(f"dual_clip={dual_clip}: must be above 1, or null")
        if aggregation not in get_args(Aggregation):
            raise ValueError(f"aggregation={aggregation}: use one of {', '.join(get_args(Aggregation))}")
        if kl_estimator not in get_args(Estimator):
            raise ValueError(f"kl_estimator={kl_estimator}: use one of {', '.join(get_args(Estimator))}")
        if aggregation == "constant" and not max_tokens:
            raise ValueError("aggregation=constant divides by max_tokens: give the longest completion")
        self.clip_low = clip_low
        self.clip_high = clip_high
        self.dual_clip = dual_clip
        self.beta = beta
        self.kl_estimator = kl_estimator
        self.aggregation = aggregation
        self.max_tokens = max_tokens

    def weights(self, mask: Tensor) -> Tensor:
        """The weight of each token of a whole minibatch in its loss, [n, T]."""
        return loss_weights(mask, self.aggregation, self.max_tokens)

    def losses(
        self, logps: Tensor, old_logps: Tensor, advantages: Tensor, mask: Tensor, ref_logps: Tensor | None
    ) -> Tensor:
        """The loss of each token, [n, T]."""
        losses = clipped_surrogate(logps, old_logps, advantages, mask, self.clip_low, self.clip_high, self.dual_clip)
        if self.beta:
            losses = losses + self.beta * kl_estimate(logps, ref_logps, mask, self.kl_estimator)
        return losses

    def clipped(self, logps: Tensor, old_logps: Tensor, advantages: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens whose gradient was cut off below and above, two of [n, T] bool."""
        return clipped_tokens(logps, old_logps, advantages, mask, self.clip_low, self.clip_high, self.dual_clip)

"""The objective, token by token: nothing but tensors in and out."""

from typing import Literal, get_args

import torch
from torch import Tensor

Aggregation = Literal["sequence_mean", "token_mean", "constant"]
Estimator = Literal["k1", "k2", "k3"]


def clipped_surrogate(
    logps: Tensor,
    old_logps: Tensor,
    advantages: Tensor,
    mask: Tensor,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: float | None = None,
) -> Tensor:
    """PPO's clipped surrogate with token-level advantages, Eq. 12 of arXiv:2510.13554; dual clip of arXiv:1912.09729.

    Args:
        logps: [N, T], of the policy that is being updated.
        old_logps: [N, T], of the policy that sampled.
        advantages: [N, T], shaped by credit.
        mask: [N, T] bool; log-probabilities outside may be anything.
        clip_low: the ratio is clipped below 1 − clip_low.
        clip_high: the ratio is clipped above 1 + clip_high.
        dual_clip: above 1; bounds the loss of a negative advantage A by −dual_clip·A.
    Returns:
        [N, T], the loss of each token; zero outside the mask.
    """
    _check_shapes(logps=logps, old_logps=old_logps, advantages=advantages, mask=mask)
    ratio = _ratio(logps, old_logps, mask)
    surrogate = torch.minimum(ratio * advantages, ratio.clamp(1 - clip_low, 1 + clip_high) * advantages)
    if dual_clip is not None:
        surrogate = torch.where(advantages < 0, torch.maximum(surrogate, dual_clip * advantages), surrogate)
    return -surrogate.masked_fill(~mask, 0.0)


def clipped_tokens(
    logps: Tensor,
    old_logps: Tensor,
    advantages: Tensor,
    mask: Tensor,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Find the tokens whose gradient the clipped surrogate cuts off; arguments as there.

    Returns:
        Two of [N, T] bool: clipped below (ratio under 1 − clip_low, advantage negative) and clipped above (ratio over
        1 + clip_high, advantage positive, or over dual_clip, advantage negative).
    """
    _check_shapes(logps=logps, old_logps=old_logps, advantages=advantages, mask=mask)
    ratio = _ratio(logps, old_logps, mask)
    low = mask & (advantages < 0) & (ratio < 1 - clip_low)
    high = mask & (advantages > 0) & (ratio > 1 + clip_high)
    if dual_clip is not None:
        high |= mask & (advantages < 0) & (ratio > dual_clip)
    return low, high


def importance_weights(old_logps: Tensor, sampler_logps: Tensor, mask: Tensor, cap: float) -> Tensor:
    """Truncated importance weights min(π_scorer/π_sampler, C), where another program sampled than the one that scores.

    Its kernels and precision are others, so its tokens come from a slightly different policy: Yao et al. 2025, "Your
    Efficient RL Framework Secretly Brings You Off-Policy RL Training", https://fengyao.notion.site/off-policy-rl.

    Args:
        old_logps: [N, T], by the scoring pass.
        sampler_logps: [N, T], by the sampler.
        mask: [N, T] bool; log-probabilities outside may be anything.
        cap: C, at least 1.
    Returns:
        [N, T] without gradient, to multiply the policy loss of each token; 1 outside the mask.
    """
    _check_shapes(old_logps=old_logps, sampler_logps=sampler_logps, mask=mask)
    return _ratio(old_logps.detach(), sampler_logps, mask).clamp(max=cap)


def kl_estimate(logps: Tensor, ref_logps: Tensor, mask: Tensor, estimator: Estimator = "k3") -> Tensor:
    """Estimate KL(policy‖reference) from the policy's own samples, http://joschu.net/blog/kl-approx.html.

    The values of k1 and k3 are unbiased. As losses they differ: the expected gradient of k1 is zero, that of k2 is the
    gradient of KL(policy‖reference), that of k3 the gradient of KL(reference‖policy).

    Args:
        logps: [N, T], of the policy.
        ref_logps: [N, T], of the reference.
        mask: [N, T] bool; log-probabilities outside may be anything.
        estimator: with d = ref_logps − logps, k1 is −d, k2 is d²/2 and k3 is exp(d) − 1 − d.
    Returns:
        [N, T], in nats; zero outside the mask.
    """
    _check_shapes(logps=logps, ref_logps=ref_logps, mask=mask)
    difference = (ref_logps - logps).masked_fill(~mask, 0.0)
    if estimator == "k1":
        return -difference
    if estimator == "k2":
        return difference.square() / 2
    if estimator == "k3":
        return difference.expm1() - difference
    raise ValueError(f"estimator must be one of {get_args(Estimator)}, not {estimator!r}")


def loss_weights(mask: Tensor, aggregation: Aggregation = "sequence_mean", max_tokens: int | None = None) -> Tensor:
    """Weigh a minibatch's tokens so that its loss is Σ weights·losses, and a micro-batch's share that sum over a slice.

    Args:
        mask: [N, T] bool, of the whole minibatch.
        aggregation: "sequence_mean" averages over each response and then over all N, empty ones included (Eq. 12 of
            arXiv:2510.13554); "token_mean" averages over all tokens (DAPO, arXiv:2503.14476); "constant" divides by
            N·max_tokens (Dr. GRPO, arXiv:2503.20783).
        max_tokens: for "constant" only, the longest that a completion may be.
    Returns:
        [N, T] float32, zero outside the mask.
    """
    _check_shapes(mask=mask)
    if aggregation == "sequence_mean":
        return mask / (mask.sum(dim=1, keepdim=True).clamp(min=1) * len(mask))
    if aggregation == "token_mean":
        return mask / mask.sum().clamp(min=1)
    if aggregation == "constant":
        if max_tokens is None or max_tokens < 1:
            raise ValueError(f"constant aggregation needs max_tokens of at least 1, not {max_tokens}")
        return mask / (len(mask) * max_tokens)
    raise ValueError(f"aggregation must be one of {get_args(Aggregation)}, not {aggregation!r}")


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Average over the tokens in the mask; zero where there is none.

    Args:
        values: [N, T]; anything, NaN included, outside the mask.
        mask: [N, T] bool.
    Returns:
        A scalar.
    """
    _check_shapes(values=values, mask=mask)
    return values.masked_fill(~mask, 0.0).sum() / mask.sum().clamp(min=1)


def selected_logps(logits: Tensor, tokens: Tensor, temperature: float = 1.0) -> Tensor:
    """Log-probabilities of tokens under softmax(logits / temperature).

    Args:
        logits: [..., V], the ones that predict `tokens`; at any precision.
        tokens: [...] int64.
        temperature: above 0.
    Returns:
        [...] float32, in nats.
    """
    if logits.shape[:-1] != tokens.shape:
        raise ValueError(f"logits {tuple(logits.shape)} and tokens {tuple(tokens.shape)} must be [..., V] and [...]")
    scaled = _tempered(logits, temperature)
    return scaled.gather(-1, tokens[..., None]).squeeze(-1) - scaled.logsumexp(dim=-1)


def entropies(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Entropies of softmax(logits / temperature): [..., V] to [...] float32, in nats, without gradient."""
    return torch.special.entr(_tempered(logits.detach(), temperature).softmax(dim=-1)).sum(dim=-1)


def _tempered(logits: Tensor, temperature: float) -> Tensor:
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, not {temperature}")
    return logits.float() / temperature


def _ratio(logps: Tensor, old_logps: Tensor, mask: Tensor) -> Tensor:
    # Masked before exp: an overflow at padding would leave the loss finite and make its gradient NaN.
    return (logps - old_logps).masked_fill(~mask, 0.0).exp()


def _check_shapes(**tensors: Tensor) -> None:
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if len(set(shapes.values())) > 1 or len(next(iter(shapes.values()))) != 2:
        raise ValueError(f"shapes must agree and be [N, T]: {', '.join(f'{n} {s}' for n, s in shapes.items())}")

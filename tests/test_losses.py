import math

import pytest
import torch

from rhythm.losses import (
    clipped_surrogate,
    clipped_tokens,
    entropies,
    importance_weights,
    kl_estimate,
    loss_weights,
    masked_mean,
    selected_logps,
)

MASK = torch.tensor([[True, True, True], [True, False, False], [False, False, False]])


def one(value, **keywords):
    return torch.full((1, 1), float(value), **keywords)


def surrogate_and_slope(ratio, advantage, **keywords):
    """The loss of one token and its derivative in the log-probability."""
    logps = one(math.log(ratio), requires_grad=True)
    loss = clipped_surrogate(logps, one(0), one(advantage), one(1).bool(), **keywords)
    loss.sum().backward()
    return pytest.approx(loss.item(), rel=1e-6), pytest.approx(logps.grad.item(), rel=1e-6)


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "slope"),
    [
        (1.0, 2.0, -2.0, -2.0),
        (1.1, 2.0, -2.2, -2.2),  # inside
        (1.5, 2.0, -2.56, 0.0),  # above and good already: clipped at 1.28
        (0.5, 2.0, -1.0, -1.0),  # below and good: must come back
        (1.5, -2.0, 3.0, 3.0),  # above and bad: must come back
        (0.5, -2.0, 1.6, 0.0),  # below and bad already: clipped at 0.8
        (1.5, 0.0, 0.0, 0.0),
    ],
)
def test_the_surrogate_is_clipped_where_the_ratio_has_gone_far_enough(ratio, advantage, loss, slope):
    assert (loss, slope) == surrogate_and_slope(ratio, advantage, clip_low=0.2, clip_high=0.28)


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "slope"),
    [
        (5.0, -2.0, 6.0, 0.0),  # bounded by 3·2
        (2.5, -2.0, 5.0, 5.0),  # within the bound
        (0.5, -2.0, 1.6, 0.0),
        (5.0, 2.0, -2.4, 0.0),  # positive advantages as ever
        (0.5, 2.0, -1.0, -1.0),
    ],
)
def test_dual_clip_bounds_the_loss_of_negative_advantages(ratio, advantage, loss, slope):
    assert (loss, slope) == surrogate_and_slope(ratio, advantage, dual_clip=3.0)


def test_clipped_tokens_are_those_without_a_gradient():
    logps = torch.tensor([[1.1, 1.5, 0.5, 1.5, 0.5, 0.5]]).log().requires_grad_()
    advantages = torch.tensor([[2.0, 2.0, 2.0, -2.0, -2.0, -2.0]])
    mask = torch.tensor([[True, True, True, True, True, False]])
    low, high = clipped_tokens(logps, torch.zeros(1, 6), advantages, mask, clip_low=0.2, clip_high=0.28)
    assert low.tolist() == [[False, False, False, False, True, False]]
    assert high.tolist() == [[False, True, False, False, False, False]]
    clipped_surrogate(logps, torch.zeros(1, 6), advantages, mask, clip_low=0.2, clip_high=0.28).sum().backward()
    assert torch.equal(logps.grad == 0, low | high | ~mask)


def test_the_first_update_is_plain_policy_gradient_and_clips_nothing():
    logps = torch.tensor([[-1.0, -2.0, -3.0], [-4.0, 0.0, 0.0], [0.0, 0.0, 0.0]], requires_grad=True)
    advantages = torch.tensor([[1.0, -1.5, 1.0], [-2.0, 9.0, 9.0], [9.0, 9.0, 9.0]])
    loss = clipped_surrogate(logps, logps.detach(), advantages, MASK)
    assert loss.tolist() == [[-1.0, 1.5, -1.0], [2.0, 0.0, 0.0], [0.0, 0.0, 0.0]]
    loss.sum().backward()
    assert torch.equal(logps.grad, loss.detach())
    low, high = clipped_tokens(logps, logps.detach(), advantages, MASK)
    assert not (low | high).any()


@pytest.mark.parametrize("padding", [200.0, -200.0, math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_log_probabilities_at_padding_reach_neither_loss_nor_gradient(padding, advantage):
    outside = torch.where(MASK, 0.0, padding)
    weights = loss_weights(MASK)
    results = []
    for shift in (outside, torch.zeros(3, 3)):
        logps = torch.linspace(-0.3, 0.3, 9).view(3, 3).requires_grad_()
        surrogate = clipped_surrogate(logps + shift, torch.zeros(3, 3), torch.full((3, 3), advantage), MASK)
        loss = (weights * (surrogate + 0.1 * kl_estimate(logps + shift, torch.zeros(3, 3), MASK))).sum()
        loss.backward()
        results += [loss.detach(), logps.grad]
    assert torch.equal(results[0], results[2])
    assert torch.equal(results[1], results[3])
    assert results[1].isfinite().all()


# ---- aggregation


def test_sequence_mean_averages_over_tokens_and_then_over_all_rows():
    expected = torch.tensor([[1 / 9, 1 / 9, 1 / 9], [1 / 3, 0, 0], [0, 0, 0]])
    torch.testing.assert_close(loss_weights(MASK, "sequence_mean"), expected)


def test_token_mean_averages_over_tokens():
    assert loss_weights(MASK, "token_mean").tolist() == [[0.25, 0.25, 0.25], [0.25, 0, 0], [0, 0, 0]]
    assert loss_weights(torch.zeros_like(MASK), "token_mean").sum() == 0


def test_constant_divides_by_the_tokens_that_there_might_have_been():
    expected = torch.tensor([[1 / 12] * 3, [1 / 12, 0, 0], [0, 0, 0]])
    torch.testing.assert_close(loss_weights(MASK, "constant", max_tokens=4), expected)
    with pytest.raises(ValueError, match="constant aggregation needs max_tokens of at least 1, not None"):
        loss_weights(MASK, "constant")


@pytest.mark.parametrize("aggregation", ["sequence_mean", "token_mean", "constant"])
def test_gradients_of_micro_batches_add_up_to_that_of_the_minibatch(aggregation):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(6, 5, 4, generator=generator, dtype=torch.float64)
    advantages = torch.randn(6, 5, generator=generator, dtype=torch.float64)
    old_logps = torch.randn(6, 5, generator=generator, dtype=torch.float64)
    mask = torch.arange(5) < torch.tensor([5, 1, 0, 3, 4, 2])[:, None]
    weights = loss_weights(mask, aggregation, max_tokens=5)

    def gradient(*slices):
        parameter = torch.ones(4, dtype=torch.float64, requires_grad=True)
        for part in slices:
            loss = clipped_surrogate(hidden[part] @ parameter, old_logps[part], advantages[part], mask[part])
            (weights[part] * loss).sum().backward()
        return parameter.grad

    whole = gradient(slice(0, 6))
    assert (whole != 0).all()
    torch.testing.assert_close(gradient(slice(0, 1), slice(1, 4), slice(4, 6)), whole)


def test_masked_mean_ignores_what_is_outside():
    values = torch.tensor([[1.0, 2.0, 6.0], [3.0, math.nan, math.inf], [math.nan] * 3])
    assert masked_mean(values, MASK) == 3.0
    assert masked_mean(values, torch.zeros_like(MASK)) == 0.0


# ---- a sampler that is not the scorer


def test_importance_weights_are_ratios_cut_at_the_cap():
    scorer = torch.tensor([[0.5, 0.3, 0.9, 0.2, 0.1]]).log().requires_grad_()
    sampler = torch.tensor([[0.5, 0.6, 0.5, 0.05, 0.0]]).log()
    mask = torch.tensor([[True, True, True, True, False]])
    weights = importance_weights(scorer, sampler, mask, cap=2.0)
    torch.testing.assert_close(weights, torch.tensor([[1.0, 0.5, 1.8, 2.0, 1.0]]))  # 0.2 / 0.05 is 4
    assert not weights.requires_grad
    assert importance_weights(scorer, sampler, mask, cap=1.0).tolist() == [[1.0, pytest.approx(0.5), 1.0, 1.0, 1.0]]


def test_importance_weights_make_expectations_under_the_sampler_those_under_the_scorer():
    scorer, sampler = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.3, 0.5, 0.2])
    weights = importance_weights(scorer.log()[None], sampler.log()[None], torch.ones(1, 3).bool(), cap=2.0)
    torch.testing.assert_close(sampler * weights[0], scorer)


@pytest.mark.parametrize("dual_clip", [None, 3.0])
def test_the_surrogate_of_weighted_advantages_is_the_weighted_surrogate(dual_clip):
    """So that the weights may come with the advantages; clipping does not see them."""
    draw = torch.Generator().manual_seed(0)
    logps, old_logps, advantages = torch.randn(3, 4, 50, generator=draw)
    weights = 2 * torch.rand(4, 50, generator=draw)
    arguments = (torch.ones(4, 50).bool(), 0.2, 0.28, dual_clip)
    weighted = clipped_surrogate(logps, old_logps, weights * advantages, *arguments)
    torch.testing.assert_close(weighted, weights * clipped_surrogate(logps, old_logps, advantages, *arguments))
    for with_weights, without in zip(
        clipped_tokens(logps, old_logps, weights * advantages, *arguments),
        clipped_tokens(logps, old_logps, advantages, *arguments),
        strict=True,
    ):
        assert torch.equal(with_weights, without)


# ---- KL


@pytest.mark.parametrize(
    ("estimator", "expected"), [("k1", [0.5, -1.0]), ("k2", [0.125, 0.5]), ("k3", [0.106531, 0.718282])]
)
def test_kl_estimators_on_numbers(estimator, expected):
    logps, ref_logps = torch.tensor([[-1.0, -2.0, 0.0]]), torch.tensor([[-1.5, -1.0, 7.0]])
    got = kl_estimate(logps, ref_logps, torch.tensor([[True, True, False]]), estimator)
    torch.testing.assert_close(got, torch.tensor([[*expected, 0.0]]), rtol=1e-5, atol=1e-6)


POLICY = torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64)
REFERENCE = torch.tensor([0.1, 0.6, 0.3], dtype=torch.float64)
EVERYWHERE = torch.ones(1, 3, dtype=torch.bool)


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_k1_and_k3_are_unbiased(estimator):
    estimates = kl_estimate(POLICY.log()[None], REFERENCE.log()[None], EVERYWHERE, estimator)
    divergence = (POLICY * (POLICY / REFERENCE).log()).sum()
    torch.testing.assert_close((POLICY * estimates[0]).sum(), divergence)


def test_as_losses_the_estimators_descend_different_divergences():
    logits = POLICY.log().requires_grad_()

    def gradient(scalar):
        return torch.autograd.grad(scalar, logits)[0]

    def expected_gradient(estimator):
        estimates = kl_estimate(logits.log_softmax(0)[None], REFERENCE.log()[None], EVERYWHERE, estimator)
        return gradient((POLICY * estimates[0]).sum())  # samples come from the policy, which is not differentiated

    reverse = gradient((logits.softmax(0) * (logits.log_softmax(0) - REFERENCE.log())).sum())
    forward = gradient((REFERENCE * (REFERENCE.log() - logits.log_softmax(0))).sum())
    torch.testing.assert_close(expected_gradient("k1"), torch.zeros_like(POLICY))
    torch.testing.assert_close(expected_gradient("k2"), reverse)
    torch.testing.assert_close(expected_gradient("k3"), forward)


# ---- log-probabilities


def test_logps_and_entropy_of_a_known_distribution():
    logits = torch.tensor([[0.5, 0.25, 0.25], [1.0, 0.0, 0.0]]).log() + torch.tensor([[3.0], [-7.0]])
    logps, entropy = selected_logps(logits, torch.tensor([1, 0])), entropies(logits)
    torch.testing.assert_close(logps, torch.tensor([math.log(0.25), 0.0]))
    torch.testing.assert_close(entropy, torch.tensor([1.5 * math.log(2), 0.0]))


def test_temperature_divides_the_logits():
    # At temperature 2 the odds 16 : 1 become 4 : 1.
    logits = torch.tensor([[math.log(16), 0.0]])
    logps, entropy = selected_logps(logits, torch.tensor([0]), temperature=2.0), entropies(logits, temperature=2.0)
    torch.testing.assert_close(logps, torch.tensor([math.log(0.8)]))
    torch.testing.assert_close(entropy, torch.tensor([-0.8 * math.log(0.8) - 0.2 * math.log(0.2)]))


def test_huge_logits_stay_finite_and_low_precision_is_raised():
    logits = torch.tensor([[[1e4, 0.0, -1e4], [5.0, 5.0, 5.0]]], dtype=torch.bfloat16)
    logps, entropy = selected_logps(logits, torch.tensor([[0, 2]])), entropies(logits)
    assert logps.dtype == entropy.dtype == torch.float32
    torch.testing.assert_close(logps, torch.tensor([[0.0, -math.log(3)]]))
    torch.testing.assert_close(entropy, torch.tensor([[0.0, math.log(3)]]))


def test_the_gradient_of_a_logp_is_one_hot_minus_probabilities():
    logits = torch.tensor([[0.5, 0.25, 0.25]]).log().requires_grad_()
    logps, entropy = selected_logps(logits, torch.tensor([1])), entropies(logits)
    logps.sum().backward()
    torch.testing.assert_close(logits.grad, torch.tensor([[-0.5, 0.75, -0.25]]))
    assert not entropy.requires_grad


# ---- refusals


def test_shapes_and_words_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match=r"logps \(3, 3\), old_logps \(3, 1\), advantages \(3, 3\), mask \(3, 3\)"):
        clipped_surrogate(torch.zeros(3, 3), torch.zeros(3, 1), torch.zeros(3, 3), MASK)
    with pytest.raises(ValueError, match=r"values \(3,\), mask \(3,\)"):
        masked_mean(torch.zeros(3), MASK[0])
    with pytest.raises(ValueError, match=r"estimator must be one of .*, not 'k4'"):
        kl_estimate(torch.zeros(3, 3), torch.zeros(3, 3), MASK, "k4")
    with pytest.raises(ValueError, match=r"aggregation must be one of .*, not 'sum'"):
        loss_weights(MASK, "sum")
    with pytest.raises(ValueError, match=r"logits \(2, 5\) and tokens \(3,\)"):
        selected_logps(torch.zeros(2, 5), torch.zeros(3, dtype=torch.long))
    with pytest.raises(ValueError, match="temperature must be above 0, not 0"):
        selected_logps(torch.zeros(2, 5), torch.zeros(2, dtype=torch.long), temperature=0)

"""What every strategy promises, checked for each YAML in configs/credit: a new one needs no test of its own."""

import copy
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf

from rhythm.credit import CreditStrategy, UniformCredit

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "configs" / "credit").glob("*.yaml"))
LENGTHS = [12, 1, 2, 3, 9, 6, 0]
UNDEFINED = 5  # the row without a defined token
WIDTH = 12
ROWS = [40, 41, 42, 43, 44, 45, 46]


@pytest.fixture(params=CONFIGS, ids=lambda path: path.stem)
def config(request):
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        return OmegaConf.to_container(compose(overrides=[f"+credit={request.param.stem}"]).credit)


@pytest.fixture
def strategy(config):
    return instantiate(config)


def batch(strategy, before=0, after=0):
    """Rows of LENGTHS with the signals that the strategy requires and no others, and garbage outside the mask."""
    generator = torch.Generator().manual_seed(0)
    shape = (len(LENGTHS), before + WIDTH + after)
    mask = torch.zeros(shape, dtype=torch.bool)
    signals = {field: torch.full(shape, 1e3) for field in sorted(strategy.requires)}
    for row, length in enumerate(LENGTHS):
        mask[row, before : before + length] = True
        for signal in signals.values():
            values = torch.rand(length, generator=generator)
            values[length - 1 :] = math.nan  # the end of a response has neither drop nor future
            signal[row, before : before + length] = math.nan if row == UNDEFINED else values
    return SimpleNamespace(**signals), mask


def with_key(config, key, value):
    """Set a key wherever it exists, nested strategies included; None where it does not exist."""
    changed, found = copy.deepcopy(config), False
    nodes = [changed]
    while nodes:
        node = nodes.pop()
        nodes += [child for child in node.values() if isinstance(child, dict)]
        if key in node:
            node[key], found = value, True
    return changed if found else None


def assert_padding_does_not_matter(strategy):
    signals, mask = batch(strategy)
    padded_signals, padded_mask = batch(strategy, before=3, after=5)
    credit = strategy(signals, mask, seed=1, rows=ROWS)
    padded = strategy(padded_signals, padded_mask, seed=1, rows=ROWS)
    torch.testing.assert_close(padded[:, 3 : 3 + WIDTH], credit)


def assert_other_rows_do_not_matter(strategy):
    signals, mask = batch(strategy)
    credit = strategy(signals, mask, seed=1, rows=ROWS)
    for row, number in enumerate(ROWS):
        alone = SimpleNamespace(**{field: signal[[row]] for field, signal in vars(signals).items()})
        torch.testing.assert_close(strategy(alone, mask[[row]], seed=1, rows=[number]), credit[[row]])


def test_credit_is_finite_nonnegative_detached_and_one_outside_the_mask(strategy):
    signals, mask = batch(strategy, before=2, after=1)
    credit = strategy(signals, mask, seed=1)
    assert credit.shape == mask.shape
    assert credit.dtype == torch.float32
    assert not credit.requires_grad
    assert credit.isfinite().all()
    assert (credit >= 0).all()
    assert (credit[~mask] == 1).all()


def test_credit_leaves_its_arguments_alone(strategy):
    signals, mask = batch(strategy)
    strategy(signals, mask)
    untouched_signals, untouched_mask = batch(strategy)
    assert torch.equal(mask, untouched_mask)
    for field, signal in vars(signals).items():
        torch.testing.assert_close(signal, getattr(untouched_signals, field), equal_nan=True, rtol=0, atol=0)


def test_padding_does_not_matter(strategy):
    assert_padding_does_not_matter(strategy)


def test_other_rows_do_not_matter(strategy):
    assert_other_rows_do_not_matter(strategy)


def test_the_same_seed_gives_the_same_credit(strategy):
    signals, mask = batch(strategy)
    assert torch.equal(strategy(signals, mask, seed=4), strategy(signals, mask, seed=4))


def test_a_response_with_no_defined_token_gets_uniform_credit(strategy):
    if not strategy.requires:
        pytest.skip("reads no signal")
    signals, mask = batch(strategy)
    assert (strategy(signals, mask)[UNDEFINED] == 1).all()


def test_a_missing_signal_is_refused(strategy):
    if not strategy.requires:
        pytest.skip("reads no signal")
    with pytest.raises(ValueError, match="which nobody provided"):
        strategy(SimpleNamespace(), batch(strategy)[1])


def test_amplification_one_is_uniform(config):
    neutral = with_key(config, "amplification", 1)
    if neutral is None:
        pytest.skip("amplifies nothing")
    strategy = instantiate(neutral)
    signals, mask = batch(strategy)
    assert torch.equal(strategy(signals, mask), UniformCredit()(signals, mask))


def test_a_selecting_strategy_changes_some_weight(config, strategy):
    if with_key(config, "top_fraction", None) is None:
        pytest.skip("selects nothing")
    credit = strategy(*batch(strategy))
    assert (credit[0] != 1).any()


# ---- the suite can fail


class Written(CreditStrategy):
    requires = frozenset({"fai"})

    def __init__(self, *, of):
        self.of = of

    def weights(self, signals, mask):
        return self.of(signals.fai.nan_to_num(0), mask)


def test_the_suite_catches_a_strategy_that_looks_at_other_rows():
    with pytest.raises(AssertionError):
        assert_other_rows_do_not_matter(Written(of=lambda fai, mask: 1 + fai * mask.sum() / mask.numel()))


def test_the_suite_catches_a_strategy_that_looks_at_padding():
    for of in (
        lambda fai, mask: fai.mean(dim=1, keepdim=True).expand(fai.shape),
        lambda fai, mask: torch.arange(mask.shape[1]).expand(mask.shape),
    ):
        with pytest.raises(AssertionError):
            assert_padding_does_not_matter(Written(of=of))


@pytest.mark.parametrize(
    "broken",
    [
        lambda fai, mask: fai[:, :-1],
        lambda fai, mask: fai.mean(dim=1),
        lambda fai, mask: fai.log(),
        lambda fai, mask: fai / 0,
        lambda fai, mask: fai - 1,
        lambda fai, mask: fai.clone().requires_grad_(),
    ],
    ids=["narrow", "one per row", "minus infinity", "nan", "negative", "requires grad"],
)
def test_broken_strategies_are_refused(broken):
    strategy = Written(of=broken)
    with pytest.raises(ValueError, match=r"^written credit "):
        strategy(*batch(strategy))

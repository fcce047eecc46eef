import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rhythm.credit import AnchorCredit, CreditStrategy, EntropyCredit, UniformCredit, amplify, row_noise, top_tokens
from rhythm.credit.base import remedy
from rhythm.types import AttentionSignals

nan = math.nan
MASK = torch.tensor([[True, True, True, False], [False, True, True, False]])


class Given(CreditStrategy):
    """A strategy that returns what it was made with."""

    requires = frozenset({"fai"})

    def __init__(self, *, result):
        self.result = result

    def weights(self, signals, mask):
        return self.result


def fai(values=0.5):
    return AttentionSignals(fai=torch.full(MASK.shape, values))


def test_a_missing_signal_is_named_with_its_remedy():
    with pytest.raises(ValueError, match=r"^anchor credit reads `fai`, which nobody provided; add callbacks=attention"):
        AnchorCredit()(AttentionSignals(), MASK)
    with pytest.raises(ValueError, match=r"^entropy credit reads `entropy`, which nobody provided; the scoring pass"):
        EntropyCredit()(AttentionSignals(), MASK)


def test_a_strategy_that_reads_nothing_takes_no_signals():
    assert UniformCredit()(None, MASK).tolist() == [[1.0] * 4] * 2


def test_any_object_with_the_required_fields_will_do():
    signals = SimpleNamespace(fai=torch.tensor([[0.1, 0.3, 0.2, 0.9], [0.9, 0.1, 0.2, 0.9]]))
    credit = AnchorCredit(top_fraction=0.3, amplification=2.0)(signals, MASK.long())
    assert credit.tolist() == [[1, 2, 1, 1], [1, 1, 2, 1]]


class SurpriseCredit(CreditStrategy):
    """Reads what a callback of its own would provide."""

    requires = frozenset({"surprise"})

    def weights(self, signals, mask):
        return 1 + signals.surprise.nan_to_num()


def test_a_strategy_may_read_a_signal_that_is_not_ours():
    signals = SimpleNamespace(surprise=torch.full(MASK.shape, 0.5))
    assert SurpriseCredit()(signals, MASK).tolist() == [[1.5, 1.5, 1.5, 1], [1, 1.5, 1.5, 1]]
    with pytest.raises(
        ValueError, match=r"reads `surprise`, which nobody provided; add a callback whose `provides` names `surprise`$"
    ):
        SurpriseCredit()(AttentionSignals(), MASK)
    assert remedy({"surprise", "fai"}) == "add callbacks=attention and a callback whose `provides` names `surprise`"


def test_weights_are_given_what_is_required_and_nothing_else():
    class Greedy(Given):
        def weights(self, signals, mask):
            return signals.waad

    with pytest.raises(AttributeError, match="waad"):
        Greedy(result=None)(AttentionSignals(fai=torch.ones(MASK.shape), waad=torch.ones(MASK.shape)), MASK)


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (torch.ones(2, 3), r"given credit has shape \(2, 3\), its mask \(2, 4\)"),
        (torch.ones(2, 1), r"given credit has shape \(2, 1\), its mask \(2, 4\)"),
        (torch.ones(2, 4, requires_grad=True), "given credit requires grad"),
        (torch.ones(2, 4).index_fill(1, torch.tensor([1]), nan), "given credit has NaN or infinite weights"),
        (torch.ones(2, 4).index_fill(1, torch.tensor([1]), math.inf), "given credit has NaN or infinite weights"),
        (torch.ones(2, 4).index_fill(1, torch.tensor([1]), -0.1), "given credit has negative weights"),
    ],
)
def test_weights_that_break_the_promises_are_refused(result, message):
    with pytest.raises(ValueError, match=message):
        Given(result=result)(fai(), MASK)


def test_signals_and_masks_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"reads `fai`, which has shape \(2, 3\), its mask \(2, 4\)"):
        AnchorCredit()(AttentionSignals(fai=torch.ones(2, 3)), MASK)
    with pytest.raises(ValueError, match=r"takes a mask \[N, T\], not one of shape \(4,\)"):
        AnchorCredit()(AttentionSignals(fai=torch.ones(4)), MASK[0])
    with pytest.raises(ValueError, match="rows has 3 numbers for a batch of 2"):
        UniformWithSeed()(None, MASK, rows=[1, 2, 3])


class UniformWithSeed(CreditStrategy):
    seeded = True

    def weights(self, signals, mask, *, seed, rows):
        return torch.full(mask.shape, float(seed)) + torch.tensor(rows)[:, None]


def test_a_seeded_strategy_is_given_its_seed_and_rows():
    assert UniformWithSeed()(None, MASK).tolist() == [[0, 0, 0, 1], [1, 1, 1, 1]]
    assert UniformWithSeed()(None, MASK, seed=3, rows=torch.tensor([4, 5])).tolist() == [[7, 7, 7, 1], [1, 8, 8, 1]]


def test_weights_are_one_outside_the_mask_and_where_nothing_is_defined():
    signals = fai()
    signals.fai[1, 1:3] = nan  # defined outside the mask only
    garbage = torch.tensor([[2.0, 3.0, 4.0, nan], [-1.0, nan, nan, math.inf]], dtype=torch.float64)
    credit = Given(result=garbage)(signals, MASK)
    assert credit.dtype == torch.float32
    assert credit.tolist() == [[2, 3, 4, 1], [1, 1, 1, 1]]
    assert Given(result=garbage).informed(signals, MASK).tolist() == [True, False]


@pytest.mark.parametrize(
    ("argument", "value"),
    [("top_fraction", 0.0), ("top_fraction", 1.1), ("top_fraction", nan), ("amplification", -0.5),
     ("amplification", math.inf), ("select", "middle")],
)  # fmt: skip
def test_bad_settings_are_refused_by_name(argument, value):
    with pytest.raises(ValueError, match=f"^{argument}={value}: (must be|use one of) "):
        AnchorCredit(**{argument: value})


def test_settings_are_keywords():
    with pytest.raises(TypeError):
        AnchorCredit(0.4)


def test_amplify_weighs_selected_tokens():
    assert amplify(torch.tensor([[True, False]]), 1.5).tolist() == [[1.5, 1.0]]


# ---- top_tokens


def test_ties_go_to_the_earlier_token():
    scores = torch.tensor([[0.2, 0.7, 0.7, 0.2, 0.7]])
    everywhere = torch.ones(1, 5, dtype=torch.bool)
    assert top_tokens(scores, everywhere, 0.4, "top").tolist() == [[False, True, True, False, False]]
    assert top_tokens(scores, everywhere, 0.2, "bottom").tolist() == [[True, False, False, False, False]]
    assert top_tokens(scores, everywhere, 0.6, "bottom").tolist() == [[True, True, False, True, False]]
    long = top_tokens(torch.zeros(2, 3000), torch.ones(2, 3000, dtype=torch.bool), 0.4)
    assert long[:, :1200].all()


@pytest.mark.parametrize(
    ("fraction", "n", "count"),
    [(0.4, 5, 2), (0.4, 6, 3), (0.28, 25, 7), (0.55, 100, 55), (0.1 + 0.2, 10, 3), (1 / 3, 3, 1), (1.0, 7, 7),
     (1, 7, 7), (0.01, 3, 1), (1e-12, 5, 1), (0.4, 0, 0), (0.4, 1, 1)],
)  # fmt: skip
def test_the_share_is_rounded_up_without_float_errors(fraction, n, count):
    scores = torch.cat([torch.rand(1, n), torch.full((1, 3), nan)], dim=1)
    assert top_tokens(scores, torch.ones(1, n + 3, dtype=torch.bool), fraction).sum() == count


def test_infinite_scores_are_defined():
    scores = torch.tensor([[-math.inf, nan, math.inf, 0.0]])
    everywhere = torch.ones(1, 4, dtype=torch.bool)
    assert top_tokens(scores, everywhere, 1.0).tolist() == [[True, False, True, True]]
    assert top_tokens(scores, everywhere, 0.3, "bottom").tolist() == [[True, False, False, False]]


def top_by_sorting(scores, mask, count_of, select):
    columns = [t for t, (score, kept) in enumerate(zip(scores, mask, strict=True)) if kept and not math.isnan(score)]
    ranked = sorted(columns, key=lambda t: (-scores[t] if select == "top" else scores[t], t))
    chosen = set(ranked[: count_of(len(columns))])
    return [t in chosen for t in range(len(scores))]


# Few distinct scores, so that there are ties; multiples of 1/8, so that q·n has no rounding.
row = st.lists(st.tuples(st.sampled_from([0.0, 0.5, 1.0, -2.0, nan]), st.booleans()), min_size=9, max_size=9)


@settings(deadline=None)
@given(st.lists(row, min_size=1, max_size=4), st.integers(1, 8), st.sampled_from(["top", "bottom"]))
def test_top_tokens_agrees_with_sorting_each_row(rows, eighths, select):
    scores, mask = zip(*[zip(*cells, strict=True) for cells in rows], strict=True)
    got = top_tokens(torch.tensor(scores), torch.tensor(mask), eighths / 8, select)
    expected = [top_by_sorting(s, m, lambda n: -(-n * eighths // 8), select) for s, m in zip(scores, mask, strict=True)]
    assert got.tolist() == expected


# ---- row_noise


def test_a_rows_noise_depends_on_its_seed_and_number_only():
    noise = row_noise(MASK, seed=1, rows=[7, 9])
    assert noise.isnan().tolist() == (~MASK).tolist()
    alone = row_noise(torch.ones(1, 2, dtype=torch.bool), seed=1, rows=[9])
    assert noise[1, 1:3].tolist() == alone[0].tolist()
    for others in (row_noise(MASK, 2, [7, 9]), row_noise(MASK, 1, [8, 10]), row_noise(MASK, 1, [7, 9], stream=1)):
        assert not (others == noise).any()

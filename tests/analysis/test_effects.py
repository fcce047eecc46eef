import numpy as np
import pytest

from rhythm.analysis.effects import adjusted_difference, problem_means, table_1
from rhythm.analysis.perturbation import Trial


def trial(row, side, overlap, depth=0.5, entropy=0.1, probability=0.1):
    return Trial(row, side, 3, depth, entropy, probability, "a", "b", overlap)


def test_the_unit_is_the_problem():
    trials = [trial(0, "top", 0.2), trial(0, "top", 0.4), trial(0, "bottom", 0.9)]  # 0.3 is lower than 0.9
    trials += [trial(1, "top", 0.5), trial(1, "bottom", 0.4), trial(1, "bottom", 0.6)]  # 0.5 ties with 0.5
    trials += [trial(2, "top", 0.8), trial(2, "bottom", 0.1), trial(2, "bottom", None)]  # 0.8 is not
    assert problem_means(trials)[0] == {"top": pytest.approx(0.3), "bottom": 0.9}
    found = table_1(trials, resamples=200)
    assert found["top"]["overlap"] == pytest.approx((0.3 + 0.5 + 0.8) / 3)
    share = found["top_below_bottom"]
    assert (share["share"], share["problems"], share["ties"]) == (pytest.approx(1 / 3), 3, 1)
    assert share["difference"] == pytest.approx((-0.6 + 0.0 + 0.7) / 3)
    assert (found["trials"], found["without_content_words"]) == (9, 1)
    assert "matched" not in found
    assert "top_below_matched" not in found


def many(effect, by_depth):
    """40 problems; places at the top are early, overlap falls with depth by `by_depth` and at the top by `effect`."""
    draw, trials = np.random.default_rng(0), []
    for row in range(40):
        for side, early in (("top", 0.2), ("bottom", 0.8)):
            for _ in range(4):
                depth = early + 0.1 * draw.normal()
                overlap = 0.5 - effect * (side == "top") + by_depth * depth + 0.02 * draw.normal()
                trials.append(trial(row, side, overlap, depth, draw.random(), draw.random()))
    return trials


def test_at_equal_place_what_is_due_to_the_place_goes_away():
    only_place, real = many(0.0, 0.4), many(0.2, 0.4)
    found = table_1(only_place, resamples=400)
    assert found["top_below_bottom"]["share"] == 1.0  # without adjusting, the place looks like an effect
    for name in ("at_equal_place", "at_equal_place_and_probability"):
        low, high = found[name]["interval"]
        assert low < 0 < high
    assert adjusted_difference(only_place, (), resamples=400)["interval"][1] < -0.1
    low, high = adjusted_difference(real, resamples=400)["interval"]
    assert low < -0.2 < high < -0.1

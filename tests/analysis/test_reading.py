import pytest
import torch

from rhythm import attention_signals
from rhythm.analysis.alignment import by_example, by_offset
from rhythm.analysis.heads import agreement_of_halves, head_tables
from rhythm.analysis.layers import thirds
from rhythm.analysis.reading import read, select
from rhythm.analysis.responses import join, long_enough, respond
from rhythm.analysis.tokens import words
from rhythm.attention.definitions import SignalSettings
from rhythm.policy import Policy
from rhythm.scoring import score
from tests.training import EMBEDDED, countdown

SETTINGS = SignalSettings(window=5, horizon=(2, 30))
LAYERS = {"chosen": [1, 2, 4], "top": [4]}


@pytest.fixture(scope="module")
def policy():
    return Policy(EMBEDDED)


@pytest.fixture(scope="module")
def rollout(policy):
    task = countdown()
    return respond(policy, task, task.held_out(6), temperature=1.0, max_completion_tokens=170, batch_size=4)


@pytest.fixture(scope="module")
def reading(policy, rollout):
    return read(policy.model, rollout, LAYERS, SETTINGS, micro_batch_size=4)


@pytest.mark.parametrize("name", LAYERS)
def test_every_choice_of_layers_reads_what_the_library_reads_of_it_alone(policy, rollout, reading, name):
    columns = torch.arange(rollout.input_ids.shape[1])
    response = rollout.attention_mask & (columns >= rollout.prompt_lengths[:, None])
    inputs = (policy.model, rollout.input_ids, rollout.attention_mask, response)
    settings = {"layers": LAYERS[name], "window": 5, "horizon": (2, 30)}
    expected, receiver = (attention_signals(*inputs, **settings, groups=groups) for groups in ("distance", "receiver"))
    selection, signals, mask = reading.selections[name], reading.signals[name], rollout.completion_mask
    assert (selection.heads, selection.receivers) == (expected.heads, receiver.heads.global_)
    for values, of in (
        (signals.waad, expected.waad),
        (signals.fai, expected.fai),
        (signals.receiver_fai, receiver.fai),
    ):
        torch.testing.assert_close(values[mask], of[response], equal_nan=True, rtol=1e-4, atol=1e-6)
        assert values[~mask].isnan().all()
    for layer, distance in expected.distance.items():
        torch.testing.assert_close(reading.sums.mean_distance()[layer], distance)


def test_entropies_are_those_of_the_scoring_pass(policy, rollout, reading):
    _, entropy = score(policy.model, rollout, micro_batch_size=3, temperature=1.0)
    torch.testing.assert_close(reading.entropy, entropy, equal_nan=True)


def test_tables_of_heads(reading):
    tables = head_tables(reading, LAYERS, 0.3, 0.3)
    assert set(tables["distance"]) == {"1", "2", "4"}
    assert len(tables["groups"]["chosen"]["local"]) == round(0.3 * 3 * 8)
    assert len(select(reading.sums, LAYERS["chosen"], 0.3, 0.1).receivers) == round(0.1 * 3 * 8)
    assert all(0 <= value <= 1 for value in agreement_of_halves(reading, LAYERS["chosen"], 0.3, 0.1).values())


def test_thirds_leave_no_layer_out():
    assert thirds([0, 1, 2, 3, 4, 5, 6]) == {"bottom": [0, 1, 2], "middle": [3, 4], "top": [5, 6]}
    assert thirds([3, 1]) == {"bottom": [1], "middle": [3]}


def test_responses_are_the_same_however_many_are_written_together_and_keep_their_order(policy):
    task = countdown()
    problems = task.held_out(5)
    one, other = (
        respond(policy, task, problems, temperature=0.0, max_completion_tokens=40, batch_size=size) for size in (2, 5)
    )
    assert one.completions == other.completions
    assert one.problems == problems
    assert one.rewards.equal(other.rewards)
    assert join([one], policy.tokenizer.pad_token_id).input_ids.equal(one.input_ids)


def test_responses_shorter_than_the_window(rollout):
    lengths = rollout.completion_mask.sum(1)
    assert long_enough(rollout, int(lengths.min()), "refuse") is rollout
    window = int(lengths.sort().values[3])
    with pytest.raises(ValueError, match=f"fewer than window={window}.*lower window, raise max_completion_tokens"):
        long_enough(rollout, window, "refuse")
    left = long_enough(rollout, window, "leave_out")
    kept = (lengths >= window).nonzero()[:, 0].tolist()
    assert 2 <= len(kept) < 6
    assert left.completions == [rollout.completions[i] for i in kept]
    assert left.rewards.equal(rollout.rewards[kept])
    with pytest.raises(ValueError, match="intervals take two"):
        long_enough(rollout, 1000, "leave_out")
    with pytest.raises(ValueError, match="use one of refuse, leave_out"):
        long_enough(rollout, 5, "skip")


def test_offsets_by_example():
    series = torch.tensor([[0.0, 1, 0, 0, 1, 0, 0, 0], [0.0, 0, 1, 0, 0, 0, 0, 0]])
    later = torch.tensor([[0.0, 1, 0, 0, 0, 1, 0, 0], [0.0] * 8])
    mask = torch.ones(2, 8, dtype=torch.bool)
    lifts = by_offset(series, later, mask)
    assert {offset: lift.observed for offset, lift in lifts.items()} == {-1: 0.0, 0: 0.5, 1: 0.5}
    assert by_example(lifts) == [
        {"fai_peaks": 2, "share": {"-1": 0.0, "0": 0.5, "1": 0.5}},
        {"fai_peaks": 0, "share": {"-1": None, "0": None, "1": None}},
    ]


def test_words_by_the_share_that_is_chosen(policy):
    so, make = policy.tokenizer("so make")["input_ids"]
    ids = torch.tensor([[so, make, so, so]])
    chosen, mask = torch.tensor([[True, True, False, True]]), torch.tensor([[True, True, True, False]])
    assert words(chosen, ids, mask, policy.tokenizer, least=1) == [
        {"word": "make", "share": 1.0, "count": 1},
        {"word": "so", "share": 0.5, "count": 2},
    ]
    assert words(chosen, ids, mask, policy.tokenizer, least=2) == [{"word": "so", "share": 0.5, "count": 2}]

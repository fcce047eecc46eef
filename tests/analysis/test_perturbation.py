import pytest
import torch
from torch import nan, tensor

from rhythm.analysis.overlap import jaccard
from rhythm.analysis.perturbation import PerturbationSettings, Place, choose_places, match, perturb
from rhythm.analysis.responses import respond
from rhythm.policy import Policy
from tests.training import EMBEDDED, countdown


def settings(**changes):
    return PerturbationSettings(**{"positions": 2, "alternatives": 2, "tail": 2, "match_within": 2} | changes)


def test_places_of_highest_and_lowest_fai():
    fai = tensor([[0.1, 0.9, 0.3, 0.8, 0.2, 0.7, 0.0, nan], [0.5] * 3 + [nan] * 5])
    mask = tensor([[True] * 8, [True] * 3 + [False] * 5])
    found = choose_places(fai, mask, settings())
    # Columns 6 and 7 have fewer than two tokens behind them; the second response has one eligible place.
    assert found == [
        Place(0, 1, "top"),
        Place(0, 3, "top"),
        Place(0, 4, "bottom"),
        Place(0, 0, "bottom"),
        Place(0, 0, "matched"),
        Place(0, 4, "matched"),
    ]
    assert {place.side for place in choose_places(fai, mask, settings(match_within=0))} == {"top", "bottom"}


def test_of_equal_values_the_earlier_token_counts_as_higher():
    found = choose_places(torch.full((1, 8), 0.5), torch.ones(1, 8, dtype=torch.bool), settings(match_within=0))
    assert found == [Place(0, 0, "top"), Place(0, 1, "top"), Place(0, 4, "bottom"), Place(0, 5, "bottom")]


def test_a_low_place_is_matched_once():
    assert match([5, 6], rest=[20, 7, 4], within=2) == [4, 7]
    assert match([5], rest=[20, 30], within=2) == []


def test_content_words_are_those_of_the_task_or_another_choice():
    text, task = "so i take 3 + 12 = 15 apples .", countdown()
    found = {kind: settings(content_words=kind).content_of(task)(text) for kind in ("task", "words", "numbers")}
    expected = {"3", "12", "15"}
    assert found == {"task": expected, "words": expected | {"take", "apples"}, "numbers": expected}
    with pytest.raises(ValueError, match=r"content_words=nouns: use one of task, words, numbers"):
        settings(content_words="nouns")


@pytest.fixture(scope="module")
def perturbed():
    """Trials on three greedy responses of the embedded policy, whose FAI is made up, and the responses."""
    policy, task = Policy(EMBEDDED), countdown()
    rollout = respond(policy, task, task.held_out(3), temperature=0.0, max_completion_tokens=60)
    fai = torch.rand(rollout.completion_mask.shape, generator=torch.Generator().manual_seed(0))
    told, sizes = [], {"max_completion_tokens": 60, "batch_size": 5}
    trials = perturb(policy, task, rollout, fai, settings(), **sizes, progress=told.append)
    return policy, task, rollout, trials, told


def test_where_no_response_is_long_enough_nothing_is_forced(perturbed):
    policy, task, rollout, _, _ = perturbed
    fai = torch.rand(rollout.completion_mask.shape)
    assert perturb(policy, task, rollout, fai, settings(tail=59), max_completion_tokens=60) == []


def test_every_place_has_its_most_probable_other_tokens(perturbed):
    policy, _, rollout, trials, told = perturbed
    assert told[-1] == 1.0
    for trial in trials:
        prompt = int(rollout.prompt_lengths[trial.row])
        ids = rollout.input_ids[trial.row, : prompt + trial.column][None]
        with torch.no_grad():
            logps = policy.model(ids).logits[0, -1].double().log_softmax(-1)
        original = int(rollout.completion_ids[trial.row, trial.column])
        logps[[original, *policy.tokenizer.all_special_ids]] = -torch.inf
        best = [policy.tokenizer.decode([token]) for token in logps.topk(2).indices.tolist()]
        assert trial.original == policy.tokenizer.decode([original])
        assert trial.forced in best
        probability = float(logps.topk(2).values[best.index(trial.forced)].exp())
        assert trial.probability == pytest.approx(probability, rel=1e-4)


def test_a_continuation_is_what_the_policy_writes_greedily_after_the_forced_token(perturbed):
    policy, task, rollout, trials, _ = perturbed
    for trial in trials[::5]:
        prompt, length = int(rollout.prompt_lengths[trial.row]), int(rollout.completion_mask[trial.row].sum())
        forced = policy.tokenizer.convert_tokens_to_ids(trial.forced.strip())
        ids = [*rollout.input_ids[trial.row, : prompt + trial.column].tolist(), forced]
        written = policy.model.generate(
            tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long), do_sample=False,
            max_new_tokens=60 - trial.column - 1, pad_token_id=policy.tokenizer.pad_token_id,
        )[0, len(ids) :]  # fmt: skip
        text = policy.tokenizer.decode(written, skip_special_tokens=True)
        original = rollout.completion_ids[trial.row, trial.column + 1 : length]
        expected = jaccard(task.content_words(policy.tokenizer.decode(original)), task.content_words(text))
        assert trial.overlap == expected
        assert trial.depth == trial.column / length


@pytest.mark.parametrize("name", ["positions", "alternatives", "tail"])
def test_settings_that_make_no_sense(name):
    with pytest.raises(ValueError, match=f"perturbation.{name}=0: must be a whole number, 1 or more"):
        PerturbationSettings(**{name: 0})


@pytest.mark.parametrize("end_is_alternative", [True, False])
def test_the_end_is_forced_only_where_it_is_an_alternative_and_leaves_nothing(tiny_folder, end_is_alternative):
    policy, task = Policy(str(tiny_folder)), countdown()
    rollout = respond(policy, task, task.held_out(2), temperature=0.0, max_completion_tokens=12)
    fai = torch.rand(rollout.completion_mask.shape, generator=torch.Generator().manual_seed(0))
    every = settings(positions=1, alternatives=99, match_within=0, end_is_alternative=end_is_alternative)
    trials = perturb(policy, task, rollout, fai, every, max_completion_tokens=12)
    ends = [trial for trial in trials if trial.forced == policy.tokenizer.eos_token]
    assert len(ends) == (4 if end_is_alternative else 0)  # two responses, two places each
    assert not {policy.tokenizer.pad_token, policy.tokenizer.unk_token} & {trial.forced for trial in trials}
    assert {trial.overlap for trial in ends} <= {0.0, None}  # nothing is written behind it
    assert any(trial.overlap for trial in trials)

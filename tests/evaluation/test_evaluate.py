import copy
from contextlib import contextmanager

import pytest
import torch
from datasets import Dataset

from rhythm import rollout
from rhythm.evaluation.evaluate import Evaluation, evaluate
from rhythm.losses import kl_estimate
from rhythm.policy import Policy
from rhythm.scoring import score
from rhythm.seeding import seed_adapter
from rhythm.tasks.base import Task
from tests.policies import perturb

FIELDS = ("correct", "parsed", "truncated", "lengths")
SETTINGS = {"samples": 4, "max_completion_tokens": 10, "micro_batch_size": 3, "prompts_at_once": 3}


class Words(Task):
    """What a random policy can do: an answer parses that has more words than two, and is right if they are even."""

    def train_problems(self):
        return Dataset.from_list([])

    def test_problems(self):
        return Dataset.from_list([{"words": ["so"] * i} for i in range(1, 8)])

    def prompt(self, problem):
        return " ".join(["target", ":", *problem["words"]])

    def extract(self, completion):
        return completion if len(completion.split()) > 2 else None

    def reward(self, problem, completion):
        answer = self.extract(completion)
        return float(answer is not None and len(answer.split()) % 2 == 0)


PROBLEMS = Words().test_problems().to_list()


@pytest.fixture(scope="module")
def policy(tiny_folder):
    """Its adapter is fresh."""
    return Policy(str(tiny_folder), rank=4, alpha=8)


@pytest.fixture(scope="module")
def learned(tiny_folder):
    seed_adapter(0)
    return perturb(Policy(str(tiny_folder), rank=4, alpha=8), scale=0.05)


def measure(policy, **changes):
    return evaluate(policy, Words(), PROBLEMS, **(SETTINGS | changes))


def assert_equal(one, other):
    for field in FIELDS:
        assert torch.equal(getattr(one, field), getattr(other, field)), field
    assert one.kl == other.kl


def test_an_evaluation_holds_what_every_sample_came_to(learned):
    measured = measure(learned, samples=40)
    for field in FIELDS:
        assert getattr(measured, field).shape == (7, 40)
    for field in ("correct", "parsed", "truncated"):
        share = getattr(measured, field).float().mean()
        assert 0.05 < share < 0.95, field  # there is something to tell apart
    assert (measured.parsed | ~measured.correct).all()
    assert (measured.lengths[measured.truncated] == 10).all()
    assert ((measured.lengths >= 1) & (measured.lengths <= 10)).all()
    ended = measured.parsed & ~measured.truncated  # more words than two, and the end of sequence
    assert (measured.lengths[ended] > 3).all()


def test_a_seed_gives_one_evaluation_whatever_was_drawn_before(learned):
    first = measure(learned)
    torch.manual_seed(5)
    assert_equal(measure(learned), first)
    assert not torch.equal(measure(learned, seed=1).lengths, first.lengths)


def test_micro_batches_change_no_sample(learned):
    one, other = measure(learned), measure(learned, micro_batch_size=100)
    for field in FIELDS:
        assert torch.equal(getattr(one, field), getattr(other, field))
    assert one.kl == pytest.approx(other.kl, rel=1e-4)


@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_that_share_the_problems_agree_with_one_process(learned, world_size):
    alone = measure(learned)
    totals = []  # what each rank hands to the sum, in order
    for rank in range(world_size):
        totals.append([])
        measure(learned, rank=rank, world_size=world_size, all_sum=lambda x, own=totals[-1]: own.append(x.clone()) or x)
    summed = iter([sum(parts) for parts in zip(*totals, strict=True)])
    together = measure(learned, rank=0, world_size=world_size, all_sum=lambda x: next(summed))
    assert_equal(together, alone)
    assert not any(torch.equal(own[0], totals[0][0]) for own in totals[1:])


@contextmanager
def room_for(rows, stage, model):
    """Inside, a pass of more rows in a stage runs out of memory; gives the sizes that were tried."""
    sizes = []

    def passed(layer, inputs, logits):
        if stage == ("sampling" if logits.shape[1] == 1 else "scoring"):  # a token at a time, or whole sequences
            sizes.append(len(logits))
            if len(logits) > rows:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    hook = model.get_output_embeddings().register_forward_hook(passed)
    yield sizes
    hook.remove()


def test_scoring_that_does_not_fit_is_done_in_halves(learned):
    whole = measure(learned)
    with room_for(1, "scoring", learned.model) as sizes:
        halved = measure(learned)
    assert set(sizes) == {3, 1}
    assert sizes.count(3) == 1  # once small, it stays so
    assert torch.equal(halved.correct, whole.correct)
    assert halved.kl == pytest.approx(whole.kl, rel=1e-5)


def test_sampling_that_does_not_fit_names_what_to_lower(learned):
    line = "out of memory; lower the evaluation's prompts_at_once, samples or max_completion_tokens"
    with room_for(2, "sampling", learned.model), pytest.raises(MemoryError, match=f"^{line}$"):
        measure(learned)


def test_a_fresh_adapter_is_no_distance_from_the_reference(policy, learned):
    assert measure(policy).kl == 0.0
    assert measure(learned).kl > 1e-3


def test_an_evaluation_is_what_its_rollouts_came_to(learned, monkeypatch):
    rollouts = []

    def kept(*arguments, **settings):
        rollouts.append(rollout.sample(*arguments, **settings))
        return rollouts[-1]

    monkeypatch.setattr("rhythm.evaluation.evaluate.sample", kept)
    measured = measure(learned)
    total, tokens, row = 0.0, 0, 0
    for each in rollouts:
        # One problem after the other, its samples side by side.
        for i, (problem, completion) in enumerate(zip(each.problems, each.completions, strict=True)):
            place = row // 4, row % 4
            assert problem == PROBLEMS[row // 4]
            assert measured.correct[place] == Words().reward(problem, completion)
            assert measured.parsed[place] == (Words().extract(completion) is not None)
            assert measured.truncated[place] == each.truncated[i]
            assert measured.lengths[place] == each.completion_mask[i].sum()
            row += 1
        # KL is a mean over the tokens of the first sample of each problem.
        logps, _ = score(learned.model, each, micro_batch_size=1, temperature=1.0)
        with learned.reference():
            ref_logps, _ = score(learned.model, each, micro_batch_size=1, temperature=1.0)
        values = kl_estimate(logps, ref_logps, each.completion_mask, "k3")[::4]
        total, tokens = total + float(values.double().sum()), tokens + int(each.completion_mask[::4].sum())
    assert row == 7 * 4
    assert measured.kl == pytest.approx(total / tokens, rel=1e-4)


def test_evaluating_changes_neither_weights_nor_mode(learned):
    before = copy.deepcopy(learned.state_dict())
    learned.train()
    measure(learned)
    assert learned.training
    learned.eval()
    measure(learned)
    assert not learned.training
    for name, tensor in learned.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_the_numbers_of_an_evaluation():
    flags = torch.tensor
    measured = Evaluation(
        correct=flags([[1, 0], [1, 1], [0, 0]]).bool(),
        parsed=flags([[1, 1], [1, 1], [0, 1]]).bool(),
        truncated=flags([[0, 0], [1, 0], [1, 0]]).bool(),
        lengths=flags([[3, 5], [10, 4], [10, 4]]),
        kl=0.25,
    )
    assert measured.metrics() == pytest.approx(
        {
            "eval/pass@1": 0.5,
            "eval/pass@2": 2 / 3,
            "eval/pass@1_well_formed": 2 / 4,  # of four that parse and ended, two are right
            "eval/well_formed": 4 / 6,
            "eval/parsed": 5 / 6,
            "eval/truncated": 2 / 6,
            "eval/mean_length": 6.0,
            "eval/kl": 0.25,
        }
    )
    summary = measured.summary()
    low, high = summary["intervals"]["eval/pass@1"]
    assert 0 <= low <= 0.5 <= high <= 1
    assert (summary["problems"], summary["samples"], summary["correct"]) == (3, 2, [1, 2, 0])


def test_pass_at_8_is_told_where_there_are_8_samples():
    solved = torch.tensor([[0, 0, 0, 1, 0, 0, 0, 0], [0] * 8]).bool()
    none = torch.zeros(2, 8).bool()
    metrics = Evaluation(solved, none, none, torch.ones(2, 8), 0.0).metrics()
    assert (metrics["eval/pass@1"], metrics["eval/pass@8"]) == (1 / 16, 1 / 2)
    assert metrics["eval/pass@1_well_formed"] == 0.0  # none is

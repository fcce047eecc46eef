from contextlib import contextmanager

import pytest
import torch

from rhythm.rollout import pack
from rhythm.scoring import completion_logps, micro_batches, score
from rhythm.types import Prompts
from tests.models import tiny_model
from tests.policies import word_tokenizer

close = torch.testing.assert_close
LENGTHS = [(3, 9), (12, 1), (1, 4), (7, 9), (7, 2), (2, 6), (5, 5)]  # tokens of prompt and completion


def peaked(kind):
    model = tiny_model(kind)
    with torch.no_grad():
        model.get_output_embeddings().weight *= 10
    return model


def ragged_rollout():
    """Seven random rows of all sizes: the longest prompt has the shortest completion."""
    draw = torch.Generator().manual_seed(0)
    prompt, completion = (max(sizes) for sizes in zip(*LENGTHS, strict=True))
    ids = torch.randint(1, 61, (len(LENGTHS), prompt + completion), generator=draw)
    prompts, completions = torch.tensor(LENGTHS).unbind(1)
    return pack(
        Prompts(ids[:, :prompt], torch.arange(prompt) >= prompt - prompts[:, None], [{}] * len(LENGTHS)),
        ids[:, prompt:],
        torch.arange(completion) < completions[:, None],
        truncated=torch.zeros(len(LENGTHS)).bool(),
        group_size=1,
        tokenizer=word_tokenizer([f"w{i}" for i in range(61)], pad="w0", eos="w60"),
    )


@torch.no_grad()
def plain_scores(model, rollout, temperature):
    """One row at a time, without padding, from the full forward pass."""
    rows = []
    for ids, mask, length in zip(rollout.input_ids, rollout.attention_mask, rollout.prompt_lengths, strict=True):
        tokens = ids[mask]
        logps = torch.log_softmax(model(input_ids=tokens[None]).logits[0].double() / temperature, -1)[length - 1 : -1]
        rows.append((logps.gather(1, tokens[length:, None])[:, 0], -(logps.exp() * logps).sum(1)))
    return rows


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("kind", ["qwen3", "llama", "gpt2"])
@pytest.mark.parametrize("micro_batch_size", [1, 3, 7])
def test_scores_are_those_of_a_plain_forward_pass_of_each_row(kind, micro_batch_size, temperature):
    model, rollout = peaked(kind), ragged_rollout()
    got = score(model, rollout, micro_batch_size=micro_batch_size, temperature=temperature)
    expected = plain_scores(model, rollout, temperature)
    for row, (logps, entropy) in enumerate(expected):
        mask = rollout.completion_mask[row]
        close(got[0][row][mask].double(), logps, rtol=0, atol=1e-5)
        close(got[1][row][mask].double(), entropy, rtol=0, atol=1e-5)
    assert torch.cat([logps for logps, _ in expected]).std() > 0.3  # tokens differ, so a shift by one would show


def test_outside_the_mask_logps_are_zero_and_entropies_are_nan():
    rollout = ragged_rollout()
    logps, entropy = score(peaked("qwen3"), rollout, micro_batch_size=3, temperature=1.0)
    mask = rollout.completion_mask
    assert logps.shape == entropy.shape == mask.shape
    assert logps.dtype == entropy.dtype == torch.float32
    assert (logps[~mask] == 0).all()
    assert (logps[mask] < 0).all()
    assert torch.equal(entropy.isnan(), ~mask)


@pytest.mark.parametrize(("micro_batch_size", "passes"), [(1, 7), (3, 3), (7, 1), (100, 1)])
def test_every_pass_runs_inside_one_context_of_its_own(micro_batch_size, passes):
    model, rollout = peaked("qwen3"), ragged_rollout()
    events = []
    model.register_forward_hook(lambda *_: events.append("forward"))

    @contextmanager
    def around(batch):
        events.append(batch.rows.tolist())
        yield
        events.append("left")

    score(model, rollout, micro_batch_size=micro_batch_size, temperature=1.0, around=around)
    assert len(events) == 3 * passes
    assert events[1::3] == ["forward"] * passes
    assert events[2::3] == ["left"] * passes
    assert sorted(row for rows in events[::3] for row in rows) == list(range(7))
    assert max(len(rows) for rows in events[::3]) <= micro_batch_size


def test_micro_batches_are_of_like_length_and_cut_to_their_longest_row():
    rollout = ragged_rollout()
    batches = list(micro_batches(rollout, torch.tensor([5, 0, 3, 2]), 2))
    assert [batch.rows.tolist() for batch in batches] == [[2, 5], [0, 3]]  # of 5, 8, 12 and 16 tokens
    assert [tuple(batch.input_ids.shape) for batch in batches] == [(2, 8), (2, 16)]
    assert [tuple(batch.completion_mask.shape) for batch in batches] == [(2, 6), (2, 9)]
    # Row 2 is a prompt of 1 and a completion of 4, row 5 of 2 and 6.
    assert batches[0].completion_columns.int().tolist() == [[0, 1, 1, 1, 1, 0, 0, 0], [0, 0, 1, 1, 1, 1, 1, 1]]
    assert batches[0].columns.tolist() == [[1, 2, 3, 4, 5, 6], [2, 3, 4, 5, 6, 7]]
    for batch in batches:
        found = batch.input_ids.gather(1, batch.columns)[batch.completion_mask]
        assert torch.equal(
            found, torch.cat([rollout.completion_ids[row][mask] for row, mask in picked(rollout, batch)])
        )


def picked(rollout, batch):
    return [(row, rollout.completion_mask[row]) for row in batch.rows]


def test_log_probabilities_to_learn_from_are_those_of_the_scoring_pass():
    model, rollout = peaked("qwen3"), ragged_rollout()
    logps, _ = score(model, rollout, micro_batch_size=7, temperature=0.8)
    for batch in micro_batches(rollout, torch.tensor([6, 1, 0]), 2):
        new = completion_logps(model, batch, 0.8)
        assert new.requires_grad
        old = logps[batch.rows, : batch.completion_mask.shape[1]]
        close(new[batch.completion_mask], old[batch.completion_mask], rtol=0, atol=1e-5)


def test_a_temperature_of_zero_is_refused():
    with pytest.raises(ValueError, match="temperature must be above 0"):
        score(peaked("qwen3"), ragged_rollout(), micro_batch_size=7, temperature=0.0)

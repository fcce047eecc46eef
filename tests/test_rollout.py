import pytest
import torch
from transformers import DynamicCache

from rhythm import rollout
from rhythm.losses import selected_logps
from rhythm.policy import Policy
from rhythm.rollout import pack, sample
from rhythm.scoring import score
from rhythm.seeding import seed_adapter
from rhythm.types import Prompts
from tests.models import tiny_model
from tests.policies import perturb, word_tokenizer

WORDS = [f"w{i}" for i in range(61)]
PAD = 0


SLIDING = {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1}  # in the last two of three layers


def peaked(kind, **changes):
    """A tiny model whose next token is far from uniform: most errors would change the likeliest one."""
    model = tiny_model(kind, **changes)
    with torch.no_grad():
        model.get_output_embeddings().weight *= 40
    return model


def ragged_prompts(lengths=(3, 11, 7, 1, 9, 5), seed=0):
    """Random prompts, padded on the left."""
    draw = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, 61, (len(lengths), max(lengths)), generator=draw)
    mask = torch.arange(max(lengths)) >= max(lengths) - torch.tensor(lengths)[:, None]
    return Prompts(ids * mask, mask, [{"number": i} for i in range(len(lengths))])


def put_on(device, prompts):
    return Prompts(prompts.input_ids.to(device), prompts.attention_mask.to(device), prompts.problems)


def greedily(model, prompts, eos, steps):
    """What transformers makes of the prompts."""
    output = model.generate(
        input_ids=prompts.input_ids,
        attention_mask=prompts.attention_mask.long(),
        do_sample=False,
        max_new_tokens=steps,
        eos_token_id=eos,
        pad_token_id=PAD,
    )
    return output[:, prompts.input_ids.shape[1] :]


def first_steps(ids, token):
    """The step at which each row first has the token; the number of steps where it never does."""
    return [row.index(token) if token in row else len(row) for row in ids.tolist()]


def often_ending(ids):
    """The token that makes the best end of sequence: first met at the most different steps, and never by some row."""
    tokens = [t for t in ids.unique().tolist() if t != PAD and max(first_steps(ids, t)) == ids.shape[1]]
    return max(tokens, key=lambda token: len(set(first_steps(ids, token))))


def one_prompt(ids=(5, 9, 2)):
    return Prompts(torch.tensor([ids]), torch.ones(1, len(ids), dtype=torch.bool), [{}])


# ---- greedy


@pytest.mark.parametrize(
    ("kind", "changes", "group_size", "steps"),
    [
        ("qwen3", {}, 1, 90),  # longer than the cache grows at a time
        ("qwen3", {}, 3, 24),
        ("qwen3", SLIDING, 2, 24),
        ("llama", {}, 1, 24),
        ("llama", {}, 3, 24),
        ("gpt2", {"tie_word_embeddings": False}, 2, 24),
    ],
)
def test_greedy_completions_are_those_of_generate(kind, changes, group_size, steps, monkeypatch):
    model, prompts = peaked(kind, **changes), ragged_prompts()
    eos = often_ending(greedily(model, prompts, None, steps))
    expected = greedily(model, prompts, eos, steps)
    assert len(set(first_steps(expected, eos))) >= 4  # rows end at different steps, and some never do

    kept = []
    select = DynamicCache.batch_select_indices
    monkeypatch.setattr(
        DynamicCache, "batch_select_indices", lambda self, rows: (kept.append(len(rows)), select(self, rows))
    )
    tokenizer = word_tokenizer(WORDS, pad="w0", eos=f"w{eos}")
    rollout = sample(model, tokenizer, prompts, group_size=group_size, max_completion_tokens=steps, temperature=0)
    assert torch.equal(rollout.completion_ids, expected.repeat_interleave(group_size, 0))
    assert len(kept) >= 2  # finished rows were dropped, more than once
    assert sorted(kept, reverse=True) == kept
    assert kept[0] < len(prompts.problems) * group_size


def test_prompts_without_padding_give_what_they_give_among_padded_ones():
    model, prompts = peaked("qwen3"), ragged_prompts((11, 4, 11))
    equal = Prompts(prompts.input_ids[[0, 2]], prompts.attention_mask[[0, 2]], [{}, {}])
    tokenizer = word_tokenizer(WORDS, pad="w0", eos="w60")
    settings = {"group_size": 2, "max_completion_tokens": 12, "temperature": 0}
    among = sample(model, tokenizer, prompts, **settings).completion_ids[[0, 1, 4, 5]]
    assert torch.equal(sample(model, tokenizer, equal, **settings).completion_ids, among)


# ---- distribution


def chi_square(counts, probabilities):
    """The p-value of counts [V] under probabilities [V]; bins of fewer than 5 expected are one bin."""
    expected = counts.sum() * probabilities.double()
    rare = expected < 5
    observed, expected = (
        torch.cat([x[~rare], x[rare].sum()[None]]) if rare.any() else x for x in (counts.double(), expected)
    )
    statistic = ((observed - expected) ** 2 / expected.clamp(min=1e-9)).sum()
    freedom = torch.tensor((len(expected) - 1) / 2, dtype=torch.float64)
    return float(torch.special.gammaincc(freedom, statistic / 2))


@torch.no_grad()
def next_token(model, ids, temperature):
    return torch.softmax(model(input_ids=torch.tensor([ids])).logits[0, -1] / temperature, -1)


@torch.no_grad()
def test_tokens_are_drawn_from_the_softmax_at_the_temperature():
    model = tiny_model("qwen3")
    model.get_output_embeddings().weight *= 10
    prompts = ragged_prompts((4, 7))
    tokenizer = word_tokenizer(WORDS, pad="w0", eos="w60")
    draw = torch.Generator().manual_seed(0)
    ids = sample(
        model, tokenizer, prompts, group_size=3000, max_completion_tokens=2, temperature=0.7, generator=draw
    ).completion_ids.view(2, 3000, 2)
    for own, mask, drawn in zip(prompts.input_ids, prompts.attention_mask, ids, strict=True):
        prompt = own[mask].tolist()
        firsts = drawn[:, 0].bincount(minlength=61)
        assert chi_square(firsts, next_token(model, prompt, 0.7)) > 1e-3
        assert chi_square(firsts, next_token(model, prompt, 0.8)) < 1e-3  # the test can tell temperatures apart
        common = int(firsts[:60].argmax())
        seconds = drawn[drawn[:, 0] == common, 1].bincount(minlength=61)
        assert seconds.sum() > 300
        assert chi_square(seconds, next_token(model, [*prompt, common], 0.7)) > 1e-3
        assert chi_square(seconds, next_token(model, prompt, 0.7)) < 1e-3


@pytest.mark.parametrize("fixed_room", [False, True])  # as a GPU captures it
@pytest.mark.parametrize("padded", [False, True])
def test_log_probabilities_of_what_is_drawn_are_those_of_the_scoring_pass(padded, fixed_room, tiny_folder, monkeypatch):
    """Step by step, with a shared prefill, rows dropped and the adapter folded in, against whole sequences by PEFT."""
    monkeypatch.setattr(rollout, "can_capture", lambda model, cache: fixed_room)
    monkeypatch.setattr("rhythm.captured.ROOM", 16)
    seed_adapter(0)
    policy = perturb(Policy(str(tiny_folder), rank=4, alpha=8))
    prompts = ragged_prompts((4, 9, 6) if padded else (6, 6, 6))
    plain, steps = rollout.draw, []

    def kept(logits, temperature, generator):
        tokens = plain(logits, temperature, generator)
        steps.append(selected_logps(logits, tokens, temperature))
        return tokens

    monkeypatch.setattr(rollout, "draw", kept)
    with policy.folded():
        sampled = sample(
            policy.model,
            policy.tokenizer,
            Prompts(prompts.input_ids.clamp(max=50), prompts.attention_mask, prompts.problems),
            group_size=8,
            max_completion_tokens=60,
            temperature=0.8,
            generator=torch.Generator().manual_seed(0),
        )
    logps, _ = score(policy.model, sampled, micro_batch_size=5, temperature=0.8)
    lengths = sampled.completion_mask.sum(1)
    assert len({len(step) for step in steps}) > (1 if fixed_room else 2)  # rows were dropped
    for t, step in enumerate(steps):
        rows = (lengths > t).nonzero()[:, 0]
        if len(step) == len(rows):  # none that has ended is still there
            torch.testing.assert_close(step, logps[rows, t], rtol=0, atol=1e-4)
    assert sum(len(step) == int((lengths > t).sum()) for t, step in enumerate(steps)) > (0 if fixed_room else 5)


def test_completions_follow_from_the_generator():
    model, prompts = tiny_model("qwen3"), ragged_prompts()
    tokenizer = word_tokenizer(WORDS, pad="w0", eos="w60")

    def drawn(seed):
        torch.rand(1)  # torch's own generator has no part in it
        draw = torch.Generator().manual_seed(seed)
        return sample(model, tokenizer, prompts, group_size=2, max_completion_tokens=8, generator=draw).completion_ids

    assert torch.equal(drawn(3), drawn(3))
    assert not torch.equal(drawn(3), drawn(4))
    assert not torch.equal(drawn(3)[::2], drawn(3)[1::2])  # members of a group differ


# ---- packing


def test_a_rollout_is_prompt_then_completion_then_padding():
    tokenizer = word_tokenizer(WORDS, pad="w0", eos="w1")
    prompts = Prompts(
        torch.tensor([[0, 0, 5], [7, 8, 9]]), torch.tensor([[0, 0, 1], [1, 1, 1]]).bool(), [{"p": 0}, {"p": 1}]
    )
    rollout = pack(
        prompts,
        torch.tensor([[11, 1, 0], [12, 13, 14], [1, 0, 0], [15, 0, 1]]),  # 0 is drawn in the last row
        torch.tensor([[1, 1, 0], [1, 1, 1], [1, 0, 0], [1, 1, 1]]).bool(),
        truncated=torch.tensor([False, True, False, False]),
        group_size=2,
        tokenizer=tokenizer,
    )
    assert rollout.input_ids.tolist() == [
        [5, 11, 1, 0, 0, 0],
        [5, 12, 13, 14, 0, 0],
        [7, 8, 9, 1, 0, 0],
        [7, 8, 9, 15, 0, 1],
    ]
    assert rollout.attention_mask.int().tolist() == [
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [1, 1, 1, 1, 1, 1],
    ]
    assert rollout.prompt_lengths.tolist() == [1, 1, 3, 3]
    assert rollout.problems == [{"p": 0}, {"p": 0}, {"p": 1}, {"p": 1}]
    assert rollout.completions == ["w11", "w12 w13 w14", "", "w15"]


def test_padding_columns_that_no_row_needs_are_cut():
    tokenizer = word_tokenizer(WORDS, pad="w0", eos="w1")
    prompts = Prompts(torch.tensor([[0, 0, 5], [7, 8, 9]]), torch.tensor([[0, 0, 1], [1, 1, 1]]).bool(), [{}, {}])
    completions, mask = torch.tensor([[11, 1], [1, 0]]), torch.tensor([[1, 1], [1, 0]]).bool()
    rollout = pack(prompts, completions, mask, truncated=torch.zeros(2).bool(), group_size=1, tokenizer=tokenizer)
    assert rollout.input_ids.tolist() == [[5, 11, 1, 0], [7, 8, 9, 1]]


def test_the_mask_ends_with_the_end_of_sequence():
    model, prompts = peaked("qwen3"), ragged_prompts()
    eos = often_ending(greedily(model, prompts, None, 24))
    tokenizer = word_tokenizer(WORDS, pad="w0", eos=f"w{eos}")
    rollout = sample(model, tokenizer, prompts, group_size=1, max_completion_tokens=24, temperature=0)
    ends = first_steps(rollout.completion_ids, eos)
    assert rollout.truncated.tolist() == [end == 24 for end in ends]
    assert rollout.completion_mask.sum(1).tolist() == [min(end + 1, 24) for end in ends]
    for row, end in enumerate(ends):
        ids = rollout.completion_ids[row].tolist()
        assert rollout.completion_mask[row].tolist() == [t <= end for t in range(24)]
        assert ids[end + 1 :] == [PAD] * len(ids[end + 1 :])
        prompt = prompts.input_ids[row][prompts.attention_mask[row]].tolist()
        written = ids[: end + 1]
        assert rollout.input_ids[row][rollout.attention_mask[row]].tolist() == prompt + written
        # Text: the words but the special ones.
        assert rollout.completions[row].split() == [f"w{t}" for t in written if t not in (eos, PAD)]


def test_padding_with_the_end_of_sequence_is_not_read_as_a_second_end():
    model, prompts = peaked("qwen3"), ragged_prompts()
    eos = often_ending(greedily(model, prompts, None, 24))
    settings = {"group_size": 1, "max_completion_tokens": 24, "temperature": 0}
    own = sample(model, word_tokenizer(WORDS, pad="w0", eos=f"w{eos}"), prompts, **settings)
    shared = sample(model, word_tokenizer(WORDS, pad=f"w{eos}", eos=f"w{eos}"), prompts, **settings)
    assert torch.equal(own.completion_mask, shared.completion_mask)
    assert torch.equal(own.truncated, shared.truncated)
    assert torch.equal(own.attention_mask, shared.attention_mask)


def test_one_token_is_a_completion():
    model = peaked("qwen3")
    likeliest = int(greedily(model, one_prompt(), None, 1))
    for eos, truncated in ((likeliest, False), (likeliest % 60 + 1, True)):
        tokenizer = word_tokenizer(WORDS, pad="w0", eos=f"w{eos}")
        rollout = sample(model, tokenizer, one_prompt(), group_size=2, max_completion_tokens=1, temperature=0)
        assert rollout.completion_ids.tolist() == [[likeliest]] * 2
        assert rollout.completion_mask.tolist() == [[True]] * 2
        assert rollout.truncated.tolist() == [truncated] * 2


def test_sampling_stops_when_every_completion_has_ended():
    model = peaked("qwen3")
    likeliest = int(greedily(model, one_prompt(), None, 1))
    tokenizer = word_tokenizer(WORDS, pad="w0", eos=f"w{likeliest}")
    rollout = sample(model, tokenizer, one_prompt(), group_size=3, max_completion_tokens=50, temperature=0)
    assert rollout.completion_ids.tolist() == [[likeliest]] * 3
    assert rollout.completions == [""] * 3
    assert rollout.input_ids.tolist() == [[5, 9, 2, likeliest]] * 3

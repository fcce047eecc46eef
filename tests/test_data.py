import logging
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset

from rhythm.data import IterationSampler, PromptData, collate_prompts
from rhythm.tasks.countdown import Countdown
from tests.policies import WORDS, word_tokenizer

TEMPLATE = "numbers : {numbers} target : {target} ."


def sampler(size=10, **settings):
    return IterationSampler(size, **({"prompts_per_iteration": 4, "iterations": 12, "seed": 0} | settings))


def test_each_pass_over_the_problems_is_a_permutation_of_its_own():
    stream = [row for rows in sampler(iterations=10) for row in rows]
    passes = [stream[start : start + 10] for start in range(0, 40, 10)]  # a pass is two and a half iterations
    assert [sorted(rows) for rows in passes] == [list(range(10))] * 4
    assert len(set(map(tuple, passes))) == 4


@pytest.mark.parametrize("start", [0, 1, 5, 11, 12])
def test_a_resumed_run_draws_what_is_left_of_the_same_sequence(start):
    assert list(sampler(start=start)) == list(sampler())[start:]


def test_the_length_is_always_that_of_the_whole_run():
    assert len(sampler()) == len(sampler(start=7)) == 12
    assert len(list(sampler(start=7))) == 5


def test_prompts_follow_from_seed_and_iteration_not_from_how_long_the_run_is():
    assert list(sampler(iterations=30))[:12] == list(sampler())
    assert list(sampler(seed=1)) != list(sampler())
    again = sampler()
    assert list(again) == list(again)


def test_ranks_share_each_iteration():
    alone = list(sampler())
    shares = [list(sampler(rank=rank, world_size=2)) for rank in range(2)]
    for rows, first, second in zip(alone, *shares, strict=True):
        assert len(first) == len(second) == 2
        assert not set(first) & set(second)
        assert sorted(first + second) == sorted(rows)


def test_prompts_that_do_not_divide_among_processes_are_refused():
    with pytest.raises(ValueError, match="prompts_per_iteration=4 does not divide among 3 processes"):
        sampler(world_size=3)


def test_more_prompts_than_problems_are_refused():
    with pytest.raises(ValueError, match="prompts_per_iteration=4: the task has only 3 problems"):
        sampler(size=3)
    assert sorted(next(iter(sampler(size=4)))) == [0, 1, 2, 3]


def test_prompts_are_padded_on_the_left():
    task = Countdown(count=2, template=TEMPLATE)
    problems = [{"numbers": [3, 4], "target": 12}, {"numbers": [1, 2, 3], "target": 6}]
    prompts = collate_prompts(task, word_tokenizer(WORDS), problems)
    words = [[WORDS[i] for i in row] for row in prompts.input_ids.tolist()]
    assert words == [
        ["<pad>", "numbers", ":", "3", "4", "target", ":", "12", "."],
        ["numbers", ":", "1", "2", "3", "target", ":", "6", "."],
    ]
    assert prompts.attention_mask.dtype == torch.bool
    assert prompts.attention_mask.int().tolist() == [[0] + [1] * 8, [1] * 9]
    assert prompts.problems == problems


def test_batches_are_the_problems_that_the_sampler_names_from_the_modules_iteration_on():
    task = Countdown(count=2, number_range=(1, 9), train_size=6, template=TEMPLATE)
    data = PromptData(task, word_tokenizer(WORDS), prompts_per_iteration=4, iterations=5, seed=3)
    data.setup("fit")
    module = SimpleNamespace(iteration=2)
    data.trainer = SimpleNamespace(lightning_module=module, global_rank=1, world_size=2)
    loader = data.train_dataloader()
    assert len(loader) == 5
    problems = task.train_problems().to_list()
    named = sampler(6, iterations=5, seed=3, start=2, rank=1, world_size=2)
    assert [batch.problems for batch in loader] == [[problems[row] for row in rows] for rows in named]


def of_lengths(limit, sizes=((3, 4), (1, 2, 3), (5, 6))):
    """Prompt data on problems whose prompts have 6 tokens and one for each number."""
    problems = Dataset.from_list([{"numbers": list(numbers), "target": 12} for numbers in sizes])
    task = SimpleNamespace(train_problems=lambda: problems, prompt=Countdown(count=2, template=TEMPLATE).prompt)
    settings = {"prompts_per_iteration": 1, "iterations": 1, "seed": 0}
    return PromptData(task, word_tokenizer(WORDS), max_prompt_tokens=limit, **settings)


def test_problems_with_long_prompts_are_left_out_and_counted(caplog):
    caplog.set_level(logging.INFO, logger="rhythm")
    data = of_lengths(8)
    data.setup("fit")
    assert [problem["numbers"] for problem in data.problems] == [[3, 4], [5, 6]]
    assert caplog.messages == ["max_prompt_tokens=8: 1 of 3 training problems have longer prompts and are left out"]
    everything = of_lengths(9)
    everything.setup("fit")
    assert len(everything.problems) == 3


def test_no_prompt_that_is_short_enough():
    with pytest.raises(ValueError, match=r"^max_prompt_tokens=7: 3 of 3 .* longer prompts; the shortest has 8 tokens$"):
        of_lengths(7).setup("fit")


def test_the_tokens_of_a_conversation_count():
    data = of_lengths(10)
    data.chat = lambda text: f"numbers : {text}"
    data.setup("fit")
    assert [problem["numbers"] for problem in data.problems] == [[3, 4], [5, 6]]

"""Prompts, iteration by iteration: counted, so that a run resumes at any of them."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, Sampler
from transformers import BatchEncoding, PreTrainedTokenizerBase

from rhythm.chat import Chat
from rhythm.seeding import generator
from rhythm.tasks.base import Task
from rhythm.types import Prompts

log = logging.getLogger(__name__)


class IterationSampler(Sampler[list[int]]):
    """The rows of each iteration's prompts, from iteration `start + 1` on.

    Every pass over the data is its own permutation; the prompts of iteration i follow from (seed, i) alone. Its length
    is always `iterations`, since the trainer counts from the first iteration even when it resumes at a later one.
    """

    def __init__(
        self,
        size: int,
        *,
        prompts_per_iteration: int,
        iterations: int,
        seed: int,
        start: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ):
        if prompts_per_iteration < 1:
            raise ValueError(f"prompts_per_iteration={prompts_per_iteration}: must be at least 1")
        if prompts_per_iteration % world_size:
            raise ValueError(
                f"prompts_per_iteration={prompts_per_iteration} does not divide among {world_size} processes"
            )
        if size < prompts_per_iteration:
            raise ValueError(f"prompts_per_iteration={prompts_per_iteration}: the task has only {size} problems")
        self.size = size
        self.prompts_per_iteration = prompts_per_iteration
        self.iterations = iterations
        self.seed = seed
        self.start = start
        self.rank = rank
        self.world_size = world_size
        self._epoch = -1
        self._order: list[int] = []

    def __len__(self) -> int:
        return self.iterations

    def __iter__(self) -> Iterator[list[int]]:
        for iteration in range(self.start, self.iterations):
            rows = [self.row(iteration * self.prompts_per_iteration + i) for i in range(self.prompts_per_iteration)]
            yield rows[self.rank :: self.world_size]

    def row(self, position: int) -> int:
        """The problem at a position of the endless stream of permutations."""
        epoch, offset = divmod(position, self.size)
        if epoch != self._epoch:
            self._epoch = epoch
            self._order = torch.randperm(self.size, generator=generator(self.seed, "prompts", epoch)).tolist()
        return self._order[offset]


def collate_prompts(
    task: Task, tokenizer: PreTrainedTokenizerBase, problems: Sequence[dict[str, Any]], chat: Chat | None = None
) -> Prompts:
    """Tokenizes the prompts of some problems, padded on the left; as turns of a conversation where `chat` is given."""
    encoded = encode_prompts(task, tokenizer, problems, chat, return_tensors="pt", padding=True)
    return Prompts(encoded["input_ids"], encoded["attention_mask"].bool(), list(problems))


def encode_prompts(
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    problems: Iterable[dict[str, Any]],
    chat: Chat | None,
    **options: Any,
) -> BatchEncoding:
    """The tokens of each problem's prompt, with the tokenizer's own options."""
    texts = [task.prompt(problem) for problem in problems]
    if chat is None:
        return tokenizer(texts, **options)
    return tokenizer([chat(text) for text in texts], add_special_tokens=False, **options)  # the template writes them


class PromptData(LightningDataModule):
    """One batch is one iteration's prompts.

    Args:
        task: its training problems.
        max_prompt_tokens: training problems with a longer prompt are left out; None keeps all.
        chat: writes prompts as turns of a conversation.
    """

    def __init__(
        self,
        task: Task,
        tokenizer: PreTrainedTokenizerBase,
        *,
        prompts_per_iteration: int,
        iterations: int,
        seed: int,
        max_prompt_tokens: int | None = None,
        chat: Chat | None = None,
    ):
        super().__init__()
        self.task = task
        self.tokenizer = tokenizer
        self.prompts_per_iteration = prompts_per_iteration
        self.iterations = iterations
        self.seed = seed
        self.max_prompt_tokens = max_prompt_tokens
        self.chat = chat

    def setup(self, stage: str) -> None:
        self.problems = self.task.train_problems()
        if self.max_prompt_tokens is not None:
            encoded = encode_prompts(self.task, self.tokenizer, self.problems, self.chat)
            lengths = [len(ids) for ids in encoded["input_ids"]]
            short = [row for row, length in enumerate(lengths) if length <= self.max_prompt_tokens]
            counted = f"{len(lengths) - len(short)} of {len(lengths)} training problems have longer prompts"
            if not short:
                raise ValueError(
                    f"max_prompt_tokens={self.max_prompt_tokens}: {counted}; the shortest has {min(lengths)} tokens"
                )
            log.info(f"max_prompt_tokens={self.max_prompt_tokens}: {counted} and are left out")
            self.problems = self.problems.select(short)

    def train_dataloader(self) -> DataLoader:
        sampler = IterationSampler(
            len(self.problems),
            prompts_per_iteration=self.prompts_per_iteration,
            iterations=self.iterations,
            seed=self.seed,
            start=self.trainer.lightning_module.iteration,
            rank=self.trainer.global_rank,
            world_size=self.trainer.world_size,
        )
        return DataLoader(
            self.problems,
            batch_sampler=sampler,
            collate_fn=lambda problems: collate_prompts(self.task, self.tokenizer, problems, self.chat),
        )

    def transfer_batch_to_device(self, batch: Prompts, device: torch.device, dataloader_idx: int) -> Prompts:
        return Prompts(batch.input_ids.to(device), batch.attention_mask.to(device), batch.problems)

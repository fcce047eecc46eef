"""Prompts to completions: sampling with one prefill a prompt, shared by its group, finished rows dropped on the way.

Log-probabilities are not kept: the scoring pass computes them from the adapted model itself.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from rhythm.captured import CapturedDecoding, can_capture
from rhythm.decoding import Decoding, fast_decoding, make_cache
from rhythm.stopping import Stopping
from rhythm.types import Prompts, Rollout


@torch.no_grad()
def sample(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Prompts,
    *,
    group_size: int,
    max_completion_tokens: int,
    temperature: float = 1.0,
    stopping: Stopping | None = None,
    generator: torch.Generator | None = None,
) -> Rollout:
    """Samples `group_size` completions for each prompt from the full softmax at `temperature`; 0 is greedy.

    Args:
        prompts: [B, P], padded on the left.
        stopping: what ends a completion; None is the tokenizer's end of sequence.
        generator: on the model's device; the completions follow from it and the weights alone.
    Returns:
        A rollout of N = B·G rows whose later fields are None.
    """
    with fast_decoding(model):
        ids, lengths, ended = sample_ids(
            model,
            prompts.input_ids,
            prompts.attention_mask,
            group_size=group_size,
            max_completion_tokens=max_completion_tokens,
            temperature=temperature,
            stopping=stopping or Stopping(tokenizer),
            pad_token_id=tokenizer.pad_token_id,
            generator=generator,
        )
    mask = torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]  # up to and with the token that ends it
    return pack(prompts, ids, mask, truncated=~ended, group_size=group_size, tokenizer=tokenizer)


def pack(
    prompts: Prompts,
    completion_ids: Tensor,
    completion_mask: Tensor,
    *,
    truncated: Tensor,
    group_size: int,
    tokenizer: PreTrainedTokenizerBase,
) -> Rollout:
    """Moves each prompt to the left edge with its completion right behind it and padding on the right."""
    prompt_ids = prompts.input_ids.repeat_interleave(group_size, 0)
    prompt_mask = prompts.attention_mask.bool().repeat_interleave(group_size, 0)
    ids, mask = torch.cat([prompt_ids, completion_ids], 1), torch.cat([prompt_mask, completion_mask], 1)
    order = (~mask).to(torch.int8).argsort(dim=1, stable=True)[:, : int(mask.sum(1).max())]
    mask = mask.gather(1, order)
    return Rollout(
        problems=[problem for problem in prompts.problems for _ in range(group_size)],
        completions=tokenizer.batch_decode(
            [row[keep] for row, keep in zip(completion_ids, completion_mask, strict=True)], skip_special_tokens=True
        ),
        input_ids=ids.gather(1, order).masked_fill(~mask, tokenizer.pad_token_id),
        attention_mask=mask,
        prompt_lengths=prompt_mask.sum(1),
        completion_ids=completion_ids.masked_fill(~completion_mask, tokenizer.pad_token_id),
        completion_mask=completion_mask,
        truncated=truncated,
    )


@torch.no_grad()
def sample_ids(
    model: nn.Module,
    input_ids: Tensor,
    attention_mask: Tensor,
    *,
    group_size: int,
    max_completion_tokens: int,
    temperature: float,
    stopping: Stopping,
    pad_token_id: int,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Completions, one token after the other.

    Returns:
        Token ids [N, T], T ≤ max_completion_tokens, `pad_token_id` behind each end; lengths [N], the token that ends a
        completion included; and whether one did before the limit, [N] bool.
    """
    mask = attention_mask.bool()
    positions = (mask.long().cumsum(1) - 1).clamp(min=0)
    cache = make_cache(model.config)
    output = model(
        input_ids=input_ids,
        attention_mask=None if mask.all() else mask,
        position_ids=positions,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    )
    logits = output.logits[:, -1].repeat_interleave(group_size, 0)
    cache.batch_repeat_interleave(group_size)
    mask, position = (x.repeat_interleave(group_size, 0) for x in (mask, positions[:, -1:] + 1))
    if can_capture(model, cache):
        decoding = CapturedDecoding(model, cache, mask, position, limit=mask.shape[1] + max_completion_tokens)
    else:
        decoding = Decoding(model, cache, mask, position)

    completions = input_ids.new_full((logits.shape[0], max_completion_tokens), pad_token_id)
    rows = torch.arange(logits.shape[0], device=input_ids.device)  # the completions that the cache's rows write
    writing = torch.ones_like(rows, dtype=torch.bool)
    lengths, ended = torch.zeros_like(rows), torch.zeros_like(writing)
    for step in range(max_completion_tokens):
        tokens = draw(logits, temperature, generator).masked_fill(~writing, pad_token_id)
        completions[rows, step] = tokens
        lengths[rows] += writing
        over = writing & stopping.ended(completions[:, : step + 1], rows)
        ended[rows] |= over
        writing = writing & ~over
        count = int(writing.sum())
        if count == 0 or step == max_completion_tokens - 1:
            break
        if decoding.should_drop(count):
            keep = writing.nonzero()[:, 0]
            decoding.keep(keep)
            rows, tokens, writing = rows[keep], tokens[keep], writing[keep]
        logits = decoding.step(tokens)
    return completions[:, : step + 1], lengths, ended


def draw(logits: Tensor, temperature: float, generator: torch.Generator | None) -> Tensor:
    """One token for each row of `logits` [n, V] from softmax(logits / temperature); the argmax at temperature 0.

    By the inverse of the cumulative distribution, in float64: one random number a row, where `torch.multinomial` draws
    one for every token of the vocabulary.
    """
    if temperature == 0:
        return logits.argmax(-1)
    cumulative = torch.softmax(logits.float() / temperature, -1).double().cumsum(-1)
    uniform = torch.rand(len(logits), 1, dtype=torch.float64, device=logits.device, generator=generator)
    tokens = torch.searchsorted(cumulative, uniform * cumulative[:, -1:], right=True)[:, 0]
    return tokens.clamp(max=logits.shape[-1] - 1)  # a product that was rounded up to the very end

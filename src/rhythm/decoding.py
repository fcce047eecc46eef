"""One token at a time, fast: a cache that grows in place, and grouped attention for CPUs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache, PreTrainedConfig
from transformers.cache_utils import DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from rhythm.attention.implementation import attention_implementation, decoder

IMPLEMENTATION = "rhythm_decoding_sdpa"


class GrowingLayer(DynamicLayer):
    """A cache layer that writes new keys and values in place, into room that grows by an eighth of its length.

    DynamicLayer copies the whole cache for every token, which costs more than the attention itself.
    """

    LEAST = 64  # positions of new room

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        super().lazy_initialization(key_states, value_states)
        self.length = 0
        self.keys = key_states.new_empty(*key_states.shape[:2], 0, key_states.shape[3])
        self.values = value_states.new_empty(*value_states.shape[:2], 0, value_states.shape[3])

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start, self.length = self.length, self.length + key_states.shape[2]
        if self.length > self.keys.shape[2]:
            room = (0, 0, 0, self.length - self.keys.shape[2] + max(self.LEAST, self.length // 8))
            self.keys, self.values = nn.functional.pad(self.keys, room), nn.functional.pad(self.values, room)
        self.keys[:, :, start : self.length] = key_states
        self.values[:, :, start : self.length] = value_states
        return self.keys[:, :, : self.length], self.values[:, :, : self.length]

    def get_seq_length(self) -> int:
        return self.length if self.is_initialized else 0


def make_cache(config: PreTrainedConfig) -> DynamicCache:
    """A cache for sampling; layers with a sliding window or a form of their own keep transformers' kind."""
    cache = DynamicCache(config=config)
    cache.layers = [GrowingLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


class Decoding:
    """Rows that a model writes on, a token each at every step.

    Args:
        cache: what the model made of the prompts, one row each.
        mask: [n, P] bool, True where a prompt has a token.
        position: [n, 1], of the token that comes next.
    """

    DROP_BELOW = 0.8  # finished rows leave the cache when fewer than this share are still being written

    def __init__(self, model: nn.Module, cache: DynamicCache, mask: Tensor, position: Tensor):
        self.model = model
        self.cache = cache
        self.mask = None if mask.all() else mask  # without padding none is needed, which is faster
        self.position = position

    def should_drop(self, writing: int) -> bool:
        """Whether to keep only the rows that are still being written, given how many there are."""
        return writing < self.DROP_BELOW * len(self.position)

    def keep(self, rows: Tensor) -> None:
        self.cache.batch_select_indices(rows)
        self.position = self.position[rows]
        self.mask = None if self.mask is None else self.mask[rows]

    def step(self, tokens: Tensor) -> Tensor:
        """Logits [n, V] of what follows the tokens [n]."""
        if self.mask is not None:
            self.mask = torch.cat([self.mask, self.mask.new_ones(len(tokens), 1)], 1)
        logits = self.model(
            input_ids=tokens[:, None],
            attention_mask=self.mask,
            position_ids=self.position,
            past_key_values=self.cache,
            use_cache=True,
        ).logits[:, -1]
        self.position = self.position + 1
        return logits


@contextmanager
def fast_decoding(model: nn.Module) -> Iterator[None]:
    """Inside, a model that runs SDPA computes single tokens by grouped attention where that is faster."""
    body = decoder(model)
    if body.config._attn_implementation != "sdpa":
        yield
        return
    with attention_implementation(body, IMPLEMENTATION):
        yield


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs
) -> tuple[Tensor, None]:
    """transformers' SDPA attention; for one token on a CPU, the heads that share a key become the rows of one product.

    SDPA on CPUs works head by head, which for a single row each is 2 to 4 times slower where heads are small.
    """
    batch, heads, length, width = query.shape
    shared = key.shape[1]
    if length > 1 or shared == heads or query.device.type != "cpu":
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    scaling = kwargs.get("scaling")
    grouped = query.reshape(batch, shared, heads // shared, width) * (width**-0.5 if scaling is None else scaling)
    scores = (grouped @ key.transpose(-1, -2)).float()
    if attention_mask is not None:  # [B, 1, 1, S] bool
        scores = scores.masked_fill(~attention_mask, float("-inf"))
    output = scores.softmax(-1).to(value.dtype) @ value
    return output.reshape(batch, 1, heads, width), None


AttentionInterface.register(IMPLEMENTATION, _attention)
AttentionMaskInterface.register(IMPLEMENTATION, sdpa_mask)  # without a mask of this name padding would be ignored

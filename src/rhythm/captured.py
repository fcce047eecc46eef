"""One token at a time on a GPU: the step is captured once as a CUDA graph and then replayed.

A step of a small batch is hundreds of kernels of a few microseconds each, and Python takes longer to launch them than
they take to run. A graph needs every tensor to stay where it is, so the cache has room for tokens to come, and what
changes from step to step (tokens, positions, the column that is written) changes in place.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from rhythm.attention.implementation import decoder
from rhythm.decoding import IMPLEMENTATION, Decoding, GrowingLayer

MODEL_TYPES = ("llama", "qwen2", "qwen3")  # whose decoding never waits for the GPU
ROOM = 256  # columns of the smallest cache; a larger one has twice as many
ALIGNED = 8  # columns: attention kernels ask for it


class FixedLayer(DynamicLayer):
    """A cache layer that writes one token's key and value at `column` [1] and hands out all of its room."""

    def __init__(self, layer: GrowingLayer, column: Tensor, room: int):
        super().__init__()
        spare = (0, 0, 0, room - layer.get_seq_length())
        length = layer.get_seq_length()
        self.keys, self.values = (nn.functional.pad(x[:, :, :length], spare) for x in (layer.keys, layer.values))
        self.is_initialized = True
        self.column = column

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        self.keys.index_copy_(2, self.column, key_states)
        self.values.index_copy_(2, self.column, value_states)
        return self.keys, self.values

    def grow(self, room: int) -> None:
        spare = (0, 0, 0, room - self.keys.shape[2])
        self.keys, self.values = nn.functional.pad(self.keys, spare), nn.functional.pad(self.values, spare)


class CapturedDecoding(Decoding):
    """As `Decoding`, by a graph that is captured anew when the cache is full or rows leave it.

    Args:
        limit: tokens of a prompt and its completion together, at most.
    """

    DROP_BELOW = 0.25  # a capture costs some steps

    def __init__(self, model: nn.Module, cache: DynamicCache, mask: Tensor, position: Tensor, *, limit: int):
        super().__init__(model, cache, mask, position.clone())
        self.mask = None  # `visible` has its place
        self.limit = _aligned(limit)
        self.written = mask.shape[1]  # columns
        self.room = self._more_room(max(ROOM // 2, self.written))
        self.column = torch.tensor([self.written], device=mask.device)
        self.tokens = torch.zeros_like(position)
        self.visible = nn.functional.pad(mask, (0, self.room - self.written))[:, None, None]  # [n, 1, 1, room]
        for i, layer in enumerate(cache.layers):  # one by one, so that no more than one is there twice
            cache.layers[i] = FixedLayer(layer, self.column, self.room)
        self.graph: torch.cuda.CUDAGraph | None = None
        self.logits: Tensor | None = None  # the graph's

    def should_drop(self, writing: int) -> bool:
        return super().should_drop(writing) or (self.written == self.room and writing < len(self.position))

    def keep(self, rows: Tensor) -> None:
        self._forget()
        super().keep(rows)
        self.visible, self.tokens = self.visible[rows], self.tokens[rows]

    def step(self, tokens: Tensor) -> Tensor:
        if self.written == self.room:
            self._grow()
        self.tokens.copy_(tokens[:, None])
        if self.tokens.is_cuda:
            if self.graph is None:
                self._capture()
            self.graph.replay()
        else:
            self.logits = self._advance()
        self.written += 1
        return self.logits

    def _more_room(self, columns: int) -> int:
        """Twice as many columns, or the limit where it is not much more."""
        return self.limit if self.limit <= 4 * columns else _aligned(2 * columns)

    def _grow(self) -> None:
        self._forget()
        self.room = self._more_room(self.room)
        for layer in self.cache.layers:
            layer.grow(self.room)
        self.visible = nn.functional.pad(self.visible, (0, self.room - self.visible.shape[-1]))

    def _forget(self) -> None:
        """Frees the graph and what it computed, before anything takes their place."""
        self.graph = self.logits = None

    def _capture(self) -> None:
        with torch.cuda.device(self.tokens.device):  # its streams, also where it is not the first GPU
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                self._forward()  # libraries set themselves up; the graph will write the same again
            torch.cuda.current_stream().wait_stream(side)
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph, stream=side, capture_error_mode="thread_local"):
                self.logits = self._advance()

    def _advance(self) -> Tensor:
        logits = self._forward()
        self.position += 1
        self.column += 1
        return logits

    def _forward(self) -> Tensor:
        kind = self.tokens.device.type
        # What autocast has cast already lies outside of the graph.
        with torch.autocast(kind, enabled=torch.is_autocast_enabled(kind), cache_enabled=False):
            self.visible.index_fill_(3, self.column, True)
            return self.model(
                input_ids=self.tokens,
                attention_mask=self.visible,
                position_ids=self.position,
                past_key_values=self.cache,
                use_cache=True,
            ).logits[:, -1]


def _aligned(columns: int) -> int:
    return -(-columns // ALIGNED) * ALIGNED


def can_capture(model: nn.Module, cache: DynamicCache) -> bool:
    """Whether a step of this model may become a graph: all of it is on one GPU, and `is_plain` holds."""
    devices = {parameter.device for parameter in model.parameters()}
    return len(devices) == 1 and devices.pop().type == "cuda" and is_plain(model, cache)


def is_plain(model: nn.Module, cache: DynamicCache) -> bool:
    """Whether a step never waits: SDPA, which takes the mask as it is, no window, nothing quantized or dynamic."""
    config = decoder(model).config
    rope = getattr(config, "rope_parameters", None) or {}
    return (
        config.model_type in MODEL_TYPES
        and config._attn_implementation in ("sdpa", IMPLEMENTATION)
        and getattr(config, "quantization_config", None) is None
        and rope.get("rope_type", "default") in ("default", "llama3", "linear", "yarn")
        and all(type(layer) is GrowingLayer for layer in cache.layers)
    )

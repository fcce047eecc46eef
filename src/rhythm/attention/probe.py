"""The hook into a transformers model: queries and keys of chosen layers, while the model runs as it always does.

transformers lets a model name the function that computes its attention. Ours, registered once at import together with
the mask that belongs to it, calls `sdpa_attention_forward` for the output and shows queries and keys to the probes that
are open on that very model. "sdpa" in the name makes transformers refuse models that its SDPA would compute wrongly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from rhythm.attention import fused
from rhythm.attention.implementation import attention_implementation, decoder
from rhythm.attention.statistics import RowSums

IMPLEMENTATION = "rhythm_sdpa"
ADVICE = "choose a model of another architecture, or a credit that reads no attention"


@dataclass(frozen=True)
class LayerInput:
    """What one attention layer computes its map from."""

    layer: int
    query: Tensor  # [B, H, S, D], detached, after positions are rotated in
    key: Tensor  # [B, H_kv, S, D], detached
    mask: Tensor | None  # [B, 1, S, S] bool (True attends) or additive; None is causal
    scaling: float | None  # factor on the scores; None is 1/√D
    sums: RowSums | None = None  # of each row, where they were asked for and the kernel gives them


@dataclass
class _Probe:
    name: str  # of the model, for messages
    modules: frozenset[nn.Module]  # of that model and no other
    layers: frozenset[int]
    listen: Callable[[LayerInput], None]
    sums_from: int | None
    reached: set[int] = field(default_factory=set)

    def wants_sums(self, length: int) -> bool:
        return self.sums_from is not None and length >= self.sums_from


_open_probes: ContextVar[tuple[_Probe, ...]] = ContextVar("rhythm_open_probes", default=())


def num_layers(model: nn.Module) -> int:
    return decoder(model).config.num_hidden_layers


@contextmanager
def attention_probe(
    model: nn.Module,
    layers: Sequence[int],
    listen: Callable[[LayerInput], None],
    *,
    sums_from: int | None = None,
) -> Iterator[None]:
    """Around one forward pass of whole sequences: call `listen` once for each of `layers`.

    From `sums_from` tokens on, the layer's row sums come with it where the device has a kernel that tells them.

    The model computes its attention by SDPA meanwhile and has its own implementation back afterwards, whatever happens.
    Raises ValueError where the model's attention cannot be read, during the pass or, for a layer that was never
    reached, after it. Gradients flow through the model but not into what is listened to.
    """
    body = decoder(model)
    probe = _Probe(_name(body), frozenset(body.modules()), frozenset(layers), listen, sums_from)
    with ExitStack() as stack:
        _enter(stack, body)
        token = _open_probes.set((*_open_probes.get(), probe))
        stack.callback(_open_probes.reset, token)
        yield
    if missing := sorted(probe.layers - probe.reached):
        raise ValueError(
            f"{_name(body)}: layers {missing} computed no attention that can be read in this pass "
            "(no forward pass, a hybrid's other layers, or a bypass); choose other layers"
        )


def _enter(stack: ExitStack, body: PreTrainedModel) -> None:
    if body.config.is_encoder_decoder:
        raise ValueError(f"{_name(body)}: attention is read in decoder-only models; {ADVICE}")
    if not body._can_set_attn_implementation():
        raise ValueError(f"{_name(body)}: its attention bypasses transformers' attention interface; {ADVICE}")
    try:
        stack.enter_context(attention_implementation(body, IMPLEMENTATION))
    except ValueError as error:
        raise ValueError(
            f"{_name(body)}: SDPA cannot compute its attention (sinks, soft-capping, or none); {ADVICE}"
        ) from error


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs
) -> tuple[Tensor, None]:
    """transformers' SDPA attention, overheard."""
    layer = getattr(module, "layer_idx", None)
    listening = [probe for probe in _open_probes.get() if module in probe.modules]
    for probe in listening:
        if reason := _unreadable(module, query, key, attention_mask, kwargs):
            raise ValueError(f"{probe.name}: {reason}")
    listening = [probe for probe in listening if layer in probe.layers]
    scaling, sums, output, length = kwargs.get("scaling"), None, None, query.shape[2]
    if any(probe.wants_sums(length) for probe in listening) and fused.fits(query, key, value, attention_mask):
        output, sums = fused.attention_with_sums(query, key, value, scaling)
    for probe in listening:
        if layer in probe.reached:
            raise ValueError(f"{probe.name}: layer {layer} ran twice; open one probe for each forward pass")
        probe.reached.add(layer)
        told = sums if probe.wants_sums(length) else None
        probe.listen(LayerInput(layer, query.detach(), key.detach(), attention_mask, scaling, told))
    if output is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    return output, None


def _unreadable(module: nn.Module, query: Tensor, key: Tensor, mask: Tensor | None, kwargs: dict) -> str | None:
    """Why this call is not the softmax of scaled scores of a whole causal sequence, if it is not."""
    causal = kwargs.get("is_causal")
    if kwargs.get("s_aux") is not None:
        return f"attention sinks take a share of every row; {ADVICE}"
    if kwargs.get("softcap") is not None:
        return f"its attention scores are soft-capped, which SDPA cannot do; {ADVICE}"
    if kwargs.get("position_bias") is not None:
        return f"its attention scores carry a position bias; {ADVICE}"
    if not (getattr(module, "is_causal", True) if causal is None else causal):
        return f"its attention is not causal; {ADVICE}"
    if key.shape[2] != query.shape[2]:
        return f"{query.shape[2]} queries met {key.shape[2]} keys; read whole sequences, with no earlier tokens cached"
    if mask is not None and mask.shape[1] != 1:
        return "its attention mask differs between heads; pass a mask [B, 1, S, S]"
    return None


def _name(body: PreTrainedModel) -> str:
    return f"{type(body).__name__} (model type {body.config.model_type!r})"


AttentionInterface.register(IMPLEMENTATION, _attention)
AttentionMaskInterface.register(IMPLEMENTATION, sdpa_mask)  # without a mask of this name padding would be ignored

"""A LoRA layer as one product, x·(W + s·B·A)ᵀ, whose gradients go on to A and B.

PEFT computes x·Wᵀ + s·(x·Aᵀ)·Bᵀ: three products and a sum forward, and twice as many backward, most of them too narrow
to be fast. The sum of the matrices costs as much as a few tokens and serves a whole pass of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners import lora
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable

ONEDNN = torch.backends.mkldnn.is_available()


class FoldedProduct(torch.autograd.Function):
    """x·Fᵀ + bias with F = W + s·B·A, differentiated by x, A and B; the base W is frozen.

    With G the gradient of the result [rows, out]: dx = G·F, dA = s·(G·B)ᵀ·x and dB = s·Gᵀ·(x·Aᵀ).
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx, x: Tensor, folded: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scaling: float
    ) -> Tensor:
        """x [..., in], folded [out, in], a [r, in], b [out, r] to [..., out]."""
        ctx.save_for_backward(x, folded, a, b)
        ctx.scaling = scaling
        return F.linear(x, folded, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, folded, a, b = (tensor.to(gradient.dtype) for tensor in ctx.saved_tensors)  # in lower precision they differ
        dx = gradient @ folded if ctx.needs_input_grad[0] else None
        rows, inputs = gradient.flatten(0, -2), x.flatten(0, -2)
        da = ((rows @ b).T @ inputs).mul_(ctx.scaling)
        db = (rows.T @ (inputs @ a.T)).mul_(ctx.scaling)
        return dx, None, None, da, db, None


class FoldedLinear(lora.Linear):
    """PEFT's layer, which computes by one product while it is folded. What it holds and saves is the same.

    A product of few rows, as for one more token of each completion, is bound by how the matrix is read: on CPUs oneDNN
    has it laid out for that once, where `F.linear` would lay it out in every call.
    """

    FEW = 128  # rows
    folded: Tensor | None = None  # [out, in], W + s·B·A
    packed: Tensor | None = None  # the same as oneDNN lays it out, made when it is first asked for

    @torch.no_grad()
    def fold(self) -> None:
        a, b, scaling = self._adapter()
        weight = self.base_layer.weight.T if self.fan_in_fan_out else self.base_layer.weight
        self.folded = torch.addmm(weight.to(b.dtype), b, a, alpha=scaling).to(weight.dtype)

    def unfold(self) -> None:
        self.folded = self.packed = None

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if self.folded is None or self.disable_adapters:
            return super().forward(x, *args, **kwargs)
        if not torch.is_grad_enabled() and self._packs(x):
            if self.packed is None:
                self.packed = torch.ops.mkldnn._reorder_linear_weight(self.folded, x.numel() // x.shape[-1])
            return torch.ops.mkldnn._linear_pointwise(x, self.packed, self.base_layer.bias, "none", [], "")
        return FoldedProduct.apply(x, self.folded, self.base_layer.bias, *self._adapter())

    def _packs(self, x: Tensor) -> bool:
        few, plain = x.numel() <= self.FEW * x.shape[-1], x.dtype == self.folded.dtype == torch.float32
        return few and plain and x.device.type == "cpu" and not torch.is_autocast_enabled("cpu") and ONEDNN

    def _adapter(self) -> tuple[Tensor, Tensor, float]:
        (name,) = self.active_adapters
        return self.lora_A[name].weight, self.lora_B[name].weight, self.scaling[name]


def make_foldable(model: nn.Module) -> None:
    """Turns the LoRA layers on plain matrices into layers that can fold; others stay what they are."""
    for module in model.modules():
        if type(module) is lora.Linear:
            module.__class__ = FoldedLinear


@contextmanager
def folded(model: nn.Module) -> Iterator[None]:
    """Inside, the model computes with today's adapter folded in; a step of the optimizer does not show until the next.

    Costs the memory of a second copy of the adapted matrices meanwhile.
    """
    layers = [module for module in model.modules() if isinstance(module, FoldedLinear)]
    try:
        for layer in layers:
            layer.fold()
        yield
    finally:
        for layer in layers:
            layer.unfold()

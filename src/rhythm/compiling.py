"""torch.compile for the passes that learn."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer


def compile_layers(model: nn.Module) -> None:
    """Compiles each decoder layer, one graph for all of them, for passes with a gradient.

    Passes without one stay as they are: they write tokens one by one or read attention inside of the layers.

    Raises:
        ValueError: there is neither a GPU nor a compiler of C++.
    """
    if not (torch.cuda.is_available() or os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")):
        raise ValueError("policy.compile=true needs a C++ compiler where there is no GPU: install g++, or leave it out")
    for layer in model.modules():
        if isinstance(layer, GradientCheckpointingLayer):
            layer.forward = _where_learning(layer.forward)


def _where_learning(forward: Callable[..., Any]) -> Callable[..., Any]:
    compiled = torch.compile(forward, dynamic=True)

    @wraps(forward)
    def choose(*args: Any, **kwargs: Any) -> Any:
        return (compiled if torch.is_grad_enabled() else forward)(*args, **kwargs)

    return choose

"""Frozen weights in shards: each process holds its share of them, and all of the adapter.

The adapter is about a hundredth of the weights. Left whole, its gradients are averaged as in DDP, and optimizer,
checkpoints and exports see ordinary tensors. FSDP2 gathers the frozen weights layer by layer, around each layer's
forward and backward pass, so processes must make the same number of passes; `whole` is for stages where they do not.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from transformers.modeling_layers import GradientCheckpointingLayer


def decoder_layers(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]


def shard(model: nn.Module, mesh: DeviceMesh) -> None:
    """Leaves each device of the mesh its share of the frozen weights: a group for each layer, and one for the rest."""
    trained = {parameter for parameter in model.parameters() if parameter.requires_grad}
    for module in (*decoder_layers(model), model):
        fully_shard(module, mesh=mesh, reshard_after_forward=True, ignored_params=trained)


def is_sharded(model: nn.Module) -> bool:
    return isinstance(model, FSDPModule)


@contextmanager
def whole(model: nn.Module) -> Iterator[None]:
    """Inside, every weight is on this device, and passes without a gradient exchange nothing with other processes.

    All processes enter it together; what they compute there, and how often, is their own affair.
    """
    shards = [module for module in model.modules() if isinstance(module, FSDPModule)]
    with ExitStack() as stack:
        if any(isinstance(parameter, DTensor) for parameter in model.parameters()):  # or it is entered again
            for module in shards:
                stack.callback(module.reshard)
                module.unshard()
                # FSDP's hooks, which would put the shards back, cost time at every token and let no CUDA graph through.
                for hooks in ("_forward_pre_hooks", "_forward_hooks"):
                    stack.callback(setattr, module, hooks, getattr(module, hooks))
                    setattr(module, hooks, OrderedDict())
        yield

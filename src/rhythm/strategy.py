"""`trainer=fsdp`: Lightning's DDP for the adapter, FSDP2 for the weights beneath it."""

from __future__ import annotations

from lightning.pytorch.strategies import DDPStrategy
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.parallel import DistributedDataParallel

from rhythm.shards import shard


class ShardedStrategy(DDPStrategy):
    """DDP of a `PolicyModule`, its frozen weights in shards over the processes of each node.

    Other nodes have shards of their own: weights that do not change need nothing from them, and links within a node are
    the fastest. Takes the arguments of DDPStrategy.
    """

    def model_to_device(self) -> None:
        """Layer by layer, so that no device ever holds all of the frozen weights here."""
        sizes, names = (self.num_nodes, self.num_processes), ("node", "device")
        mesh = init_device_mesh(self.root_device.type, sizes, mesh_dim_names=names)
        shard(self.lightning_module.policy.model, mesh["device"])
        super().model_to_device()

    def _setup_model(self, model: nn.Module) -> DistributedDataParallel:
        frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, frozen)
        return super()._setup_model(model)

"""What a machine can be asked for: accelerators, strategies, and sweeps of several processes."""

from __future__ import annotations

import re

import torch
from hydra.conf import HydraConf
from hydra.types import RunMode
from omegaconf import DictConfig

PRECISIONS = ("32-true", "bf16-mixed")


def check_launcher(cfg: DictConfig, hydra: HydraConf) -> None:
    """Raises ValueError where several runs of several processes each would share one parent process."""
    sweeping, launcher = hydra.mode == RunMode.MULTIRUN, hydra.launcher._target_
    strategy = "fsdp" if sharding(cfg.trainer) else cfg.trainer.get("strategy", "auto")
    if sweeping and strategy != "auto" and launcher.endswith("BasicLauncher"):
        raise ValueError(
            f"-m with trainer={strategy}: the runs of a sweep share a process, which cannot start "
            "others for each; add hydra/launcher=submitit_local (pip install hydra-submitit-launcher), or leave out -m"
        )


def devices_of_a_node(trainer: DictConfig) -> int:
    """How many devices the trainer takes on each node, in every way that Lightning lets one say so.

    "auto" and -1 are all that this machine has, and one CPU.
    """
    devices = trainer.devices
    if str(devices) in ("auto", "-1"):
        return 1 if trainer.accelerator == "cpu" else max(1, torch.cuda.device_count())
    if isinstance(devices, str) and "," in devices:
        devices = [number for number in devices.split(",") if number.strip()]
    return int(devices) if isinstance(devices, int | str) else len(devices)


def sharding(trainer: DictConfig) -> bool:
    """Whether the trainer keeps frozen weights in shards."""
    return "ShardedStrategy" in str(trainer.get("strategy"))


def check_shards(cfg: DictConfig) -> None:
    """Raises ValueError where trainer=fsdp has no plain frozen weights to put into shards."""
    if not sharding(cfg.trainer):
        return
    if cfg.policy.full or cfg.policy.quantization is not None:
        setting = "full=true" if cfg.policy.full else f"quantization={cfg.policy.quantization}"
        raise ValueError(f"trainer=fsdp: policy.{setting} leaves no plain frozen weights to shard; use trainer=ddp")
    if cfg.policy.fold:
        raise ValueError("trainer=fsdp: policy.fold=true needs every matrix whole; set policy.fold=null")


def check_accelerator(trainer: DictConfig) -> None:
    """Raises ValueError where there is no such accelerator, or a strategy that cuts what is trained into shards.

    Apple's has no float64, which the statistics need. So it does where a precision would round the adapter itself, or
    scale the gradients that are measured and clipped.
    """
    if str(trainer.get("precision", "32-true")) not in PRECISIONS:
        raise ValueError(
            f"trainer.precision={trainer.precision}: the adapter and its gradients are float32; use "
            f"{' or '.join(PRECISIONS)}, and policy.dtype for the base"
        )
    strategy = str(trainer.get("strategy", "auto"))
    if strategy.startswith(("fsdp", "deepspeed")):
        raise ValueError(
            f"trainer.strategy={strategy}: checkpoints hold the adapter's tensors whole; use trainer=fsdp, which "
            "shards the frozen weights alone"
        )
    if trainer.accelerator in ("gpu", "cuda", "mps") and not torch.cuda.is_available():
        raise ValueError(f"trainer.accelerator={trainer.accelerator}: there is no CUDA device here; use trainer=cpu")


def check_device(device: str) -> None:
    """Raises ValueError where there is no such device, or it is of a kind that has no float64, as Apple's."""
    if not re.fullmatch(r"cpu|cuda(:\d+)?", device):
        raise ValueError(f"device={device}: use cpu, cuda or cuda:1")
    if device.startswith("cuda") and int(device.partition(":")[2] or 0) >= torch.cuda.device_count():
        raise ValueError(f"device={device}: there is no such CUDA device here; use device=cpu, or another number")

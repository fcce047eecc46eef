"""Run folders: where a run writes, and what it takes to go on in one."""

from __future__ import annotations

import json
import os
import pickle
import re
import shlex
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from hydra.conf import HydraConf
from hydra.types import RunMode
from hydra.utils import instantiate
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf

from rhythm.cli import flatten
from rhythm.policy import Policy

CONFIG = "config.yaml"
LAST = Path("checkpoints") / "last.ckpt"
HPARAMS = "hparams.yaml"
LOCK = ".lock"
SHARED = "RHYTHM_OUTPUT_DIR"  # tells the other processes of a distributed run which folder the first one made
# What may change when a run is resumed: how long, how often, where, on what, in how much memory.
FREE = [f"{what}_every" for what in ("eval", "inspect", "checkpoint")]
FREE += ["iterations", "micro_batch_size", "ckpt_path", "output_dir", "first_iteration"]
FREE += ["doctor", "estimate", "prompt_tokens", "command"]
FREE += [f"algorithm.{name}" for name in ("iterations", "micro_batch_size", "max_not_finite")]
FREE_GROUPS = ("callbacks.", "logger.", "trainer.")
# What a policy is asked and when it ends, and of what kind its trained weights are.
SUBJECT = [f"policy.{name}" for name in ("path", "full", "chat_template", "system_prompt", "stop_strings")]
PROBLEMS = ("task.train.", "task.test.")  # which problems, not how they are asked
_claims: dict[Path, FileLock] = {}


def resolve_checkpoint(ckpt_path: str | None, output_dir: str | None) -> Path | None:
    """The checkpoint file to resume from.

    Raises:
        ValueError: `last` without output_dir.
        FileNotFoundError: there is no checkpoint where one was named.
    """
    if ckpt_path is None:
        return None
    if ckpt_path == "last":
        if output_dir is None:
            raise ValueError("ckpt_path=last needs output_dir=<the run's folder>, to know whose last checkpoint")
        path = Path(output_dir) / LAST
    else:
        path = Path(ckpt_path) / LAST if Path(ckpt_path).is_dir() else Path(ckpt_path)
    if not path.is_file():
        raise FileNotFoundError(f"ckpt_path={ckpt_path}: there is no {path}; leave ckpt_path out to start afresh")
    return path


def open_run(cfg: DictConfig, label: str) -> Path | None:
    """Makes the run's folder, or opens the one that is resumed, completes the config, and returns the checkpoint.

    Args:
        label: of the folders that are made for runs of this kind, logs/<label>/<time>-<seed>.

    Raises:
        ValueError: the folder holds another run, or the resumed run was started with other settings.
    """
    completions = cfg.prompts_per_iteration * cfg.group_size
    if 0 < completions < cfg.updates_per_iteration:
        raise ValueError(
            f"updates_per_iteration={cfg.updates_per_iteration}: an iteration has {completions} completions"
        )
    if cfg.seed < 0:
        raise ValueError(f"seed={cfg.seed}: must be at least 0")
    checkpoint = resolve_checkpoint(cfg.ckpt_path, cfg.output_dir)
    first_process = not rank_zero_only.rank
    if checkpoint is not None:
        folder = checkpoint.parent.parent
        if cfg.output_dir is not None and Path(cfg.output_dir).resolve() != folder.resolve():
            raise ValueError(
                f"output_dir={cfg.output_dir}: {checkpoint} is resumed in its own folder; leave output_dir out"
            )
        cfg.output_dir = str(folder)
        check_same_run(cfg, folder / CONFIG)
        cfg.first_iteration = 1 + read_checkpoint(checkpoint)["iteration"]
        if cfg.first_iteration > cfg.iterations:
            raise ValueError(f"iterations={cfg.iterations}: the run in {folder} has had them all; raise it to go on")
    elif first_process:
        cfg.output_dir = os.environ[SHARED] = str(new_folder(cfg, label))
        cfg.first_iteration = 1
    else:
        cfg.output_dir = cfg.output_dir or os.environ.get(SHARED)
        if cfg.output_dir is None:
            raise ValueError("several processes were started at once: name output_dir=<folder>, so that they agree")
    if first_process:
        claim(Path(cfg.output_dir))
        (Path(cfg.output_dir) / HPARAMS).unlink(missing_ok=True)  # Lightning writes none over it; iterations may differ
        OmegaConf.save(cfg, Path(cfg.output_dir) / CONFIG, resolve=True)
    return checkpoint


@contextmanager
def building(cfg: DictConfig, checkpoint: Path | None) -> Iterator[None]:
    """Around what is made before training: where that is refused, a new run's folder goes away again."""
    try:
        yield
    except Exception:
        folder = Path(cfg.output_dir)
        empty = {path.name for path in folder.iterdir()} <= {CONFIG, LOCK}
        if checkpoint is None and not rank_zero_only.rank and empty:
            _claims.pop(folder.resolve()).release()
            shutil.rmtree(folder)
        raise


def check_launcher(cfg: DictConfig, hydra: HydraConf) -> None:
    """Raises ValueError where several runs of several processes each would share one parent process."""
    sweeping, launcher = hydra.mode == RunMode.MULTIRUN, hydra.launcher._target_
    if sweeping and cfg.trainer.get("strategy", "auto") != "auto" and launcher.endswith("BasicLauncher"):
        raise ValueError(
            f"-m with trainer.strategy={cfg.trainer.strategy}: the runs of a sweep share a process, which cannot start "
            "others for each; add hydra/launcher=submitit_local (pip install hydra-submitit-launcher), or leave out -m"
        )


def knobs(cfg: DictConfig) -> dict[str, Any]:
    """What runs are told apart by in a table: the values at the top of the config, and the credit with its settings."""
    told = (set(cfg) - set(FREE)) | {"iterations"}
    top = {key: value for key, value in cfg.items() if key in told and isinstance(value, bool | int | float)}
    credit = flatten(OmegaConf.to_container(cfg.credit, resolve=True), "credit.")
    return top | {key: value for key, value in credit.items() if not isinstance(value, dict)}


def check_accelerator(trainer: DictConfig) -> None:
    """Raises ValueError where there is no such accelerator, or a strategy that cuts tensors into shards.

    Apple's has no float64, which the statistics need.
    """
    strategy = str(trainer.get("strategy", "auto"))
    if strategy.startswith(("fsdp", "deepspeed")):
        raise ValueError(
            f"trainer.strategy={strategy}: sampling and checkpoints need whole tensors; use trainer=ddp, and "
            "policy.quantization=4bit where the base is too large for a device"
        )
    if trainer.accelerator in ("gpu", "cuda", "mps") and not torch.cuda.is_available():
        raise ValueError(f"trainer.accelerator={trainer.accelerator}: there is no CUDA device here; use trainer=cpu")


def check_device(device: str) -> None:
    """Raises ValueError where there is no such device."""
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"device={device}: there is no CUDA device here; use device=cpu")


def claim(folder: Path) -> None:
    """Keeps other runs out of a folder as long as this process lives, however it ends.

    Raises:
        ValueError: another run is writing there.
    """
    lock = _claims.setdefault(folder.resolve(), FileLock(folder / LOCK))  # one that is collected is released
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ValueError(f"output_dir={folder}: another run is writing there; name another folder") from None


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint's plain containers and tensors, nothing of it executed.

    Raises:
        ValueError: the file is damaged, something else, or holds code; where another of the run's checkpoints is whole,
            the message names it.
    """
    try:
        return _read(path)
    except ValueError as error:
        for other in sorted(path.parent.glob("*.ckpt"), key=lambda file: file.stat().st_mtime, reverse=True):
            if other != path and (iteration := _iteration(other)) is not None:
                raise ValueError(f"{error}; of iteration {iteration} is ckpt_path={other}") from error
        raise


def _read(path: Path) -> dict[str, Any]:
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, LookupError, OSError, pickle.UnpicklingError) as error:
        code = re.search(r"GLOBAL (\S+)", str(error))
        if code:
            raise ValueError(f"{path} would run `{code[1]}` on loading: refused, as no checkpoint needs it") from error
        raise ValueError(f"{path} is damaged, or no checkpoint") from error
    if not isinstance(checkpoint, dict) or not {"iteration", "state_dict"} <= checkpoint.keys():
        raise ValueError(f"{path} is no checkpoint of this trainer")
    return checkpoint


def _iteration(path: Path) -> int | None:
    """That of a whole checkpoint."""
    try:
        return _read(path)["iteration"]
    except ValueError:
        return None


def new_folder(cfg: DictConfig, label: str) -> Path:
    if cfg.output_dir is not None:
        folder = Path(cfg.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        if any(path.name not in (CONFIG, LOCK) for path in folder.iterdir()):  # a run that never began leaves these
            if (folder / LAST).is_file():
                mend = "holds a run; add ckpt_path=last to resume it, or name another folder"
            else:
                mend = "is not empty and holds no checkpoint to resume; name another folder"
            raise ValueError(f"output_dir={folder} {mend}")
        return folder
    stem = f"logs/{label}/{datetime.now():%Y%m%d-%H%M%S}-{cfg.seed}"
    for attempt in range(100):
        folder = Path(stem if attempt == 0 else f"{stem}-{attempt}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:  # another run began in this second
            continue
        return folder
    raise OSError(f"no free folder at {stem}")


def check_same_run(cfg: DictConfig, saved: Path) -> None:
    """Refuses to resume a run under settings that it was not started with."""
    if not saved.is_file():
        raise FileNotFoundError(
            f"there is no {saved}: a checkpoint is resumed in its run's folder, whose config is read"
        )
    before = flatten(OmegaConf.to_container(OmegaConf.load(saved)))  # data: nothing in it is resolved or instantiated
    now = flatten(OmegaConf.to_container(cfg, resolve=True))
    differing = sorted(
        key
        for key in before.keys() | now.keys()
        if before.get(key) != now.get(key) and not isinstance(before.get(key, now.get(key)), dict) and not is_free(key)
    )
    schedule = now.get("algorithm.scheduler.name") or "constant"
    if before["iterations"] != now["iterations"] and not schedule.startswith("constant"):
        differing.insert(0, "iterations")  # the length of the schedule: its earlier part would have been another
    if differing:
        shown = ", ".join(f"{key} {_shown(before, key)} then and {_shown(now, key)} now" for key in differing[:4])
        raise ValueError(f"the run in {saved.parent} was started with other settings: {shown}; give it the same ones")


def is_free(key: str) -> bool:
    """Whether a key of the config may change when a run is resumed, because nothing that is learned depends on it."""
    return key in FREE or (key.startswith(FREE_GROUPS) and not key.startswith("callbacks.attention_signals"))


def _shown(values: dict[str, Any], key: str) -> str:
    return repr(values[key]) if key in values else "absent"


def find_adapter(ckpt_path: str | None) -> Path | None:
    """The adapter folder or checkpoint file that a run folder, an adapter folder or a checkpoint stands for.

    Raises:
        FileNotFoundError: there is neither.
    """
    if ckpt_path is None:
        return None
    path = Path(ckpt_path)
    if is_saved(path) or path.is_file():
        return path
    adapter, metrics = path / "adapter", path / "metrics.json"
    checkpoint = read_checkpoint(path / LAST)["iteration"] if (path / LAST).is_file() else -1
    # A run that was extended and stopped has gone on beyond the adapter of its first end.
    ended = json.loads(metrics.read_text(encoding="utf-8"))["iterations"] if metrics.is_file() else -1
    if is_saved(adapter) and ended >= checkpoint:
        return adapter
    if checkpoint >= 0:
        return path / LAST
    raise FileNotFoundError(
        f"ckpt_path={ckpt_path}: no adapter, run folder or checkpoint is there; name one of the three"
    )


def is_saved(folder: Path) -> bool:
    """Whether a folder holds an adapter, or with policy.full a whole model."""
    return any((folder / name).is_file() for name in ("adapter_config.json", "config.json"))


def run_folder(adapter: Path) -> Path | None:
    """The run that an adapter folder or a checkpoint belongs to, where it still stands in it."""
    folders = (adapter.parent, adapter.parent.parent)
    return next((folder for folder in folders if (folder / CONFIG).is_file()), None)


def check_same_subject(cfg: DictConfig, adapter: Path | None) -> None:
    """Refuses to evaluate an adapter on another base or task than its run's config names; that is read as data only."""
    folder = run_folder(adapter) if adapter is not None else None
    if folder is None:
        return
    saved = flatten(OmegaConf.to_container(OmegaConf.load(folder / CONFIG)))
    now = flatten(OmegaConf.to_container(cfg, resolve=True))
    # On other problems than a run's own it is still what the run trained, as long as it is asked in the same form.
    asked = {key for key in saved | now if key.startswith("task.") and not key.startswith(PROBLEMS)}
    keys = {"max_completion_tokens", *SUBJECT} | asked
    if adapter.is_file():  # a checkpoint holds tensors alone; a PEFT folder says itself how it is scaled
        keys |= {"policy.alpha", "policy.adapter"}
    differing = sorted(key for key in keys if not isinstance(saved.get(key), dict) and saved.get(key) != now.get(key))
    if differing:
        mend = " ".join(
            shlex.quote(f"{key}={'null' if saved[key] is None else saved[key]}" if key in saved else f"~{key}")
            for key in differing
        )
        raise ValueError(f"{adapter} was trained under other settings than these; add {mend}")


def load_policy(config: DictConfig, adapter: Path | None) -> Policy:
    """The configured policy with a saved adapter: of a PEFT folder, with its rank and targets, or a checkpoint."""
    if adapter is None or adapter.is_file():
        policy = instantiate(config, _convert_="all")
        if adapter is not None:
            policy.load_adapter_state(read_checkpoint(adapter)["state_dict"])
        return policy
    return instantiate(config, adapter=str(adapter), _convert_="all")

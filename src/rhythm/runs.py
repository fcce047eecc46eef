"""Run folders: where a run writes, and what it takes to go on in one."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from hydra.utils import instantiate
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf

from rhythm.machine import devices_of_a_node
from rhythm.policy import Policy
from rhythm.settings import CONFIG, check_same_run

LAST = Path("checkpoints") / "last.ckpt"
HPARAMS = "hparams.yaml"
LOCK = ".lock"
STAGED = f".{CONFIG}"  # written beside it, then renamed
NOT_BEGUN = {CONFIG, LOCK, STAGED}  # what a run leaves behind at most that never began
SHARED = "RHYTHM_OUTPUT_DIR"  # tells the other processes of a distributed run which folder the first one made
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
    check_counts(cfg)
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
        staged = Path(cfg.output_dir) / STAGED
        OmegaConf.save(cfg, staged, resolve=True)
        staged.replace(staged.with_name(CONFIG))  # other processes of the run may be reading it
    return checkpoint


def check_counts(cfg: DictConfig) -> None:
    """Raises ValueError where a run could not begin with these numbers."""
    for name in ("iterations", "updates_per_iteration"):
        if cfg[name] < 1:
            raise ValueError(f"{name}={cfg[name]}: must be at least 1")
    completions = cfg.prompts_per_iteration * cfg.group_size
    devices = devices_of_a_node(cfg.trainer) * cfg.trainer.get("num_nodes", 1)
    share, updates = completions // devices, cfg.updates_per_iteration
    if completions > 0 and share < updates:
        each = f" on each of {devices} devices" if devices > 1 else ""
        raise ValueError(f"updates_per_iteration={updates}: an iteration has {share} completions{each}")
    if cfg.seed < 0:
        raise ValueError(f"seed={cfg.seed}: must be at least 0")


@contextmanager
def building(cfg: DictConfig, checkpoint: Path | None) -> Iterator[None]:
    """Around what is made before training: where that is refused, a new run's folder goes away again."""
    try:
        yield
    except Exception:
        folder = Path(cfg.output_dir)
        empty = {path.name for path in folder.iterdir()} <= NOT_BEGUN
        if checkpoint is None and not rank_zero_only.rank and empty:
            _claims.pop(folder.resolve()).release()
            shutil.rmtree(folder)
        raise


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
        check_free(folder)
        folder.mkdir(parents=True, exist_ok=True)
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


def check_free(folder: Path) -> None:
    """Raises ValueError where a folder is there and holds more than a run leaves behind that never began."""
    if folder.is_file():
        raise ValueError(f"output_dir={folder}: there is a file of that name; name a folder")
    if not folder.is_dir() or {path.name for path in folder.iterdir()} <= NOT_BEGUN:
        return
    if (folder / LAST).is_file():
        raise ValueError(f"output_dir={folder} holds a run; add ckpt_path=last to resume it, or name another folder")
    raise ValueError(f"output_dir={folder} is not empty and holds no checkpoint to resume; name another folder")


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
    ended = _ended(metrics) if metrics.is_file() else -1
    if is_saved(adapter) and ended >= checkpoint:
        return adapter
    if checkpoint >= 0:
        return path / LAST
    raise FileNotFoundError(
        f"ckpt_path={ckpt_path}: no adapter, run folder or checkpoint is there; name one of the three"
    )


def run_of(saved: Path) -> Path:
    """The folder of the run that an adapter folder or a checkpoint is from, or where it lies by itself."""
    return saved.parent.parent if saved.parent.name == Path(LAST).parent.name else saved.parent


def _ended(metrics: Path) -> int:
    """The iteration at which a run ended, by its metrics.json."""
    try:
        return int(json.loads(metrics.read_text(encoding="utf-8"))["iterations"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{metrics} is damaged: name the adapter folder or a checkpoint itself") from error


def is_saved(folder: Path) -> bool:
    """Whether a folder holds an adapter, or with policy.full a whole model."""
    return any((folder / name).is_file() for name in ("adapter_config.json", "config.json"))


def load_policy(config: DictConfig, adapter: Path | None) -> Policy:
    """The configured policy with a saved adapter: of a PEFT folder, with its rank and targets, or a checkpoint."""
    if adapter is None or adapter.is_file():
        policy = instantiate(config, _convert_="all")
        if adapter is not None:
            checkpoint = read_checkpoint(adapter)
            policy.check_base(checkpoint["base"])
            policy.load_adapter_state(checkpoint["state_dict"])
        return policy
    return instantiate(config, adapter=str(adapter), _convert_="all")

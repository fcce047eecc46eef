"""What the entry points share: composing, and one readable line where the user's input is at fault.

Torch and Lightning are imported once a config is composed, so that a misspelt key is told in a second.
"""

from __future__ import annotations

import logging
import os
import re
import shlex
import sys
import warnings
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, MissingConfigException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from rhythm.allocator import keep_freed_memory
from rhythm.faults import Interrupted, short_of_memory
from rhythm.keys import CONFIGS, check_kinds, known_keys, nearest, options_with, typed, unknown_option

TRACEBACK = "RHYTHM_TRACEBACK"
USER_ERRORS = (HydraException, OmegaConfBaseException, ValueError, OSError)
USER_ERRORS += (FloatingPointError, MemoryError)  # numbers and memory that gave out; the message says what to change


def main(run: Callable[[DictConfig], Any], config_name: str) -> None:
    """Composes `config_name` with the command line, runs, and exits non-zero with one line where that goes wrong.

    The environment variable RHYTHM_TRACEBACK=1 shows the whole trace. An interrupted run exits with 128 + signal.
    """
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra hands its errors to us instead of printing and exiting
    try:
        hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name=config_name)(_job(run, config_name))()
    except USER_ERRORS as error:
        _fail(error, config_name, sys.argv[1:])
    except Exception as error:
        if type(error).__module__ != "submitit.core.utils":
            raise
        told = " ".join(str(error).partition("\n---")[0].split())
        sys.exit(f"error: a run of the sweep left no result: {told}")


def command_line(script: str, words: Sequence[str]) -> str:
    """The command that makes a run afresh, whatever it was resumed from and wherever it wrote."""
    kept = [word for word in words if not word.startswith(("ckpt_path=", "output_dir="))]
    return shlex.join(["python", script, *kept])


def _job(run: Callable[[DictConfig], Any], config_name: str) -> Callable[[DictConfig], Any]:
    """A run that ends its process itself, whichever process a launcher gave it."""

    @wraps(run)
    def job(cfg: DictConfig) -> Any:
        words = HydraConfig.get().overrides.task
        try:
            check_kinds(cfg, config_name, words)
        except ValueError as error:
            _fail(error, config_name, words)
        from lightning.fabric.utilities.exceptions import MisconfigurationException

        keep_freed_memory()
        _quiet_libraries()
        if _is_first_process():  # what was left out of the data, as a plain line on stderr
            logging.getLogger("rhythm").setLevel(logging.INFO)
            logging.lastResort.setLevel(logging.INFO)
        try:
            # Outside of the passes that are begun again in halves: loading, figures, studies of attention.
            with short_of_memory("micro_batch_size, group_size or max_completion_tokens, or choose a smaller policy"):
                return run(cfg)
        except Interrupted as stop:
            # Lightning ends every process when a child's exit code is not zero, before rank 0 is done.
            sys.exit(_saved(stop, config_name, words) if _is_first_process() else 0)
        except (*USER_ERRORS, MisconfigurationException) as error:
            _fail(error, config_name, words)

    return job


def _fail(error: Exception, config_name: str, words: Sequence[str]) -> NoReturn:
    if os.environ.get(TRACEBACK):
        raise error
    print(f"error: {one_line(error, config_name, words)}", file=sys.stderr)
    sys.exit(1)


def _saved(stop: Interrupted, config_name: str, words: Sequence[str]) -> int:
    """Tells how the run goes on, one of a sweep by itself; returns the exit code."""
    again = command_line(os.path.relpath(CONFIGS.parent / f"{config_name}.py"), words)
    where = shlex.join(["ckpt_path=last", f"output_dir={stop.run}"])
    print(f"saved; to go on: {again} {where}", flush=True)
    job = HydraConfig.get()
    if job.mode == RunMode.MULTIRUN and job.launcher._target_.endswith("BasicLauncher"):
        print("the runs of the sweep that would have followed were not begun", flush=True)
    return 128 + stop.signum


def _is_first_process() -> bool:
    """Of those of a distributed run, whichever launcher started them."""
    from lightning.pytorch.utilities import rank_zero_only

    return not rank_zero_only.rank


def _quiet_libraries() -> None:
    """Takes out of the output what tells a user nothing: tips, loading bars, libraries about libraries."""
    import datasets
    import transformers

    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
    for message in (
        ".*is_gradient_checkpointing.*",
        ".*isinstance.treespec, LeafSpec.*",
        "Found .* in eval mode at the start of training.*",  # the module sets the mode of every phase itself
        ".*your dataloader is not resumable.*",  # its sampler counts, and starts where the module was
        "Detected call of `lr_scheduler.step.*",  # steps with nothing to learn are skipped
    ):
        warnings.filterwarnings("ignore", message=message)


def build(config: DictConfig, **objects: Any) -> Any:
    """Instantiates a config with objects that are made already; Hydra's own way would copy them into the config.

    Raises:
        ValueError: the config has a key that its target does not take.
    """
    target = hydra.utils.instantiate(config, _partial_=True, _convert_="all")
    try:
        return target(**objects)
    except TypeError as error:
        raise ValueError(f"{config._target_}: {error}") from error


def one_line(error: BaseException, config_name: str, words: Sequence[str]) -> str:
    """The message of an error without its layers, on one line, with the key that was probably meant.

    Args:
        words: the overrides on the command line, which choose what keys there are.
    """
    root = error
    while root.__cause__ is not None and isinstance(root, HydraException):
        root = root.__cause__
    text = str(root).partition("Config search path:")[0]
    lines = [line.strip() for line in text.splitlines()]
    lines = [line for line in lines if line and not line.startswith(("object_type=", "full_key:", "To append to your"))]
    message = " ".join(lines)
    node, named = re.search(r"full_key: (\S+)", str(error)), re.match(r"(\w+)=", message)
    if node and named:
        message = typed(named[1], node[1], config_name, words) + message.removeprefix(named[1])
    if isinstance(root, MissingConfigException) and root.missing_cfg_file and root.options:
        return unknown_option(root.missing_cfg_file)
    unknown = re.search(r"Could not override '([^']+)'", str(error)) or re.search(r"full_key: (\S+)", text)
    if unknown and "not in struct" in text:
        meant = nearest(unknown[1], known_keys(config_name, words))
        message = f"there is no key '{unknown[1]}'"
        if meant == unknown[1]:
            return f"{message}, but the command needs it; leave out ~{meant}"
        if meant:
            return f"{message}; did you mean '{meant}'?"
        if having := options_with(unknown[1]):
            return f"{message} here; {', '.join(having)} have it"
        return f"{message}; `--cfg job` shows every key, `+{unknown[1]}=` adds one"
    return message

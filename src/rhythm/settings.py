"""The settings of a run beside those of another: what may differ where one goes on, or is evaluated."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from rhythm.keys import flatten, override, parameter

CONFIG = "config.yaml"  # of a run's folder, all settings resolved
# What may change when a run is resumed: how long, how often, where, on what, in how much memory.
FREE = [f"{what}_every" for what in ("eval", "inspect", "checkpoint")]
FREE += ["iterations", "micro_batch_size", "ckpt_path", "output_dir", "first_iteration"]
FREE += ["doctor", "estimate", "prompt_tokens", "command", "choices"]
FREE += [f"algorithm.{name}" for name in ("iterations", "micro_batch_size", "max_not_finite")]
FREE += [f"sampler.{name}" for name in ("url", "folder", "model", "timeout", "patience")]
FREE_GROUPS = ("callbacks.", "logger.", "trainer.", "choices.")
# But for these: what is learned depends on them, or what is measured.
BOUND = ("trainer.precision", "callbacks.attention_signals")
BOUND += tuple(f"callbacks.evaluation.{name}" for name in ("problems", "samples", "prompts_at_once"))
# What a policy is asked and when it ends, and of what kind its trained weights are.
SUBJECT = [f"policy.{name}" for name in ("path", "full", "chat_template", "system_prompt", "stop_strings")]
PROBLEMS = ("task.train.", "task.test.")  # which problems, not how they are asked


def check_same_run(cfg: DictConfig, saved: Path) -> None:
    """Refuses to resume a run under settings that it was not started with."""
    if not saved.is_file():
        raise FileNotFoundError(
            f"there is no {saved}: a checkpoint is resumed in its run's folder, whose config is read"
        )
    before = flatten(OmegaConf.to_container(OmegaConf.load(saved)))  # data: nothing in it is resolved or instantiated
    now = flatten(OmegaConf.to_container(cfg, resolve=True))
    differing = [key for key in differences(before, now) if not is_free(key)]
    scheduled = now.get("algorithm.scheduler") is not None
    constant = not scheduled or str(now.get("algorithm.scheduler.name")).startswith("constant")
    if before["iterations"] != now["iterations"] and not constant:
        differing.insert(0, "iterations")  # the length of the schedule: its earlier part would have been another
    if differing:
        shown = ", ".join(f"{key} {_shown(before, key)} then and {_shown(now, key)} now" for key in differing[:4])
        raise ValueError(f"the run in {saved.parent} was started with other settings: {shown}; give it the same ones")


def differences(before: dict[str, Any], now: dict[str, Any], importing: str = "") -> list[str]:
    """The keys under which two runs' settings differ; one that a run lacks has there the value of being left out.

    So a run goes on that was begun before a key existed, as long as the key is not used: both make the same object.

    Args:
        importing: where both configs are mere data, what the names of objects begin with that may be imported. What it
            means to leave out a key of another, or of one that is gone, is not known, and differs from any value.
    """
    left_out = {key: unsaid(key, before, now, importing) for key in before.keys() ^ now.keys()}
    then, today = left_out | before, left_out | now
    groups = {key for key in then if isinstance(before.get(key, now.get(key)), dict)}
    return sorted(key for key in then.keys() - groups if then[key] != today[key])


def unsaid(key: str, before: dict[str, Any], now: dict[str, Any], importing: str = "") -> Any:
    """What it means to leave a key out: the default of what both configs make there; None where they differ in that."""
    group, _, name = key.rpartition(".")
    target = now.get(f"{group}._target_")
    if target is None or target != before.get(f"{group}._target_"):
        return None
    if not str(target).startswith(importing):
        return object()
    try:
        found = parameter(target, name)
    except ImportError:
        if not importing:
            raise
        return object()  # of a version that had it
    default = None if found is None or found.default is found.empty else found.default
    return list(default) if isinstance(default, tuple) else default


def is_free(key: str) -> bool:
    """Whether a key may change when a run is resumed: what is learned or measured depends on it by chance at most.

    By chance it does on the number of devices, each of which draws for itself.
    """
    return key in FREE or (key.startswith(FREE_GROUPS) and not key.startswith(BOUND))


def _shown(values: dict[str, Any], key: str) -> str:
    return repr(values[key]) if key in values else "absent"


def knobs(cfg: DictConfig) -> dict[str, Any]:
    """What runs are told apart by in a table: the values at the top of the config, and the credit with its settings."""
    told = (set(cfg) - set(FREE)) | {"iterations"}
    top = {key: value for key, value in cfg.items() if key in told and isinstance(value, bool | int | float)}
    credit = flatten(OmegaConf.to_container(cfg.credit, resolve=True), "credit.")
    return top | {key: value for key, value in credit.items() if not isinstance(value, dict)}


def check_same_subject(cfg: DictConfig, adapter: Path | None, words: Sequence[str] = ()) -> None:
    """Refuses to evaluate an adapter on another base or task than its run's config names; that is read as data only.

    Args:
        words: the overrides of the command, which what is to be added goes with.
    """
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
    differing = [key for key in differences(saved, now) if key in keys]
    if differing:
        raise ValueError(
            f"{adapter} was trained under other settings than these; add {_mend(saved, now, differing, words)}"
        )


def _mend(saved: dict[str, Any], now: dict[str, Any], differing: list[str], words: Sequence[str]) -> str:
    """What to add to a command for a run's settings: its task and policy where none was chosen, and single keys."""
    chosen = {word.partition("=")[0] for word in words}
    changed = {key.partition(".")[0] for key in differing}
    choices = {group: saved.get(f"choices.{group}") for group in ("task", "policy") if group in changed - chosen}
    said = {word.partition("=")[0] for word in shlex.split(saved.get("command") or "")}
    parts = [override(group, choice) for group, choice in choices.items() if choice]
    differing = [key for key in differing if not choices.get(key.partition(".")[0]) or key in said]
    for key in differing:
        plus = "" if key in now else "+"
        parts.append(override(f"{plus}{key}", saved[key]) if key in saved else shlex.quote(f"~{key}"))
    return " ".join(parts)


def run_folder(adapter: Path) -> Path | None:
    """The run that an adapter folder or a checkpoint belongs to, where it still stands in it."""
    folders = (adapter.parent, adapter.parent.parent)
    return next((folder for folder in folders if (folder / CONFIG).is_file()), None)

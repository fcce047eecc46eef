"""How head groups and marked tokens move from one policy to another, and which policies there are to look at."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rhythm.analysis.heads import overlaps, overlaps_by_chance
from rhythm.analysis.overlap import agreement, agreement_by_chance
from rhythm.analysis.study import CHOSEN, Analysis, AnalysisSettings, read_policy
from rhythm.analysis.tokens import amplified
from rhythm.policy import Policy
from rhythm.runs import find_adapter, read_checkpoint

BASE = "base"


def policies(ckpt_path: str | Sequence[str | None] | None) -> dict[str, Path | None]:
    """What a value of ckpt_path stands for: names to adapters, in order; None is the base.

    A run folder stands for its end, a folder of checkpoints for the base and each checkpoint by iteration, an adapter
    folder and a checkpoint for themselves, a list for its items.

    Raises:
        FileNotFoundError: there is no adapter where one was named.
        ValueError: the list is empty or names an adapter twice, or a checkpoint is damaged.
    """
    if isinstance(ckpt_path, str) and (files := list(Path(ckpt_path).glob("*.ckpt"))):
        iterations = {read_checkpoint(file)["iteration"]: file for file in sorted(files)}
        return {BASE: None, **{f"iteration {iteration}": iterations[iteration] for iteration in sorted(iterations)}}
    items = list(ckpt_path) if isinstance(ckpt_path, (list, tuple)) else [ckpt_path]
    if not all(isinstance(item, str | None) for item in items):
        raise ValueError(f"ckpt_path={ckpt_path}: takes a run, an adapter or a checkpoint, or a list of them")
    if not items:
        raise ValueError("ckpt_path=[]: name a run, an adapter or a checkpoint, or leave it out for the base")
    found: dict[str, Path | None] = {}
    for item in items:
        adapter = find_adapter(item)
        if adapter in found.values():
            raise ValueError(f"ckpt_path: {adapter or 'null'} is named twice; name each policy once")
        found[str(item or BASE)] = adapter
    return found


def movement(policy: Policy, found: Analysis, first: Analysis, settings: AnalysisSettings) -> dict[str, Any]:
    """How far a policy is from the one that was analyzed first: 1 is the same heads, or the same tokens.

    `heads` is the Jaccard index of each group; beside it stands, in the tables of both, how well the groups of two
    halves of the responses agree. `amplified` is the mean Jaccard index, over the responses of the first policy, of the
    tokens of highest WAAD drop or FAI there by its attention and by this policy's, read as the analysis reads it;
    training selects by its own layers and horizon. `_by_chance` is what either would be on average of as many heads,
    or tokens, thrown at random.
    """
    mask = first.rollout.completion_mask
    reading = read_policy(policy, first.rollout, {CHOSEN: found.layers[CHOSEN]}, settings)
    now, before = reading.signals[CHOSEN], first.reading.signals[CHOSEN]
    ours, theirs = (amplified(signals, mask, settings.top_fraction) for signals in (now, before))
    eligible = {"preplan": mask & ~now.waad_drop(mask).isnan(), "anchor": mask & ~now.fai.isnan()}
    selections = (found.reading.selections[CHOSEN], first.reading.selections[CHOSEN])
    heads = sum(len(values) for values in reading.sums.distance.values())
    return {
        "heads": overlaps(*selections),
        "heads_by_chance": overlaps_by_chance(*selections, among=heads),
        "amplified": {kind: float(agreement(ours[kind], theirs[kind]).nanmean()) for kind in ours},
        "amplified_by_chance": {
            kind: float(agreement_by_chance(ours[kind], eligible[kind]).nanmean()) for kind in ours
        },
    }

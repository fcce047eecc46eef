"""The paper's Section 4 on one policy: responses, what attention says about them, and the tables."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

from torch import Tensor

from rhythm.analysis.alignment import OFFSETS, by_example, by_offset
from rhythm.analysis.coupling import PROMINENCE, Lift, Null, table_2
from rhythm.analysis.effects import table_1
from rhythm.analysis.heads import head_tables
from rhythm.analysis.intervals import RESAMPLES
from rhythm.analysis.layers import thirds
from rhythm.analysis.perturbation import PerturbationSettings, Trial, perturb
from rhythm.analysis.reading import Reading, read
from rhythm.analysis.responses import Short, long_enough, respond
from rhythm.analysis.tokens import amplified, words
from rhythm.attention.definitions import SignalSettings
from rhythm.attention.heads import Layers, check_groups, resolve_layers
from rhythm.attention.probe import num_layers
from rhythm.attention.signals import check_readable
from rhythm.policy import Policy
from rhythm.tasks.base import Problem, Task
from rhythm.types import Rollout

CHOSEN = "chosen"  # the selection of all chosen layers together, beside their thirds
Progress = Callable[[str, float], None]  # told what is under way, and the share of it that is done


@dataclass(frozen=True, kw_only=True)
class AnalysisSettings:
    """Sizes, and what the paper leaves open.

    Args:
        responses: how many held-out problems are answered, once each; the paper's number.
        temperature: of the responses of all tables but the first, whose originals are greedy.
        layers: "all", "middle", "top", "bottom" or a list of 0-based layers.
        signals: window, horizon and the rest; FAI runs to the end of the response, as in the paper's analysis.
        head_fraction: share of the heads of these layers, or of their third, in the local and in the global group.
        receiver_fraction: share of them that are receiver heads.
        prominence: by how many standard deviations of its response a peak must stand out.
        offsets: tokens from a WAAD peak to an FAI peak.
        permute: how marks are thrown anew for p-values; see `Lift.shuffled`.
        top_fraction: share of a response's tokens that are marked, those of highest WAAD drop and of highest FAI.
        perturbation: None leaves out Table 1.
        short: "refuse" a response with fewer tokens than the window, or "leave_out".
        resamples: of every bootstrap and permutation.
        micro_batch_size: sequences in one forward pass. batch_size: responses written together. Both bound the memory.
    """

    responses: int = 70
    temperature: float = 0.7
    max_completion_tokens: int = 200
    layers: Layers = "all"
    signals: SignalSettings = field(default_factory=lambda: SignalSettings(horizon=(0, None)))
    head_fraction: float = 0.3
    receiver_fraction: float = 0.3
    prominence: float = PROMINENCE
    offsets: Sequence[int] = OFFSETS
    permute: Null = "shuffle"
    top_fraction: float = 0.4
    perturbation: PerturbationSettings | None = field(default_factory=PerturbationSettings)
    short: Short = "refuse"
    resamples: int = RESAMPLES
    seed: int = 0
    micro_batch_size: int = 16
    batch_size: int = 64

    def __post_init__(self) -> None:
        least = {"responses": 2, "max_completion_tokens": 1, "resamples": 100, "micro_batch_size": 1, "batch_size": 1}
        for name, smallest in {**least, "seed": 0}.items():
            if not isinstance(getattr(self, name), int) or getattr(self, name) < smallest:
                raise ValueError(f"{name}={getattr(self, name)}: must be a whole number, {smallest} or more")
        for name in ("temperature", "prominence", "top_fraction", "head_fraction", "receiver_fraction"):
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or not math.isfinite(value) or value < 0:
                raise ValueError(f"{name}={value}: must be a number, at least 0")
        if not 0 < self.top_fraction <= 1:
            raise ValueError(f"top_fraction={self.top_fraction}: must be above 0 and at most 1")
        offsets = self.offsets if isinstance(self.offsets, (list, tuple)) else ()
        whole = all(isinstance(offset, int) for offset in offsets)
        if not whole or not 0 < len(offsets) == len(set(offsets)):
            raise ValueError(f"offsets={self.offsets}: takes whole numbers of tokens, each once, like [-1,0,1]")
        if not isinstance(self.perturbation, PerturbationSettings | None):
            raise ValueError(f"perturbation={self.perturbation}: takes settings like perturbation.tail=5, or null")
        for name, options in {"permute": get_args(Null), "short": get_args(Short)}.items():
            if getattr(self, name) not in options:
                raise ValueError(f"{name}={getattr(self, name)}: use one of {', '.join(options)}")
        for name in ("head_fraction", "receiver_fraction"):
            check_groups("distance", getattr(self, name), name)


@dataclass(frozen=True)
class Analysis:
    """What was measured, and on what."""

    tables: dict[str, Any]  # as in analysis.json
    rollout: Rollout  # the sampled responses
    reading: Reading  # of them
    layers: dict[str, list[int]]  # the chosen ones, and their thirds


def analyze(
    policy: Policy,
    task: Task,
    settings: AnalysisSettings | None = None,
    progress: Progress = lambda stage, share: None,
) -> Analysis:
    """Answers held-out problems and measures Tables 1, 2, 10 and 20 of arXiv:2510.13554 on the responses.

    Raises:
        ValueError: the model's attention cannot be read, a response is too short, or there are too few problems.
    """
    settings = settings or AnalysisSettings()
    problems = task.held_out(settings.responses)
    if len(problems) < settings.responses:
        raise ValueError(f"responses={settings.responses}: the task has only {len(problems)} held-out problems")
    policy.eval()
    check_readable(policy.model, settings.layers)
    layers = layer_choices(policy, settings)
    rollout = _respond(policy, task, problems, settings, settings.temperature, progress, "responses")
    progress("attention", 0.0)
    reading = read_policy(policy, rollout, layers, settings)
    progress("attention", 1.0)
    lifts = {name: _table_2(reading, rollout.completion_mask, settings, name) for name in layers}
    offsets = by_offset(
        reading.signals[CHOSEN].waad,
        reading.signals[CHOSEN].fai,
        rollout.completion_mask,
        settings.offsets,
        settings.prominence,
    )
    trials = _perturb(policy, task, problems, settings, progress)
    summaries = _summaries(lifts | {"offsets": offsets}, settings, progress)
    tables = {
        "responses": describe(rollout, settings.responses),
        **({"perturbation": table_1(trials, resamples=settings.resamples, seed=settings.seed)} if trials else {}),
        "coupling": summaries.pop(CHOSEN),
        "alignment": {"offsets": summaries.pop("offsets"), "examples": by_example(offsets)},
        "layers": {name: {"layers": layers[name], **of} for name, of in summaries.items()},
        "heads": head_tables(reading, layers, settings.head_fraction, settings.receiver_fraction),
        "tokens": {
            kind: words(chosen, rollout.completion_ids, rollout.completion_mask, policy.tokenizer)
            for kind, chosen in amplified(
                reading.signals[CHOSEN], rollout.completion_mask, settings.top_fraction
            ).items()
        },
    }
    return Analysis(tables, rollout, reading, layers)


def layer_choices(policy: Policy, settings: AnalysisSettings) -> dict[str, list[int]]:
    """The chosen layers and their thirds."""
    chosen = resolve_layers(settings.layers, num_layers(policy.model))
    return {CHOSEN: chosen, **thirds(chosen)}


def describe(rollout: Rollout, asked: int) -> dict[str, Any]:
    lengths = rollout.completion_mask.sum(1).float()
    return {
        "count": len(lengths),
        "left_out_as_short": asked - len(lengths),
        "mean_length": float(lengths.mean()),
        "truncated": float(rollout.truncated.float().mean()),
        "reward": float(rollout.rewards.nanmean()),
    }


def _respond(
    policy: Policy,
    task: Task,
    problems: list[Problem],
    settings: AnalysisSettings,
    temperature: float,
    progress: Progress,
    stage: str,
) -> Rollout:
    rollout = respond(
        policy,
        task,
        problems,
        temperature=temperature,
        max_completion_tokens=settings.max_completion_tokens,
        batch_size=settings.batch_size,
        seed=settings.seed,
        progress=lambda share: progress(stage, share),
    )
    return long_enough(rollout, settings.signals.window, settings.short)


def read_policy(
    policy: Policy, rollout: Rollout, layers: dict[str, list[int]], settings: AnalysisSettings, **changes: Any
) -> Reading:
    reading = read(
        policy.model,
        rollout,
        layers,
        settings.signals,
        head_fraction=settings.head_fraction,
        receiver_fraction=settings.receiver_fraction,
        micro_batch_size=settings.micro_batch_size,
        **{"temperature": settings.temperature or 1.0, **changes},
    )
    if not all(selection.receivers for selection in reading.selections.values()):
        raise ValueError(
            f"no response is long enough to tell receiver heads: lower signals.receiver_gap="
            f"{settings.signals.receiver_gap}, or raise max_completion_tokens"
        )
    return reading


def _table_2(reading: Reading, mask: Tensor, settings: AnalysisSettings, name: str) -> dict[str, Lift]:
    return table_2(reading.entropy, **vars(reading.signals[name]), mask=mask, prominence=settings.prominence)


def _perturb(
    policy: Policy, task: Task, problems: list[Problem], settings: AnalysisSettings, progress: Progress
) -> list[Trial]:
    if settings.perturbation is None:
        return []
    greedy = _respond(policy, task, problems, settings, 0.0, progress, "greedy originals")
    layers = {CHOSEN: layer_choices(policy, settings)[CHOSEN]}
    reading = read_policy(policy, greedy, layers, settings, temperature=1.0)
    trials = perturb(
        policy,
        task,
        greedy,
        reading.signals[CHOSEN].fai,
        settings.perturbation,
        max_completion_tokens=settings.max_completion_tokens,
        micro_batch_size=settings.micro_batch_size,
        batch_size=settings.batch_size,
        progress=lambda share: progress("forced tokens", share),
    )
    if not trials:
        raise ValueError(
            "no greedy response is long enough for Table 1: lower perturbation.positions or perturbation.tail, raise "
            "max_completion_tokens, or leave it out by perturbation=null"
        )
    return trials


def _summaries(
    tables: dict[str, dict[Any, Lift]], settings: AnalysisSettings, progress: Progress
) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {name: {} for name in tables}
    lifts = [(name, key, lift) for name, of in tables.items() for key, lift in of.items()]
    for done, (name, key, lift) in enumerate(lifts, 1):
        found[name][str(key)] = lift.summary(resamples=settings.resamples, null=settings.permute, seed=settings.seed)
        progress("statistics", done / len(lifts))
    return found

"""The paper's Section 4 on one policy: responses, what attention says about them, and the tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from rhythm.analysis.alignment import OFFSETS, by_example, by_offset
from rhythm.analysis.coupling import PROMINENCE, Lift, Null, table_2
from rhythm.analysis.effects import table_1
from rhythm.analysis.heads import head_tables, overlaps
from rhythm.analysis.intervals import RESAMPLES
from rhythm.analysis.layers import thirds
from rhythm.analysis.perturbation import PerturbationSettings, Trial, perturb
from rhythm.analysis.reading import Reading, read
from rhythm.analysis.responses import Short, long_enough, respond
from rhythm.analysis.tokens import agreement, amplified, words
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
        head_fraction: share of the heads of these layers, or of their third, in each group.
        prominence: by how many standard deviations of its response a peak must stand out.
        offsets: tokens from a WAAD peak to an FAI peak.
        permute: how marks are thrown anew for p-values; see `Lift.shuffled`.
        top_fraction: share of a response's tokens that credit would amplify.
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
        for name, smallest in least.items():
            if getattr(self, name) < smallest:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least {smallest}")
        if self.temperature < 0 or self.prominence < 0:
            name = "temperature" if self.temperature < 0 else "prominence"
            raise ValueError(f"{name}={getattr(self, name)}: must be at least 0")
        if not 0 < self.top_fraction <= 1:
            raise ValueError(f"top_fraction={self.top_fraction}: must be above 0 and at most 1")
        if not self.offsets:
            raise ValueError("offsets=[]: name one, such as offsets=[0,1]")
        check_groups("distance", self.head_fraction)


@dataclass(frozen=True)
class Analysis:
    """What was measured, and on what."""

    tables: dict[str, Any]  # as in analysis.json
    rollout: Rollout  # the sampled responses
    reading: Reading  # of them
    lifts: dict[str, Lift]
    trials: list[Trial]


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
    reading = _read(policy, rollout, layers, settings)
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
    summaries = {name: _summaries(of, settings, progress) for name, of in lifts.items()}
    tables = {
        "responses": describe(rollout, settings.responses),
        **({"perturbation": table_1(trials, resamples=settings.resamples, seed=settings.seed)} if trials else {}),
        "coupling": summaries.pop(CHOSEN),
        "layers": {name: {"layers": layers[name], **of} for name, of in summaries.items()},
        "alignment": {"offsets": _summaries(offsets, settings, progress), "examples": by_example(offsets)},
        "heads": head_tables(reading, layers, settings.head_fraction),
        "tokens": {
            kind: words(chosen, rollout.completion_ids, rollout.completion_mask, policy.tokenizer)
            for kind, chosen in amplified(
                reading.signals[CHOSEN], rollout.completion_mask, settings.top_fraction
            ).items()
        },
    }
    return Analysis(tables, rollout, reading, lifts[CHOSEN], trials)


def layer_choices(policy: Policy, settings: AnalysisSettings) -> dict[str, list[int]]:
    """The chosen layers and their thirds."""
    chosen = resolve_layers(settings.layers, num_layers(policy.model))
    return {CHOSEN: chosen, **thirds(chosen)}


def movement(policy: Policy, found: Analysis, first: Analysis, settings: AnalysisSettings) -> dict[str, Any]:
    """How far a policy is from the one that was analyzed first: 1 is the same heads, or the same tokens.

    `heads` is the Jaccard index of each group; beside it stands, in the tables of both, how well the groups of two
    halves of the responses agree. `amplified` is the mean Jaccard index, over the responses of the first policy, of the
    tokens that credit would select there by its attention and by this policy's.
    """
    chosen = {CHOSEN: layer_choices(policy, settings)[CHOSEN]}
    mask = first.rollout.completion_mask
    now = _read(policy, first.rollout, chosen, settings).signals[CHOSEN]
    before, after = (
        amplified(signals, mask, settings.top_fraction) for signals in (first.reading.signals[CHOSEN], now)
    )
    return {
        "heads": overlaps(found.reading.selections[CHOSEN], first.reading.selections[CHOSEN]),
        "amplified": {kind: float(agreement(before[kind], after[kind]).nanmean()) for kind in before},
    }


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


def _read(
    policy: Policy, rollout: Rollout, layers: dict[str, list[int]], settings: AnalysisSettings, **changes: Any
) -> Reading:
    return read(
        policy.model,
        rollout,
        layers,
        settings.signals,
        head_fraction=settings.head_fraction,
        micro_batch_size=settings.micro_batch_size,
        **{"temperature": settings.temperature or 1.0, **changes},
    )


def _table_2(reading: Reading, mask: Tensor, settings: AnalysisSettings, name: str) -> dict[str, Lift]:
    return table_2(reading.entropy, **vars(reading.signals[name]), mask=mask, prominence=settings.prominence)


def _perturb(
    policy: Policy, task: Task, problems: list[Problem], settings: AnalysisSettings, progress: Progress
) -> list[Trial]:
    if settings.perturbation is None:
        return []
    greedy = _respond(policy, task, problems, settings, 0.0, progress, "greedy originals")
    layers = {CHOSEN: layer_choices(policy, settings)[CHOSEN]}
    reading = _read(policy, greedy, layers, settings, temperature=1.0)
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


def _summaries(lifts: dict[Any, Lift], settings: AnalysisSettings, progress: Progress) -> dict[str, Any]:
    found = {}
    for i, (name, lift) in enumerate(lifts.items(), 1):
        found[str(name)] = lift.summary(resamples=settings.resamples, null=settings.permute, seed=settings.seed)
        progress("statistics", i / len(lifts))
    return found

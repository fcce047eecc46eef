"""What hangs on a token: other tokens are forced in its place and the text goes on. Table 1 of arXiv:2510.13554."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from rhythm.analysis.overlap import jaccard
from rhythm.policy import Policy
from rhythm.rollout import sample
from rhythm.scoring import completion_logits, micro_batches, to_completion
from rhythm.tasks.base import Task
from rhythm.tasks.words import content_words, numbers_in
from rhythm.types import Prompts, Rollout

ContentWords = Literal["task", "words", "numbers"]
SIDES = ("top", "bottom", "matched")


@dataclass(frozen=True, kw_only=True)
class PerturbationSettings:
    """What the paper leaves open about Table 1, and our defaults.

    Args:
        positions: places of a response on each side: of its highest and of its lowest FAI.
        alternatives: tokens forced at each place, the most probable ones but the original.
        tail: places with fewer tokens of the original behind them are left out: little is left there to differ.
        match_within: for each top place the lowest FAI within so many tokens is perturbed too, as a control for the
            place in the response; 0 leaves that control out.
        content_words: what two texts are compared by: "task", as the task says (Countdown: the numbers), "words", all
            but English function words, or "numbers".
        end_is_alternative: whether the end of sequence may be forced, which leaves no continuation.
    """

    positions: int = 3
    alternatives: int = 3
    tail: int = 10
    match_within: int = 10
    content_words: ContentWords = "task"
    end_is_alternative: bool = False

    def __post_init__(self) -> None:
        least = {"positions": 1, "alternatives": 1, "tail": 1, "match_within": 0}
        for name, smallest in least.items():
            value = getattr(self, name)
            if not isinstance(value, int) or value < smallest:
                raise ValueError(f"perturbation.{name}={value}: must be a whole number, {smallest} or more")
        if self.content_words not in get_args(ContentWords):
            raise ValueError(
                f"perturbation.content_words={self.content_words}: use one of {', '.join(get_args(ContentWords))}"
            )

    def content_of(self, task: Task) -> Callable[[str], set[str]]:
        """What gives the content words of a text."""
        return {"task": task.content_words, "words": content_words, "numbers": numbers_in}[self.content_words]


class Place(NamedTuple):
    """A token of a response that is replaced."""

    row: int  # of the rollout
    column: int  # of the completion
    side: str  # one of SIDES


@dataclass(frozen=True)
class Trial:
    """One forced token and what came of it."""

    row: int
    side: str
    column: int
    depth: float  # the share of the response that stands before the place
    entropy: float  # nats, of the distribution at the place
    probability: float  # of the forced token there
    forced: str
    original: str
    overlap: float | None  # Jaccard index of the content words behind the place; None where neither text has any


def choose_places(fai: Tensor, mask: Tensor, settings: PerturbationSettings) -> list[Place]:
    """The places of highest and lowest FAI of each response; of equal values the earlier token counts as higher.

    So no place is on both sides. Responses with fewer than 2 · `positions` eligible tokens are left out.

    Args:
        fai: [N, T], NaN where undefined.
        mask: [N, T] bool, True on response tokens.
    """
    places = []
    behind = mask.sum(1, keepdim=True) - mask.cumsum(1)  # tokens of the original after each one
    eligible = mask & ~fai.isnan() & (behind >= settings.tail)
    for row, (values, allowed) in enumerate(zip(fai.double().cpu().tolist(), eligible.cpu(), strict=True)):
        columns = sorted(allowed.nonzero()[:, 0].tolist(), key=lambda column: (-values[column], column))
        if len(columns) < 2 * settings.positions:
            continue
        top, bottom = columns[: settings.positions], columns[-settings.positions :]
        places += [Place(row, column, "top") for column in top] + [Place(row, column, "bottom") for column in bottom]
        rest = columns[settings.positions :]
        places += [Place(row, column, "matched") for column in match(top, rest, settings.match_within)]
    return places


def match(top: Sequence[int], rest: Sequence[int], within: int) -> list[int]:
    """For each top place the last of `rest`, in descending order of FAI, that is near it and not taken yet."""
    taken: list[int] = []
    for place in top:
        near = [column for column in rest if abs(column - place) <= within and column not in taken]
        taken += near[-1:]
    return taken


@torch.no_grad()
def perturb(
    policy: Policy,
    task: Task,
    rollout: Rollout,
    fai: Tensor,
    settings: PerturbationSettings,
    *,
    max_completion_tokens: int,
    micro_batch_size: int = 16,
    batch_size: int = 64,
    progress: Callable[[float], None] = lambda share: None,
) -> list[Trial]:
    """Forces the alternatives at the chosen places of greedy responses and continues greedily, many at a time.

    Continuations end where the original had to: a response has at most `max_completion_tokens` tokens.

    Args:
        rollout: greedy responses, N of them.
        fai: [N, T] of them.
        batch_size: continuations written together.
        progress: told the share that is done.
    """
    places = choose_places(fai, rollout.completion_mask, settings)
    if not places:
        return []
    never = {policy.tokenizer.pad_token_id, *policy.tokenizer.all_special_ids, *policy.stopping.token_ids}
    if settings.end_is_alternative:
        never -= set(policy.stopping.token_ids)
    ranked = alternatives(policy.model, rollout, places, settings.alternatives, never, micro_batch_size)
    jobs = [(place, *token) for place, tokens in zip(places, ranked, strict=True) for token in tokens]
    jobs.sort(key=lambda job: int(rollout.prompt_lengths[job[0].row]) + job[0].column)  # so that little is padded
    content, trials = settings.content_of(task), []
    for start in range(0, len(jobs), batch_size):
        batch = jobs[start : start + batch_size]
        places_forced = [(place, token) for place, token, *_ in batch]
        texts = continuations(policy, rollout, places_forced, max_completion_tokens)
        trials += [_trial(policy, content, rollout, job, text) for job, text in zip(batch, texts, strict=True)]
        progress(len(trials) / len(jobs))
    return sorted(trials, key=lambda trial: (trial.row, SIDES.index(trial.side), trial.column, -trial.probability))


def alternatives(
    model, rollout: Rollout, places: Sequence[Place], count: int, never: set[int], micro_batch_size: int
) -> list[list[tuple[int, float, float]]]:
    """Of each place the most probable tokens but the original: (token, its probability, entropy of the place)."""
    found: dict[tuple[int, int], list[tuple[int, float, float]]] = {}
    rows = torch.tensor(sorted({place.row for place in places}), device=rollout.input_ids.device, dtype=torch.long)
    for batch in micro_batches(rollout, rows, micro_batch_size):
        logits, _ = completion_logits(model, batch)
        at = to_completion(torch.arange(logits.shape[1], device=logits.device).expand(logits.shape[:2]), batch)
        numbers = {row: i for i, row in enumerate(batch.rows.tolist())}
        for row, column in {(place.row, place.column) for place in places if place.row in numbers}:
            i = numbers[row]
            logps = logits[i, at[i, column]].double().log_softmax(-1)
            entropy = float(torch.special.entr(logps.exp()).sum())
            banned = [*never, int(rollout.completion_ids[row, column])]
            logps[banned] = -torch.inf
            best = logps.topk(min(count, int(logps.isfinite().sum())))
            pairs = zip(best.indices.tolist(), best.values.exp().tolist(), strict=True)
            found[row, column] = [(token, probability, entropy) for token, probability in pairs]
    return [found[place.row, place.column] for place in places]


def continuations(
    policy: Policy, rollout: Rollout, forced: Sequence[tuple[Place, int]], max_completion_tokens: int
) -> list[str]:
    """The greedy text behind each forced token, as long as the whole response may still be."""
    heads = []
    for place, token in forced:
        stop = int(rollout.prompt_lengths[place.row]) + place.column
        heads.append([*rollout.input_ids[place.row, :stop].tolist(), token])
    longest = max(map(len, heads))
    pad, ends = policy.tokenizer.pad_token_id, policy.stopping.token_ids
    ids = torch.tensor([[pad] * (longest - len(head)) + head for head in heads], device=policy.device)
    mask = torch.tensor([[False] * (longest - len(head)) + [True] * len(head) for head in heads], device=policy.device)
    room = [max_completion_tokens - place.column - 1 for place, _ in forced]
    texts = [""] * len(forced)
    going = [i for i, (_, token) in enumerate(forced) if token not in ends and room[i] > 0]
    if going:
        prompts = Prompts(ids[going], mask[going], [rollout.problems[forced[i][0].row] for i in going])
        most = max(room[i] for i in going)
        settings = {"max_completion_tokens": most, "temperature": 0.0, "stopping": policy.stopping}
        with policy.folded():
            written = sample(policy.model, policy.tokenizer, prompts, group_size=1, **settings)
        for i, row, kept in zip(going, written.completion_ids, written.completion_mask, strict=True):
            kept[room[i] :] = False
            texts[i] = policy.tokenizer.decode(row[kept], skip_special_tokens=True)
    return texts


def _trial(policy: Policy, content: Callable[[str], set[str]], rollout: Rollout, job: tuple, text: str) -> Trial:
    place, token, probability, entropy = job
    length = int(rollout.completion_mask[place.row].sum())
    ids = rollout.completion_ids[place.row, :length]
    original = policy.tokenizer.decode(ids[place.column + 1 :], skip_special_tokens=True)
    return Trial(
        row=place.row,
        side=place.side,
        column=place.column,
        depth=place.column / length,
        entropy=entropy,
        probability=probability,
        forced=policy.tokenizer.decode([token]),
        original=policy.tokenizer.decode([int(ids[place.column])]),
        overlap=jaccard(content(original), content(text)),
    )

"""What the credit did: in TensorBoard completions, figures and histograms, and a page of every rollout looked at."""

from __future__ import annotations

import string
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from lightning.pytorch.loggers import TensorBoardLogger
from matplotlib.figure import Figure
from torch import Tensor

from rhythm.callbacks.attention_signals import AttentionSignals
from rhythm.callbacks.observer import RolloutObserver
from rhythm.credit.base import OF_ATTENTION
from rhythm.data import collate_prompts
from rhythm.inspection.drawing import pixels
from rhythm.inspection.figures import curves_figure, heads_figure, maps_figure
from rhythm.inspection.maps import mean_maps
from rhythm.inspection.page import rollout_page
from rhythm.inspection.responses import Response, describe, marked_fraction
from rhythm.inspection.tokens import tokens_figure
from rhythm.rollout import sample
from rhythm.seeding import derive_seed, generator
from rhythm.types import AttentionSignals as Signals
from rhythm.types import Prompts, Rollout

if TYPE_CHECKING:
    from rhythm.module import GRPOModule

Maps = tuple[Tensor, Tensor]  # of the local heads and of the global ones, [n, n] each


class Inspection(RolloutObserver):
    """Shows some completions as text and as figures, the latest rollout as a page, and histograms of its tokens.

    `fresh` completions are of the rollout that the iteration learned from, with all that is told of them under the
    policy that wrote them. `fixed` ones answer the same held-out problems every time, sampled with the same random
    numbers by the policy as it is now, so that what changes between two looks is the policy. Looking changes nothing
    that is trained.

    Args:
        folder: the run's; the pages go to `inspect/` in it.
        every: iterations between two looks; the first and the last iteration are always looked at.
        completions: how many are shown as text, each of another prompt.
        fresh, fixed: how many are drawn; 0 draws none.
        page: whether to write pages.
    """

    def __init__(
        self, folder: str, *, every: int = 20, completions: int = 4, fresh: int = 2, fixed: int = 2, page: bool = True
    ):
        if every < 1:
            raise ValueError(f"inspect_every={every}: must be at least 1")
        for name, count in {"completions": completions, "fresh": fresh, "fixed": fixed}.items():
            if count < 0:
                raise ValueError(f"callbacks.inspection.{name}={count}: must be at least 0")
        self.folder = Path(folder)
        self.every = every
        self.completions = completions
        self.fresh = fresh
        self.fixed = fixed
        self.page = page

    def due(self, module: GRPOModule) -> bool:
        return module.iteration in (1, module.iterations) or module.iteration % self.every == 0

    def scored(self, module: GRPOModule, rollout: Rollout) -> dict[str, float]:
        """Reads the maps of fresh completions, before an update makes the policy another."""
        self._maps: dict[int, Maps] = {}
        if self.due(module) and boards(module):
            with module.policy.whole():
                if module.trainer.is_global_zero:
                    self._maps = read_maps(module, rollout, self._fresh_rows(module, rollout))
        return {}

    def learned(self, module: GRPOModule, rollout: Rollout) -> None:
        if not self.due(module) or not module.trainer.is_global_zero:
            return
        if self.page:
            self._write_page(module, rollout)
        if boards(module):
            texts = completion_notes(rollout, module.group_size, self.completions)
            figures = {tag: pixels(figure) for tag, figure in self._figures(module, rollout)}
        for logger in boards(module):
            board, step = logger.experiment, module.iteration
            board.add_text("completions", texts, step)
            for tag, image in figures.items():
                board.add_image(tag, image, step, dataformats="HWC")
            for tag, values in histograms(rollout).items():
                board.add_histogram(tag, values, step)
            logger.save()

    def _fresh_rows(self, module: GRPOModule, rollout: Rollout) -> range:
        return range(0, len(rollout.completions), module.group_size)[: self.fresh]

    def _write_page(self, module: GRPOModule, rollout: Rollout) -> None:
        responses = describe_all(module, rollout, range(len(rollout.completions)))
        title = f"Iteration {module.iteration}: {module.credit.name} credit"
        note = f"{len(responses)} completions of {len(responses) // module.group_size} prompts."
        path = self.folder / "inspect" / f"iteration_{module.iteration:06}.html"
        path.parent.mkdir(exist_ok=True)
        path.write_text(rollout_page(responses, title, note), encoding="utf-8")

    def _figures(self, module: GRPOModule, rollout: Rollout) -> Iterator[tuple[str, Figure]]:
        """By TensorBoard tag: of each response its tokens, curves and maps; of the heads their distances."""
        at = f"iteration {module.iteration}"
        yield from self._responses("fresh", at, module, rollout, self._fresh_rows(module, rollout), self._maps)
        if self.fixed:
            again = fixed_rollout(module, self.fixed)
            rows = range(len(again.completions))
            yield from self._responses("fixed", at, module, again, rows, read_maps(module, again, rows))
        if rollout.signals.distance:
            yield "heads/distance", heads_figure(rollout.signals.distance, rollout.signals.heads, f"Heads, {at}")

    def _responses(
        self, kind: str, at: str, module: GRPOModule, rollout: Rollout, rows: range, maps: dict[int, Maps]
    ) -> Iterator[tuple[str, Figure]]:
        for i, response in enumerate(describe_all(module, rollout, rows)):
            title = f"{kind} prompt {i + 1}, {at}"
            yield f"{kind}_{i + 1}/tokens", tokens_figure(response, title)
            yield f"{kind}_{i + 1}/curves", curves_figure(response, title)
            if rows[i] in maps:
                settings = attention_reader(module).settings
                yield f"{kind}_{i + 1}/maps", maps_figure(*maps[rows[i]], response, title, settings)


def boards(module: GRPOModule) -> list[TensorBoardLogger]:
    return [logger for logger in module.loggers if isinstance(logger, TensorBoardLogger)]


def attention_reader(module: GRPOModule) -> AttentionSignals | None:
    """The callback of the run that reads attention."""
    return next((callback for callback in module.trainer.callbacks if isinstance(callback, AttentionSignals)), None)


def read_maps(module: GRPOModule, rollout: Rollout, rows: range) -> dict[int, Maps]:
    """The mean maps of some rows under the policy as it is; none where the run reads no attention."""
    heads, reader = rollout.signals.heads, attention_reader(module)
    if heads is None or reader is None:
        return {}
    maps = {}
    for row in rows:
        ids = rollout.input_ids[row][rollout.attention_mask[row]]
        maps[row] = mean_maps(module.policy.model, ids, int(rollout.prompt_lengths[row]), heads, reader.settings)
    return maps


def describe_all(module: GRPOModule, rollout: Rollout, rows: range) -> list[Response]:
    """Some rows as they are shown, preplan and anchor marks by the share that the module's credit chooses."""
    return describe(
        rollout,
        module.policy.tokenizer,
        rows,
        group_size=module.group_size,
        eligible=module.eligible(rollout),
        fraction=marked_fraction(module.credit),
    )


def fixed_rollout(module: GRPOModule, count: int) -> Rollout:
    """One completion of each of some held-out problems, with rewards and signals, but no advantages.

    Credit too where it reads entropy and attention alone: what another callback provides is there in training only.
    """
    problems = module.task.held_out(count)
    prompts = collate_prompts(module.task, module.policy.tokenizer, problems, module.policy.chat)
    with module.policy.folded():
        rollout = sample(
            module.policy.model,
            module.policy.tokenizer,
            Prompts(prompts.input_ids.to(module.device), prompts.attention_mask.to(module.device), problems),
            group_size=1,
            max_completion_tokens=module.max_completion_tokens,
            temperature=module.temperature,
            stopping=module.policy.stopping,
            generator=generator(module.seed, "inspection", device=module.device),
        )
    rollout.rewards = module.task.rewards(rollout).to(module.device)
    _, entropy = module.score(rollout)
    reader = attention_reader(module)
    rollout.signals = Signals() if reader is None else reader.read(module, rollout)
    rollout.signals.entropy = entropy
    if module.credit.requires <= {"entropy", *(() if reader is None else OF_ATTENTION)}:
        seed = derive_seed(module.seed, "credit", module.iteration, module.global_rank)
        rollout.credit = module.credit(rollout.signals, module.eligible(rollout), seed=seed)
    return rollout


def completion_notes(rollout: Rollout, group_size: int, count: int) -> str:
    """Markdown: the first completions of as many prompts, each under a line of numbers.

    Paragraphs rather than a table: TensorBoard would break the words of its narrow columns. Text is escaped.
    """
    notes = []
    for i in range(0, len(rollout.completions), group_size)[:count]:
        problem = ", ".join(f"{key} {value}" for key, value in rollout.problems[i].items())
        numbers = (
            f"reward {float(rollout.rewards[i]):g}, advantage {float(rollout.advantages[i]):+.2f}, "
            f"{int(rollout.completion_mask[i].sum())} tokens"
        )
        notes.append(f"**{escape(numbers)}** {escape(problem)}\n\n> {escape(rollout.completions[i])}")
    return "\n\n".join(notes)


def escape(text: str) -> str:
    """Text that Markdown shows as it is, on one line of its own: every mark of ASCII by its number.

    So are spaces and tabs at its start: four of them would make it code, in which numbers show as they are.
    """
    start = text[: len(text) - len(text.lstrip(" \t"))]
    marked = "".join(f"&#{ord(mark)};" if mark in string.punctuation else mark for mark in text[len(start) :])
    return "&#160;" * len(start) + " ↵ ".join(marked.splitlines())


def histograms(rollout: Rollout) -> dict[str, Tensor]:
    """Values over the defined tokens of the rollout, by tag."""
    mask, signals = rollout.completion_mask, rollout.signals
    tokens = {"credit/weights": rollout.credit, "signals/entropy": signals.entropy}
    tokens |= {f"signals/{name}": getattr(signals, name) for name in ("waad", "waad_drop", "fai")}
    found = {tag: values[mask & ~values.isnan()] for tag, values in tokens.items() if values is not None}
    found["advantages"] = rollout.advantages
    return {tag: values for tag, values in found.items() if values.numel()}

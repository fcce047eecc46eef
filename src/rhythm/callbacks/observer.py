"""The event that a callback may hook: the scoring pass, which reads every sampled token once anyway."""

from __future__ import annotations

from abc import ABC
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from lightning.pytorch import Callback

from rhythm.credit.base import CreditStrategy, remedy
from rhythm.types import Rollout

if TYPE_CHECKING:
    from rhythm.metrics import Mean
    from rhythm.module import GRPOModule
    from rhythm.scoring import MicroBatch


class RolloutObserver(Callback, ABC):
    """A callback that sees every rollout. Override what you need; all of it runs on every rank.

    With trainer=fsdp a pass of the model in `scored` is made by every rank or none, or inside `policy.whole()`, which
    every rank enters; in `learned` weights are whole.
    """

    provides: frozenset[str] = frozenset()  # the fields of rollout.signals that it fills, new ones included

    def begin_scoring(self, module: GRPOModule) -> None:
        """Before the first micro-batch of the scoring pass; once more where it ran out of memory and begins again."""

    @contextmanager
    def scoring(self, module: GRPOModule, batch: MicroBatch) -> Iterator[None]:
        """Around the forward pass of each micro-batch of the scoring pass, under no_grad."""
        yield

    def scored(self, module: GRPOModule, rollout: Rollout) -> dict[str, float | Mean]:
        """After the scoring pass, with rewards, advantages and entropies in place. Returns metrics to log.

        Those that provide signals come first.
        """
        return {}

    def learned(self, module: GRPOModule, rollout: Rollout) -> None:
        """After the last update and the metrics of the iteration, with every field of the rollout in place."""


def check_signals(credit: CreditStrategy, callbacks: Iterable[Callback]) -> None:
    """Raises ValueError where the credit reads a signal that none of the callbacks provides."""
    observers = [callback for callback in callbacks if isinstance(callback, RolloutObserver)]
    missing = credit.requires.difference({"entropy"}, *(observer.provides for observer in observers))
    if missing:
        names = ", ".join(f"`{name}`" for name in sorted(missing))
        raise ValueError(f"{credit.name} credit reads {names}, which no callback provides; {remedy(missing)}")


class Observers:
    """The observers of a run, called as one."""

    def __init__(self, module: GRPOModule):
        self.module = module
        observers = (callback for callback in module.trainer.callbacks if isinstance(callback, RolloutObserver))
        self.observers = sorted(observers, key=lambda observer: not observer.provides)

    def begin_scoring(self) -> None:
        for observer in self.observers:
            observer.begin_scoring(self.module)

    @contextmanager
    def scoring(self, batch: MicroBatch) -> Iterator[None]:
        with ExitStack() as stack:
            for observer in self.observers:
                stack.enter_context(observer.scoring(self.module, batch))
            yield

    def scored(self, rollout: Rollout) -> dict[str, float | Mean]:
        metrics: dict[str, float | Mean] = {}
        for observer in self.observers:
            metrics |= observer.scored(self.module, rollout)
        return metrics

    def learned(self, rollout: Rollout) -> None:
        with self.module.policy.whole():  # some look on the first rank alone
            for observer in self.observers:
                observer.learned(self.module, rollout)

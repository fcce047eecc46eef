"""What every credit strategy promises, and the functions that most strategies are made of."""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from types import SimpleNamespace
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from rhythm.types import AttentionSignals

Select = Literal["top", "bottom"]
OF_ATTENTION = frozenset({"waad", "waad_drop", "fai"})  # the signals that callbacks=attention provides


class CreditStrategy(ABC):
    """How much of a response's advantage each of its tokens gets: γ_t in arXiv:2510.13554.

    A strategy names the signals that it reads in `requires` and computes `weights` from them; calling it also checks
    what every strategy promises. One that draws at random sets `seeded = True`, takes `seed` and `rows` as further
    keywords of `weights`, and draws by `row_noise`.
    """

    requires: frozenset[str] = frozenset()  # fields of rollout.signals: of AttentionSignals, or what a callback adds
    selects_by: frozenset[str] | None = None  # those whose tokens can be selected; None is all of them
    seeded: bool = False

    @abstractmethod
    def weights(self, signals: AttentionSignals, mask: Tensor) -> Tensor:
        """Return [N, T] ≥ 0; what stands outside the mask does not matter.

        signals: an object with the fields in `requires` and no others, [N, T], NaN outside the mask.
        """

    def __call__(
        self, signals: AttentionSignals, mask: Tensor, *, seed: int = 0, rows: Sequence[int] | Tensor | None = None
    ) -> Tensor:
        """Compute the weights and check them.

        Args:
            signals: any object that has the fields in `requires`, each [N, T] with NaN where undefined.
            mask: [N, T], nonzero on completion tokens, contiguous in each row.
            seed: of the strategies that draw; give each iteration its own.
            rows: [N], the number by which each row seeds its draws; its index in the batch if left out.
        Returns:
            [N, T] float32, detached, finite, ≥ 0; exactly 1 outside the mask and in rows with no defined token.
        """
        mask = mask.bool()
        self._check_signals(signals, mask)
        keys = {"seed": seed, "rows": _row_numbers(rows, len(mask))} if self.seeded else {}
        read = {field: getattr(signals, field).masked_fill(~mask, math.nan) for field in self.requires}
        weights = self.weights(SimpleNamespace(**read), mask, **keys)
        if weights.shape != mask.shape:
            raise ValueError(f"{self.name} credit has shape {tuple(weights.shape)}, its mask {tuple(mask.shape)}")
        if weights.requires_grad:
            raise ValueError(f"{self.name} credit requires grad; detach its weights")
        weights = torch.where(mask & self.informed(signals, mask)[:, None], weights.float(), 1.0)
        if not weights.isfinite().all():
            raise ValueError(f"{self.name} credit has NaN or infinite weights")
        if (weights < 0).any():
            raise ValueError(f"{self.name} credit has negative weights")
        return weights

    @property
    def name(self) -> str:
        return re.sub(r"(?<!^)(?=[A-Z])", "_", type(self).__name__.removesuffix("Credit")).lower()

    def informed(self, signals: AttentionSignals, mask: Tensor) -> Tensor:
        """Return [N], True where a row has a token that can be selected, or where nothing is read."""
        fields = self.requires if self.selects_by is None else self.selects_by
        if not fields:
            return torch.ones(len(mask), dtype=torch.bool, device=mask.device)
        defined = torch.stack([~getattr(signals, field).isnan() for field in fields]).any(dim=0)
        return (defined & mask).any(dim=1)

    def _check_signals(self, signals: AttentionSignals, mask: Tensor) -> None:
        if mask.ndim != 2:
            raise ValueError(f"{self.name} credit takes a mask [N, T], not one of shape {tuple(mask.shape)}")
        for field in sorted(self.requires):
            signal = getattr(signals, field, None)
            if signal is None:
                mend = "the scoring pass computes it" if field == "entropy" else remedy({field})
                raise ValueError(f"{self.name} credit reads `{field}`, which nobody provided; {mend}")
            if signal.shape != mask.shape:
                shapes = f"{tuple(signal.shape)}, its mask {tuple(mask.shape)}"
                raise ValueError(f"{self.name} credit reads `{field}`, which has shape {shapes}")


class SelectiveCredit(CreditStrategy):
    """The settings of strategies that amplify a share of each response's tokens.

    Args:
        top_fraction: q in (0, 1]; ⌈q·n⌉ of a response's n defined tokens are selected.
        amplification: γ_amp ≥ 0, the weight of a selected token; 1 is uniform credit.
        select: "bottom" selects the lowest scores instead of the highest.
    """

    def __init__(self, *, top_fraction: float = 0.4, amplification: float = 1.5, select: Select = "top"):
        if not 0 < top_fraction <= 1:
            raise ValueError(f"top_fraction={top_fraction}: must be above 0 and at most 1")
        if not 0 <= amplification < math.inf:
            raise ValueError(f"amplification={amplification}: must be finite and at least 0")
        if select not in get_args(Select):
            raise ValueError(f"select={select}: use one of {', '.join(get_args(Select))}")
        self.top_fraction = top_fraction
        self.amplification = amplification
        self.select = select


def remedy(fields: Iterable[str]) -> str:
    """What to add to a run in which nobody provides these signals."""
    own = sorted(set(fields) - OF_ATTENTION)
    parts = ["callbacks=attention"] if OF_ATTENTION.intersection(fields) else []
    parts += [f"a callback whose `provides` names `{name}`" for name in own]
    return f"add {' and '.join(parts)}"


def top_tokens(scores: Tensor, mask: Tensor, fraction: float, select: Select = "top") -> Tensor:
    """TopQ of arXiv:2510.13554, row by row: exactly ⌈q·n⌉ of the n defined tokens, ties to the earlier token.

    Args:
        scores: [N, T]; NaN is undefined and never selected.
        mask: [N, T] bool; tokens outside are never selected.
        fraction: q in (0, 1].
        select: "top" for the highest scores, "bottom" for the lowest.
    Returns:
        [N, T] bool.
    """
    defined = mask & ~scores.isnan()
    counts = torch.tensor([_share(fraction, n) for n in defined.sum(dim=1).tolist()], device=mask.device)
    order = scores.argsort(dim=1, descending=select == "top", stable=True)
    ranked = defined.gather(1, order)
    chosen = ranked & (ranked.cumsum(dim=1) <= counts[:, None])
    return torch.zeros_like(defined).scatter(1, order, chosen)


def amplify(selected: Tensor, amplification: float) -> Tensor:
    """Eqs. 15 and 17: 1 + (γ_amp − 1)·1{selected}; [N, T] bool to [N, T] float32."""
    return 1.0 + (amplification - 1.0) * selected.float()


def row_noise(mask: Tensor, seed: int, rows: Sequence[int], stream: int = 0) -> Tensor:
    """Draw uniform numbers for the tokens of each row from (seed, row) alone, whatever the padding and the other rows.

    Args:
        mask: [N, T] bool.
        seed: ≥ 0.
        rows: N numbers ≥ 0.
        stream: another one for each use, so that nested strategies draw independently.
    Returns:
        [N, T] float64 in [0, 1), NaN outside the mask.
    """
    lengths = mask.sum(dim=1).tolist()
    draws = [np.random.default_rng((seed, row, stream)).random(n) for row, n in zip(rows, lengths, strict=True)]
    noise = torch.full(mask.shape, math.nan, dtype=torch.float64, device=mask.device)
    noise[mask] = torch.from_numpy(np.concatenate(draws)).to(mask.device)
    return noise


def _share(fraction: float, n: int) -> int:
    # 0.28 * 25 is 7.000000000000001 in floats; the share that was asked for is 7.
    return max(1, math.ceil(round(fraction * n, 9)))


def _row_numbers(rows: Sequence[int] | Tensor | None, count: int) -> list[int]:
    numbers = list(range(count)) if rows is None else torch.as_tensor(rows).tolist()
    if len(numbers) != count:
        raise ValueError(f"rows has {len(numbers)} numbers for a batch of {count}")
    return numbers

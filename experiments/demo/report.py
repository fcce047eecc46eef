"""The table and the figure of the demo's README, from results.csv: `python experiments/demo/report.py`."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

from rhythm.inspection.drawing import COLOURS

HERE = Path(__file__).parent


def table(rows: pd.DataFrame) -> str:
    """Markdown: the first and the last evaluation of each seed."""
    lines = [
        f"| seed | pass@1 before | after {rows.iteration.max()} iterations | gain | gain among well-formed "
        "| well-formed before | after | pass@8 before | after | seconds | peak MB |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for seed, mine in rows.groupby("seed"):
        first, last = mine.iloc[0], mine.iloc[-1]
        passes = [f"{row['pass@1']:.3f} [{row.low:.3f}, {row.high:.3f}]" for row in (first, last)]
        gains = [f"{last[name] - first[name]:+.3f}" for name in ("pass@1", "pass@1_well_formed")]
        others = [f"{row[name]:.3f}" for name in ("well_formed", "pass@8") for row in (first, last)]
        cells = [seed, *passes, *gains, *others, f"{last.run_seconds:.0f}", f"{last.peak_mb:.0f}"]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def draw(rows: pd.DataFrame, path: Path) -> None:
    """Held-out pass@1, its 95% intervals at both ends, and pass@8 by iteration, a line for each seed."""
    figure, axes = plt.subplots(1, 2, figsize=(8, 3.2), sharex=True, layout="constrained")
    for axis, name, limits in zip(axes, ("pass@1", "pass@8"), ((0, 0.5), (0.5, 1)), strict=True):
        for i, (colour, (seed, mine)) in enumerate(zip(COLOURS, rows.groupby("seed"), strict=False)):
            axis.plot(mine.iteration, mine[name], "o-", markersize=3.5, color=colour, label=f"seed {seed}")
            if name == "pass@1":
                ends = mine.dropna(subset=["low", "high"])
                axis.vlines(ends.iteration + i - 1, ends.low, ends.high, color=colour, linewidth=1, alpha=0.6)
        axis.set(xlabel="iteration", title=f"held-out {name}", ylim=limits)
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].legend(frameon=False, loc="upper left")
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    results = pd.read_csv(HERE / "results.csv")
    print(table(results))
    draw(results, HERE / "pass.png")

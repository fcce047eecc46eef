"""What a look costs: `python experiments/look_cost/run.py`.

The demo's iteration, 16 prompts × 8 completions with coupled credit, looked at every time: figures of two fresh and two
fixed prompts, the distances of the heads, histograms, texts and the page of the rollout. Each look is timed beside the
iteration that it looks at, in one process; the first of each warms up and is left out.
"""

from __future__ import annotations

import argparse
import csv
import sys
import tempfile
from pathlib import Path
from statistics import median, quantiles
from time import perf_counter

import torch

from rhythm.callbacks.inspection import Inspection
from rhythm.module import GRPOModule
from rhythm.types import Rollout

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
FIELDS = ("iteration", "iteration_seconds", "look_seconds", "completions", "tokens", "page_kb", "events_kb")


class Timed(Inspection):
    """Appends a row for each look to a CSV."""

    def __init__(self, path: str, folder: str, **settings):
        super().__init__(folder, **settings)
        self.path = Path(path)

    def learned(self, module: GRPOModule, rollout: Rollout) -> None:
        events = self._events_kb()
        started = perf_counter()
        super().learned(module, rollout)
        seconds = perf_counter() - started
        page = self.folder / "inspect" / f"iteration_{module.iteration:06}.html"
        row = (
            module.iteration,
            f"{module.metrics['time/iteration']:.3f}",
            f"{seconds:.3f}",
            len(rollout.completions),
            int(rollout.completion_mask.sum()),
            f"{page.stat().st_size / 1000:.0f}",
            f"{self._events_kb() - events:.0f}",
        )
        new = not self.path.exists()
        with self.path.open("a", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([FIELDS, row] if new else [row])

    def _events_kb(self) -> float:
        return sum(file.stat().st_size for file in self.folder.glob("events.*")) / 1000


def measure(iterations: int, threads: int, path: Path) -> None:
    sys.path.insert(0, str(ROOT))
    from rhythm import cli
    from train import train

    torch.set_num_threads(threads)
    path.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        sys.argv = ["train.py", "experiment=coupled", f"iterations={iterations}", "inspect_every=1", "eval_every=1000"]
        sys.argv += ["callbacks.evaluation.problems=1", f"output_dir={folder}/run"]
        sys.argv += [f"callbacks.inspection._target_={Timed.__module__}.Timed", f"+callbacks.inspection.path={path}"]
        cli.main(train, "train")


def report(path: Path) -> str:
    """Markdown, from the rows but the first."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)][1:]
    ratios = [row["look_seconds"] / row["iteration_seconds"] for row in rows]
    low, _, high = quantiles(ratios, n=4)
    of = {name: median(row[name] for row in rows) for name in FIELDS}
    cells = {
        "an iteration, s": f"{of['iteration_seconds']:.2f}",
        "a look, s": f"{of['look_seconds']:.2f}",
        "look to iteration, median": f"{median(ratios):.2f}",
        "middle half": f"{low:.2f} to {high:.2f}",
        "range": f"{min(ratios):.2f} to {max(ratios):.2f}",
        "n": len(rows),
        "page, KB": f"{of['page_kb']:.0f}",
        "events, KB": f"{of['events_kb']:.0f}",
    }
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in (cells, ["---"] * len(cells), cells.values()))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iterations", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--results", type=Path, default=HERE / "results.csv")
    given = parser.parse_args()
    measure(given.iterations, given.threads, given.results.resolve())
    print(report(given.results))

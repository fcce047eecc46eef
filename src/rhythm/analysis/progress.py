"""A bar for each stage of an analysis, in a terminal; lines elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn


class AnalysisProgress:
    """A context in which `of(name)` gives what `analyze` tells its progress to.

    Args:
        names: of the policies that are analyzed; told where there are several.
    """

    def __init__(self, names: Iterable[str]):
        self.several = len(list(names)) > 1
        self.console = Console()
        self._bars = Progress(
            TextColumn("{task.description}"), BarColumn(bar_width=30), TimeElapsedColumn(), console=self.console
        )
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> AnalysisProgress:
        if self.console.is_terminal:
            self._bars.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self.console.is_terminal:
            self._bars.stop()

    def of(self, name: str) -> Callable[[str, float], None]:
        def tell(stage: str, share: float) -> None:
            described = f"{name}: {stage}" if self.several else stage
            if described not in self._tasks:
                self._tasks[described] = self._bars.add_task(described, total=1.0)
                if not self.console.is_terminal:
                    print(described, flush=True)
            self._bars.update(self._tasks[described], completed=share)

        return tell

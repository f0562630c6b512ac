"""Lines, tables and progress bars; results on standard output, the rest on standard error."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text


class ProgressBar:
    """A bar with time left on standard error, one after the other for each phase.

    :meth:`update` fits the progress interface of the jobs.
    """

    def __init__(self) -> None:
        self._progress = Progress(
            TextColumn("{task.description:<12}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self._tasks: dict[str, TaskID] = {}

    def update(self, phase: str, done: int, total: int) -> None:
        """Show ``done`` of ``total`` steps of a phase."""
        if phase not in self._tasks:
            self._tasks[phase] = self._progress.add_task(phase, total=total)
        self._progress.update(self._tasks[phase], completed=done, total=total)

    def note(self, line: str) -> None:
        """Print a line above the bar."""
        self._progress.console.print(Text(line))

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._progress.stop()


def print_json(result: Mapping[str, Any]) -> None:
    """Print one object on standard output."""
    print(json.dumps(result, indent=2, ensure_ascii=False, default=str, allow_nan=False))


def print_table(headings: Sequence[str], rows: Iterable[Sequence[str]], title: str = "") -> None:
    """Print a table on standard output; whole, however narrow the terminal."""
    table = Table(title=title or None, title_justify="left")
    for heading in headings:
        table.add_column(Text(heading), overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    console = Console()
    if not console.is_terminal:
        console = Console(width=200)
    console.print(table)


def print_line(line: str) -> None:
    """Print a line of the result on standard output."""
    print(line)


def print_warnings(lines: Iterable[str]) -> None:
    """Print warnings on standard error."""
    for line in lines:
        print(f"stembridge: warning: {line}", file=sys.stderr)

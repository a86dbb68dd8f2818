"""Draws the quickstart's story on a terminal."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.columns import Columns
from rich.console import Console
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.syntax import Syntax

from keystone.evaluation import extract_completion
from keystone.quickstart import Narrator


class ConsoleNarrator(Narrator):
    """Numbers the chapters, and shows code as code."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._chapters = 0

    def chapter(self, title: str) -> None:
        """A numbered heading."""
        self._chapters += 1
        self._console.print(f"\n[bold cyan]{self._chapters}[/] [bold]{title}[/]")

    def say(self, text: str) -> None:
        """One indented line."""
        self._console.print(f"  {text}", markup=False, soft_wrap=True)

    def compare(self, prompt: str, before: str, after: str) -> None:
        """Two panels side by side."""
        panels = [
            Panel(
                Syntax((prompt + extract_completion(answer)).rstrip(), "python", theme="ansi_dark", word_wrap=True),
                title=title,
                width=min(60, max(36, self._console.width // 2 - 2)),
            )
            for title, answer in (("base", before), ("base + adapter", after))
        ]
        self._console.print(Columns(panels))

    @contextmanager
    def progress(self, label: str, total: int) -> Iterator[Callable[[int], None]]:
        """A bar that leaves no trace when it is done."""
        columns = (TextColumn("  {task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        hidden = not self._console.is_terminal  # in a file, a bar that leaves no trace leaves empty lines
        with Progress(*columns, console=self._console, transient=True, disable=hidden) as bar:
            task = bar.add_task(label, total=total)
            yield lambda done: bar.advance(task, done)

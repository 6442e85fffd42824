"""What a run shows while it goes: lines, and progress bars where there is a terminal or a notebook."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
    track,
)
from rich.table import Table
from rich.text import Text

from alexnet_func.app.text import shown

_ANY_WIDTH = 2**20  # columns


class UnwritableError(OSError):
    """Nobody can be told: standard output is full, or gone."""


class Show(NamedTuple):
    """A run's face to the user."""

    console: Console

    def line(self, text: str) -> None:
        """Prints a line as it is: what looks like markup in a name is part of the name.

        Raises UnwritableError, here and below, where it cannot be written.
        """
        self._print(_literal(text), soft_wrap=True)

    def lines(self, texts: Iterable[str]) -> None:
        """Prints each as `line` does."""
        for text in texts:
            self.line(text)

    def table(self, title: str | None, headings: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        """Prints a table of words as they are, the first column to the left, the others to the right.

        In a terminal a long word of the first column goes on in the next line; elsewhere lines are as long as it takes.
        """
        on_screen = self.console.is_terminal or self.console.is_jupyter
        table = Table(title=_literal(title or "", "table.title"))
        for i, heading in enumerate(headings):
            table.add_column(_literal(heading), justify="right" if i else "left", overflow="ellipsis" if i else "fold")
        for row in rows:
            table.add_row(*map(_literal, row))
        if not on_screen:
            table.width = self.console.measure(table, options=self.console.options.update_width(_ANY_WIDTH)).maximum
        self._print(table, crop=on_screen)

    def _print(self, what: Text | Table, **how: Any) -> None:
        try:
            self.console.print(what, **how)
        except (OSError, SystemExit) as error:  # rich ends the program where a pipe is broken
            reason = os.strerror(error.errno or 0) if isinstance(error, OSError) else "nobody reads it any more"
            raise UnwritableError(f"standard output cannot be written: {reason}") from error

    def track(self, what: str, items: Iterable, total: int) -> Iterable:
        """`items`, with a progress bar where the console is a terminal."""
        if not self.console.is_terminal:
            return items
        return track(items, description=what, total=total, console=self.console, transient=True)

    @contextmanager
    def steps(self, total: int, done: int, batch_size: int) -> Iterator[Callable[[], None]]:
        """Within the block a bar of `total` steps, `done` of them before; each call of what is yielded is one more."""
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn())
        # In a notebook a refreshing thread would now and then swallow a line that is printed at the same moment.
        by_hand = self.console.is_jupyter
        hidden = not (self.console.is_terminal or self.console.is_jupyter)
        bar = Progress(*columns, console=self.console, disable=hidden, transient=True, auto_refresh=not by_hand)
        task = bar.add_task("training", total=total, completed=done, batch_size=batch_size)
        try:
            bar.start()
            yield lambda: bar.update(task, advance=1, refresh=by_hand)
        finally:
            with suppress(OSError, SystemExit):  # of a terminal that is gone, which must not hide how the run ended
                bar.stop()


def _literal(text: str, style: str = "") -> Text:
    return Text(shown(text), style)


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text("" if task.speed is None else f"{task.speed * task.fields['batch_size']:,.0f} images/s")

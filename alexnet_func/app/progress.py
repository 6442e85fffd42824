"""What a run shows while it goes: lines, and progress bars where there is a terminal or a notebook."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

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
from rich.text import Text


class Show(NamedTuple):
    """A run's face to the user."""

    console: Console

    def line(self, text: str) -> None:
        """Prints a line as it is: what looks like markup in a name is part of the name."""
        self.console.print(text, markup=False)

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
        with bar:
            task = bar.add_task("training", total=total, completed=done, batch_size=batch_size)
            yield lambda: bar.update(task, advance=1, refresh=by_hand)


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text("" if task.speed is None else f"{task.speed * task.fields['batch_size']:,.0f} images/s")

"""What a long stage says while it works: a bar on a terminal, plain lines otherwise."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol, TextIO

Advance = Callable[[int], None]


class Progress(Protocol):
    """Where stages report to."""

    def track(
        self, stage: str, total: int, unit: str, done: int = 0
    ) -> AbstractContextManager[Advance]:
        """Opens a count up to `total`; the value of the `with` is called with what was done.

        `done` was finished by an earlier run and does not count for the rate.
        """
        ...

    def note(self, text: str) -> None:
        """Says one sentence."""
        ...


class Silent:
    """Says nothing; the default of the Python API."""

    @contextmanager
    def track(self, stage: str, total: int, unit: str, done: int = 0) -> Iterator[Advance]:
        """Counts nothing."""
        yield lambda amount: None

    def note(self, text: str) -> None:
        """Says nothing."""


class Lines:
    """Plain lines, one every few seconds, for logs and pipes."""

    def __init__(self, out: TextIO, every_s: float = 10.0) -> None:
        self._out = out
        self._every_s = every_s

    @contextmanager
    def track(self, stage: str, total: int, unit: str, done: int = 0) -> Iterator[Advance]:
        """Prints the count, the rate and the time left."""
        start = last = time.monotonic()
        fresh = 0

        def advance(amount: int) -> None:
            nonlocal fresh, last
            fresh += amount
            now = time.monotonic()
            if fresh and now - last >= self._every_s and done + fresh < total:
                last = now
                rate = fresh / (now - start)
                left_s = (total - done - fresh) / rate
                self._say(
                    f"{stage}: {done + fresh:,}/{total:,} {unit}, {rate:,.0f} {unit}/s, "
                    f"{left_s:,.0f} s left"
                )

        yield advance
        seconds = time.monotonic() - start
        rate_text = f", {fresh / seconds:,.0f} {unit}/s" if seconds > 0 else ""
        cached = f" ({done:,} from an earlier run)" if done else ""
        self._say(
            f"{stage}: {done + fresh:,}/{total:,} {unit} in {seconds:,.1f} s{rate_text}{cached}"
        )

    def note(self, text: str) -> None:
        """Prints the sentence."""
        self._say(text)

    def _say(self, text: str) -> None:
        print(text, file=self._out, flush=True)


class Bars:
    """Bars with rate and time left, for terminals."""

    def __init__(self) -> None:
        from rich.console import Console

        self._console = Console(stderr=True)

    @contextmanager
    def track(self, stage: str, total: int, unit: str, done: int = 0) -> Iterator[Advance]:
        """Shows a bar."""
        from rich import progress

        columns = (
            progress.TextColumn("{task.description:>7}"),
            progress.BarColumn(),
            progress.MofNCompleteColumn(),
            progress.TextColumn(unit),
            progress.TextColumn("{task.fields[rate]}"),
            progress.TimeRemainingColumn(compact=True, elapsed_when_finished=True),
        )
        start = time.monotonic()
        with progress.Progress(*columns, console=self._console) as bar:
            task = bar.add_task(stage, total=total, completed=done, rate="")
            fresh = 0

            def advance(amount: int) -> None:
                nonlocal fresh
                fresh += amount
                rate = fresh / max(time.monotonic() - start, 1e-9)
                bar.update(task, advance=amount, rate=f"{rate:,.0f} {unit}/s")

            yield advance

    def note(self, text: str) -> None:
        """Prints the sentence above the bars."""
        self._console.print(text, highlight=False, markup=False)


def console_progress() -> Progress:
    """Returns bars when standard error is a terminal, lines otherwise."""
    return Bars() if sys.stderr.isatty() else Lines(sys.stderr)

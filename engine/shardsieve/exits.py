"""What a command says and exits with when it cannot go on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer

from shardsieve.errors import ShardsieveError


@contextmanager
def exit_codes() -> Iterator[None]:
    """Turns an error with a message for the user into one line and its exit code."""
    from shardsieve_kernels import BackendUnavailable

    try:
        yield
    except (ShardsieveError, BackendUnavailable) as error:
        typer.echo(f"shardsieve: {error}", err=True)
        raise typer.Exit(getattr(error, "exit_code", 4)) from error
    except KeyboardInterrupt:
        typer.echo("shardsieve: interrupted; the same command goes on from here", err=True)
        raise typer.Exit(130) from None

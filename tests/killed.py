"""The command in a process that kills itself at a given moment."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

# Operations by which something appears, changes its name or goes.
EVENTS = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "open"}


def line(patterns, checkpoint, removed, out, conn, kill):
    """The command in a process of its own; `kill` = (folder, operations or None, seconds)."""
    if kill is not None:
        arm(out, *kill)
    import shardsieve
    from shardsieve.config import load_config

    values = {
        "embed.backbone": "test_resnet",
        "embed.checkpoint": str(checkpoint),
        "embed.image_size": 32,
        "embed.batch_size": 16,
        "probe.epochs": 3,
        "tune.epochs": 1,
        "tune.max_samples": 24,
        "write.removed": removed,
        "write.shard_samples": 20,
        "report.gallery": 3,
        "report.classes": 1,
        "workers": 0,
        "device": "cpu",
        # Compiled kernels take longer to load than all the rest takes.
        "backend": "reference",
    }
    shardsieve.clean(patterns, out, load_config(values=values), tune=True)
    conn.send("finished")


def arm(out, folder, operations, seconds):
    """Kills this process some while after the stage of `folder` has begun.

    After `seconds`, it is killed at the latest when the next stage begins: on a machine that is
    quicker now than when the stage was timed, it would else go on and leave the later rounds
    nothing to catch.
    """
    part = f"{out / folder}.part"
    seen = [0]

    def is_stage(path):
        return Path(path).parent == out and path.endswith(".part")

    def watch(event, args):
        if event not in EVENTS or not isinstance(args[0], str | os.PathLike):
            return
        if event == "open" and args[1] in ("r", "rb", None) and not (args[2] or 0) & os.O_CREAT:
            return
        paths = [os.fspath(arg) for arg in args if isinstance(arg, str | os.PathLike)]
        if not any(str(path).startswith(part) for path in paths):
            if operations is None and seen[0] and event == "os.mkdir" and is_stage(paths[0]):
                os.kill(os.getpid(), signal.SIGKILL)
            return
        seen[0] += 1
        if operations is None and seen[0] == 1:
            signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
            signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-3))
        elif seen[0] == operations:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)

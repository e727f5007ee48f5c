"""From what a user writes to the list of shards."""

from __future__ import annotations

import glob
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from braceexpand import UnbalancedBracesError, braceexpand  # type: ignore[attr-defined]

from shardsieve.data.location import PIPE, RemotePath, ShardPath, is_remote
from shardsieve.errors import ShardError

LIST_SUFFIXES = (".txt", ".list")


def locate_shards(patterns: Sequence[str]) -> list[ShardPath]:
    """Expands paths, brace patterns, globs, folders and text lists, in the order given.

    Args:
        patterns: `a.tar`, `shards-{0000..0019}.tar`, `train-*.tar`, a folder (all its `.tar`
            files), a URL (`s3://bucket/train-{000..099}.tar`, `pipe:COMMAND`), or a
            `.txt`/`.list` file with one of these a line; relative lines are looked up beside the
            list.

    Returns:
        Absolute paths that exist, and URLs, which are asked for later; the matches of one glob are
        sorted by name.

    Raises:
        ShardError: Nothing matches, a shard is missing, or one is named twice.
    """
    named = [pattern for pattern in patterns if pattern.strip()]
    paths = [path for pattern in named for path in _expand(pattern, Path(), ())]
    if not paths:
        raise ShardError("no shards were named: give at least one tar, pattern or folder")
    missing = [path for path in paths if isinstance(path, Path) and not path.is_file()]
    if missing:
        names = ", ".join(str(path) for path in missing[:5])
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise ShardError(
            f"{len(missing)} of {len(paths)} shards are missing: {names}{more}. "
            "Check the path, or the range in the braces"
        )
    counts = Counter(str(path.resolve() if isinstance(path, Path) else path) for path in paths)
    twice = [path for path, count in counts.items() if count > 1]
    if twice:
        raise ShardError(f"named twice: {', '.join(twice[:5])}. Name every shard once")
    # Links keep their names: those in a download cache point to files named by their hash.
    return [path.parent.resolve() / path.name if isinstance(path, Path) else path for path in paths]


def _expand(pattern: str, base: Path, lists: tuple[Path, ...]) -> list[ShardPath]:
    try:
        candidates = list(braceexpand(pattern))
    except UnbalancedBracesError as error:
        raise ShardError(f"{pattern}: the braces are not balanced") from error
    return [path for text in candidates for path in _expand_one(text, base, lists)]


def _expand_one(text: str, base: Path, lists: tuple[Path, ...]) -> Sequence[ShardPath]:
    if is_remote(text):
        if text.startswith(PIPE) or not glob.has_magic(text.partition("?")[0]):
            return [RemotePath(text)]
        from shardsieve.shards.remote import expand_glob

        return [RemotePath(url) for url in expand_glob(text)]
    path = base / text
    if path.is_dir():
        found = sorted(path.glob("*.tar"))
        if not found:
            raise ShardError(f"{path}: the folder holds no .tar file")
        return found
    if path.suffix in LIST_SUFFIXES and path.is_file():
        if path in lists:
            raise ShardError(f"{path}: the list names itself")
        names = _read_list(path)
        return [found for name in names for found in _expand(name, path.parent, (*lists, path))]
    if not path.exists() and glob.has_magic(text):
        # Not Path.glob, which refuses absolute patterns.
        names = glob.glob(text, root_dir=base, recursive=True)  # noqa: PTH207
        found = sorted(base / name for name in names)
        if not found:
            raise ShardError(f"{path}: nothing matches this pattern")
        return found
    return [path]


def _read_list(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ShardError(f"{path}: cannot read the list of shards: {error}") from error
    return [name for line in lines if (name := line.strip()) and not name.startswith("#")]

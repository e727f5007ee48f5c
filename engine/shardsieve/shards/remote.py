"""Shards that are not local files: fetched whole into a cache of bounded size, read from there.

A shard is a sequential file, and every stage that needs one needs most of it; so it is fetched once
in large pieces, each tried again when a connection drops, and then is like any other file. fsspec
knows the protocols (`s3://`, `gs://`, `https://`, ...); `pipe:` runs a command, as WebDataset does.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shardsieve.data.location import PIPE, RemotePath
from shardsieve.errors import ConfigError, DataError, ShardError

CACHE_FOLDER = "SHARDSIEVE_CACHE"
CACHE_GB = "SHARDSIEVE_CACHE_GB"
_PIECE_BYTES = 8 * 1024 * 1024
# Waits between tries, in seconds: a dropped connection comes back at once, a busy server does not.
_WAITS_S = (0.1, 0.5, 2.0, 8.0, 30.0)
# What brings each protocol, when fsspec alone does not.
_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs", "http": "http", "https": "http"}


@dataclass(frozen=True, slots=True)
class RemoteShard:
    """A remote shard as it was when it was looked up.

    Attributes:
        url: Where it is.
        size_bytes: Its size; -1 where the other side does not say.
        version: What changes when its content does: ETag, generation or time, as far as known.
    """

    url: str
    size_bytes: int
    version: str

    @property
    def token(self) -> int:
        """A 63-bit number that stands for `version`, as the time of change does for a file."""
        return int(hashlib.sha256(self.version.encode()).hexdigest()[:16], 16) >> 1


def look_up(url: str) -> RemoteShard:
    """Asks for size and version of a remote shard; its content is not read.

    Raises:
        ShardError: It is not there, cannot be reached, or its protocol is not installed.
    """
    if url.startswith(PIPE):
        return RemoteShard(url, -1, url)
    filesystem, path = _filesystem(url)
    info = _persistently(url, lambda: filesystem.info(path))
    size = info.get("size")
    version = "|".join(
        f"{name}={info[name]}"
        for name in ("ETag", "etag", "generation", "LastModified", "mtime", "updated")
        if info.get(name) is not None
    )
    return RemoteShard(url, -1 if size is None else int(size), f"{size}|{version}")


def expand_glob(url: str) -> list[str]:
    """Lists the URLs that match a pattern with `*`, `?` or `[`, sorted by name.

    Raises:
        ShardError: Nothing matches, or the other side cannot list.
    """
    filesystem, path = _filesystem(url)
    found = sorted(_persistently(url, lambda: filesystem.glob(path)))
    if not found:
        raise ShardError(f"{url}: nothing matches this pattern")
    return [filesystem.unstrip_protocol(name) for name in found]


class Store:
    """A place of many files under a URL."""

    def __init__(self, url: str) -> None:
        """Names the place; it need not be there yet.

        Raises:
            ShardError: Its protocol is not installed.
        """
        self.url = url.rstrip("/")
        self._filesystem, self._path = _filesystem(self.url)

    def sizes(self, pattern: str) -> dict[str, int]:
        """Returns the bytes of the files that match, by name, as they are now."""
        self._filesystem.invalidate_cache()
        found = _persistently(
            self.url, lambda: self._filesystem.glob(f"{self._path}/{pattern}", detail=True)
        )
        return {path.rpartition("/")[2]: int(info["size"]) for path, info in found.items()}

    def put(self, source: Path) -> None:
        """Copies a finished local file here, under its own name.

        Raises:
            ShardError: It cannot be written, or not all of it arrived.
        """
        target = f"{self._path}/{source.name}"
        _persistently(self.url, lambda: self._filesystem.makedirs(self._path, exist_ok=True))
        _persistently(self.url, lambda: self._filesystem.put_file(str(source), target))
        self._filesystem.invalidate_cache()
        size = int(_persistently(self.url, lambda: self._filesystem.info(target))["size"])
        if size != source.stat().st_size:
            raise ShardError(
                f"{self.url}/{source.name}: {size:,} bytes arrived of {source.stat().st_size:,}; "
                "run again"
            )

    def read_text(self, name: str) -> str | None:
        """Returns the content of a small file, None when it is not there."""
        path = f"{self._path}/{name}"
        self._filesystem.invalidate_cache()
        if not _persistently(self.url, lambda: self._filesystem.exists(path)):
            return None
        data: bytes = _persistently(self.url, lambda: self._filesystem.cat_file(path))
        return data.decode("utf-8", "replace")

    def write_text(self, name: str, text: str) -> None:
        """Writes a small file."""
        _persistently(self.url, lambda: self._filesystem.makedirs(self._path, exist_ok=True))
        path = f"{self._path}/{name}"
        _persistently(self.url, lambda: self._filesystem.pipe_file(path, text.encode()))

    def delete(self, name: str) -> None:
        """Deletes a file."""
        _persistently(self.url, lambda: self._filesystem.rm_file(f"{self._path}/{name}"))


class ShardCache:
    """A folder of fetched shards that never holds more than a number of bytes.

    Several processes may share it. A shard that is being read stays readable when it is evicted:
    its bytes go when the last reader closes it.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        """Names the folder; it is made at first use.

        Args:
            folder: Where the shards lie; nothing else may lie there.
            max_bytes: Most bytes of finished shards, and of the one that is coming.
        """
        self.folder = folder
        self.max_bytes = max_bytes

    @classmethod
    def of_user(cls) -> ShardCache:
        """Returns the cache that the user's runs share, as the environment names it.

        `SHARDSIEVE_CACHE` is its folder, by default `shardsieve/shards` in the user's cache;
        `SHARDSIEVE_CACHE_GB` its size, by default 32. Neither changes a result.

        Raises:
            ConfigError: The size is no positive number.
        """
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        folder = Path(os.environ.get(CACHE_FOLDER) or base / "shardsieve/shards")
        text = os.environ.get(CACHE_GB) or "32"
        try:
            max_bytes = int(float(text) * 1e9)
        except (ValueError, OverflowError):
            max_bytes = 0
        if max_bytes <= 0:
            raise ConfigError(f"{CACHE_GB}={text}: give the size of the cache in GB, such as 32")
        return cls(folder, max_bytes)

    def local(self, shard: RemoteShard) -> Path:
        """Returns the local copy of a shard, fetched if it is not there.

        Raises:
            ShardError: It cannot be fetched, or what came is not what was looked up.
            DataError: It is larger than the cache.
        """
        if shard.size_bytes > self.max_bytes:
            raise DataError(
                f"{shard.url}: {shard.size_bytes:,} bytes do not fit in the cache of "
                f"{self.max_bytes:,}; raise {CACHE_GB}"
            )
        name = hashlib.sha256(f"{shard.url}\n{shard.version}".encode()).hexdigest()[:32]
        path = self.folder / f"{name}-{RemotePath(shard.url).name}"
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._lock(name):
            if path.is_file():
                # The time of use, by which the oldest is found.
                os.utime(path)
                return path
            with self._lock("eviction"):
                self._make_room(max(shard.size_bytes, 0))
            part = path.with_name(path.name + ".part")
            _fetch(shard, part, self.max_bytes)
            part.replace(path)
        return path

    def open(self, shard: RemoteShard) -> int:
        """Opens the local copy of a shard for reading and returns its descriptor.

        Raises:
            ShardError: As for `local`.
            DataError: As for `local`.
        """
        while True:
            path = self.local(shard)
            try:
                return os.open(path, os.O_RDONLY)
            except FileNotFoundError:
                # Another process made room between the two steps.
                continue

    def _make_room(self, needed: int) -> None:
        """Deletes the shards that were used longest ago, until `needed` bytes fit in."""
        there = []
        for path in self.folder.glob("*"):
            if path.suffix not in (".lock", ".part"):
                status = path.stat()
                there.append((status.st_mtime_ns, status.st_size, path))
        used = sum(size for _, size, _ in there)
        for _, size, path in sorted(there):
            if used + needed <= self.max_bytes:
                break
            path.unlink(missing_ok=True)
            used -= size

    @contextmanager
    def _lock(self, name: str) -> Iterator[None]:
        descriptor = os.open(self.folder / f"{name}.lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def _fetch(shard: RemoteShard, part: Path, max_bytes: int) -> None:
    with part.open("wb") as file:
        if shard.url.startswith(PIPE):
            _run_pipe(shard.url, file, max_bytes)
            return
        filesystem, path = _filesystem(shard.url)
        if shard.size_bytes < 0:
            _persistently(shard.url, lambda: _whole(filesystem, path, file))
            return
        position = 0
        while position < shard.size_bytes:
            end = min(position + _PIECE_BYTES, shard.size_bytes)
            start = position
            piece = _persistently(
                shard.url, lambda start=start, end=end: _piece(filesystem, path, start, end)
            )
            file.write(piece)
            position = end
    now = look_up(shard.url)
    if now != shard:
        raise ShardError(f"{shard.url} changed while it was fetched; run again")


def _piece(filesystem: Any, path: str, start: int, end: int) -> bytes:
    piece: bytes = filesystem.cat_file(path, start=start, end=end)
    if len(piece) != end - start:
        raise ConnectionError(f"{len(piece):,} bytes came of {end - start:,}")
    return piece


def _whole(filesystem: Any, path: str, file: Any) -> None:
    file.seek(0)
    file.truncate()
    with filesystem.open(path, "rb", block_size=0, cache_type="none") as stream:
        while piece := stream.read(_PIECE_BYTES):
            file.write(piece)


def _run_pipe(url: str, file: Any, max_bytes: int) -> None:
    command = url.removeprefix(PIPE)
    # A shell, as WebDataset's `pipe:` has it: the user's own command line.
    with subprocess.Popen(command, shell=True, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        size = 0
        while piece := process.stdout.read(_PIECE_BYTES):
            size += len(piece)
            if size > max_bytes:
                process.kill()
                raise DataError(
                    f"{url}: more than {max_bytes:,} bytes do not fit in the cache; "
                    f"raise {CACHE_GB}"
                )
            file.write(piece)
    if process.returncode:
        raise ShardError(f"{url}: the command ended with code {process.returncode}")


def _filesystem(url: str) -> tuple[Any, str]:
    try:
        from fsspec.core import url_to_fs
    except ImportError as error:
        raise ShardError(f"{url}: fsspec is not installed; pip install fsspec") from error
    try:
        filesystem, path = url_to_fs(url)
    except (ImportError, ValueError) as error:
        protocol = url.partition("://")[0]
        extra = _EXTRAS.get(protocol)
        advice = f"pip install 'shardsieve[{extra}]'" if extra else "install what it needs"
        raise ShardError(f"{url}: {error}; {advice}") from error
    return filesystem, path


def _persistently(url: str, call: Any) -> Any:
    """Calls until it works; what cannot get better by waiting is not tried again."""
    for wait_s in (*_WAITS_S, None):
        try:
            return call()
        except (FileNotFoundError, PermissionError) as error:
            raise ShardError(f"{url}: {_words(error)}. Check the address and the access") from error
        except _passing_errors() as error:
            if wait_s is None:
                raise ShardError(
                    f"{url}: {_words(error)}, {len(_WAITS_S) + 1} times. "
                    "Run again when it can be reached; what is finished stays"
                ) from error
            time.sleep(wait_s)
    raise AssertionError("the last try returns or raises")


def _passing_errors() -> tuple[type[BaseException], ...]:
    """Errors of the network, those of libraries that are loaded included."""
    errors: list[type[BaseException]] = [OSError, EOFError]
    for module, name in (("aiohttp", "ClientError"), ("botocore.exceptions", "BotoCoreError")):
        if module in sys.modules:
            errors.append(getattr(sys.modules[module], name))
    return tuple(errors)


def _words(error: BaseException) -> str:
    return str(error) or type(error).__name__

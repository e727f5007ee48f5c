"""Remote shards are in the cache before they are due, a few at a time."""

import functools
import http.server
import threading
import time
from pathlib import Path

import pytest

from shardsieve.data.location import RemotePath
from shardsieve.shards import remote
from shardsieve.shards.ahead import SHARDS_AHEAD, THREAD_NAME, Ahead

pytest.importorskip("aiohttp")
# aiohttp's sessions are closed when the interpreter ends; until then they count as unclosed.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")

N_SHARDS, N_BYTES = 7, 30_000


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture
def shards(tmp_path, monkeypatch):
    """URLs of shards, and the folder that a user's cache of them is in."""
    folder = tmp_path / "served"
    folder.mkdir()
    names = [f"train-{number:04}.tar" for number in range(N_SHARDS)]
    for number, name in enumerate(names):
        (folder / name).write_bytes(bytes([number]) * N_BYTES)
    monkeypatch.setenv("SHARDSIEVE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(remote, "_WAITS_S", ())
    handler = functools.partial(_Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        base = f"http://127.0.0.1:{server.server_port}"
        yield [RemotePath(f"{base}/{name}") for name in names], tmp_path / "cache"
        server.shutdown()
        thread.join()


def _fetchers():
    return [thread for thread in threading.enumerate() if thread.name == THREAD_NAME]


def _numbers(cache):
    """Which shards the cache holds whole."""
    return sorted(int(path.stem[-4:]) for path in cache.glob("*.tar"))


def _until(holds, what):
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


def test_a_few_shards_and_no_more(shards):
    paths, cache = shards
    with Ahead(paths) as ahead:
        time.sleep(0.05)
        assert not _numbers(cache), "nothing before the work begins"
        ahead.reached(0)
        first = list(range(1 + SHARDS_AHEAD))
        _until(lambda: _numbers(cache) == first, "the one that is due and those after it")
        time.sleep(0.1)
        assert _numbers(cache) == first
        ahead.reached(1)
        _until(lambda: _numbers(cache) == list(range(2 + SHARDS_AHEAD)), "one more")
        ahead.reached(N_SHARDS - 1)
        _until(lambda: _numbers(cache) == list(range(N_SHARDS)), "the rest")
    _until(lambda: not _fetchers(), "the threads end")
    for number, path in enumerate(sorted(cache.glob("*.tar"), key=lambda path: path.stem[-4:])):
        assert path.read_bytes() == bytes([number]) * N_BYTES


def test_one_that_is_not_there_is_passed_over(shards):
    paths, cache = shards
    gone = RemotePath(str(paths[0]).replace("0000", "9999"))
    with Ahead([gone, *paths[:2]]) as ahead:
        ahead.reached(0)
        _until(lambda: _numbers(cache) == [0, 1], "the others are fetched all the same")


def test_a_cache_without_room_is_left_to_what_is_due(shards, monkeypatch):
    paths, cache = shards
    # Room for three.
    monkeypatch.setenv("SHARDSIEVE_CACHE_GB", str(N_BYTES * SHARDS_AHEAD / 1e9))
    looked_up, look_up = [], remote.look_up
    monkeypatch.setattr(remote, "look_up", lambda url: looked_up.append(url) or look_up(url))
    with Ahead(paths) as ahead:
        ahead.reached(0)
        _until(lambda: len(looked_up) == SHARDS_AHEAD + 1, "all of them were considered")
    _until(lambda: not _fetchers(), "the threads end")
    assert not _numbers(cache)


def test_what_is_not_begun_when_the_work_ends_is_not_begun_at_all(shards, monkeypatch):
    paths, cache = shards
    may_go_on = threading.Event()
    looked_up = []

    def slowly(url):
        looked_up.append(url)
        may_go_on.wait(20)
        raise remote.ShardError("gone")

    monkeypatch.setattr(remote, "look_up", slowly)
    with Ahead(paths) as ahead:
        ahead.reached(0)
        _until(lambda: len(looked_up) == SHARDS_AHEAD, "as many as there are threads")
    may_go_on.set()
    _until(lambda: not _fetchers(), "the threads end")
    assert len(looked_up) == SHARDS_AHEAD, "the fourth was waiting in the queue"
    assert not _numbers(cache)


def test_shards_on_disk_need_no_threads():
    with Ahead([Path("a.tar"), Path("b.tar")]) as ahead:
        ahead.reached(0)
        assert not _fetchers()

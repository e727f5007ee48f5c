"""Remote shards against servers on this machine: bytes, versions, dropped connections, eviction."""

import http.server
import os
import threading
import time

import pytest

from shardsieve.data.location import RemotePath, is_remote
from shardsieve.errors import ConfigError, DataError, ShardError
from shardsieve.shards import remote
from shardsieve.shards.remote import (
    RemoteShard,
    ShardCache,
    Store,
    expand_glob,
    look_up,
)

pytest.importorskip("aiohttp")
# aiohttp's sessions are closed when the interpreter ends; until then they count as unclosed.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")


@pytest.fixture
def quick(monkeypatch):
    """Small pieces and short waits."""
    monkeypatch.setattr(remote, "_PIECE_BYTES", 10_000)
    monkeypatch.setattr(remote, "_WAITS_S", (0.01, 0.02))


class Server(http.server.ThreadingHTTPServer):
    """Serves ranges of one file; drops or delays the requests it is told to."""

    def __init__(self, content):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.content = content
        self.etag = '"1"'
        self.requests = []
        self.drop, self.delay = set(), set()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/some/train-0000.tar"


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        self._head(200, len(self.server.content))

    def do_GET(self):
        server = self.server
        number = len(server.requests)
        wanted = self.headers.get("Range")
        server.requests.append(wanted)
        content = server.content
        if wanted:
            start, _, end = wanted.removeprefix("bytes=").partition("-")
            content = content[int(start) : int(end) + 1]
        self._head(206 if wanted else 200, len(content))
        if number in server.delay:
            time.sleep(0.3)
        if number in server.drop:
            self.wfile.write(content[: len(content) // 2])
            self.close_connection = True
            return
        self.wfile.write(content)

    def _head(self, status, size):
        self.send_response(status)
        self.send_header("Content-Length", str(size))
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("ETag", self.server.etag)
        self.end_headers()

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    with Server(os.urandom(95_000)) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("location", "remote_", "name"),
    [
        ("s3://bucket/a/train-0.tar", True, "train-0.tar"),
        ("https://host/train-0.tar?token=1", True, "train-0.tar"),
        ("/data/train-0.tar", False, None),
        ("train-{0..3}.tar", False, None),
    ],
)
def test_what_is_remote(location, remote_, name):
    assert is_remote(location) is remote_
    if remote_:
        assert RemotePath(location).name == name


def test_fetched_once_and_whole(server, tmp_path, quick):
    cache = ShardCache(tmp_path / "cache", 1_000_000)
    shard = look_up(server.url)
    assert shard.size_bytes == 95_000
    assert cache.local(shard).read_bytes() == server.content
    asked = len(server.requests)
    assert asked == 10, "pieces, not one request per sample"
    descriptor = cache.open(shard)
    assert os.pread(descriptor, 5, 90_000) == server.content[90_000:90_005]
    os.close(descriptor)
    assert len(server.requests) == asked


def test_a_dropped_connection_and_a_slow_answer(server, tmp_path, quick):
    server.drop, server.delay = {3, 4}, {6}
    path = ShardCache(tmp_path, 1_000_000).local(look_up(server.url))
    assert path.read_bytes() == server.content
    assert len(server.requests) == 12, "only the lost pieces are asked for again"


def test_a_server_that_stays_away_says_so(server, tmp_path, quick):
    shard = look_up(server.url)
    server.drop = set(range(100))
    cache = ShardCache(tmp_path, 1_000_000)
    with pytest.raises(ShardError, match=r"train-0000.tar: .*3 times. Run again"):
        cache.local(shard)
    server.drop = set()
    assert cache.local(shard).read_bytes() == server.content


def test_a_shard_that_changes_is_another_one(server, tmp_path, quick):
    cache = ShardCache(tmp_path, 1_000_000)
    before = look_up(server.url)
    cache.local(before)
    server.content, server.etag = os.urandom(20_000), '"2"'
    after = look_up(server.url)
    assert after.token != before.token
    assert cache.local(after).read_bytes() == server.content


def test_a_shard_that_changes_while_it_is_fetched_is_refused(server, tmp_path, quick):
    shard = look_up(server.url)
    server.etag = '"2"'
    with pytest.raises(ShardError, match="changed while it was fetched"):
        ShardCache(tmp_path, 1_000_000).local(shard)


def test_missing(server, tmp_path, quick):
    with pytest.raises(ShardError, match="Check the address"):
        look_up((tmp_path / "gone.tar").as_uri())


def test_unknown_protocol():
    with pytest.raises(ShardError, match="nonsense"):
        look_up("nonsense://a/b.tar")


def test_the_cache_keeps_to_its_size_and_forgets_the_oldest(tmp_path, quick):
    source = tmp_path / "source"
    source.mkdir()
    for number in range(4):
        (source / f"{number}.tar").write_bytes(bytes([number]) * 30_000)
    cache = ShardCache(tmp_path / "cache", 70_000)
    shards = [look_up((source / f"{number}.tar").as_uri()) for number in range(4)]
    held = os.open(cache.local(shards[0]), os.O_RDONLY)
    cache.local(shards[1])
    os.utime(cache.local(shards[0]), ns=(2, 2))
    cache.local(shards[2])
    kept = {path.name.rpartition("-")[2] for path in cache.folder.glob("*.tar")}
    assert kept == {"1.tar", "2.tar"}
    assert os.pread(held, 3, 0) == b"\0\0\0", "a reader keeps what it has open"
    os.close(held)
    with pytest.raises(DataError, match=r"do not fit in the cache of 70,000; raise"):
        cache.local(RemoteShard("file:///x.tar", 80_000, "1"))


def test_pipe(tmp_path, quick):
    content = tmp_path / "a.tar"
    content.write_bytes(os.urandom(30_000))
    cache = ShardCache(tmp_path / "cache", 100_000)
    assert cache.local(look_up(f"pipe:cat {content}")).read_bytes() == content.read_bytes()
    with pytest.raises(ShardError, match="ended with code 3"):
        cache.local(look_up("pipe:exit 3"))
    with pytest.raises(DataError, match=r"raise SHARDSIEVE_CACHE_GB"):
        cache.local(look_up("pipe:yes"))


def test_glob_and_upload(tmp_path):
    source = tmp_path / "b.tar"
    source.write_bytes(b"content")
    folder = tmp_path.as_uri()
    store = Store(f"{folder}/out")
    assert store.sizes("*.tar") == {} and store.read_text("note.txt") is None
    store.put(source)
    store.write_text("note.txt", "hello")
    assert (tmp_path / "out/b.tar").read_bytes() == b"content"
    assert store.sizes("*.tar") == {"b.tar": 7} and store.read_text("note.txt") == "hello"
    assert [RemotePath(url).name for url in expand_glob(f"{folder}/out/*.tar")] == ["b.tar"]
    store.delete("b.tar")
    assert not (tmp_path / "out/b.tar").exists()
    with pytest.raises(ShardError, match="nothing matches"):
        expand_glob(f"{folder}/*.zip")


@pytest.mark.parametrize("size", ["0", "-1", "much", "nan", "inf"])
def test_a_senseless_size_of_the_cache(size, monkeypatch):
    monkeypatch.setenv("SHARDSIEVE_CACHE_GB", size)
    with pytest.raises(ConfigError, match="SHARDSIEVE_CACHE_GB"):
        ShardCache.of_user()


def test_the_cache_of_the_user(monkeypatch, tmp_path):
    monkeypatch.setenv("SHARDSIEVE_CACHE", str(tmp_path))
    monkeypatch.setenv("SHARDSIEVE_CACHE_GB", "0.5")
    cache = ShardCache.of_user()
    assert (cache.folder, cache.max_bytes) == (tmp_path, 500_000_000)

"""The line against an S3 server on this machine: shards in a bucket, a connection that drops."""

import http.client
import http.server
import threading
import time
import urllib.parse

import pytest
from tiny import write_shards

import shardsieve
from shardsieve.config import Config
from shardsieve.errors import DataError
from shardsieve.pipeline import run_stages
from shardsieve.verify import verify

boto3 = pytest.importorskip("boto3")
moto_server = pytest.importorskip("moto.server")
pytest.importorskip("s3fs")
pytestmark = pytest.mark.filterwarnings(
    # aiohttp's sessions are closed when the interpreter ends; until then they count as unclosed.
    "ignore::ResourceWarning",
    "ignore::pytest.PytestUnraisableExceptionWarning",
    "ignore::DeprecationWarning",
)


@pytest.fixture(scope="module")
def server():
    server = moto_server.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(server, monkeypatch, tmp_path):
    """An empty bucket that s3fs finds as a user's would be found: by AWS's variables."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", server)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("SHARDSIEVE_CACHE", str(tmp_path / "cache"))
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    client = boto3.client("s3", endpoint_url=server)
    name = "shards"
    client.create_bucket(Bucket=name)
    yield client, name
    for listed in client.list_objects_v2(Bucket=name).get("Contents", []):
        client.delete_object(Bucket=name, Key=listed["Key"])
    client.delete_bucket(Bucket=name)


def test_from_a_bucket_as_from_a_disk(bucket, settings, tmp_path):
    client, name = bucket
    tiny = write_shards(tmp_path / "data", n_shards=3, per_shard=40)
    for path in tiny.paths:
        client.upload_file(str(path), name, f"set/{path.name}")
    here = shardsieve.clean(tiny.patterns, tmp_path / "LOCAL", settings())
    url = f"s3://{name}/set/train-{{0000..0002}}.tar"
    there = shardsieve.clean(url, tmp_path / "S3", settings(workers=1))
    for file in ("index/samples.arrow", "probe/losses.arrow", "select/scores.parquet"):
        assert (there.path / file).read_bytes() == (here.path / file).read_bytes(), file
    for path in sorted((tmp_path / "LOCAL/clean").glob("*.tar")):
        assert (tmp_path / "S3/clean" / path.name).read_bytes() == path.read_bytes()
    by_pattern = shardsieve.clean(f"s3://{name}/set/train-*.tar", tmp_path / "S3", settings())
    assert by_pattern.manifest.stages["embed"].seconds == there.manifest.stages["embed"].seconds


class _Unreliable(http.server.BaseHTTPRequestHandler):
    """Hands requests on to the server; in the middle of shards one is dropped and one is slow."""

    protocol_version = "HTTP/1.1"

    def _forward(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        connection = http.client.HTTPConnection(self.server.behind, timeout=30)
        # The signature covers the host that the client spoke to.
        connection.request(self.command, self.path, body, dict(self.headers))
        answer = connection.getresponse()
        content = answer.read()
        of_shard = "/set/" in self.path and self.command == "GET" and "Range" in self.headers
        place = "read" if of_shard else "write" if self.command == "PUT" else None
        with self.server.lock:
            count = self.server.seen[place] = self.server.seen.get(place, 0) + 1
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("transfer-encoding", "connection", "content-length"):
                self.send_header(name, value)
        size = int(answer.getheader("Content-Length") or len(content))
        self.send_header("Content-Length", str(size))
        self.end_headers()
        if place and count == 2:
            self.server.dropped.add(place)
            self.wfile.write(content[: len(content) // 2])
            self.close_connection = True
            self.connection.close()
            return
        if place and count == 4:
            self.server.slow.add(place)
            time.sleep(1.0)
        if self.command != "HEAD":
            self.wfile.write(content)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _forward

    def log_message(self, *args):
        pass


@pytest.fixture
def unreliable(bucket, server, monkeypatch):
    """The same bucket behind a network that fails now and then."""
    proxy = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Unreliable)
    proxy.behind = urllib.parse.urlparse(server).netloc
    proxy.lock, proxy.seen, proxy.dropped, proxy.slow = threading.Lock(), {}, set(), set()
    thread = threading.Thread(target=proxy.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy.server_port}")
    monkeypatch.setattr("shardsieve.shards.remote._PIECE_BYTES", 50_000)
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    yield proxy, *bucket
    proxy.shutdown()
    thread.join()
    proxy.server_close()


def test_to_and_from_a_bucket_over_a_bad_network(unreliable, settings, tmp_path):
    proxy, client, name = unreliable
    tiny = write_shards(tmp_path / "data", n_shards=3, per_shard=40)
    for path in tiny.paths:
        client.upload_file(str(path), name, f"set/{path.name}")
    here = shardsieve.clean(tiny.patterns, tmp_path / "LOCAL", settings())
    config = settings(write__to=f"s3://{name}/clean", write__shard_samples=25)
    there = shardsieve.clean(f"s3://{name}/set/train-*.tar", tmp_path / "S3", config)
    assert proxy.dropped == proxy.slow == {"read", "write"}
    assert there.manifest.counts == here.manifest.counts
    listed = client.list_objects_v2(Bucket=name, Prefix="clean/")["Contents"]
    keys = {entry["Key"].partition("/")[2] for entry in listed}
    shards = sorted((there.path / "clean").glob("*.tar"))
    assert keys == {"manifest.parquet", "written-by.txt", *(path.name for path in shards)}
    for path in shards:
        body = client.get_object(Bucket=name, Key=f"clean/{path.name}")["Body"].read()
        assert body == path.read_bytes()
    assert verify(there.path).problems == []
    fewer = config.model_copy(
        update={"write": config.write.model_copy(update={"shard_samples": 1000})}
    )
    run_stages(["write"], there.path, fewer)
    listed = client.list_objects_v2(Bucket=name, Prefix="clean/clean-")["Contents"]
    assert len(listed) < len(shards), "shards of the earlier, larger set are gone"
    with pytest.raises(DataError, match=r"holds shards of .*S3"):
        shardsieve.clean(tiny.patterns, tmp_path / "OTHER", Config.model_validate(fewer))

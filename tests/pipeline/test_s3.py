"""The line against an S3 server on this machine: shards in a bucket, a connection that drops."""

import pytest
from tiny import write_shards

import shardsieve

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

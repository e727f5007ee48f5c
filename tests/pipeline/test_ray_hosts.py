"""Hosts that share no disk, each in a network of its own: shards from S3 and back to it.

Needs root, to make network and mount namespaces. The head has the driver and no core to spare, two
further hosts do the work; each has its own /tmp and shared memory, which are all it writes to.
Only with --soak.
"""

import hashlib
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny import write_shards

from shardsieve.run import Run

boto3 = pytest.importorskip("boto3")
moto_server = pytest.importorskip("moto.server")
pytest.importorskip("ray")
pytest.importorskip("s3fs")
pytestmark = [
    pytest.mark.soak,
    pytest.mark.timeout(560),
    pytest.mark.filterwarnings(
        "ignore::ResourceWarning",
        "ignore::pytest.PytestUnraisableExceptionWarning",
        "ignore::DeprecationWarning",
    ),
]
NET = "10.231.7"
BRIDGE = "sieve-br"
SETTINGS = {"embed.image_size": 32, "embed.batch_size": 16, "report.map": 0, "workers": 0}


def ip(*words):
    subprocess.run(["ip", *words], check=True, capture_output=True)


def can_make_hosts():
    if os.geteuid() != 0 or not all(map(shutil.which, ("ip", "unshare", "mount"))):
        return False
    return subprocess.run(["unshare", "-n", "-m", "-p", "-f", "true"], check=False).returncode == 0


@pytest.fixture
def hosts():
    """Three network namespaces on a bridge, where the S3 server is as well."""
    if Path(sys.executable).is_relative_to("/tmp"):
        pytest.skip("each host has a /tmp of its own, in which this Python is not")
    if not can_make_hosts():
        pytest.skip("making hosts needs root, iproute2 and util-linux")
    names = [f"sieve{number}" for number in range(3)]
    try:
        ip("link", "add", BRIDGE, "type", "bridge")
        ip("addr", "add", f"{NET}.1/24", "dev", BRIDGE)
        ip("link", "set", BRIDGE, "up")
        for number, name in enumerate(names):
            ip("netns", "add", name)
            ip("link", "add", f"{name}-v", "type", "veth", "peer", "name", "eth0", "netns", name)
            ip("link", "set", f"{name}-v", "master", BRIDGE, "up")
            ip("-n", name, "addr", "add", f"{NET}.{11 + number}/24", "dev", "eth0")
            ip("-n", name, "link", "set", "eth0", "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)
        subprocess.run(["ip", "link", "del", BRIDGE], check=False, capture_output=True)


@pytest.fixture
def bucket(hosts):
    server = moto_server.ThreadedMotoServer(f"{NET}.1", 0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    variables = {
        "AWS_ENDPOINT_URL": f"http://{NET}.1:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    client = boto3.client(
        "s3",
        endpoint_url=variables["AWS_ENDPOINT_URL"],
        aws_access_key_id="test",
        aws_secret_access_key="test",
        region_name="us-east-1",
    )
    client.create_bucket(Bucket="set")
    yield client, variables
    server.stop()


def on_host(name, script, variables, *, own_disk):
    """Runs a script on a host; all that it starts ends with it."""
    disks = "mount --make-rprivate / && mount -t tmpfs tmpfs /dev/shm"
    if own_disk:
        disks += " && mount -t tmpfs tmpfs /tmp"
    return subprocess.Popen(
        ["ip", "netns", "exec", name, "unshare", "-m", "-p", "-f", "--kill-child", "--mount-proc",
         "sh", "-c", f"{disks} && {script}"],
        env={**os.environ, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )  # fmt: skip


def test_hosts_that_share_nothing_but_s3(hosts, bucket, tmp_path):
    client, variables = bucket
    tiny = write_shards(tmp_path / "data", n_shards=4, per_shard=30)
    for path in tiny.paths:
        client.upload_file(str(path), "set", f"in/{path.name}")
    variables = variables | {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "disabled",
        # Where tests share a machine, Ray's workers would give way to everything else on it.
        "RAY_worker_niceness": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "RAY_raylet_start_wait_time_s": "200",
    }
    # Ray waits 15 seconds for each of its agents, however busy the machine is.
    ray = (
        f"nice -n -15 {sys.executable} -m ray.scripts.scripts start "
        "--object-store-memory=100000000 "
        "--dashboard-agent-grpc-port=6401 --dashboard-agent-listen-port=6402 "
        "--runtime-env-agent-port=6403 --metrics-export-port=6404"
    )
    out = tmp_path / "RUN"
    settings = " ".join(f"-s {name}={value}" for name, value in SETTINGS.items())
    head = on_host(
        hosts[0],
        f"{ray} --head --node-ip-address={NET}.11 --port=6379 --num-cpus=0 "
        "--include-dashboard=false >/dev/null && "
        f"while [ ! -e {tmp_path}/go ]; do sleep 0.2; done && "
        f"{sys.executable} -m shardsieve clean 's3://set/in/train-*.tar' -o {out} --engine ray "
        f"--address auto {settings} -s write.to=s3://set/out",
        variables | {"SHARDSIEVE_CACHE": str(tmp_path / "cache")},
        own_disk=False,
    )
    others = []
    try:
        # One after the other: side by side they are too slow for Ray on a busy machine.
        wait_for(f"{NET}.11", head)
        for number, name in enumerate(hosts[1:]):
            address = f"{NET}.{12 + number}"
            join = f"{ray} --address={NET}.11:6379 --node-ip-address={address} --num-cpus=1 --block"
            cache = {"SHARDSIEVE_CACHE": "/tmp/cache"}
            others.append(on_host(name, join, variables | cache, own_disk=True))
            wait_for(address, others[-1])
        (tmp_path / "go").touch()
        told, _ = head.communicate(timeout=500)
        assert head.returncode == 0, told
    finally:
        for host in (*others, head):
            host.kill()
            host.communicate()
    # As a command, too: the threads of the libraries under NumPy decide the last bits of `select`,
    # and in this process they were set before anything could be said.
    local = tmp_path / "LOCAL"
    command = [sys.executable, "-m", "shardsieve", "clean", *tiny.patterns, "-o", local]
    subprocess.run([*command, *settings.split()], check=True, capture_output=True)
    here = Run(local)
    for file in ("index/samples.arrow", "probe/losses.arrow", "select/scores.parquet"):
        assert hash_of(out / file) == hash_of(here.path / file), file
    for folder in ("embed", "clean"):
        for path in [*(here.path / folder).glob("*.arrow"), *(here.path / folder).glob("*.tar")]:
            assert hash_of(out / folder / path.name) == hash_of(path), path.name
    for path in here.clean_shards:
        body = client.get_object(Bucket="set", Key=f"out/{path.name}")["Body"].read()
        assert body == path.read_bytes()
    assert "embed: 120/120 images" in told


def wait_for(address, host):
    """Waits for an agent that every Ray has, with or without its dashboard."""
    deadline = time.monotonic() + 120
    while True:
        try:
            socket.create_connection((address, 6403), timeout=1).close()
            return
        except OSError:
            assert host.poll() is None and time.monotonic() < deadline, f"no Ray at {address}"
            time.sleep(0.2)


def hash_of(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()

"""The line on Ray: the bytes of the local engine, however many workers and whoever dies."""

import hashlib
import io
import os
import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest
from clusters import cluster_of
from tiny import write_shards

import shardsieve
from shardsieve.engines import ray_pool
from shardsieve.engines.choice import Engine
from shardsieve.engines.executor import Job
from shardsieve.errors import ConfigError, DataError, ShardError
from shardsieve.pipeline import run_stages
from shardsieve.progress import Lines, Silent
from shardsieve.verify import verify

ray = pytest.importorskip("ray")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(400),
]
FOLDERS = ("index", "embed", "probe", "select", "clean")


def files_of(out):
    return {
        str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest()
        for folder in FOLDERS
        for path in sorted((out / folder).rglob("*"))
        if path.is_file() and path.name != "stage.json"
    }


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    return write_shards(tmp_path_factory.mktemp("many"), n_shards=12, per_shard=30)


@pytest.fixture(scope="module")
def held_out(many, tmp_path_factory):
    """A shard that the samples leaked from."""
    return str(shutil.copy(many.paths[5], tmp_path_factory.mktemp("held-out") / "val.tar"))


@pytest.fixture(scope="module")
def alone(many, held_out, settings, tmp_path_factory):
    out = tmp_path_factory.mktemp("alone") / "RUN"
    config = settings(write__shard_samples=25, select__held_out=[held_out])
    run = shardsieve.clean(many.patterns, out, config)
    assert run.manifest.stages["select"].facts["leaks"]["samples"] == 30
    return files_of(out)


@pytest.fixture(scope="module")
def cluster():
    with cluster_of(3):
        yield


@pytest.mark.parametrize("workers", [2, pytest.param(3, marks=pytest.mark.soak)])
def test_the_same_bytes_as_alone(cluster, many, alone, held_out, settings, tmp_path, workers):
    told = io.StringIO()
    run = shardsieve.clean(
        many.patterns,
        tmp_path / "RUN",
        settings(write__shard_samples=25, select__held_out=[held_out]),
        progress=Lines(told),
        engine=Engine("ray", workers=workers),
    )
    assert files_of(run.path) == alone
    assert verify(run.path).problems == []
    assert not list(run.path.rglob("from-workers"))
    rates = [line for line in told.getvalue().splitlines() if "embed: worker" in line]
    # Whoever has loaded torch first may be done before the others have.
    assert 1 <= len(rates) <= workers
    assert sum(int(line.split(": ")[2].split()[0]) for line in rates) == len(many.paths)
    assert all(line.endswith("images/s") for line in rates)
    assert "embed: 360/360 images" in told.getvalue(), "one count for all workers"


@pytest.mark.soak
def test_from_one_engine_to_the_other_and_back(cluster, many, alone, held_out, settings, tmp_path):
    config = settings(write__shard_samples=25, select__held_out=[held_out])
    out = tmp_path / "RUN"
    run_stages(["index"], out, config, many.patterns)
    run_stages(["embed"], out, config, engine=Engine("ray", workers=1))
    told = io.StringIO()
    shardsieve.clean(many.patterns, out, config, progress=Lines(told))
    assert "index: up to date" in told.getvalue() and "embed: up to date" in told.getvalue()
    assert files_of(out) == alone
    (out / "embed" / "features-000004.arrow").unlink()
    (out / "clean" / "clean-000002.tar").unlink()
    shardsieve.clean(many.patterns, out, config, engine=Engine("ray", workers=1))
    assert files_of(out) == alone


def test_without_a_common_disk_files_come_back(
    cluster, many, alone, held_out, settings, tmp_path, monkeypatch
):
    # Workers cannot find the folder by which they would know that they see the driver's.
    monkeypatch.setattr("shardsieve.engines.ray_engine.Place", _elsewhere)
    run = shardsieve.clean(
        many.patterns,
        tmp_path / "RUN",
        settings(write__shard_samples=25, select__held_out=[held_out]),
        engine=Engine("ray", workers=1),
    )
    assert files_of(run.path) == alone


def _elsewhere(out, token):
    from shardsieve.engines.ray_worker import Place

    class Hidden(Place):
        def __reduce__(self):
            return Place, (self.out, "another disk")

    return Hidden(out, token)


def test_a_killed_worker_costs_its_unfinished_shards(
    cluster, many, settings, tmp_path, monkeypatch
):
    config, out = settings(write__shard_samples=25, embed__batch_size=1), tmp_path / "RUN"
    run_stages(["index"], out, config, many.patterns)
    given, killed = [], []
    give = ray_pool._Worker.give
    monkeypatch.setattr(
        ray_pool._Worker, "give", lambda worker, *args: (given.append(worker), give(worker, *args))
    )

    class Killer(Lines):
        def track(self, stage, total, unit, done=0):
            threading.Thread(target=kill_one, daemon=True).start()
            return super().track(stage, total, unit, done)

    def kill_one():
        deadline = time.monotonic() + 120
        while not list((out / "embed.part").glob("features-*.arrow")):
            assert time.monotonic() < deadline
            time.sleep(0.005)
        killed.append(int(given[0].name.rpartition("/")[2]))
        os.kill(killed[0], signal.SIGKILL)

    told = io.StringIO()
    run_stages(["embed"], out, config, progress=Killer(told), engine=Engine("ray", workers=2))
    assert killed and "was lost; its" in told.getvalue()
    with_one = settings(write__shard_samples=25, embed__batch_size=1)
    undisturbed = tmp_path / "UNDISTURBED"
    run_stages(["index", "embed"], undisturbed, with_one, many.patterns)
    for path in sorted((undisturbed / "embed").glob("*.arrow")):
        assert (out / "embed" / path.name).read_bytes() == path.read_bytes()


def _work(harm):
    """Work that comes to harm at its second piece; a class of a function is sent as it is."""

    class Work:
        def run(self, pieces, out, advance):
            for piece in pieces:
                if piece == 1:
                    harm()
                (out / f"{piece}.txt").write_text("done")
                yield piece

        def close(self):
            pass

    return Work


def _die():
    os.kill(os.getpid(), signal.SIGKILL)


def _refuse():
    raise ShardError("train-0007.tar: broken. Mend it")


def _one(result):
    return 1


@pytest.mark.parametrize(
    ("harm", "error", "message"),
    [
        (_die, DataError, r"piece 2 of 3 was lost 4 times, most likely for want of memory"),
        (_refuse, ShardError, r"^train-0007.tar: broken. Mend it$"),
    ],
)
def test_a_piece_that_cannot_be_done_ends_it(cluster, tmp_path, harm, error, message):
    from shardsieve.engines.ray_engine import RayExecutor

    executor = RayExecutor(Silent(), workers=1)
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    job = Job("embed", "images", _work(harm), _one)
    with pytest.raises(error, match=message):
        list(executor.map(job, [0, 1, 2], tmp_path, _one))
    executor.close()
    ray.cloudpickle.unregister_pickle_by_value(sys.modules[__name__])
    assert not (tmp_path / "from-workers").exists()


def test_cores_are_free_for_others_before_the_last_stage(cluster, tmp_path):
    from shardsieve.engines.ray_engine import RayExecutor

    executor = RayExecutor(Silent(), workers=3)
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    job = Job("embed", "images", _work(_refuse), _one)
    executor.start("cpu", 3)
    assert _free_cores(0)
    assert [result for _, result in executor.map(job, [0], tmp_path, _one)] == [0]
    executor.leave()
    assert _free_cores(3)
    assert [result for _, result in executor.map(job, [2], tmp_path, _one)] == [2]
    executor.close()
    ray.cloudpickle.unregister_pickle_by_value(sys.modules[__name__])
    assert _free_cores(3)


def _free_cores(number):
    until = time.monotonic() + 60
    while time.monotonic() < until:
        if ray.available_resources().get("CPU", 0) == number:
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "ray", "address": "ray://head:10001"}, "Ray Client cannot be used"),
        ({"name": "local", "address": "auto"}, "is for the engine ray"),
        ({"name": "ray", "workers": 0}, "give at least 1"),
        ({"name": "dask"}, "there are local, ray"),
    ],
)
def test_options_that_cannot_work(many, tmp_path, options, message):
    with pytest.raises(ConfigError, match=message):
        shardsieve.clean(many.patterns, tmp_path / "RUN", engine=Engine(**options))
    assert not (tmp_path / "RUN").exists()


def test_without_ray_it_says_what_to_install(many, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"pip install 'shardsieve\[ray\]'"):
        shardsieve.clean(many.patterns, tmp_path / "RUN", engine="ray")


@pytest.mark.soak
def test_a_killed_driver_goes_on(cluster, many, checkpoint, settings, tmp_path):
    """The command, killed in the middle of embed; its workers end, and the rest is done anew."""
    out = tmp_path / "RUN"
    config = settings(embed__image_size=192, embed__batch_size=1)
    run_stages(["index"], out, config, many.patterns)
    address = ray.get_runtime_context().gcs_address
    command = [
        *(sys.executable, "-m", "shardsieve", "embed", str(out), "--engine", "ray"),
        *("--address", address, "--ray-workers", "1"),
    ]
    process = subprocess.Popen(command)
    part = out / "embed.part"
    deadline = time.monotonic() + 200
    while len(list(part.glob("features-*.arrow"))) < 2:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    finished = {path.name: path.stat().st_mtime_ns for path in part.glob("features-*.arrow")}
    assert 2 <= len(finished) < len(many.paths), "it was to be caught in the middle"
    run_stages(["embed"], out, config, engine=Engine("ray", workers=1))
    after = {name: (out / "embed" / name).stat().st_mtime_ns for name in finished}
    assert after == finished, "finished shards are not done again"
    run_stages(["index", "embed"], tmp_path / "UNDISTURBED", config, many.patterns)
    for path in sorted((tmp_path / "UNDISTURBED/embed").glob("*.arrow")):
        assert (out / "embed" / path.name).read_bytes() == path.read_bytes()
    assert not list(out.rglob("from-workers"))

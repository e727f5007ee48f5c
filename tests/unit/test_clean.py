"""The clean samples as a data set: the same as a copy would give, each exactly once."""

import io
import itertools
import os
import random
import tarfile

import numpy as np
import pytest
import torch
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader
from webdataset.tariterators import group_by_keys, tar_file_expander

from shardsieve.config import IndexConfig
from shardsieve.data.index import SampleIndex
from shardsieve.data.subset import FILE, Subset, write_subset
from shardsieve.errors import ConfigError, DataError, ShardError, StaleArtefact
from shardsieve.progress import Silent
from shardsieve.shards import clean
from shardsieve.shards.clean import CleanSamples, open_clean
from shardsieve.stages.index import index

FORMATS = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)


def write_tar(path, n_samples, layout):
    stem = "" if layout == tarfile.USTAR_FORMAT else "größe/" * 40
    with tarfile.open(path, "w", format=layout) as tar:
        for i in range(n_samples):
            content = random.Random(f"{path.name}{i}").randbytes(37 * i % 1500)
            # Neighbours may have the same key when the sample between them is gone.
            key = f"{stem}{path.stem}-{i if layout != tarfile.GNU_FORMAT else i % 2:03d}"
            for kind, data in (("JPG", content), ("cls", b"%d" % (i % 3)), ("seg.png", b"")):
                info = tarfile.TarInfo(f"{key}.{kind}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A folder like a run's, with two of three samples clean."""
    folder = tmp_path_factory.mktemp("RUN")
    shards = [
        write_tar(folder / f"train-{n}.tar", size, FORMATS[n % 3])
        for n, size in enumerate((30, 17, 1, 0, 41))
    ]
    (folder / "index").mkdir()
    (folder / "select").mkdir()
    index(shards, IndexConfig(), out=folder / "index", progress=Silent())
    samples = SampleIndex.open(folder / "index")
    rows = np.flatnonzero(np.random.default_rng(0).random(len(samples)) < 0.67)
    write_subset(folder / "select" / FILE, samples, rows)
    return folder


@pytest.fixture(scope="module")
def want(run):
    """What webdataset reads from the shards, without the samples that are not clean."""
    # What webdataset.WebDataset does with shards, on streams that it need not close.
    shards = [
        {"url": str(path), "stream": io.BytesIO(path.read_bytes())}
        for path in sorted(run.glob("train-*.tar"))
    ]
    everything = list(group_by_keys(tar_file_expander(shards)))
    samples = SampleIndex.open(run / "index")
    subset = Subset.open(run / "select" / FILE)
    places = set(zip(subset.shard_N.tolist(), subset.offset_N.tolist(), strict=True))
    rows = zip(samples.numbers("shard").tolist(), samples.numbers("offset").tolist(), strict=True)
    return [s for s, place in zip(everything, rows, strict=True) if place in places]


def plain(sample):
    return {key: value for key, value in sample.items() if key != "__local_path__"}


def marks(samples):
    """What tells samples apart, in an order that can be compared."""
    return sorted((s["__key__"], s["jpg"], s["cls"]) for s in samples)


def test_samples_are_those_of_webdataset(run, want):
    assert 40 < len(want) < 80
    assert list(open_clean(run)) == [plain(sample) for sample in want]
    assert open_clean(run).n_samples == len(want)


@pytest.mark.parametrize("block", [1, 2, 7, 1000])
@pytest.mark.parametrize("read_bytes", [600, 5000, 1 << 22])
def test_the_size_of_blocks_and_reads_changes_nothing(run, want, monkeypatch, block, read_bytes):
    monkeypatch.setattr(clean, "_READ", read_bytes)
    assert list(open_clean(run, block=block)) == [plain(sample) for sample in want]
    assert marks(open_clean(run, block=block, seed=3)) == marks(want)


def test_neighbours_are_read_together(run, want, monkeypatch):
    reads = []
    genuine = clean.ShardFiles.read
    monkeypatch.setattr(
        clean.ShardFiles, "read", lambda *arguments: (reads.append(1), genuine(*arguments))[1]
    )
    assert len(list(open_clean(run))) == len(want)
    assert len(reads) < 0.6 * len(want)


def test_it_is_a_stage_of_a_webdataset_pipeline(run, want):
    pipeline = webdataset.DataPipeline(
        open_clean(run, seed=0),
        webdataset.shuffle(10, rng=random.Random(0)),
        webdataset.decode(webdataset.handle_extension("jpg", len)),
        webdataset.to_tuple("__key__", "jpg", "cls"),
        webdataset.batched(8),
    )
    rows = [row for batch in pipeline for row in zip(*batch, strict=True)]
    expected = [(s["__key__"], len(s["jpg"]), int(s["cls"])) for s in want]
    assert sorted((key, size, int(label)) for key, size, label in rows) == sorted(expected)


def test_a_seed_gives_an_order_and_every_epoch_another(run, want):
    samples = open_clean(run, seed=1, block=4)
    first, second = list(samples), list(samples)
    assert first != second and marks(first) == marks(second) == marks(want)
    again = open_clean(run, seed=1, block=4)
    assert list(again) == first
    again.set_epoch(1)
    assert list(again) == second
    assert list(open_clean(run, seed=2, block=4)) != first


@given(world_size=st.integers(1, 5), seed=st.none() | st.integers(0, 99), block=st.integers(1, 30))
@settings(max_examples=20)
def test_ranks_share_exactly_once(run, want, world_size, seed, block):
    options = {"seed": seed, "block": block, "world_size": world_size}
    shares = [list(open_clean(run, rank=rank, **options)) for rank in range(world_size)]
    assert marks(itertools.chain(*shares)) == marks(want)
    assert max(map(len, shares)) - min(map(len, shares)) <= len(want)


def test_two_ranks_with_two_workers_each(run, want):
    shares = []
    for rank in range(2):
        samples = open_clean(run, seed=5, block=3, rank=rank, world_size=2)
        loader = DataLoader(samples, batch_size=None, num_workers=2)
        shares.append(list(loader))
    assert all(10 < len(share) < len(want) - 10 for share in shares)
    assert marks(shares[0] + shares[1]) == marks(want)


def test_the_environment_of_a_launcher(run, want, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    shares = []
    for rank in range(3):
        monkeypatch.setenv("RANK", str(rank))
        assert list(open_clean(run)) == list(open_clean(run, rank=rank, world_size=3))
        shares += list(open_clean(run))
    assert marks(shares) == marks(want)


def test_torch_distributed_knows_the_rank(run, want, tmp_path):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1
    )
    try:
        assert len(list(open_clean(run))) == len(want)
    finally:
        torch.distributed.destroy_process_group()


@given(n_before=st.integers(0, 80), seed=st.none() | st.integers(0, 9), block=st.integers(1, 30))
@settings(max_examples=20)
def test_it_goes_on_in_the_middle_of_an_epoch(run, want, n_before, seed, block):
    options = {"seed": seed, "block": block}
    whole = open_clean(run, **options)
    list(whole)
    second_epoch, third_epoch = list(whole), list(whole)
    broken = open_clean(run, **options)
    list(broken)
    n_before = min(n_before, len(want) - 1)
    before = list(itertools.islice(broken, n_before))
    state = broken.state_dict()
    resumed = open_clean(run, **options)
    resumed.load_state_dict(state)
    assert before + list(resumed) == second_epoch
    assert list(resumed) == third_epoch


class Worker:
    def __init__(self, number, num_workers):
        self.id, self.num_workers = number, num_workers


def test_each_worker_has_a_state_of_its_own(run, want, monkeypatch):
    found, options = [], {"seed": 4, "block": 5, "rank": 1, "world_size": 2}
    for number in range(2):
        monkeypatch.setattr(clean, "get_worker_info", lambda n=number: Worker(n, 2))
        whole = list(open_clean(run, **options))
        broken = open_clean(run, **options)
        before = list(itertools.islice(broken, 3 + number))
        resumed = open_clean(run, **options)
        resumed.load_state_dict(broken.state_dict())
        assert before + list(resumed) == whole
        found += whole
        state = broken.state_dict()
    monkeypatch.setattr(clean, "get_worker_info", lambda: Worker(0, 2))
    with pytest.raises(ConfigError, match="number of workers; go on with those"):
        open_clean(run, **options).load_state_dict(state)
    monkeypatch.setattr(clean, "get_worker_info", lambda: None)
    other_rank = list(open_clean(run, **{**options, "rank": 0}))
    assert marks(found + other_rank) == marks(want)


@pytest.mark.parametrize("change", [{"seed": 2}, {"block": 9}, {"rank": 0, "world_size": 2}])
def test_the_state_of_another_order_is_refused(run, change):
    state = open_clean(run, seed=1).state_dict()
    with pytest.raises(ConfigError, match="another subset, seed, block"):
        open_clean(run, **{"seed": 1, **change}).load_state_dict(state)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"rank": 0}, "both rank and world_size"),
        ({"rank": 2, "world_size": 2}, r"rank must lie in \[0, 2\), found 2"),
        ({"block": 0}, "block must be at least 1"),
    ],
)
def test_senseless_options(run, options, match):
    with pytest.raises(ConfigError, match=match):
        open_clean(run, **options)


def test_what_is_no_run(tmp_path, run):
    with pytest.raises(StaleArtefact, match="no clean samples here; run `shardsieve clean`"):
        open_clean(tmp_path)
    (tmp_path / "select").mkdir()
    for content in (b"", b"nothing of the kind"):
        (tmp_path / "select" / FILE).write_bytes(content)
        with pytest.raises(DataError, match="not an index of clean samples"):
            open_clean(tmp_path)


def changed_run(tmp_path, run):
    (tmp_path / "select").mkdir()
    shard = tmp_path / "train-0.tar"
    write_tar(shard, 9, tarfile.USTAR_FORMAT)
    (tmp_path / "index").mkdir()
    index([shard], IndexConfig(), out=tmp_path / "index", progress=Silent())
    samples = SampleIndex.open(tmp_path / "index")
    write_subset(tmp_path / "select" / FILE, samples, np.arange(9))
    return shard


def test_a_shard_that_changed_or_vanished(tmp_path, run):
    shard = changed_run(tmp_path, run)
    opened = open_clean(tmp_path)
    data = shard.read_bytes()
    # Behind the back of the clock: same size, same time, other samples.
    status = shard.stat()
    shard.write_bytes(data[:512] + data[:-512])
    os.utime(shard, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(ShardError, match="other samples than were cleaned"):
        list(opened)
    shard.write_bytes(data + data)
    with pytest.raises(ShardError, match="changed since it was indexed; run `clean` again"):
        open_clean(tmp_path)
    shard.unlink()
    with pytest.raises(ShardError, match="No such file"):
        open_clean(tmp_path)


def test_an_empty_subset(tmp_path, run):
    samples = SampleIndex.open(run / "index")
    write_subset(tmp_path / FILE, samples, np.empty(0, np.int64))
    empty = CleanSamples(Subset.open(tmp_path / FILE), seed=0)
    assert list(empty) == list(empty) == []


def test_the_file_is_compact(tmp_path, run):
    samples = SampleIndex.open(run / "index")
    rows = np.tile(np.arange(len(samples)), 100)
    write_subset(tmp_path / FILE, samples, rows)
    few = (run / "select" / FILE).stat().st_size
    growth = (tmp_path / FILE).stat().st_size - few
    assert growth < 20.5 * len(rows)

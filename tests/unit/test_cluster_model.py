"""The simulated cluster: what can be worked out by hand comes out, and the limit moves."""

from dataclasses import replace

import pytest
from bench.cluster_model import Rates, simulate

RATES = Rates(
    start_s=10.0,
    images_per_s=100.0,
    driver_s=0.01,
    driver_bytes_per_s=1e9,
    image_bytes=1e5,
    feature_bytes=2e3,
    storage_bytes_per_s=1e9,
    probe_s=0.0,
)


def test_one_worker_does_one_thing_after_the_other():
    told = simulate(RATES, images=1600, shard_images=100, workers=1)
    # 16 shards of 10 MB: 0.01 s to read and 1 s to embed each; the driver follows at each end.
    chunks = [8, 4, 2, 1, 1]
    assert told["shards"] == sum(chunks) == 16
    assert told["embed_s"] == pytest.approx(10 + 16 * 1.01 + len(chunks) * 0.01, abs=0.01)


def test_twice_the_workers_take_half_the_time_while_nothing_else_is_short():
    one, two = (
        simulate(replace(RATES, start_s=0), images=200_000, shard_images=100, workers=workers)
        for workers in (1, 2)
    )
    assert two["embed_s"] == pytest.approx(one["embed_s"] / 2, rel=0.01)
    assert two["embed_limit"] == "workers"


def test_the_limit_moves_from_workers_to_storage_and_to_the_driver():
    def limit(workers, **options):
        return simulate(RATES, images=10**6, shard_images=1000, workers=workers, **options)[
            "embed_limit"
        ]

    assert limit(8) == "workers"
    assert limit(512) == "storage"
    slow = replace(RATES, driver_bytes_per_s=1e7, storage_bytes_per_s=1e12)
    told = simulate(slow, images=10**6, shard_images=1000, workers=512, shared_disk=False)
    assert told["embed_limit"] == "driver"
    # 2 GB of features at 10 MB/s.
    assert told["embed_s"] == pytest.approx(200, rel=0.2)
    assert simulate(slow, images=10**6, shard_images=1000, workers=512)["embed_s"] < 100


def test_what_follows_may_be_the_limit():
    told = simulate(replace(RATES, probe_s=1.0), images=1000, shard_images=100, workers=8)
    assert told["after_s"] == 1000 and told["limit"] == "probe and select"

"""A cluster as a discrete-event simulation: where a run waits with 8, 64 and 512 GPUs.

Workers take shards from one list, as the pool of the engine `ray` gives them out: up to eight at a
time, fewer towards the end. A shard is read over the network, embedded, and its result is handled
by the one driver. What the stages after that cost the driver is added to it.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import asdict, dataclass
from typing import Any

import simpy

_AT_ONCE = 8


@dataclass(frozen=True, slots=True)
class Rates:
    """What one thing costs; `bench run ray` says which of them were measured.

    Attributes:
        start_s: From the start of embed to the first image of a worker.
        images_per_s: One worker.
        driver_s: The driver, for one finished shard whose files a worker put in place.
        driver_bytes_per_s: The driver, for files that come back to it.
        image_bytes: One image as it lies in a shard.
        feature_bytes: Its features.
        storage_bytes_per_s: All that the shared storage gives to all workers together.
        probe_s: The driver's stages after embed (probe and select), for one sample.
    """

    start_s: float
    images_per_s: float
    driver_s: float
    driver_bytes_per_s: float
    image_bytes: float
    feature_bytes: float
    storage_bytes_per_s: float
    probe_s: float


def simulate(
    rates: Rates, *, images: int, shard_images: int, workers: int, shared_disk: bool = True
) -> dict[str, Any]:
    """Runs `embed` on a cluster that does not exist.

    Args:
        rates: What things cost.
        images: How many there are.
        shard_images: How many lie in a shard.
        workers: How many workers there are.
        shared_disk: Workers put files in place themselves; else all pass through the driver.

    Returns:
        Seconds of embed and of what follows, the share of the time that workers, storage and driver
        are busy, and which of them is the limit.
    """
    world = simpy.Environment()
    driver, storage = simpy.Resource(world, 1), simpy.Resource(world, 1)
    busy = {"workers": 0.0, "storage": 0.0, "driver": 0.0}
    left = [-(-images // shard_images)]
    n_shards = left[0]
    read_s = shard_images * rates.image_bytes / rates.storage_bytes_per_s
    work_s = shard_images / rates.images_per_s
    handle_s = rates.driver_s
    if not shared_disk:
        handle_s += shard_images * rates.feature_bytes / rates.driver_bytes_per_s

    def hold(resource: simpy.Resource, name: str, seconds: float) -> Generator[Any, Any, None]:
        with resource.request() as turn:
            yield turn
            yield world.timeout(seconds)
            busy[name] += seconds

    def worker() -> Generator[Any, Any, None]:
        yield world.timeout(rates.start_s)
        while left[0]:
            taken = max(1, min(_AT_ONCE, left[0] // (2 * workers)))
            left[0] -= taken
            pending = []
            for _ in range(taken):
                yield world.process(hold(storage, "storage", read_s))
                yield world.timeout(work_s)
                busy["workers"] += work_s
                pending.append(world.process(hold(driver, "driver", handle_s)))
            yield world.all_of(pending)

    for _ in range(workers):
        world.process(worker())
    world.run()
    seconds = float(world.now)
    share = {
        "workers": busy["workers"] / (workers * seconds),
        "storage": busy["storage"] / seconds,
        "driver": busy["driver"] / seconds,
    }
    after_s = images * rates.probe_s
    limit = "probe and select" if after_s > seconds else max(share, key=lambda name: share[name])
    return {
        "workers": workers,
        "shards": n_shards,
        "shared_disk": shared_disk,
        "embed_s": round(seconds, 2),
        "after_s": round(after_s, 2),
        "share": {name: round(value, 3) for name, value in share.items()},
        "images_per_s": round(images / seconds),
        "embed_limit": max(share, key=lambda name: share[name]),
        "limit": limit,
    }


def sweep(rates: Rates, *, images: int, shard_images: int) -> dict[str, Any]:
    """Simulates 8, 64 and 512 workers, with and without a shared disk."""
    return {
        "rates": asdict(rates),
        "images": images,
        "shard_images": shard_images,
        "runs": [
            simulate(
                rates,
                images=images,
                shard_images=shard_images,
                workers=workers,
                shared_disk=shared,
            )
            for workers in (8, 64, 512)
            for shared in (True, False)
        ],
    }

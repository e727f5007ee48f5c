"""What `tune` would refuse after hours of other stages, and must refuse before."""

from __future__ import annotations

from collections.abc import Sequence

from shardsieve.config import TuneConfig
from shardsieve.data.index import ShardRef
from shardsieve.data.location import RemotePath
from shardsieve.errors import ConfigError
from shardsieve.tuning.metrics import refuse_without_tensorboard
from shardsieve.tuning.optimisation import refuse_unknown_optimiser


def refuse_what_is_missing(tune: TuneConfig) -> None:
    """Makes sure that what the settings name is there.

    Raises:
        ConfigError: timm has no such optimiser, or a package is not installed.
    """
    refuse_unknown_optimiser(tune.optimiser)
    if tune.tensorboard:
        refuse_without_tensorboard()


def refuse_small_cache(shards: Sequence[ShardRef]) -> None:
    """Makes sure that the cache holds all remote shards that an epoch draws samples from.

    Raises:
        ConfigError: It does not, and every batch would fetch whole shards again.
    """
    remote_bytes = sum(
        max(shard.size_bytes, 0) for shard in shards if isinstance(shard.path, RemotePath)
    )
    if not remote_bytes:
        return
    # fsspec is loaded by those who need it.
    from shardsieve.shards.remote import CACHE_FOLDER, CACHE_GB, ShardCache

    cache = ShardCache.of_user()
    if remote_bytes > cache.max_bytes:
        raise ConfigError(
            f"tune draws samples from all shards at once: {remote_bytes / 1e9:,.1f} GB of "
            f"remote ones, and the cache holds {cache.max_bytes / 1e9:,.1f}, so they would be "
            f"fetched again and again. Set {CACHE_GB} to more than that, and {CACHE_FOLDER} to a "
            "folder with the room, or copy the shards to a disk; what is finished stays"
        )

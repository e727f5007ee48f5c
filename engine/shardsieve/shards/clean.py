"""The clean samples as a torch data set, read from the original shards.

Shapes: N samples, B blocks of them.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import IterableDataset, get_worker_info

from shardsieve.data.record import content_key
from shardsieve.data.subset import FILE, Subset
from shardsieve.errors import ConfigError, ShardError, StaleArtefact
from shardsieve.shards.files import ShardFiles
from shardsieve.shards.gather import gather
from shardsieve.shards.grouping import extensions_of, keys_of, members_of
from shardsieve.shards.samples import stat_shard
from shardsieve_kernels.tar_scan import BLOCK, tar_scan

# Bytes that are read at once; a sample that is larger is read alone.
_READ = 4 * 1024 * 1024

WebSample = dict[str, Any]


class CleanSamples(IterableDataset[WebSample]):
    """The clean samples of a run, as WebDataset gives them: raw bytes by extension.

    A sample is `{"__key__": ..., "__url__": ..., "jpg": b"...", "cls": b"..."}`. Nothing was
    copied: the bytes come from the shards that were cleaned, in ranges as long as neighbours are
    kept. Use it in place of `webdataset.WebDataset(urls)`:

    ```python
    clean = shardsieve.open_clean("RUN", seed=0)
    samples = webdataset.DataPipeline(clean, webdataset.decode("pil"), webdataset.to_tuple(...))
    ```

    Every sample comes exactly once per epoch, whatever the number of ranks and of workers of the
    `DataLoader`; ranks differ in length by at most one block. An iteration that breaks off goes on
    where it was after `load_state_dict`; with workers, each has a state of its own, as
    `torchdata.StatefulDataLoader` keeps it.
    """

    def __init__(
        self,
        subset: Subset,
        *,
        seed: int | None = None,
        block: int = 256,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        """Takes what to read and in which order.

        Args:
            subset: Where the samples lie.
            seed: Shuffles blocks, and the samples within each; None keeps the order of the shards.
            block: Samples that stay together: fewer shuffle better, more read faster.
            rank: Which share of the samples; None asks torch.distributed, or else its environment.
            world_size: How many shares there are.

        Raises:
            ConfigError: Rank and world size do not fit together, or the block has no sample.
        """
        if block < 1:
            raise ConfigError(f"block must be at least 1, found {block}")
        if (rank is None) != (world_size is None):
            raise ConfigError("give both rank and world_size, or neither")
        if rank is not None and world_size is not None and not 0 <= rank < world_size:
            raise ConfigError(f"rank must lie in [0, {world_size}), found {rank}")
        self._subset = subset
        self._seed, self._block = seed, block
        self._share = None if rank is None or world_size is None else (rank, world_size)
        self._files = ShardFiles([ref.path for ref in subset.shards])
        self._epoch = 0
        # Samples of this epoch that were given out, here and before the state was loaded.
        self._given = 0

    @property
    def n_samples(self) -> int:
        """Samples of all ranks together."""
        return len(self._subset)

    def set_epoch(self, epoch: int) -> None:
        """Begins an epoch: with a seed, each has an order of its own.

        Without workers, one iteration after the other counts epochs by itself; a `DataLoader`
        with workers starts each epoch from the data set that it was given.
        """
        self._epoch, self._given = epoch, 0

    def state_dict(self) -> dict[str, Any]:
        """Returns where this iteration is: of this process, if a worker calls it."""
        return {"epoch": self._epoch, "given": self._given, "order": self._order_key()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on behind the last sample that was given out before `state_dict`.

        Raises:
            ConfigError: The state belongs to other samples, or to another order of them.
        """
        if state["order"] != self._order_key():
            raise ConfigError(
                "the state belongs to another subset, seed, block, world size or number of "
                "workers; go on with those, or begin a new epoch"
            )
        self._epoch, self._given = state["epoch"], state["given"]

    def __iter__(self) -> Iterator[WebSample]:
        """Yields what is left of the epoch; the next call yields the next one."""
        to_skip = self._given
        for rows in self._blocks():
            if to_skip >= len(rows):
                to_skip -= len(rows)
                continue
            order = self._within(rows)
            samples = self._read(rows)
            for place in order[to_skip:].tolist():
                self._given += 1
                yield samples[place]
            to_skip = 0
        self._epoch, self._given = self._epoch + 1, 0

    def _blocks(self) -> Iterator[npt.NDArray[np.int64]]:
        """Yields the rows of each block that this process reads."""
        edges = self._edges()
        order = np.arange(len(edges) - 1)
        if self._seed is not None:
            order = np.random.default_rng([self._seed, self._epoch]).permutation(len(order))
        reader, n_readers = self._reader()
        for number in order[reader::n_readers].tolist():
            yield np.arange(edges[number], edges[number + 1])

    def _edges(self) -> npt.NDArray[np.int64]:
        """Returns (B + 1,) the first row of each block, and N; no block spans two shards."""
        first_S = np.searchsorted(self._subset.shard_N, np.arange(len(self._subset.shards) + 1))
        starts = [
            np.arange(low, high, self._block)
            for low, high in zip(first_S[:-1].tolist(), first_S[1:].tolist(), strict=True)
        ]
        return np.concatenate([*starts, [len(self._subset)]])

    def _within(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        if self._seed is None:
            return np.arange(len(rows))
        # Not the block's place in the epoch: its order is that of its rows, whoever reads it.
        generator = np.random.default_rng([self._seed, self._epoch, int(rows[0])])
        return generator.permutation(len(rows))

    def _reader(self) -> tuple[int, int]:
        """Returns which of all processes this one is: rank by rank, worker by worker."""
        rank, world_size = self._share or _distributed()
        worker = get_worker_info()
        if worker is None:
            return rank, world_size
        return rank + world_size * worker.id, world_size * worker.num_workers

    def _order_key(self) -> str:
        order = {"rows": self.n_samples, "seed": self._seed, "block": self._block}
        shards = [[ref.path.name, ref.size_bytes] for ref in self._subset.shards]
        return content_key({**order, "reader": self._reader(), "shards": shards})

    def _read(self, rows: npt.NDArray[np.int64]) -> list[WebSample]:
        """Reads the samples of one block: neighbours together."""
        shard = int(self._subset.shard_N[rows[0]])
        offset_B, size_B = self._subset.offset_N[rows], self._subset.size_N[rows]
        path = self._subset.shards[shard].path
        samples: list[WebSample] = []
        for span in _spans(size_B):
            ranges = _joined(offset_B[span], size_B[span])
            data = b"".join(self._files.read(shard, low, high - low) for low, high in ranges)
            try:
                samples += _split(data, size_B[span], str(path))
            except ValueError as error:
                raise ShardError(
                    f"{path} from byte {ranges[0][0]:,}: other samples than were cleaned. "
                    "The shard changed; run `shardsieve clean` again"
                ) from error
        return samples


def _spans(size_N: npt.NDArray[np.int64]) -> list[slice]:
    """Returns which samples are in memory together: some megabytes."""
    cuts = np.flatnonzero(np.diff(np.cumsum(size_N) // _READ)) + 1
    edges = [0, *cuts.tolist(), len(size_N)]
    return [slice(low, high) for low, high in itertools.pairwise(edges)]


def _joined(
    offset_N: npt.NDArray[np.int64], size_N: npt.NDArray[np.int64]
) -> list[tuple[int, int]]:
    """Returns (start, end) of what is read at once: samples that touch."""
    end_N = offset_N + size_N
    cuts = np.flatnonzero(offset_N[1:] != end_N[:-1]) + 1
    first = np.concatenate([[0], cuts])
    last = np.append(cuts, len(offset_N)) - 1
    return list(zip(offset_N[first].tolist(), end_N[last].tolist(), strict=True))


def _split(data: bytes, size_N: npt.NDArray[np.int64], url: str) -> list[WebSample]:
    """Splits samples that lie one behind the other, which is a tar as well.

    Raises:
        ValueError: There are other samples.
    """
    # A shard that was cut inside the padding of its last member ends off the grid.
    data += bytes(-len(data) % BLOCK)
    found = tar_scan(data, backend="cpu")
    edge_N1 = np.concatenate([[0], np.cumsum(size_N)])
    entry_M = members_of(found)
    # By place and not by key: what lay between two samples of the same key may be gone.
    first_N1 = np.searchsorted(found.start_E[entry_M], edge_N1)
    first_N, starts = first_N1[:-1], found.start_E[entry_M]
    whole = not len(found.gaps_G2) and found.cut_at < 0 and not found.ended
    if not (whole and len(entry_M) and (np.diff(first_N1) > 0).all()):
        raise ValueError("no whole samples")
    if not np.array_equal(starts[first_N], edge_N1[:-1]):
        raise ValueError("samples begin elsewhere")
    key_hash_M = found.key_hash_E[entry_M]
    if not np.array_equal(key_hash_M, np.repeat(key_hash_M[first_N], np.diff(first_N1))):
        raise ValueError("members of other samples")
    first_entry_N = entry_M[first_N]
    raw_N = gather(found.names_Q, found.name_at_E1[first_entry_N], found.key_size_E[first_entry_N])
    keys = keys_of(raw_N, key_hash_M[first_N])[0].to_pylist()
    extension_M, extensions = extensions_of(found, entry_M)
    names = [extensions[code] for code in extension_M.tolist()]
    low_M = found.data_E[entry_M]
    high_M = low_M + found.size_E[entry_M]
    parts = list(zip(names, low_M.tolist(), high_M.tolist(), strict=True))
    samples = []
    for key, (first, last) in zip(keys, itertools.pairwise(first_N1.tolist()), strict=True):
        sample: WebSample = {"__key__": key, "__url__": url}
        for extension, low, high in parts[first:last]:
            sample[extension] = data[low:high]
        samples.append(sample)
    return samples


def _distributed() -> tuple[int, int]:
    """Returns rank and world size, from torch or from what its launchers set."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    return 0, 1


def open_clean(
    run: str | Path,
    *,
    seed: int | None = None,
    block: int = 256,
    rank: int | None = None,
    world_size: int | None = None,
) -> CleanSamples:
    """Opens the clean samples of a run, as they lie in the original shards.

    Args:
        run: The run directory; `shardsieve select` must have run in it, `write` need not.
        seed: Shuffles blocks, and the samples within each; None keeps the order of the shards.
        block: Samples that stay together: fewer shuffle better, more read faster.
        rank: Which share of the samples; None asks torch.distributed, or else its environment.
        world_size: How many shares there are.

    Returns:
        An iterable data set of dictionaries, as `webdataset.WebDataset` yields them undecoded.

    Raises:
        StaleArtefact: There is no selection in the run.
        ShardError: A shard is gone, or changed since it was cleaned.
        ConfigError: Rank and world size do not fit together, or the block has no sample.
    """
    file = Path(run) / "select" / FILE
    if not file.is_file():
        raise StaleArtefact(f"{run}: no clean samples here; run `shardsieve clean` or `select`")
    subset = Subset.open(file)
    for ref in subset.shards:
        now = stat_shard(ref.path)
        if (now.size_bytes, now.mtime_ns) != (ref.size_bytes, ref.mtime_ns):
            raise ShardError(f"{ref.path} changed since it was indexed; run `clean` again")
    return CleanSamples(subset, seed=seed, block=block, rank=rank, world_size=world_size)

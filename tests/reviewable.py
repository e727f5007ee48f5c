"""A run that can be reviewed, made in a moment: real shards and index, scores made by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
from tiny import add_member, write_shards

from shardsieve.config import IndexConfig
from shardsieve.data.index import SampleIndex
from shardsieve.data.losses import LossTable
from shardsieve.data.reason import Reason
from shardsieve.data.scores import scores_table, write_parquet
from shardsieve.progress import Silent
from shardsieve.stages.index import index


def reviewable(folder: Path, *, n_shards: int = 2, per_shard: int = 40) -> Path:
    """Writes shards and a run over them.

    Every fourth sample is removed; its key ends in a multiple of four. The last sample of the run
    has no image.
    """
    tiny = write_shards(folder / "shards", n_shards=n_shards, per_shard=per_shard)
    import tarfile

    with tarfile.open(tiny.paths[-1], "a") as tar:
        add_member(tar, "zz-lost.cls", b"0")
    run = folder / "RUN"
    (run / "index").mkdir(parents=True)
    (run / "select").mkdir()
    index(tiny.paths, IndexConfig(), out=run / "index", progress=Silent())
    (run / "config.toml").write_text("")
    (run / "manifest.json").write_text("{}")
    samples = SampleIndex.open(run / "index")
    n_samples = len(samples)
    rng = np.random.default_rng(0)
    lost_N = samples.reason_N != Reason.KEPT
    wrong_N = (np.arange(n_samples) % 4 == 0) & ~lost_N
    label_N = samples.label_N
    losses = LossTable(
        np.where(lost_N, np.nan, np.where(wrong_N, 3 + rng.random(n_samples), 0.1)).astype("f4"),
        np.where(wrong_N, -0.9, 0.9).astype("f4"),
        np.where(lost_N, -1, np.where(wrong_N, (label_N + 1) % 3, label_N)).astype("i4"),
        np.full(n_samples, -1, "i1"),
    )
    p_clean_N = np.where(lost_N, np.nan, np.where(wrong_N, 0.3 * rng.random(n_samples), 0.95))
    p_clean_N[1] = 0.61  # kept by a hair
    reason_N = np.where(wrong_N, Reason.HIGH_LOSS, samples.reason_N).astype(np.uint8)
    details = pa.chunked_array([samples.table.column("detail").combine_chunks()], pa.string())
    scores = scores_table(samples, losses, p_clean_N, reason_N, details)
    write_parquet(run / "select" / "scores.parquet", scores)
    return run

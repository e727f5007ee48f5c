"""One shard more, or one that changed: only that one is read and embedded."""

import hashlib
import os
import tarfile

import numpy as np
import pytest
from tiny import write_shards

import shardsieve
from shardsieve.errors import StaleArtefact
from shardsieve.pipeline import run_stages
from shardsieve.progress import Silent
from shardsieve.rundir import RunDir

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def hashes_of(folder):
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*.arrow")
    }


def assert_like_a_fresh_run(run, fresh):
    assert hashes_of(run.path / "index") == hashes_of(fresh.path / "index")
    # The first batches of a process may differ from later ones in the last bit.
    for got, want in zip(run.features.parts, fresh.features.parts, strict=True):
        np.testing.assert_allclose(got, want, atol=1e-3)


def test_only_what_is_new_is_embedded(tmp_path, settings):
    shards = write_shards(tmp_path / "shards", n_shards=4, per_shard=40)
    first, last = shards.patterns[:3], shards.patterns[3]
    out = tmp_path / "RUN"

    def embedded(patterns, out=out, **changes):
        run = run_stages(["index", "embed"], out, settings(**changes), patterns)
        return run, RunDir(out).record("embed").images

    assert embedded(first)[1] == 120
    before = hashes_of(out / "embed")
    # In front, so that every other shard gets another number.
    more = [last, *first]
    run, n_images = embedded(more)
    assert n_images == 40
    assert any("have not changed" in note for note in RunDir(out).record("embed").notes)
    after = hashes_of(out / "embed")
    for number in range(3):
        assert after[f"features-{number + 1:06d}.arrow"] == before[f"features-{number:06d}.arrow"]
    assert_like_a_fresh_run(run, embedded(more, tmp_path / "FRESH")[0])
    # The same bytes at another time are the same shard.
    os.utime(shards.paths[0])
    assert embedded(more)[1] == 0
    changed = write_shards(tmp_path / "other", n_shards=1, per_shard=40, seed=9)
    shards.paths[1].write_bytes(changed.paths[0].read_bytes())
    run, n_images = embedded(more)
    assert n_images == 40
    assert_like_a_fresh_run(run, embedded(more, tmp_path / "FRESH2")[0])
    # Other settings of the network: nothing can be kept.
    assert embedded(more, embed__image_size=40)[1] == 160


def test_a_stage_that_lost_a_file_is_done_again(tmp_path, settings):
    shards = write_shards(tmp_path / "shards", n_shards=2, per_shard=40)
    out, told = tmp_path / "RUN", []
    progress = Silent()
    progress.note = told.append
    shardsieve.clean(shards.patterns, out, settings())
    before = (out / "select/scores.parquet").read_bytes()
    (out / "probe/losses.arrow").unlink()
    with pytest.raises(StaleArtefact, match=r"select needs probe, whose file .*losses\.arrow"):
        run_stages(["select"], out, settings())
    shardsieve.clean(shards.patterns, out, settings(), progress=progress)
    assert "probe: runs again, changed: its files" in told
    assert "embed: up to date" in told
    assert (out / "select/scores.parquet").read_bytes() == before
    # Clean shards and features may be put elsewhere by those who are through with them.
    for file in (*out.glob("clean/*.tar"), *out.glob("embed/features-*.arrow")):
        file.unlink()
    told.clear()
    run_stages(["report"], out, settings(), progress=progress)
    assert told == ["report: up to date"]


def test_clean_samples_are_those_of_the_written_shards(tmp_path, settings):
    shards = write_shards(tmp_path / "shards", n_shards=2, per_shard=40)
    run = shardsieve.clean(shards.patterns, tmp_path / "RUN", settings())
    written = {}
    for path in run.clean_shards:
        with tarfile.open(path) as tar:
            written |= {member.name: tar.extractfile(member).read() for member in tar}
    opened = {
        f"{sample['__key__']}.{extension}": content
        for sample in shardsieve.open_clean(run.path, seed=1)
        for extension, content in sample.items()
        if not extension.startswith("__")
    }
    assert opened == written and len(opened) > 100

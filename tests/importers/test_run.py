"""What all layouts share: parallel, restartable, the same bytes every time, nothing replaced."""

import hashlib
import io
import json
import signal
import subprocess
import sys
import tarfile
import time

import pyarrow.parquet as pq
import pytest
from published import image_bytes

from shardsieve.errors import ConfigError, DataError, RunLocked, ShardError
from shardsieve.importers import writing
from shardsieve.importers.layouts import LAYOUTS, Options


@pytest.fixture
def source(tmp_path):
    for label in range(2):
        folder = tmp_path / "SRC" / f"c{label}"
        folder.mkdir(parents=True)
        for number in range(9):
            (folder / f"{number}.jpg").write_bytes(image_bytes(label * 100 + number))
    return tmp_path / "SRC"


def digests(folder):
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("*.tar")
    }


def test_same_bytes_with_any_number_of_threads(tmp_path, source, run_import):
    run_import("imagefolder", source, "ONE", workers=1)
    run_import("imagefolder", source, "MANY", workers=8)
    one = digests(tmp_path / "ONE")
    assert len(one) == 5
    assert one == digests(tmp_path / "MANY")
    for name in ("samples.parquet", "classes.txt", "problems.csv"):
        assert (tmp_path / "ONE" / name).read_bytes() == (tmp_path / "MANY" / name).read_bytes()


def test_shuffled_holds_the_same(tmp_path, source, run_import):
    plain = run_import("imagefolder", source, "PLAIN")
    mixed = run_import("imagefolder", source, "MIXED", shuffle=1)
    again = run_import("imagefolder", source, "AGAIN", shuffle=1)
    assert mixed.images == plain.images
    assert mixed.labels == plain.labels
    assert sorted(mixed.keys) == plain.keys != mixed.keys
    assert again.keys == mixed.keys


def test_finished_shards_are_kept_and_changed_sources_written_anew(tmp_path, source, run_import):
    first = run_import("imagefolder", source)
    times = {path: path.stat().st_mtime_ns for path in first.outcome.shards}
    (tmp_path / "OUT" / "data-000001.tar").unlink()
    (source / "c1" / "8.jpg").write_bytes(image_bytes(999))
    second = run_import("imagefolder", source)
    kept = {path.name for path in second.outcome.shards if path.stat().st_mtime_ns == times[path]}
    assert kept == {"data-000000.tar", "data-000002.tar", "data-000003.tar"}
    assert second.images["c1/8.jpg"] == image_bytes(999)
    assert {k: v for k, v in second.images.items() if k != "c1/8.jpg"} == {
        k: v for k, v in first.images.items() if k != "c1/8.jpg"
    }


def test_killed_and_run_again(tmp_path, source):
    """SIGKILL after the second shard: the next call finishes, with the same bytes."""
    script = (
        "import sys, time\n"
        "from shardsieve.importers import run, writing\n"
        "from shardsieve.importers.files import FileReader\n"
        "read = FileReader.read\n"
        "def slow(self, source):\n"
        "    time.sleep(0.05)\n"
        "    return read(self, source)\n"
        "FileReader.read = slow\n"
        "run.import_shards('imagefolder', sys.argv[1], sys.argv[2], per_shard=2, workers=1)\n"
    )
    out = tmp_path / "OUT"
    process = subprocess.Popen([sys.executable, "-c", script, source, out])
    deadline = time.monotonic() + 60
    while len(list(out.glob("*.tar"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    finished = digests(out)
    assert 2 <= len(finished) < 9
    times = {path.name: path.stat().st_mtime_ns for path in out.glob("*.tar")}
    assert not (out / "import.json").exists()
    done = subprocess.run([sys.executable, "-c", script, source, out], check=True)
    assert done.returncode == 0
    assert json.loads((out / "import.json").read_text())["samples"] == 18
    assert len(digests(out)) == 9
    assert not list(out.glob("*.part"))
    # All but the one that may have been between its name and its record.
    same = sum((out / name).stat().st_mtime_ns == when for name, when in times.items())
    assert same >= len(finished) - 1
    assert finished.items() <= digests(out).items()


def test_another_import_into_the_same_folder_is_refused(tmp_path, source, run_import):
    run_import("imagefolder", source)
    (source / "c0" / "new.jpg").write_bytes(image_bytes(5))
    with pytest.raises(DataError, match=r"holds shards of another import .imagefolder of"):
        run_import("imagefolder", source)


def test_a_folder_that_is_not_ours_is_refused(tmp_path, source, run_import):
    (tmp_path / "OUT").mkdir()
    (tmp_path / "OUT" / "thesis.tar").write_text("years")
    with pytest.raises(DataError, match=r"not empty .thesis.tar."):
        run_import("imagefolder", source)
    assert (tmp_path / "OUT" / "thesis.tar").read_text() == "years"


def test_two_at_once_are_refused(tmp_path, source, run_import):
    from shardsieve.rundir import RunDir

    with RunDir(tmp_path / "OUT").lock(), pytest.raises(RunLocked):
        run_import("imagefolder", source)


def test_a_disk_that_lies_is_noticed(tmp_path, source, run_import, monkeypatch):
    real = writing._compare

    def flip_a_bit_on_disk(path, written):
        data = bytearray(path.read_bytes())
        data[700] ^= 1
        path.write_bytes(data)
        real(path, written)

    monkeypatch.setattr(writing, "_compare", flip_a_bit_on_disk)
    with pytest.raises(ShardError, match=r"data-00000\d.tar.part: what was read back is not what"):
        run_import("imagefolder", source, workers=1)
    assert not list((tmp_path / "OUT").glob("*.tar"))


def test_tars_are_as_tarfile_writes_them(tmp_path, source, run_import):
    got = run_import("imagefolder", source, per_shard=7)
    for shard in got.outcome.shards:
        again = io.BytesIO()
        with (
            tarfile.open(shard) as tar,
            tarfile.open(fileobj=again, mode="w", format=tarfile.USTAR_FORMAT) as copy,
        ):
            for member in tar:
                copy.addfile(member, tar.extractfile(member))
        # Beside the zeros at the end, of which tarfile writes more.
        assert shard.read_bytes().rstrip(b"\0") == again.getvalue().rstrip(b"\0")


def test_webdataset_reads_them(tmp_path, source, run_import):
    import warnings

    import webdataset

    got = run_import("imagefolder", source)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        samples = list(
            webdataset.WebDataset(list(map(str, got.outcome.shards)), shardshuffle=False)
        )
    assert [sample["__key__"] for sample in samples] == got.keys
    assert [sample["jpg"] for sample in samples] == list(got.images.values())


def test_mostly_unusable_is_an_error_and_listed(tmp_path, source, run_import):
    for number in range(8):
        (source / "c0" / f"{number}.jpg").write_bytes(b"")
    with pytest.raises(DataError, match=r"8 of 18 entries cannot be used .unreadable 8."):
        run_import("imagefolder", source, max_bad_fraction=0.25)
    assert len((tmp_path / "OUT" / "problems.csv").read_text().splitlines()) == 9
    assert not (tmp_path / "OUT" / "import.json").exists()


def test_table_of_samples_matches_the_shards(tmp_path, source, run_import):
    got = run_import("imagefolder", source)
    rows = pq.read_table(tmp_path / "OUT" / "samples.parquet").to_pylist()
    assert [row["key"] for row in rows] == got.keys
    for row in rows:
        data = got.images[row["source"]]
        assert (row["size"], row["sha256"]) == (len(data), hashlib.sha256(data).digest())
        assert row["label"] == got.labels[row["source"]]


def test_options_that_mean_nothing_are_refused(tmp_path, source, run_import):
    with pytest.raises(ConfigError, match=r"--labels means nothing to imagefolder .it takes: --sp"):
        run_import("imagefolder", source, options=Options(labels=source))
    with pytest.raises(ConfigError, match=r"no such layout .there are: imagefolder, table"):
        run_import("imagefolders", source)
    with pytest.raises(ConfigError, match="--split dev: cifar10 has train, test"):
        run_import("cifar10", source, options=Options(split="dev"))


def test_command_line(tmp_path, source):
    from typer.testing import CliRunner

    from shardsieve.cli import app

    def call(*arguments):
        return CliRunner().invoke(app, ["import", *map(str, arguments)])

    done = call("imagefolder", source, "-o", tmp_path / "OUT", "--per-shard", "5")
    assert done.exit_code == 0, done.stderr
    assert "18 in 4 shards, 2 classes" in done.stdout
    assert f"shardsieve clean {tmp_path / 'OUT'} --classes" in done.stdout
    again = call("imagefolder", source, "-o", tmp_path / "OUT", "--per-shard", "5", "--json")
    assert json.loads(again.stdout)["per_class"] == [9, 9]
    assert "4 of 4 shards were finished by an earlier call" in again.stderr
    wrong = call("clothing1m", source, "-o", tmp_path / "ELSE")
    assert wrong.exit_code == 3
    assert wrong.stderr.startswith("shardsieve: ")
    assert len(wrong.stderr.splitlines()) == 1
    assert not wrong.stdout


def test_help_names_every_layout():
    from typer.testing import CliRunner

    from shardsieve.cli import app

    done = CliRunner().invoke(app, ["import", "--help"])
    told = " ".join(done.stdout.split())
    for kind in LAYOUTS:
        assert kind in told

"""verify, explain and reselect: what they find on a run that is whole, and on one that is not."""

import json
import os
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

import shardsieve
from shardsieve.cli import app
from shardsieve.errors import DataError, StaleArtefact
from shardsieve.explain import explain, in_words
from shardsieve.pipeline import run_stages
from shardsieve.verify import verify


@pytest.fixture(scope="module")
def whole(shards, settings, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    config = settings(write__removed=str(folder / "removed"), write__shard_samples=90)
    return shardsieve.clean(shards.patterns, folder / "RUN", config)


@pytest.fixture
def copy(whole, tmp_path):
    """The run again, to be damaged; its removed set stays where it is."""
    shutil.copytree(whole.path, tmp_path / "RUN")
    return shardsieve.open_run(tmp_path / "RUN")


def command(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def flip(path, at=None):
    """Flips one bit in the middle of a file and keeps its times."""
    status = path.stat()
    data = bytearray(path.read_bytes())
    data[len(data) // 2 if at is None else at] ^= 4
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_a_whole_run(whole):
    findings = verify(whole.path)
    assert findings.problems == []
    assert findings.checked["samples"] == 240
    assert findings.checked["input shards"] == findings.checked["feature files"] == 4
    assert findings.checked["output shards"] == sum(map(len, whole.manifest.outputs.values()))
    done = command("verify", whole.path)
    assert done.exit_code == 0 and "verified: " in done.stdout
    assert json.loads(command("verify", whole.path, "--json").stdout)["problems"] == []


@pytest.mark.parametrize(
    ("file", "says"),
    [
        ("embed/features-000002.arrow", r"features-000002.arrow: not what was written"),
        ("index/samples.arrow", "samples.arrow: not what was written"),
        ("probe/losses.arrow", "losses.arrow: not what was written"),
        ("probe/head.safetensors", "head.safetensors: not what was written"),
        ("select/scores.parquet", "scores.parquet: not what was written"),
        ("select/classes.parquet", "classes.parquet: not what was written"),
        ("report/report.html", "report.html: not what was written"),
        ("clean/manifest.parquet", "manifest.parquet: not what was written"),
        ("clean/clean-000001.tar", "clean-000001.tar: byte "),
    ],
)
def test_one_flipped_bit_anywhere(copy, file, says):
    flip(copy.path / file)
    done = command("verify", copy.path)
    assert done.exit_code == 3
    assert says in done.stderr
    found = json.loads(command("verify", copy.path, "--json").stdout)["problems"]
    assert any(says in problem for problem in found)


@pytest.mark.parametrize("file", ["embed/features-000001.arrow", "clean/clean-000000.tar"])
def test_a_lost_file(copy, file):
    (copy.path / file).unlink()
    assert any(f"{file.split('/')[1]}: gone" in problem for problem in verify(copy.path).problems)


def test_the_end_of_an_output_shard(copy):
    path = copy.path / "clean" / "clean-000000.tar"
    flip(path, path.stat().st_size - 1)
    problems = verify(copy.path).problems
    assert any("the end of the archive" in problem for problem in problems)
    assert any("its sha256 differs" in problem for problem in problems)


def test_an_input_shard_that_changed(settings, shards, tmp_path):
    paths = [shutil.copy(path, tmp_path) for path in shards.paths[:2]]
    run = run_stages(["index"], tmp_path / "RUN", settings(), [str(path) for path in paths])
    assert verify(run.path).problems == []
    # Times and size as they were: only the headers tell.
    flip(tmp_path / shards.paths[0].name, at=2)
    (problem,) = verify(run.path).problems
    assert f"{shards.paths[0].name} at byte 0: no tar header, s0-000 was to begin here" in problem
    os.utime(tmp_path / shards.paths[1].name)
    assert any("changed since it was indexed" in problem for problem in verify(run.path).problems)
    (tmp_path / shards.paths[1].name).unlink()
    assert any(
        f"{shards.paths[1].name}: No such file" in problem for problem in verify(run.path).problems
    )


def test_rows_that_contradict_each_other(copy):
    """Tables that were written anew, so that their hashes would be right."""
    path = copy.path / "select" / "scores.parquet"
    table = pq.read_table(path)
    keys = table.column("key").to_pylist()
    keys[0], keys[1] = keys[1], keys[0]
    pq.write_table(table.set_column(0, "key", pa.array(keys)), path)
    assert any("are not those of the index" in problem for problem in verify(copy.path).problems)
    kept = table.column("kept").to_pylist()
    kept[5] = not kept[5]
    position = table.schema.get_field_index("kept")
    pq.write_table(table.set_column(position, "kept", pa.array(kept)), path)
    assert any("contradict each other" in problem for problem in verify(copy.path).problems)


def test_counts_that_do_not_add_up(copy):
    file = copy.path / "manifest.json"
    tree = json.loads(file.read_text())
    tree["counts"]["kept"] += 1
    file.write_text(json.dumps(tree))
    problems = verify(copy.path).problems
    assert any("in = kept + removed + unreadable does not hold" in told for told in problems)


def test_there_is_nothing_to_verify(tmp_path):
    with pytest.raises(StaleArtefact, match="no finished stage"):
        verify(tmp_path)
    assert command("verify", tmp_path).exit_code == 5


def test_a_bit_flip_in_the_features_stops_the_probe_and_costs_one_shard(
    copy, shards, settings, whole
):
    before = (copy.path / "embed" / "features-000002.arrow").read_bytes()
    flip(copy.path / "embed" / "features-000002.arrow")
    config = settings(write__shard_samples=90, probe__q=0.5)
    with pytest.raises(DataError, match=r"features-000002.arrow: not what was written.*Delete it"):
        shardsieve.clean(shards.patterns, copy.path, config)
    (copy.path / "embed" / "features-000002.arrow").unlink()
    files = sorted((copy.path / "embed").glob("*.arrow"))
    made = {path.name: path.stat().st_mtime_ns for path in files}
    run = shardsieve.clean(shards.patterns, copy.path, config)
    after = {path.name: path.stat().st_mtime_ns for path in (run.path / "embed").glob("*.arrow")}
    assert {name: after[name] for name in made} == made
    assert (run.path / "embed" / "features-000002.arrow").read_bytes() == before
    assert verify(run.path).problems == []


@pytest.mark.parametrize("content", [b"", b"ARROW1\0\0", b"no arrow at all" * 100])
def test_a_damaged_feature_file_is_named(copy, content):
    (copy.path / "embed" / "features-000000.arrow").write_bytes(content)
    with pytest.raises(DataError, match=r"features-000000.arrow: gone or damaged. Delete it and"):
        copy.features  # noqa: B018


def test_explain(whole):
    rows = whole.scores.to_pylist()
    removed = min((row for row in rows if not row["kept"]), key=lambda row: row["p_clean"])
    (told,) = explain(whole.path, removed["key"])
    assert (told["decision"], told["reason"]) == ("removed", "high_loss")
    assert told["loss"] == removed["loss"] and told["p_clean"] == removed["p_clean"]
    assert told["label"]["label"] == removed["label"]
    assert told["prediction"]["label"] == removed["pred"]
    of_class = sorted(row["loss"] for row in rows if row["label"] == removed["label"])[::-1]
    assert told["in_its_class"]["rank_by_loss"] == of_class.index(removed["loss"]) + 1
    assert told["in_its_class"]["judged"] == len(of_class)
    assert told["tau"] == 0.6
    assert told["source"]["offset"] == removed["offset"]
    assert told["written"]["file"].startswith("removed-")
    words = in_words(told)
    assert f"{removed['key']}: removed (high_loss)" in words
    assert f"{removed['p_clean']:.4f}, not above tau = 0.6" in words
    assert f"suggested   {told['suggestion']['name']!r} with" in words
    assert "judged by: the posterior under the estimated transition matrix" in words

    done = command("explain", whole.path, removed["key"], "--json")
    assert json.loads(done.stdout) == [told]
    kept = next(row for row in rows if row["kept"])
    assert "> tau = 0.6" in command("explain", whole.path, kept["key"]).stdout


def test_explain_a_key_that_is_not_there(whole):
    with pytest.raises(DataError, match=r"no sample has the key 's1-00'; there are: s1-000, s1-"):
        explain(whole.path, "s1-00")
    assert command("explain", whole.path, "nobody").exit_code == 3


def test_reselect(copy, shards):
    before = copy.manifest.counts.kept
    for path in shards.paths:
        assert path.is_file()
    done = command("reselect", copy.path, "--tau", 0.9, "--set", "select.cap=20")
    assert done.exit_code == 0, done.stderr
    assert f"kept before: {before:,}" in done.stdout and "--write writes them again" in done.stdout
    after = copy.manifest.counts.kept
    assert after == 60 < before
    assert "write" not in copy.manifest.stages
    # The shards are those of the selection before, and verify says so.
    assert any("write was made from another select" in told for told in verify(copy.path).problems)
    removed = copy.path.parent / "gone"
    done = command("reselect", copy.path, "--set", "select.tau=0.0", "--write")
    assert done.exit_code == 3 and "holds removed shards of" in done.stderr, "the other run's"
    tree = (copy.path / "config.toml").read_text()
    (copy.path / "config.toml").write_text(
        "\n".join(
            f'removed = "{removed}"' if line.startswith("removed") else line
            for line in tree.splitlines()
        )
    )
    done = command(
        "reselect", copy.path, "--tau", 0.0, "--set", "select.cap=30", "--write", "--json"
    )
    assert done.exit_code == 0, done.stderr
    counts = json.loads(done.stdout)["counts"]
    assert counts["kept"] == 90 > after
    assert verify(copy.path).problems == []


def test_reselect_changes_nothing_else(copy):
    done = command("reselect", copy.path, "--set", "probe.q=0.1")
    assert done.exit_code == 2 and "reselect changes select.* only" in done.stderr


def test_dry_run_writes_nothing(copy):
    before = {path: path.stat().st_mtime_ns for path in copy.path.rglob("*")}
    done = command("write", copy.path, "--dry-run", "--set", "write.per_class_cap=10", "--json")
    told = json.loads(done.stdout)
    assert told["clean"]["samples"] == 30
    assert [row["samples"] for row in told["clean"]["classes"]] == [10, 10, 10]
    assert told["over_quota"] == copy.manifest.counts.kept - 30
    words = command("write", copy.path, "--dry-run").stdout
    assert "samples in" in words and "nothing was written" in words
    assert {path: path.stat().st_mtime_ns for path in copy.path.rglob("*")} == before
    stale = command("write", copy.path, "--dry-run", "--set", "select.tau=0.1")
    assert stale.exit_code == 5 and "select" in stale.stderr

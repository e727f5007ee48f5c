"""Bad input: one clear message, or one listed row; and no sample is lost."""

import json
import tarfile

import numpy as np
import pytest
from tiny import COLOURS, add_member, jpeg, write_shards

import shardsieve
from shardsieve.errors import BackboneError, ConfigError, DataError, LabelError, ShardError
from shardsieve.explain import explain, in_words


def one_shard(path, samples):
    """Writes (key, {extension: bytes}) samples."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for key, parts in samples:
            for extension, content in parts.items():
                add_member(tar, f"{key}.{extension}", content)
    return [str(path)]


def good(count, n_classes=2, seed=0):
    rng = np.random.default_rng(seed)
    return [
        (f"good{i:03d}", {"jpg": jpeg(COLOURS[i % n_classes], rng), "cls": b"%d" % (i % n_classes)})
        for i in range(count)
    ]


def reasons(run):
    rows = run.scores.select(["key", "reason", "detail"]).to_pylist()
    return {row["key"]: (row["reason"], row["detail"]) for row in rows}


def account(run, expected):
    counts = run.manifest.counts
    assert counts.reconciles
    assert counts.samples_in == expected == run.scores.num_rows


def test_missing_shard(settings, tmp_path):
    with pytest.raises(ShardError, match=r"1 of 1 shards are missing: .*nowhere.tar"):
        shardsieve.clean(str(tmp_path / "nowhere.tar"), tmp_path / "RUN", settings())
    assert not (tmp_path / "RUN").exists()


def test_missing_member_of_a_brace_range(shards, settings, tmp_path):
    pattern = str(shards.paths[0]).replace("0000", "{0000..0005}")
    with pytest.raises(ShardError, match=r"2 of 6 shards are missing: .*0004.tar, .*0005.tar"):
        shardsieve.clean(pattern, tmp_path / "RUN", settings())


def test_label_outside_the_classes_is_a_row(settings, tmp_path):
    samples = [*good(40), ("odd", {"jpg": good(1)[0][1]["jpg"], "cls": b"7"})]
    classes = tmp_path / "classes.json"
    classes.write_text(json.dumps(["red", "green"]))
    run = shardsieve.clean(
        one_shard(tmp_path / "a.tar", samples),
        tmp_path / "RUN",
        settings(index__classes=str(classes)),
    )
    assert reasons(run)["odd"] == ("label_outside", "the label is 7 and there are 2 classes")
    assert run.manifest.counts.unreadable == {"label_outside": 1}
    listed = run.manifest.unreadable_samples
    assert [(row["key"], row["reason"]) for row in listed] == [("odd", "label_outside")]
    account(run, 41)


def test_member_without_label_is_a_row(settings, tmp_path):
    samples = [*good(40), ("bare", {"jpg": good(1)[0][1]["jpg"], "txt": b"hello"})]
    run = shardsieve.clean(one_shard(tmp_path / "a.tar", samples), tmp_path / "RUN", settings())
    assert reasons(run)["bare"] == ("no_label", "no member .cls (has: jpg, txt)")
    account(run, 41)


def test_sample_without_image_is_a_row(settings, tmp_path):
    samples = [*good(40), ("blind", {"cls": b"1"})]
    run = shardsieve.clean(one_shard(tmp_path / "a.tar", samples), tmp_path / "RUN", settings())
    reason, detail = reasons(run)["blind"]
    assert reason == "no_image"
    assert "has: cls" in detail
    account(run, 41)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (good(1)[0][1]["jpg"][:300], "damaged"),
        (b"", "0 bytes"),
        (b"<html>not found</html>", "no known image format"),
    ],
    ids=["half-a-jpeg", "empty", "html"],
)
def test_damaged_jpeg_is_a_row(settings, tmp_path, content, says):
    samples = [*good(40), ("broken", {"jpg": content, "cls": b"1"})]
    run = shardsieve.clean(one_shard(tmp_path / "a.tar", samples), tmp_path / "RUN", settings())
    reason, detail = reasons(run)["broken"]
    assert reason == "undecodable"
    assert says in detail
    assert all(word != "undecodable" for key, (word, _) in reasons(run).items() if key != "broken")
    account(run, 41)


def test_truncated_tar_keeps_what_is_whole(settings, tmp_path):
    tiny = write_shards(tmp_path / "data", n_shards=2, per_shard=40)
    whole = tiny.paths[1].read_bytes()
    with tarfile.open(tiny.paths[1]) as tar:
        cut_inside = tar.getmember("s1-030.jpg").offset_data + 100
    tiny.paths[1].write_bytes(whole[:cut_inside])
    run = shardsieve.clean(tiny.patterns, tmp_path / "RUN", settings())
    found = reasons(run)
    assert found["s1-030"][0] == "truncated"
    assert f"the shard ends at byte {cut_inside:,}" in found["s1-030"][1]
    assert "s1-029" in found and "s1-031" not in found
    account(run, 71)
    assert any("cut short" in note for note in run.manifest.notes)


def test_damaged_header_loses_only_its_own_member(settings, tmp_path):
    tiny = write_shards(tmp_path / "data", n_shards=1, per_shard=40)
    content = bytearray(tiny.paths[0].read_bytes())
    with tarfile.open(tiny.paths[0]) as tar:
        offset = tar.getmember("s0-020.cls").offset
    content[offset : offset + 400] = b"\xff" * 400
    tiny.paths[0].write_bytes(bytes(content))
    run = shardsieve.clean(tiny.patterns, tmp_path / "RUN", settings())
    found = reasons(run)
    assert found["s0-020"][0] in ("no_label", "no_image")
    assert found[f"train-0000.tar@{offset}"][0] == "damaged_tar"
    assert found["s0-021"][0] in ("kept", "high_loss")
    assert sum(reason in ("kept", "high_loss") for reason, _ in found.values()) == 39
    assert run.manifest.counts.reconciles


def test_empty_class_is_named(settings, tmp_path):
    tiny = write_shards(tmp_path / "data", n_shards=1, per_shard=60, n_classes=3)
    classes = tmp_path / "classes.txt"
    classes.write_text("red\ngreen\nblue\nviolet\n")
    run = shardsieve.clean(
        tiny.patterns,
        tmp_path / "RUN",
        settings(index__classes=str(classes), tune__epochs=1),
        tune=True,
    )
    notes = run.manifest.notes
    assert any("classes have no sample: violet" in note for note in notes)
    assert any("no clean sample of: violet" in note for note in notes)
    assert run.classes.to_pylist()[3]["samples"] == 0
    assert "violet" in run.report.read_text()


def test_small_class_falls_back_and_says_so(settings, tmp_path):
    rng = np.random.default_rng(1)
    rare = [(f"rare{i}", {"jpg": jpeg(COLOURS[4], rng), "cls": b"2"}) for i in range(5)]
    run = shardsieve.clean(
        one_shard(tmp_path / "a.tar", [*good(80), *rare]),
        tmp_path / "RUN",
        settings(select__recipe="turn"),
    )
    judged = in_words(explain(run.path, "rare0")[0])
    assert "the mixture of all classes" in judged or "it is kept whole" in judged
    # Only the recipe `best` has more to say than the loss.
    assert run.scores.column("suggested_label").null_count == len(run.scores)
    row = run.classes.to_pylist()[2]
    assert row["rule"] in ("pooled", "keep_all")
    assert row["why"].startswith("fewer than 20 samples")
    assert any("1 class (2): fewer than 20 samples" in note for note in run.manifest.notes)
    assert "fewer than 20 samples" in run.report.read_text()


def test_unknown_backbone(shards, settings, tmp_path):
    with pytest.raises(BackboneError, match=r"no backbone named 'resnet5O'.*resnet50"):
        shardsieve.clean(shards.patterns, tmp_path / "RUN", settings(embed__backbone="resnet5O"))
    assert not (tmp_path / "RUN").exists(), "refused before anything is made"


def test_missing_checkpoint(shards, settings, tmp_path):
    with pytest.raises(BackboneError, match=r"gone.safetensors: there is no such checkpoint"):
        shardsieve.clean(
            shards.patterns, tmp_path / "RUN", settings(embed__checkpoint="gone.safetensors")
        )


def test_checkpoint_of_another_network(shards, settings, tmp_path):
    with pytest.raises(BackboneError, match=r"does not fit test_vit: \d+ missing"):
        shardsieve.clean(shards.patterns, tmp_path / "RUN", settings(embed__backbone="test_vit"))


def test_unknown_config_key(settings):
    with pytest.raises(ConfigError, match=r"probe.epoch: no such setting \(there are: loss, q"):
        settings(probe__epoch=3)


def test_not_a_tar(settings, tmp_path):
    path = tmp_path / "a.tar"
    path.write_bytes(b"PK" + bytes(2000))
    with pytest.raises(ShardError, match="not a tar file"):
        shardsieve.clean(str(path), tmp_path / "RUN", settings())


def test_gzipped_tar(settings, tmp_path):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w:gz") as tar:
        add_member(tar, "a.jpg", b"x")
    with pytest.raises(ShardError, match="compressed with gzip"):
        shardsieve.clean(str(path), tmp_path / "RUN", settings())


def test_labels_nowhere(settings, tmp_path):
    samples = [(key, {"jpg": parts["jpg"]}) for key, parts in good(10)]
    with pytest.raises(LabelError, match=r"no sample has a label.*--labels"):
        shardsieve.clean(one_shard(tmp_path / "a.tar", samples), tmp_path / "RUN", settings())


def test_mostly_bad_stops_with_examples(settings, tmp_path):
    samples = [*good(10), *((f"bad{i}", {"jpg": b"x", "cls": b"1"}) for i in range(10))]
    with pytest.raises(DataError, match=r"cannot be decoded, more than index.max_bad_fraction"):
        shardsieve.clean(one_shard(tmp_path / "a.tar", samples), tmp_path / "RUN", settings())


def test_image_that_vanishes_between_stages(settings, tmp_path):
    tiny = write_shards(tmp_path / "data", n_shards=2, per_shard=30)
    from shardsieve.pipeline import run_stages

    run_stages(["index"], tmp_path / "RUN", settings(), tiny.patterns)
    tiny.paths[1].unlink()
    with pytest.raises(ShardError, match=r"train-0001.tar.*Bring it back"):
        run_stages(["embed"], tmp_path / "RUN", settings())


def test_a_handful_of_samples_is_kept_whole_and_says_why(settings, tmp_path):
    shard = one_shard(tmp_path / "a.tar", good(6))
    run = shardsieve.clean(shard, tmp_path / "RUN", settings())
    assert run.manifest.counts.kept == 6
    assert any("kept whole" in note for note in run.manifest.notes)
    # Strict JSON: no NaN where nothing was fitted.
    json.loads((run.path / "manifest.json").read_text(), parse_constant=pytest.fail)
    assert shardsieve.clean(shard, tmp_path / "RUN", settings()).manifest.counts.kept == 6

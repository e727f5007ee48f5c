"""A picture that stands in two shards under two labels, through the whole line."""

import io
import tarfile

from PIL import Image
from tiny import add_member

import shardsieve
from shardsieve.explain import explain, in_words


def test_the_same_picture_under_two_labels_is_shown(shards, settings, tmp_path):
    key = next(iter(shards.given))
    with tarfile.open(shards.paths[0]) as tar:
        image = tar.extractfile(f"{key}.jpg").read()
    other = (shards.given[key] + 1) % 3
    again = tmp_path / "train-9999.tar"
    with tarfile.open(again, "w") as tar:
        add_member(tar, "again.jpg", image)
        add_member(tar, "again.cls", str(other).encode())
    run = shardsieve.clean([*shards.patterns, str(again)], tmp_path / "RUN", settings())
    scores = run.scores.to_pydict()
    row = scores["key"].index("again")
    first = scores["duplicate_of"][row]
    assert scores["key"][first] == key
    assert scores["duplicate_of"][first] is None
    record = run.manifest.stages["select"]
    assert record.facts["duplicates"] == sum(one is not None for one in scores["duplicate_of"])
    assert any("under another label" in note for note in record.notes)
    told = in_words(explain(run.path, "again")[0])
    assert f"same as     {key}, an earlier sample labelled '{shards.given[key]}'" in told
    assert "Duplicates with different labels" in run.report.read_text("utf-8")


def test_a_copy_that_was_saved_anew_is_nearly_the_same(shards, settings, tmp_path):
    key = next(iter(shards.given))
    with tarfile.open(shards.paths[0]) as tar:
        image = Image.open(io.BytesIO(tar.extractfile(f"{key}.jpg").read()))
    saved = io.BytesIO()
    image.save(saved, "JPEG", quality=95)
    other = (shards.given[key] + 1) % 3
    again = tmp_path / "train-9999.tar"
    with tarfile.open(again, "w") as tar:
        add_member(tar, "again.jpg", saved.getvalue())
        add_member(tar, "again.cls", str(other).encode())
    patterns = [*shards.patterns, str(again)]
    run = shardsieve.clean(patterns, tmp_path / "RUN", settings(select__near_duplicates=0.9997))
    scores = run.scores.to_pydict()
    row = scores["key"].index("again")
    assert scores["duplicate_of"][row] is None
    assert scores["key"][scores["near_duplicate_of"][row]] == key
    record = run.manifest.stages["select"]
    assert record.facts["near_duplicates"] == sum(
        one is not None for one in scores["near_duplicate_of"]
    )
    assert any("nearly that of an earlier one" in note for note in record.notes)
    assert f"nearly      {key}, an earlier sample" in in_words(explain(run.path, "again")[0])
    assert "Duplicates with different labels" in run.report.read_text("utf-8")

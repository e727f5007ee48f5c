"""A picture that stands in two shards under two labels, through the whole line."""

import tarfile

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

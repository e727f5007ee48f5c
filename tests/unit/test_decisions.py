"""Decisions outlive whatever happens to the program that took them, or say why they do not fit."""

import json

import numpy as np
import pyarrow as pa
import pytest

from shardsieve.data.decision_log import DecisionLog
from shardsieve.data.decisions import (
    FILE,
    Decision,
    apply_decisions,
    read_decisions,
)
from shardsieve.data.index import SCHEMA, SampleIndex, ShardRef
from shardsieve.data.reason import Reason
from shardsieve.errors import DataError


def index_of(keys, labels, shards=None, classes=("cat", "dog", "elk")):
    """Samples in two shards, `a.tar` and `b.tar`; -1: no label."""
    from pathlib import Path

    shards = shards or [0] * len(keys)
    n = len(keys)
    table = pa.table(
        {
            "key": keys,
            "shard": shards,
            "offset": [1024 * i for i in range(n)],
            "size": [1024] * n,
            "image_offset": [512] * n,
            "image_size": [100] * n,
            "label": labels,
            "reason": [0] * n,
            "detail": pa.nulls(n, pa.string()),
        }
    ).cast(SCHEMA)
    refs = tuple(ShardRef(Path(f"/data/{name}.tar"), 1, 1, shards.count(i))
                 for i, name in enumerate("ab"))  # fmt: skip
    return SampleIndex(table, refs, classes)


def apply(run, index, reasons=None):
    reason_N = np.array(reasons or [Reason.KEPT] * len(index), np.uint8)
    reviewed = apply_decisions(read_decisions(run), index, reason_N)
    return [Reason(value) for value in reason_N], reviewed


def test_the_last_word_on_a_sample_counts(tmp_path):
    log = DecisionLog(tmp_path)
    log.add([Decision(key="x", shard="a.tar", offset=0, decision="drop")])
    log.add([Decision(key="y", shard="a.tar", offset=1024, decision="keep")])
    log.add([Decision(key="x", shard="a.tar", offset=0, decision="relabel", label="elk")])
    reasons, reviewed = apply(
        tmp_path, index_of(["x", "y", "z"], [0, 1, 2]), [Reason.HIGH_LOSS] * 3
    )
    assert reasons == [Reason.KEPT_BY_REVIEW, Reason.KEPT_BY_REVIEW, Reason.HIGH_LOSS]
    assert reviewed.final_label_N.tolist() == [2, 1, 2]
    assert reviewed.applied == {"relabel": 1, "keep": 1}
    assert reviewed.notes == []


def test_undo_goes_back_step_by_step_and_across_restarts(tmp_path):
    log = DecisionLog(tmp_path)
    for number, what in enumerate(["keep", "drop", "keep"]):
        log.add([Decision(key="xyx"[number], decision=what)])
    log = DecisionLog(tmp_path)
    assert log.undo().decision == "keep", "the third replaced an earlier keep of the same sample"
    assert {s.key: d.decision for s, d in log.standing.items()} == {"x": "keep", "y": "drop"}
    log = DecisionLog(tmp_path)
    assert log.undo().key == "y"
    log.add([Decision(key="z", decision="drop")])
    log = DecisionLog(tmp_path)
    assert [log.undo().key, log.undo().key, log.undo()] == ["z", "x", None]
    assert log.standing == {} == read_decisions(tmp_path).standing
    assert read_decisions(tmp_path).key is None
    assert len((tmp_path / FILE).read_text().splitlines()) == 8, "nothing is ever erased"


def test_a_line_that_was_cut_off_is_left_out_with_a_note_and_not_glued_to_the_next(tmp_path):
    DecisionLog(tmp_path).add([Decision(key=key, decision="drop") for key in "xy"])
    whole = (tmp_path / FILE).read_bytes()
    for cut in range(1, len(whole)):
        (tmp_path / FILE).write_bytes(whole[:cut])
        lines = whole[:cut].count(b"\n")
        decisions = read_decisions(tmp_path)
        assert len(decisions.history) == lines
        assert bool(decisions.torn) is not whole[:cut].endswith(b"\n")
    _, reviewed = apply(tmp_path, index_of(["x", "y"], [0, 0]))
    assert reviewed.notes == [
        f"the last line of {FILE} was cut off while it was written and is left out"
    ]
    log = DecisionLog(tmp_path)
    assert log.torn
    log.add([Decision(key="z", decision="keep")])
    assert [one.key for one in read_decisions(tmp_path).history] == ["x", "z"]


@pytest.mark.parametrize(
    "line",
    [b"not json", b'{"key": "x"}', b'{"key": "x", "decision": "burn"}',
     b'{"key": "x", "decision": "relabel"}', b'{"key": "x", "decision": "keep", "label": "cat"}',
     b'{"key": "x", "decision": "keep", "row": 3}'],
)  # fmt: skip
def test_a_line_that_is_no_decision_is_named(tmp_path, line):
    (tmp_path / FILE).write_bytes(b'{"key": "y", "decision": "keep"}\n' + line + b"\n")
    with pytest.raises(DataError, match=rf"{FILE}, line 2: not a decision .*Mend or delete"):
        read_decisions(tmp_path)
    with pytest.raises(DataError, match="line 2"):
        DecisionLog(tmp_path)
    assert line in (tmp_path / FILE).read_bytes(), "it is not for us to delete"


def test_samples_are_found_by_shard_key_and_offset(tmp_path):
    index = index_of(["x", "x", "x", "y", "z", "z"], [0] * 6, [0, 0, 1, 1, 0, 1])
    DecisionLog(tmp_path).add(
        [
            Decision(shard="a.tar", key="x", offset=1024, decision="drop"),  # the second x of a
            Decision(shard="a.tar", key="x", offset=7, decision="drop"),  # which of the two?
            Decision(shard="b.tar", key="x", offset=7, decision="drop"),  # packed anew: only one
            Decision(key="y", decision="drop"),  # no shard, but the key is there once
            Decision(key="z", decision="drop"),  # no shard, two keys
            Decision(shard="c.tar", key="y", decision="drop"),  # no such shard
        ]
    )
    reasons, reviewed = apply(tmp_path, index)
    dropped = [row for row, reason in enumerate(reasons) if reason == Reason.REMOVED_BY_REVIEW]
    assert dropped == [1, 2, 3]
    assert reviewed.applied == {"drop": 3}
    [note] = reviewed.notes
    assert note.startswith("3 decisions") and "not here, or more than one" in note


def test_decisions_that_do_not_fit_are_not_followed_and_say_so(tmp_path):
    index = index_of(["a", "b", "c", "d", "e"], [0, 1, 2, -1, 1])
    DecisionLog(tmp_path).add(
        [
            Decision(key="a", decision="keep", given="dog"),  # it was a dog then, it is a cat now
            Decision(key="b", decision="relabel", label="yak", given="dog"),
            Decision(key="c", decision="drop", given="elk"),
            Decision(key="d", decision="relabel", label="cat"),
            Decision(key="e", decision="relabel", label="cat", given="elk"),  # true all the same
        ]
    )
    before = [Reason.HIGH_LOSS, Reason.KEPT, Reason.KEPT, Reason.NO_LABEL, Reason.KEPT]
    reasons, reviewed = apply(tmp_path, index, before)
    assert reasons == [
        Reason.HIGH_LOSS, Reason.KEPT, Reason.REMOVED_BY_REVIEW, Reason.NO_LABEL,
        Reason.KEPT_BY_REVIEW,
    ]  # fmt: skip
    assert reviewed.final_label_N.tolist() == [0, 1, 2, -1, 0]
    assert len(reviewed.notes) == 3
    for words in ("another label than", "none of the classes", "cannot be read"):
        assert any(words in note for note in reviewed.notes)


def test_order_and_detours_do_not_change_what_identifies_a_run(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    a, b = Decision(key="a", decision="keep"), Decision(key="b", decision="drop")
    DecisionLog(one).add([a, b])
    log = DecisionLog(two)
    log.add([b])
    log.add([Decision(key="a", decision="drop")])
    assert read_decisions(one).key != read_decisions(two).key
    log.undo()
    log.add([a])
    assert read_decisions(one).key == read_decisions(two).key is not None


def test_lines_are_plain_json_with_the_time(tmp_path):
    DecisionLog(tmp_path).add([Decision(key="ключ", shard="a.tar", offset=0, decision="keep")])
    [line] = (tmp_path / FILE).read_text("utf-8").splitlines()
    row = json.loads(line)
    assert row.pop("time").endswith("+00:00")
    assert row == {"shard": "a.tar", "key": "ключ", "offset": 0, "decision": "keep"}


def test_two_writers_do_not_mix_their_lines(tmp_path):
    from concurrent.futures import ThreadPoolExecutor

    logs = [DecisionLog(tmp_path) for _ in range(2)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda i: logs[i % 2].add([Decision(key=f"{i}", decision="keep")]),
                      range(40)))  # fmt: skip
    assert {one.key for one in read_decisions(tmp_path).history} == {f"{i}" for i in range(40)}


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path):
    with pytest.raises(DataError, match="gone"):
        DecisionLog(tmp_path / "gone")

"""The run directory: results appear whole, interrupted work goes on, one process writes."""

import contextlib
import hashlib
import json
import multiprocessing
import os
import shutil

import pytest

from shardsieve import rundir
from shardsieve.data.record import StageRecord, changed_settings, content_key
from shardsieve.errors import DataError, RunLocked
from shardsieve.rundir import RunDir

IDENTITY = {"stage": "embed", "version": 1, "settings": {"size": 224}}


def record_of(stage="embed", identity=IDENTITY, **more):
    return StageRecord(
        stage=stage,
        key=content_key(identity),
        identity=identity,
        seconds=1.5,
        device="cpu",
        backend="cpu",
        **more,
    )


def finish(run, text="result", stage="embed", identity=IDENTITY):
    (run.begin(stage, identity) / "result.txt").write_text(text)
    run.commit(record_of(stage, identity))


def everything(run):
    return sorted(str(path.relative_to(run.path)) for path in run.path.rglob("*") if path.is_file())


@pytest.fixture
def run(tmp_path):
    return RunDir(tmp_path / "RUN")


def test_nothing_is_done_in_the_beginning(run):
    assert run.record("embed") is None


@pytest.mark.parametrize(("stage", "folder"), [("embed", "embed"), ("write", "clean")])
def test_work_gets_its_name_when_it_is_whole(run, stage, folder):
    part = run.begin(stage, IDENTITY)
    (part / "result.txt").write_text("result")
    assert not run.folder(stage).exists() and run.record(stage) is None
    run.commit(record_of(stage, counts={"samples": 3}, notes=["a note"]))
    assert run.folder(stage) == run.path / folder
    assert everything(run) == [f"{folder}/result.txt", f"{folder}/stage.json"]
    written = {"result.txt": hashlib.sha256(b"result").hexdigest()}
    told = record_of(stage, counts={"samples": 3}, notes=["a note"], files=written)
    assert run.record(stage) == told


def test_interrupted_work_goes_on_with_the_same_identity(run):
    part = run.begin("embed", IDENTITY)
    (part / "half").write_text("done")
    again = RunDir(run.path).begin("embed", {**reversed_keys(IDENTITY)})
    assert again == part and (again / "half").read_text() == "done"


def reversed_keys(mapping):
    return dict(reversed(mapping.items()))


@pytest.mark.parametrize(
    "identity",
    [
        {**IDENTITY, "version": 2},
        {**IDENTITY, "settings": {"size": 225}},
        {**IDENTITY, "settings": {"size": "224"}},
        {"stage": "embed"},
    ],
)
def test_interrupted_work_of_something_else_is_thrown_away(run, identity):
    part = run.begin("embed", IDENTITY)
    (part / "half").write_text("done")
    (part / "folder").mkdir()
    again = run.begin("embed", identity)
    assert sorted(path.name for path in again.iterdir()) == ["begun.json"]
    # From here on it belongs to the new identity.
    (again / "half").write_text("new")
    assert (run.begin("embed", identity) / "half").exists()


@pytest.mark.parametrize("begun", [None, "", "{", "[]", '{"key": null}', "\0\0\0", b"\xff\xfe"])
def test_interrupted_work_of_unknown_origin_is_thrown_away(run, begun):
    part = run.begin("embed", IDENTITY)
    (part / "half").write_text("done")
    (part / "begun.json").unlink()
    if begun is not None:
        (part / "begun.json").write_bytes(begun if isinstance(begun, bytes) else begun.encode())
    assert not (run.begin("embed", IDENTITY) / "half").exists()


def test_an_older_result_stands_until_the_new_one_is_whole(run):
    finish(run, "old")
    other = {**IDENTITY, "version": 2}
    part = run.begin("embed", other)
    (part / "result.txt").write_text("new")
    (part / "extra").write_text("")
    assert (run.folder("embed") / "result.txt").read_text() == "old"
    assert run.record("embed").key == content_key(IDENTITY)
    run.commit(record_of(identity=other))
    assert (run.folder("embed") / "result.txt").read_text() == "new"
    assert run.record("embed").key == content_key(other)
    finish(run, "third")
    assert everything(run) == ["embed/result.txt", "embed/stage.json"]


def test_half_written_files_are_not_part_of_a_result(run):
    part = run.begin("embed", IDENTITY)
    (part / "deep").mkdir()
    for name in ("a.arrow.part", "deep/b.tar.part", "a.arrow", "deep/b.tar"):
        (part / name).write_text("")
    run.commit(record_of())
    assert everything(run) == ["embed/a.arrow", "embed/deep/b.tar", "embed/stage.json"]


class Crash(BaseException):
    pass


def crash_at(monkeypatch, target, name):
    def crash(*_args, **_more):
        raise Crash

    monkeypatch.setattr(target, name, crash)


@pytest.mark.parametrize("older", [False, True])
@pytest.mark.parametrize("moment", ["before the record", "unlink", "rmtree", "replace"])
def test_a_crash_at_any_moment_of_a_commit(run, monkeypatch, older, moment):
    if older:
        finish(run, "old", identity={"version": 0})
    with monkeypatch.context() as patch:
        (run.begin("embed", IDENTITY) / "result.txt").write_text("new")
        if moment == "before the record":
            crash_at(patch, rundir, "write_json")
        elif moment == "unlink":
            crash_at(patch, type(run.path), "unlink")
        elif moment == "rmtree" and older:
            crash_at(patch, shutil, "rmtree")
        else:
            # The record itself must still be written.
            genuine = os.replace
            patch.setattr(
                type(run.path),
                "replace",
                lambda path, to: genuine(path, to) if path.is_file() else crash_now(),
            )
        with pytest.raises(Crash):
            run.commit(record_of())
    after = RunDir(run.path)
    after.recover("embed")
    if moment == "before the record":
        # Not committed, and not lost: the work goes on where it was.
        assert (after.begin("embed", IDENTITY) / "result.txt").read_text() == "new"
        finish(after, "new")
    assert after.record("embed").key == content_key(IDENTITY)
    assert everything(after) == ["embed/result.txt", "embed/stage.json"]
    assert (after.folder("embed") / "result.txt").read_text() == "new"


def crash_now():
    raise Crash


def test_recover_does_nothing_to_unfinished_or_finished_work(run):
    run.recover("embed")
    assert not run.path.exists()
    part = run.begin("embed", IDENTITY)
    run.recover("embed")
    assert part.exists() and run.record("embed") is None
    run.commit(record_of())
    run.recover("embed")
    assert run.record("embed") == record_of()


def test_a_result_that_lost_a_file_becomes_unfinished_work(run):
    part = run.begin("embed", IDENTITY)
    for name in ("a", "b"):
        (part / name).write_text(name)
    run.commit(record_of())
    (run.folder("embed") / "a").unlink()
    run.reopen("embed", IDENTITY)
    assert run.record("embed") is None
    again = run.begin("embed", IDENTITY)
    assert sorted(path.name for path in again.iterdir()) == ["b", "begun.json"]
    # Work of another identity must not go on with it.
    run.commit(record_of())
    run.reopen("embed", IDENTITY)
    assert not (run.begin("embed", {**IDENTITY, "version": 9}) / "b").exists()


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"not json", b"\xff\xfe", b'{"stage": "embed", "key": 3}', b"[]"]
)
def test_a_damaged_record(run, content):
    finish(run)
    (run.folder("embed") / "stage.json").write_bytes(content)
    with pytest.raises(DataError, match=r"embed/stage\.json: not a record.*delete .*/embed to"):
        run.record("embed")


def test_a_record_of_a_newer_version(run):
    finish(run)
    file = run.folder("embed") / "stage.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "colour": "blue"}))
    with pytest.raises(DataError, match=r"not a record of this version"):
        run.record("embed")


@pytest.mark.parametrize("kill_at", range(6))
@pytest.mark.parametrize("replaced", ["part", "final"])
def test_a_kill_while_something_old_is_deleted(run, monkeypatch, kill_at, replaced):
    """Whatever is left, it is known as ours and the same call goes on."""
    if replaced == "final":
        finish(run, "old", identity={"version": 0})
    else:
        old = run.begin("embed", {"version": 0})
        for name in ("a", "b", "c"):
            (old / name).write_text(name)
    genuine, calls = type(run.path).unlink, []

    def unlink_or_crash(path, **options):
        calls.append(path)
        if len(calls) > kill_at:
            raise Crash
        genuine(path, **options)

    with monkeypatch.context() as patch, contextlib.suppress(Crash, FileNotFoundError):
        patch.setattr(type(run.path), "unlink", unlink_or_crash)
        patch.setattr(shutil, "rmtree", lambda path: crash_now())
        finish(run, "new")
    after = RunDir(run.path)
    after.refuse_foreign_folders(["embed"], [])
    after.recover("embed")
    finish(after, "new")
    assert everything(after) == ["embed/result.txt", "embed/stage.json"]


def test_a_kill_before_work_says_what_it_is(run):
    part = run.begin("embed", IDENTITY)
    (part / "begun.json").rename(part / "begun.json.part")
    run.refuse_foreign_folders(["embed"], [])
    finish(run)
    assert everything(run) == ["embed/result.txt", "embed/stage.json"]


# The lock.


def test_two_locks(run):
    with run.lock():
        for _ in range(2):
            with pytest.raises(RunLocked, match=rf"RUN: process {os.getpid()} works here\. Wait"):
                RunDir(run.path).lock().__enter__()
    with run.lock():
        pass


def hold(path, ready, release):
    with RunDir(path).lock():
        ready.set()
        release.wait(30)


def test_another_process(run):
    context = multiprocessing.get_context("spawn")
    ready, release = context.Event(), context.Event()
    other = context.Process(target=hold, args=(run.path, ready, release))
    other.start()
    try:
        assert ready.wait(30)
        with pytest.raises(RunLocked, match=rf"process {other.pid} works here"), run.lock():
            pass
        other.kill()
        other.join(30)
        # However a process ends, its lock ends with it.
        with run.lock():
            assert (run.path / ".lock").read_text() == str(os.getpid())
    finally:
        other.kill()
        other.join(30)


def test_an_error_inside_releases_the_lock(run):
    with pytest.raises(Crash), run.lock():
        raise Crash
    with run.lock():
        pass


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(DataError, match=r"file/RUN: cannot be written to: Not a directory"),
        RunDir(tmp_path / "file" / "RUN").lock(),
    ):
        pass
    with (
        pytest.raises(DataError, match=r"file: cannot be written to: File exists"),
        RunDir(tmp_path / "file").lock(),
    ):
        pass


# Identities.


def test_content_key_depends_on_content_only():
    assert content_key(IDENTITY) == content_key(reversed_keys(IDENTITY))
    assert content_key({"a": [1, 2]}) != content_key({"a": [2, 1]})
    assert content_key({"a": (1, 2)}) == content_key({"a": [1, 2]})
    assert content_key({"a": 1}) != content_key({"a": "1"})
    assert len(content_key({})) == 64


def test_an_identity_is_the_same_after_it_was_stored(run):
    identity = {"f": 1e-3, "s": "größe", "n": None, "deep": {"b": [1, 2.5, "x"]}}
    finish(run, identity=identity)
    assert content_key(run.record("embed").identity) == run.record("embed").key
    assert changed_settings(run.record("embed").identity, identity) == []


def test_changed_settings_names_the_difference():
    before = {"settings": {"q": 0.7, "epochs": 20}, "seed": 0, "gone": 1, "long": "a" * 200}
    now = {"settings": {"q": 0.5, "epochs": 20}, "seed": 0, "new": [2], "long": "b" * 200}
    assert changed_settings(before, now) == [
        "gone: 1 -> None",
        "long changed",
        "new: None -> [2]",
        "settings.q: 0.7 -> 0.5",
    ]

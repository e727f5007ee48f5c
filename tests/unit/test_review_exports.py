"""Decisions as CSV, and runs as other tools read them."""

import csv
import io
import json
import tarfile
from xml.etree import ElementTree

import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from PIL import Image
from reviewable import reviewable
from typer.testing import CliRunner

from shardsieve.cli import app
from shardsieve.data.decision_log import DecisionLog
from shardsieve.data.decisions import FILE, Decision, read_decisions
from shardsieve.data.index import SampleIndex
from shardsieve.errors import DataError
from shardsieve.review.exports import export_cleanlab, export_fiftyone, export_label_studio
from shardsieve.review.tables import COLUMNS, export_decisions, import_decisions
from shardsieve.run import Run


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return reviewable(tmp_path_factory.mktemp("export"), per_shard=20)


@pytest.fixture
def run(made):
    (made / FILE).unlink(missing_ok=True)
    return made


def index_of(run):
    return SampleIndex.open(run / "index")


# --- CSV ---------------------------------------------------------------------------------------


def test_csv_there_and_back(run, tmp_path):
    log = DecisionLog(run)
    log.add([
        Decision(shard="train-0000.tar", key="s0-000", offset=0, decision="keep", given="1"),
        Decision(shard="train-0001.tar", key="s1-001", decision="relabel", label="2"),
        Decision(shard="train-0000.tar", key="s0-004", decision="drop"),
    ])  # fmt: skip
    log.undo()
    assert export_decisions(run, tmp_path / "d.csv") == 2
    with (tmp_path / "d.csv").open(newline="", encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    assert list(rows[0]) == list(COLUMNS)
    assert [(row["key"], row["decision"], row["label"]) for row in rows] == [
        ("s0-000", "keep", ""), ("s1-001", "relabel", "2")
    ]  # fmt: skip
    before = read_decisions(run).standing
    (run / FILE).unlink()
    assert import_decisions(run, index_of(run), tmp_path / "d.csv") == 2
    after = read_decisions(run).standing
    assert [(s.key, d.decision, d.label, d.time) for s, d in after.items()] == [
        (s.key, d.decision, d.label, d.time) for s, d in before.items()
    ]
    # What the file left open is filled in, so that a review means the same sample.
    offset = index_of(run).numbers("offset")[21]
    assert {s.offset for s in after if s.key == "s1-001"} == {offset}


def test_two_columns_are_enough(run, tmp_path):
    (tmp_path / "d.csv").write_text("\ufeffkey,decision,note\ns0-003,drop,blurred\n", "utf-8")
    assert import_decisions(run, index_of(run), tmp_path / "d.csv") == 1
    [(sample, one)] = read_decisions(run).standing.items()
    assert (sample.shard, one.decision) == ("train-0000.tar", "drop")
    assert one.given in "012" and one.time


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("key,what\ns0-000,keep\n", "no column decision"),
        ("", "no column decision and no column key"),
        ("key,decision\ns0-000,keep\ns0-001,burn\n", "line 3"),
        ("key,decision\ns0-000,keep\ns0-001,relabel\n", "line 3"),
        ("key,decision\ns0-000,keep\nnobody,drop\n", "line 3: nobody is not here"),
        ("key,decision,label\ns0-000,relabel,yak\n", "line 2: yak is no class"),
        ("key,shard,decision\ns0-000,train-0001.tar,keep\n", "line 2: s0-000 is not here"),
        ("key,decision,offset\ns0-000,keep,x\n", "line 2"),
        ("key,decision\n" + "nobody,drop\n" * 9, "4 more. Nothing was taken over"),
    ],
)
def test_a_csv_that_does_not_fit_changes_nothing(run, tmp_path, text, says):
    (tmp_path / "d.csv").write_text(text)
    with pytest.raises(DataError, match=says):
        import_decisions(run, index_of(run), tmp_path / "d.csv")
    assert not (run / FILE).exists() or read_decisions(run).history == ()


def test_files_that_are_no_csv_are_named(run, tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        import_decisions(run, index_of(run), tmp_path / "nowhere.csv")
    (tmp_path / "d.csv").write_bytes(b"key,decision\n\xff\xfe,keep\n")
    with pytest.raises(DataError, match="UTF-8"):
        import_decisions(run, index_of(run), tmp_path / "d.csv")
    with pytest.raises(DataError, match="cannot be written"):
        export_decisions(run, tmp_path / "no" / "d.csv")


# --- Other tools -------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["parquet", "csv"])
def test_cleanlab_columns(run, tmp_path, ending):
    file = tmp_path / f"issues.{ending}"
    assert export_cleanlab(run, file) == 41
    table = pq.read_table(file) if ending == "parquet" else pyarrow.csv.read_csv(file)
    assert table.column_names == [
        "key", "shard", "is_label_issue", "label_score", "given_label", "predicted_label"
    ]  # fmt: skip
    rows = table.to_pylist()
    assert [bool(row["is_label_issue"]) for row in rows[:8]] == [True, False, False, False] * 2
    for row in rows[:-1]:
        assert 0 <= row["label_score"] <= 1
        assert (row["given_label"] != row["predicted_label"]) is row["is_label_issue"]
    assert rows[-1]["key"] == "zz-lost" and rows[-1]["is_label_issue"] is None


def test_cleanlab_needs_a_name_that_says_the_format(run, tmp_path):
    with pytest.raises(DataError, match=r"ends in \.csv or \.parquet"):
        export_cleanlab(run, tmp_path / "issues.txt")


def source_bytes(run, key):
    for ref in Run(run).index.shards:
        with tarfile.open(ref.path) as tar:
            if f"{key}.jpg" in tar.getnames():
                return tar.extractfile(f"{key}.jpg").read()
    raise AssertionError(key)


def test_fiftyone_labels_and_images(run, tmp_path):
    DecisionLog(run).add([Decision(key="s0-004", shard="train-0000.tar",
                                   offset=int(index_of(run).numbers("offset")[4]),
                                   decision="relabel", label="2")])  # fmt: skip
    out = tmp_path / "out"
    assert export_fiftyone(run, out) == 10
    listed = json.loads((out / "labels.json").read_text())
    assert listed["classes"] == ["0", "1", "2"]
    images = {path.stem: path for path in (out / "data").iterdir()}
    assert set(images) == set(listed["labels"])
    scores = {row["key"]: row for row in Run(run).scores.to_pylist()}
    for stem, entry in listed["labels"].items():
        key = entry["attributes"]["key"]
        assert images[stem].read_bytes() == source_bytes(run, key)
        assert entry["label"] == scores[key]["label"]
        assert entry["confidence"] == scores[key]["p_clean"]
        assert entry["attributes"]["reason"] == "high_loss"
    decided = {e["attributes"]["key"]: e["attributes"] for e in listed["labels"].values()}
    assert (decided["s0-004"]["decision"], decided["s0-004"]["label"]) == ("relabel", "2")
    with pytest.raises(DataError, match="not an empty folder"):
        export_fiftyone(run, out)
    assert export_fiftyone(run, tmp_path / "all", "judged") == 40
    assert export_fiftyone(run, tmp_path / "mine", "decided") == 1


def test_label_studio_tasks_and_interface(run, tmp_path):
    out = tmp_path / "out"
    assert export_label_studio(run, out) == 10
    tasks = json.loads((out / "tasks.json").read_text())
    interface = ElementTree.parse(out / "interface.xml").getroot()
    choices = interface.find("Choices")
    names = {choice.get("value") for choice in choices}
    assert names == {"0", "1", "2"}
    for task in tasks:
        name = task["data"]["image"].removeprefix("/data/local-files/?d=images/")
        assert Image.open(io.BytesIO((out / "images" / name).read_bytes())).size == (40, 40)
        [prediction] = task["predictions"]
        [result] = prediction["result"]
        assert result["type"] == "choices"
        assert (result["from_name"], result["to_name"]) == (choices.get("name"), "image")
        [choice] = result["value"]["choices"]
        assert choice in names and choice != task["data"]["given"]
        assert prediction["score"] == 1 - task["data"]["p_clean"]
        assert prediction["model_version"].startswith("shardsieve")


# --- The verbs ---------------------------------------------------------------------------------


def test_verbs_work_and_say_what_they_did(run, tmp_path):
    def call(*arguments):
        return CliRunner().invoke(app, [str(argument) for argument in arguments])

    (tmp_path / "in.csv").write_text("key,decision\ns0-001,drop\n")
    done = call("decisions", "import", run, tmp_path / "in.csv")
    assert done.exit_code == 0 and done.stdout.startswith("1 decisions taken over")
    done = call("decisions", "export", run, tmp_path / "out.csv")
    assert done.exit_code == 0 and "1 decisions in" in done.stdout
    for tool, out in (
        ("cleanlab", "issues.csv"), ("fiftyone", "fo"), ("label-studio", "ls")
    ):  # fmt: skip
        done = call("export", run, "--to", tool, "-o", tmp_path / out)
        assert done.exit_code == 0, done.output
        assert "samples in" in done.stdout
    done = call("review", tmp_path)
    assert done.exit_code == 5 and "nothing to review here" in done.stderr
    done = call("decisions", "import", run, tmp_path / "nowhere.csv")
    assert done.exit_code == 3 and len(done.stderr.splitlines()) == 1

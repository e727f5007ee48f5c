"""The page says what the tables say, escapes what comes from data, and loads nothing."""

from __future__ import annotations

import base64
import io
import re
import tarfile
import time
import tomllib
from dataclasses import dataclass, field, replace
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from shardsieve.config import Config, load_config
from shardsieve.data.index import SCHEMA, SampleIndex, ShardRef
from shardsieve.data.losses import LossTable
from shardsieve.data.reason import EXPLANATIONS, Reason
from shardsieve.data.record import StageRecord, StageResult
from shardsieve.data.scores import scores_table
from shardsieve.page.gallery import SIDE, thumbnail
from shardsieve.page.histograms import loss_histogram, verdict_changes
from shardsieve.page.queues import spread, suspicious
from shardsieve.page.render import show_duration, show_p, show_percent, show_size
from shardsieve.page.verdicts import Verdicts
from shardsieve.stages.report import report

BOLD = "<b>x</b>"
BRACES = "{{ 7 * 7 }}"
NO_VALUE = "\N{EN DASH}"
CLASSES = ("cat", BOLD, BRACES)
COLOURS = ((200, 30, 30), (30, 160, 30), (40, 40, 210))
_VOID = {"meta", "link", "br", "img", "input"}
_BREAKS = {"br", "dt", "dd", "p", "li", "div", "h2", "h3", "caption", "td", "th"}


# --- A run made by hand ---------------------------------------------------------------------


@dataclass
class Row:
    """One sample: what its tar holds and what the stages said of it."""

    key: str
    label: int = 0
    pred: int = 0
    loss: float = 0.1
    p_clean: float = 0.95
    reason: Reason = Reason.KEPT
    detail: str | None = None
    size: tuple[int, int] = (32, 32)
    colour: tuple[int, int, int] = (128, 128, 128)

    @property
    def judged(self) -> bool:
        return self.reason.group != "unreadable"


@dataclass
class HandMade:
    """What `report` is given."""

    index: SampleIndex
    scores: pa.Table
    classes: pa.Table
    records: dict[str, StageRecord]
    out: Path
    config: Config = field(default_factory=Config)
    transition: np.ndarray | None = None

    def write(self) -> tuple[Page, StageResult]:
        self.out.mkdir(exist_ok=True)
        result = report(
            self.index,
            self.scores,
            self.classes,
            self.records,
            self.config,
            transition_KK=self.transition,
            clean=self.out.parent / "clean",
            out=self.out,
        )
        return Page((self.out / "report.html").read_text(encoding="utf-8")), result

    def note(self, stage: str, *notes: str) -> None:
        self.records[stage] = self.records[stage].model_copy(update={"notes": list(notes)})


def removed(key: str, label: int, pred: int, loss: float, p_clean: float = 0.01) -> Row:
    return Row(key, label, pred, loss, p_clean, Reason.HIGH_LOSS)


def default_rows() -> list[Row]:
    kept = [Row(f"k{i:03}", i % 3, i % 3, 0.05 + 0.01 * (i % 20), 0.9) for i in range(90)]
    wrong = [removed(f"r{i:03}", 0, 1 + (i % 3 == 0), 3.0 + 0.1 * i) for i in range(12)]
    hard = [removed('say "hi" & <img src=x onerror=alert(1)>', 1, 1, 2.5, 0.3)]
    bad = [
        Row("no-image", reason=Reason.NO_IMAGE, detail="no part ending in .jpg (has: cls)"),
        Row("broken", 2, reason=Reason.UNDECODABLE, detail="damaged: <script>alert(2)</script>"),
        Row("cut", 1, reason=Reason.TRUNCATED),
    ]
    return kept + wrong + hard + bad


def png(size: tuple[int, int], colour: tuple[int, int, int]) -> bytes:
    packed = io.BytesIO()
    Image.new("RGB", size, colour).save(packed, "PNG")
    return packed.getvalue()


def write_tar(path: Path, rows: list[Row]) -> list[tuple[int, int]]:
    """Returns where the image of each row lies: first byte and bytes."""
    with tarfile.open(path, "w") as tar:
        for number, row in enumerate(rows):
            data = png(row.size, row.colour)
            # The key is the index's business; inside the tar any name will do.
            member = tarfile.TarInfo(f"{number:06}.png")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    with tarfile.open(path) as tar:
        return [(member.offset_data, member.size) for member in tar]


def index_of(folder: Path, rows: list[Row], classes: tuple[str, ...], n_shards: int) -> SampleIndex:
    parts = [list(part) for part in np.array_split(np.arange(len(rows)), n_shards)]
    shards, where = [], []
    for number, part in enumerate(parts):
        path = folder / f"train-{number:04}.tar"
        where += write_tar(path, [rows[i] for i in part])
        stat = path.stat()
        shards.append(ShardRef(path, stat.st_size, stat.st_mtime_ns, len(part)))
    no_label = [not row.judged and row.reason == Reason.NO_LABEL for row in rows]
    table = pa.table(
        {
            "key": [row.key for row in rows],
            "shard": np.repeat(np.arange(n_shards), [len(part) for part in parts]),
            # A member is its header of 512 bytes and its data, filled up to as many.
            "offset": [start - 512 for start, _ in where],
            "size": [512 - size // -512 * 512 for _, size in where],
            "image_offset": [start for start, _ in where],
            "image_size": [size for _, size in where],
            "label": np.where(no_label, -1, [row.label for row in rows]),
            "reason": [int(row.reason) if not row.judged else 0 for row in rows],
            "detail": pa.array([row.detail for row in rows], pa.string()),
        }
    ).cast(SCHEMA)
    return SampleIndex(table, tuple(shards), classes)


def scores_of(index: SampleIndex, rows: list[Row]) -> pa.Table:
    judged = np.array([row.judged for row in rows])
    losses = LossTable(
        np.where(judged, [row.loss for row in rows], np.nan).astype(np.float32),
        np.zeros(len(rows), np.float32),
        np.where(judged, [row.pred for row in rows], -1).astype(np.int32),
        np.full(len(rows), -1, np.int8),
    )
    return scores_table(
        index,
        losses,
        np.where(judged, [row.p_clean for row in rows], np.nan),
        np.array([row.reason for row in rows], np.uint8),
        pa.chunked_array([pa.array([row.detail for row in rows], pa.string())]),
    )


def classes_of(index: SampleIndex, scores: pa.Table, rules: dict[int, tuple[str, str]]) -> pa.Table:
    verdicts = Verdicts.of(scores)
    n_classes = index.n_classes
    kept_K = np.bincount(verdicts.label_N[verdicts.kept_N], minlength=n_classes)
    removed_K = np.bincount(verdicts.label_N[verdicts.removed_N], minlength=n_classes)
    fitted_K = np.array([rules.get(k, ("class", ""))[0] == "class" for k in range(n_classes)])
    return pa.table(
        {
            "label": np.arange(n_classes, dtype=np.int32),
            "name": list(index.classes),
            "samples": kept_K + removed_K,
            "kept": kept_K,
            "rule": [rules.get(k, ("class", ""))[0] for k in range(n_classes)],
            "why": [rules.get(k, ("class", ""))[1] for k in range(n_classes)],
            **{
                name: np.where(fitted_K, value, np.nan)
                for name, value in {
                    "weight_clean": 0.8,
                    "weight_noisy": 0.2,
                    "mean_clean": 0.15,
                    "mean_noisy": 3.5,
                    "variance_clean": 0.01,
                    "variance_noisy": 1.0,
                }.items()
            },
        }
    )


def record(stage: str, seconds: float, images: int = 0, **facts: Any) -> StageRecord:
    return StageRecord(
        stage=stage,
        key=f"{len(stage):x}" * 64,
        identity={},
        seconds=seconds,
        device="cpu",
        backend="cpu",
        images=images,
        facts=facts,
    )


def records_of(scores: pa.Table, tau: float) -> dict[str, StageRecord]:
    verdicts = Verdicts.of(scores)
    judged = verdicts.p_clean_N[verdicts.judged_N]
    taus = [round(0.4 + 0.02 * step, 2) for step in range(16)]
    by_tau = {f"{t:.2f}": float(np.mean(judged > t)) if len(judged) else None for t in taus}
    kept = int(verdicts.kept_N.sum())
    shard = {"file": "clean-000000.tar", "source": 0, "samples": kept, "size_bytes": 4096}
    return {
        "index": record("index", 0.5),
        "embed": record(
            "embed",
            4.0,
            images=1000,
            backbone="tf_efficientnet_lite0",
            weights={"source": "package:lite0", "sha256": "ab" * 32},
            preprocessing={"size": 64},
            precision="fp32",
        ),
        "probe": record("probe", 1.0),
        "select": record("select", 0.25, kept_fraction_by_tau=by_tau, **{"within_1e-4_of_tau": 0}),
        "write": record("write", 0.25, clean=[{**shard, "sha256": "cd" * 32}]),
    }


def make(
    folder: Path,
    rows: list[Row] | None = None,
    classes: tuple[str, ...] = CLASSES,
    *,
    n_shards: int = 2,
    rules: dict[int, tuple[str, str]] | None = None,
    settings: tuple[str, ...] = (),
) -> HandMade:
    rows = default_rows() if rows is None else rows
    index = index_of(folder, rows, classes, n_shards)
    scores = scores_of(index, rows)
    table = classes_of(index, scores, rules or {})
    config = load_config(overrides=settings)
    records = records_of(scores, config.select.tau)
    return HandMade(index, scores, table, records, folder / "report.part", config)


# --- Reading the page ------------------------------------------------------------------------


class Page(HTMLParser):
    """A page taken apart: elements with their attributes, and the text and rows of each section."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.html = html
        self.elements: list[tuple[str, dict[str, str]]] = []
        self._open: list[str] = []
        self._section = ""
        self._texts: dict[str, list[str]] = {}
        self._rows: dict[str, list[list[str]]] = {}
        self._cell: list[str] | None = None
        self.feed(html)
        self.close()
        assert self._open == [], "an element is not closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = {name: value or "" for name, value in attrs}
        self.elements.append((tag, attributes))
        if tag in _BREAKS:
            self.handle_data(" ")
        if tag not in _VOID:
            self._open.append(tag)
        if tag in ("section", "header"):
            self._section = attributes.get("id", tag)
        if tag == "tr":
            self._rows.setdefault(self._section, []).append([])
        if tag in ("td", "th"):
            self._cell = []

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        if tag in _VOID:
            return
        assert self._open.pop() == tag, f"</{tag}> closes something else"
        if tag in ("td", "th") and self._cell is not None:
            self._rows[self._section][-1].append(" ".join("".join(self._cell).split()))
            self._cell = None

    def handle_data(self, data: str) -> None:
        self._texts.setdefault(self._section, []).append(data)
        if self._cell is not None:
            self._cell.append(data)

    def text(self, section: str) -> str:
        return " ".join("".join(self._texts[section]).split())

    def rows(self, section: str) -> list[list[str]]:
        return self._rows.get(section, [])

    def row(self, section: str, start: str) -> list[str]:
        found = [row for row in self.rows(section) if row and row[0] == start]
        assert len(found) == 1, f"{start}: {len(found)} rows"
        return found[0]

    def all(self, tag: str, attribute: str = "") -> list[dict[str, str]]:
        found = [attributes for name, attributes in self.elements if name == tag]
        return [attributes for attributes in found if not attribute or attribute in attributes]

    @property
    def sections(self) -> list[str]:
        return [attributes["id"] for attributes in self.all("section")]

    def shown(self, gallery: str) -> list[dict[str, str]]:
        """The samples of a gallery."""
        items = self.all("li", "data-galleries")
        return [item for item in items if gallery in item["data-galleries"].split()]

    def images(self) -> list[tuple[dict[str, str], Image.Image]]:
        return [(img, open_uri(img["src"])) for img in self.all("img")]


def open_uri(uri: str) -> Image.Image:
    head, _, body = uri.partition(",")
    assert head == "data:image/jpeg;base64"
    image = Image.open(io.BytesIO(base64.b64decode(body)))
    image.load()
    return image


def number(text: str) -> int:
    return int(text.replace(",", ""))


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Page:
    """The page of `default_rows`."""
    return make(tmp_path_factory.mktemp("run")).write()[0]


# --- Numbers ---------------------------------------------------------------------------------


def test_every_sample_is_counted_once(page: Page) -> None:
    assert "106 in = 90 kept (84.9 %) + 13 removed (12.3 %) + 3 unreadable (2.8 %)" in page.text(
        "overview"
    )
    body = page.rows("accounts")[1:-1]
    assert [(row[0], row[1], number(row[2])) for row in body] == [
        ("kept", "kept", 90),
        ("removed", "high_loss", 13),
        ("unreadable", "no_image", 1),
        ("unreadable", "undecodable", 1),
        ("unreadable", "truncated", 1),
    ]
    assert page.rows("accounts")[-1][1:3] == ["all samples", "106"]
    assert sum(number(row[2]) for row in body) == 106
    for row in body:
        assert row[4] == EXPLANATIONS[Reason[row[1].upper()]]


def test_result_counts_match_the_file(tmp_path: Path) -> None:
    made = make(tmp_path)
    page, result = made.write()
    assert result.counts == {
        "suspicious_shown": len(page.shown("suspicious")),
        "samples_shown": len(page.all("li", "data-galleries")),
        "size_bytes": (made.out / "report.html").stat().st_size,
    }
    assert result.counts["suspicious_shown"] == 13
    assert [path.name for path in made.out.iterdir()] == ["report.html"]


def test_overview_says_what_was_used(tmp_path: Path) -> None:
    made = make(tmp_path, settings=("select.tau=0.55", "probe.folds=5"))
    text = made.write()[0].text("overview")
    assert "tf_efficientnet_lite0, images of 64 x 64 pixels, fp32" in text
    assert "tau = 0.55" in text
    assert "one of 5 that never saw it" in text
    assert "2 shards" in text
    assert f"{tmp_path}/train-0000.tar and 1 other" in text
    assert f"{tmp_path}/clean/clean-000000.tar" in text


def test_removed_shards_are_named_where_they_lie(tmp_path: Path) -> None:
    made = make(tmp_path, settings=(f"write.removed={tmp_path}/bad",))
    shards = [
        {
            "file": f"removed-00000{i}.tar",
            "source": i,
            "samples": 6,
            "size_bytes": 10,
            "sha256": "0",
        }
        for i in range(2)
    ]
    made.records["write"].facts["removed"] = shards
    page, _ = made.write()
    assert f"{tmp_path}/bad/removed-{{000000..000001}}.tar" in page.text("overview")
    assert page.row("reproduce", "removed-000001.tar")[1:3] == ["train-0001.tar", "6"]


def test_notes_and_damage_are_shown_once(tmp_path: Path) -> None:
    made = make(tmp_path)
    hurt = replace(made.index.shards[0], damage=("ends inside a member",))
    made.index = replace(made.index, shards=(hurt, *made.index.shards[1:]))
    made.note("index", "train-0000.tar: ends inside a member", "2 samples repeat a key")
    made.note("select", f"class {BOLD}: one mode; judged by the mixture of all classes")
    text = made.write()[0].text("accounts")
    assert text.count("ends inside a member") == 1
    assert f"{hurt.path}: ends inside a member" in text
    assert "index: 2 samples repeat a key" in text
    assert f"select: class {BOLD}: one mode; judged by the mixture of all classes" in text


def test_many_notes_are_all_there_but_folded(tmp_path: Path) -> None:
    made = make(tmp_path)
    made.note("select", *(f"class c{i}: fewer than 20 samples" for i in range(300)))
    page, _ = made.write()
    assert "300 notes of the stages" in page.text("accounts")
    assert all(f"class c{i}: " in page.text("accounts") for i in range(300))


def test_class_table_is_sorted_by_removed_share(tmp_path: Path) -> None:
    rules = {2: ("pooled", "fewer than 20 samples")}
    page, _ = make(tmp_path, rules=rules).write()
    rows = page.rows("classes")[1:4]
    assert [row[0] for row in rows] == ["cat", BOLD, BRACES]
    assert rows[0][1:4] == ["42", "30", "28.6 %"]
    assert rows[0][5:] == [f"{BOLD} (8 of 12)", "its own mixture"]
    assert rows[1][1:4] == ["31", "30", "3.2 %"]
    assert rows[1][5] == ""
    assert rows[2][3] == "0.0 %"
    assert rows[2][6] == "the mixture of all classes (fewer than 20 samples)"


def test_pairs_count_given_against_predicted(page: Page) -> None:
    assert page.rows("classes")[9:] == [
        ["cat", BOLD, "8", "61.5 %"],
        ["cat", BRACES, "4", "30.8 %"],
    ]
    assert "takes 12 for another class than they are labelled, and 1 for their own" in page.text(
        "classes"
    )


def test_stage_table_names_the_slowest(page: Page) -> None:
    assert page.row("time", "embed")[1:4] == ["4.00", "1,000", "250.0"]
    assert page.row("time", "probe")[1:4] == ["1.00", NO_VALUE, NO_VALUE]
    assert "6.00 s in all; the slowest stage is embed" in page.text("time")
    assert [row[0] for row in page.rows("time")[1:]] == [
        "index",
        "embed",
        "probe",
        "select",
        "write",
    ]


def test_an_instant_stage_has_no_rate(tmp_path: Path) -> None:
    made = make(tmp_path)
    made.records["embed"] = made.records["embed"].model_copy(update={"seconds": 0.0})
    assert made.write()[0].row("time", "embed")[1:4] == ["0.00", "1,000", NO_VALUE]


def test_settings_can_be_read_back(tmp_path: Path) -> None:
    made = make(tmp_path, settings=("select.tau=0.5", "seed=7", "report.gallery=3"))
    page, _ = made.write()
    pre = page.html.split("<pre", 1)[1].split("<code>", 1)[1].split("</code>", 1)[0]
    text = pre.replace("&#34;", '"').replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
    assert Config.model_validate(tomllib.loads(text)) == made.config
    assert "Seed 7" in page.text("reproduce")
    assert page.row("reproduce", "probe") == ["probe", made.records["probe"].key]


def test_the_first_200_unreadable_samples_are_listed(tmp_path: Path) -> None:
    bad = [Row(f"b{i:03}", reason=Reason.NO_LABEL, detail=f"no {i}") for i in range(250)]
    page, _ = make(tmp_path, [*default_rows()[:30], *bad], n_shards=3).write()
    rows = page.rows("unreadable")[1:]
    assert [row[1] for row in rows] == [f"b{i:03}" for i in range(200)]
    assert rows[0] == ["train-0000.tar", "b000", "no_label", "no 0"]
    assert rows[-1][0] == "train-0002.tar"
    assert "The first 200 of 250; the other 50 are in select/scores.parquet" in page.text(
        "unreadable"
    )


@pytest.mark.parametrize("validated", [True, False])
def test_tuning_is_told_epoch_by_epoch(tmp_path: Path, validated: bool) -> None:
    made = make(tmp_path)
    metrics: list[dict[str, Any]] = [
        {
            "epoch": e,
            "kept": 90 + e,
            "per_class": 30,
            "drawn": 90,
            "training_loss": 1 / e,
            "seconds": 2.5,
        }
        for e in (1, 2)
    ]
    if validated:
        metrics = [{**row, "validation_accuracy": 0.8 + 0.05 * row["epoch"]} for row in metrics]
    made.records["tune"] = record("tune", 5.0, images=180, metrics=metrics)
    page, _ = made.write()
    assert "tune-kept-" in page.html
    accuracy = ["90.0 %"] if validated else []
    assert page.row("tuning", "2") == ["2", "0.5000", *accuracy, "92", "30", "90", "2.50 s"]
    assert ("Validation accuracy" in page.text("tuning")) is validated
    assert "the slowest stage is tune" in page.text("time")


def test_tuning_is_absent_when_the_run_was_not_tuned(page: Page) -> None:
    assert "tuning" not in page.sections
    assert "#tuning" not in {link["href"] for link in page.all("a")}


def test_one_epoch_is_a_table_without_lines(tmp_path: Path) -> None:
    made = make(tmp_path)
    row = {"epoch": 1, "kept": 9, "per_class": 3, "drawn": 9, "training_loss": 1.0, "seconds": 1.0}
    made.records["tune"] = record("tune", 5.0, metrics=[row])
    page, _ = made.write()
    assert page.row("tuning", "1")[1] == "1.0000"
    assert "tuning" in page.sections
    assert "tune-" not in page.html


def test_what_a_recipe_found_out_itself_is_shown(tmp_path: Path) -> None:
    made = make(tmp_path)
    made.records["select"].facts.update(
        tau=0.47, noise_rate={"estimate": 0.31, "low": 0.29, "high": 0.33, "level": 0.95}
    )
    made.transition = np.array([[0.75, 0.25, 0], [0, 1, 0], [0.1, 0, 0.9]])
    page, _ = made.write()
    assert "31.0 % of what was judged (95 % interval 29.0 % to 33.0 %)" in page.text("overview")
    assert "tau of this run: 0.47" in page.text("tau")
    assert "How labels go wrong" in page.text("classes")
    rows = [row for row in page.rows("classes") if row and row[0] == "cat"]
    assert rows[2][1:] == ["75", "25", ""]


def test_tau_of_the_run_is_marked(tmp_path: Path) -> None:
    inside, _ = make(tmp_path, settings=("select.tau=0.5",)).write()
    assert "tau of this run: 0.5" in inside.text("tau")
    outside, _ = make(tmp_path, settings=("select.tau=0.9",)).write()
    assert "tau of this run: 0.9" in outside.text("tau")
    assert outside.row("tau", "0.90")[1:] == ["0.0 %", "0", NO_VALUE]
    # 90 of 103 judged samples have a p_clean of 0.9, the others less than 0.4.
    assert inside.row("tau", "0.40") == ["0.40", "87.4 %", "90", "90.0 %"]


# --- Safety ----------------------------------------------------------------------------------


def test_what_comes_from_data_is_escaped(tmp_path: Path) -> None:
    made = make(tmp_path)
    made.note("probe", "a note with <i>markup</i>")
    page, _ = made.write()
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"b", "i1", "iframe", "object"}
    assert page.all("script") == [{}], "ours, which the policy names by its hash"
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)
    assert BOLD in page.text("classes")
    assert BRACES in page.text("classes")
    assert 'say "hi" & <img src=x onerror=alert(1)>' in page.text("gallery")
    assert "damaged: <script>alert(2)</script>" in page.text("unreadable")
    assert "a note with <i>markup</i>" in page.text("accounts")
    alts = [img["alt"] for img in page.all("img")]
    assert f"Labelled cat, looks like {BOLD}" in alts
    labels = [attributes.get("aria-label", "") for attributes in page.all("div")]
    assert any(label.startswith(f"Histogram of the losses of class {BOLD}") for label in labels)


def test_nothing_is_loaded_from_anywhere(tmp_path: Path) -> None:
    made = make(tmp_path)
    page, _ = made.write()
    loading = {"src", "href", "xlink:href", "srcset", "action", "data", "poster", "background"}
    targets = [
        value
        for _, attributes in page.elements
        for name, value in attributes.items()
        if name in loading
    ]
    assert len(targets) > 30
    assert all(target.startswith(("#", "data:")) for target in targets)
    assert "http" not in page.html.replace("http-equiv", "")
    assert set(re.findall(r"url\((.)", page.html)) <= {"#"}
    assert "@import" not in page.html
    policy = next(m["content"] for m in page.all("meta") if "http-equiv" in m)
    assert policy.startswith("default-src 'none'")


def test_ids_are_unique_and_every_reference_has_its_target(tmp_path: Path) -> None:
    made = make(tmp_path)
    metrics = [
        {"epoch": e, "kept": 9, "per_class": 3, "drawn": 9, "training_loss": 1.0, "seconds": 1.0}
        for e in (1, 2)
    ]
    made.records["tune"] = record("tune", 5.0, metrics=metrics)
    page, _ = made.write()
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids)) > 20
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', page.html))
    assert len(used) > 15
    assert used <= set(ids)


def test_same_run_same_bytes(tmp_path: Path) -> None:
    made = make(tmp_path)
    first, _ = made.write()
    second, _ = made.write()
    assert first.html == second.html
    other, _ = replace(made, config=load_config(overrides=["report.gallery=2"])).write()
    assert other.html != first.html


def test_drawing_neither_changes_nor_heeds_what_matplotlib_is_set_to(tmp_path: Path) -> None:
    import matplotlib as mpl

    made = make(tmp_path)
    plain, _ = made.write()
    with mpl.rc_context({"font.size": 21.0, "axes.grid": True, "svg.hashsalt": None}):
        before = dict(mpl.rcParams)
        other, _ = made.write()
        assert dict(mpl.rcParams) == before
    assert other.html == plain.html


def test_page_can_be_read_without_eyes_or_colours(page: Page) -> None:
    assert all(img["alt"] for img in page.all("img"))
    assert len(page.all("caption")) == len(page.all("table"))
    assert len(page.all("h1")) == 1
    for svg in page.all("svg"):
        assert svg["aria-hidden"] == "true"
    figures = [div for div in page.all("div") if div.get("class", "").startswith("figure")]
    assert len(figures) == 5
    assert all(div["role"] == "img" and div["aria-label"] for div in figures)


def test_colours_contrast_in_light_and_dark() -> None:
    css = files("shardsieve.page").joinpath("report.css").read_text(encoding="utf-8")
    themes = re.findall(r":root \{(.*?)\}", css, re.S)
    assert len(themes) == 2
    for theme in themes:
        colours = dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6});", theme))
        for name, least in (("ink", 7), ("muted", 4.5), ("kept", 4.5), ("removed", 4.5)):
            for ground in ("card", "ground"):
                assert contrast(colours[name], colours[ground]) >= least, (name, ground)
        assert contrast(colours["unreadable"], colours["card"]) >= 3


def contrast(one: str, other: str) -> float:
    """Ratio of WCAG 2."""
    lights = []
    for colour in (one, other):
        parts = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
        linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
        lights.append(float(linear @ [0.2126, 0.7152, 0.0722]) + 0.05)
    return max(lights) / min(lights)


# --- Gallery ---------------------------------------------------------------------------------


def test_gallery_shows_the_images_that_it_names(tmp_path: Path) -> None:
    rows = [
        Row(f"key{i}", i, (i + 1) % 3, 5.0 - i, 0.01 * i, Reason.HIGH_LOSS, colour=COLOURS[i])
        for i in (2, 0, 1)
    ]
    page, _ = make(tmp_path, [Row("kept"), *rows, Row("kept2")]).write()
    shown = page.images()
    assert [img["alt"] for img, _ in shown] == [
        f"Labelled {CLASSES[i]}, looks like {CLASSES[(i + 1) % 3]}" for i in range(3)
    ]
    for i, (_, image) in enumerate(shown):
        assert np.abs(np.asarray(image).mean((0, 1)) - COLOURS[i]).max() < 6
    text = page.text("gallery")
    assert "p_clean < 0.0001 loss 5.00 key0" in text
    assert "p_clean 0.0200 loss 3.00 key2" in text


@pytest.mark.parametrize(
    ("size", "shown", "stored"),
    [
        ((32, 32), (112, 112), (32, 32)),
        ((400, 100), (112, 28), (112, 28)),
        ((1, 50), (2, 112), (1, 50)),
    ],
)
def test_thumbnails_are_small_and_keep_their_shape(
    size: tuple[int, int], shown: tuple[int, int], stored: tuple[int, int]
) -> None:
    made = thumbnail(png(size, (10, 200, 10)))
    assert (made["width"], made["height"]) == shown
    assert open_uri(made["uri"]).size == stored
    assert made["enlarged"] is (max(size) < SIDE)


def test_small_originals_are_enlarged_by_the_page(tmp_path: Path) -> None:
    rows = [removed("small", 0, 1, 3.0), replace(removed("large", 0, 1, 2.0), size=(300, 200))]
    (small, _), (large, image) = make(tmp_path, rows).write()[0].images()
    assert small["class"] == "enlarged"
    assert "class" not in large
    assert image.size == (112, 75)


def test_an_image_that_is_gone_becomes_a_box(tmp_path: Path) -> None:
    made = make(tmp_path)
    made.index.shards[1].path.unlink()
    page, result = made.write()
    assert page.all("img") == []
    assert page.text("gallery").count("cannot be read any more") == 13 + 3
    assert result.counts["suspicious_shown"] == 13


def test_damaged_bytes_become_a_box_and_the_others_are_shown(tmp_path: Path) -> None:
    rows = [removed(f"r{i}", 0, 1, 9.0 - i) for i in range(4)]
    made = make(tmp_path, rows, n_shards=1)
    path = made.index.shards[0].path
    data = bytearray(path.read_bytes())
    start, size = (int(made.index.numbers(name)[1]) for name in ("image_offset", "image_size"))
    data[start : start + size] = b"\0" * size
    path.write_bytes(bytes(data[: int(made.index.numbers("image_offset")[3])]))
    page, _ = made.write()
    assert len(page.all("img")) == 2
    boxes = [div["title"] for div in page.all("div") if div.get("class") == "lost"]
    assert len(boxes) == 2
    assert "no known image format" in boxes[0]
    assert "bytes expected" in boxes[1]


def most_suspicious(verdicts: Verdicts, most: int) -> np.ndarray:
    rows = suspicious(verdicts)
    return spread(rows, verdicts.label_N[rows], most)


def verdicts_of(label: list[int], p_clean: list[float], loss: list[float]) -> Verdicts:
    n_samples = len(label)
    return Verdicts(
        np.array(label, np.int32),
        np.zeros(n_samples, np.int32),
        np.array(loss, np.float32),
        np.array(p_clean),
        np.zeros(n_samples, bool),
        np.ones(n_samples, bool),
    )


def test_most_suspicious_come_first() -> None:
    verdicts = verdicts_of([0, 0, 0, 0], [0.2, 0.1, 0.1, 0.1], [9.0, 1.0, 2.0, 2.0])
    assert most_suspicious(verdicts, 10).tolist() == [2, 3, 1, 0]
    assert most_suspicious(verdicts, 2).tolist() == [2, 3]


def test_one_class_does_not_fill_the_gallery() -> None:
    label = [0] * 50 + [1] * 3 + [2] * 20
    p_clean = [0.0] * 50 + [0.1] * 3 + [0.2] * 20
    picked = most_suspicious(verdicts_of(label, p_clean, [1.0] * 73), 21)
    assert np.bincount(np.array(label)[picked]).tolist() == [9, 3, 9]
    assert picked.tolist() == sorted(picked.tolist())


@given(st.data())
def test_gallery_is_full_fair_and_in_order(data: st.DataObject) -> None:
    samples = st.tuples(
        st.integers(0, 3), st.sampled_from([0.0, 0.1, 0.5]), st.sampled_from([1.0, 2.0])
    )
    rows = data.draw(st.lists(samples, max_size=40))
    most = data.draw(st.integers(0, 45))
    label, p_clean, loss = (
        (list(part) for part in zip(*rows, strict=True)) if rows else ([], [], [])
    )
    picked = most_suspicious(verdicts_of(label, p_clean, loss), most).tolist()
    assert len(picked) == min(most, len(rows))

    def suspicion(row: int) -> tuple[float, float, int]:
        return (p_clean[row], -loss[row], row)

    assert picked == sorted(picked, key=suspicion)
    left = set(range(len(rows))) - set(picked)
    for one in range(4):
        mine = [row for row in picked if label[row] == one]
        waiting = [row for row in left if label[row] == one]
        # Within a class the most suspicious are taken, and no class is more than one ahead of
        # another that still has samples to show.
        assert not (mine and waiting) or suspicion(mine[-1]) < min(map(suspicion, waiting))
        if waiting:
            shares = [sum(label[row] == other for row in picked) for other in range(4)]
            assert max(shares) <= len(mine) + 1


def test_the_last_round_is_spread_over_the_classes() -> None:
    # Two rounds of four and one place more: the least suspicious class must not lose its second.
    label = [0, 1, 2, 3] * 5
    p_clean = [0.0, 0.1, 0.2, 0.3] * 5
    picked = most_suspicious(verdicts_of(label, p_clean, [1.0] * 20), 9)
    assert np.bincount(np.array(label)[picked]).tolist() == [3, 2, 2, 2]


# --- Histograms ------------------------------------------------------------------------------


def test_histogram_counts_every_sample_of_its_class() -> None:
    losses = np.concatenate([np.linspace(0, 1, 950), np.linspace(2, 6, 49), [500.0]])
    kept = losses < 1.5
    histogram = loss_histogram(losses.astype(np.float32), kept, None)
    assert histogram.kept_B.sum() == 950
    assert histogram.removed_B.sum() + histogram.beyond == 50
    assert 1 <= histogram.beyond <= 5
    assert histogram.edges[-1] < 10
    assert histogram.crossings == pytest.approx([1.5])
    assert histogram.curves is None


def test_axis_reaches_past_the_verdict() -> None:
    losses = np.concatenate([np.zeros(9999), [8.0]]).astype(np.float32)
    histogram = loss_histogram(losses, losses < 5, None)
    assert histogram.crossings == (4.0,)
    assert histogram.edges[-1] == pytest.approx(4.4)
    assert histogram.beyond == 1


def test_curves_stand_on_the_scale_of_the_bars() -> None:
    rng = np.random.default_rng(0)
    losses = np.concatenate([rng.normal(1, 0.1, 800), rng.normal(3, 0.4, 200)]).astype(np.float32)
    row = {
        "weight_clean": 0.8, "weight_noisy": 0.2, "mean_clean": 1.0, "mean_noisy": 3.0,
        "variance_clean": 0.01, "variance_noisy": 0.16,
    }  # fmt: skip
    histogram = loss_histogram(losses, losses < 2, row)
    assert histogram.curves is not None
    x, clean, noisy = histogram.curves
    width = histogram.edges[1] - histogram.edges[0]
    assert np.trapezoid(clean, x) / width == pytest.approx(800, rel=0.01)
    # The axis ends before the noisy component does.
    assert np.trapezoid(noisy, x) / width == pytest.approx(200, rel=0.05)
    middles = (histogram.edges[1:] + histogram.edges[:-1]) / 2
    expected = np.interp(middles, x, clean + noisy)
    assert np.abs(expected - histogram.kept_B - histogram.removed_B).max() < 40


@pytest.mark.parametrize(
    ("values", "kept", "crossings"),
    [
        ([3.0, 1.0, 2.0], [False, True, True], (2.5,)),
        ([1.0, 2.0], [True, True], ()),
        ([1.0, 2.0], [False, False], ()),
        ([1.0, 2.0, 4.0], [False, True, False], (1.5, 3.0)),
        ([1.0], [True], ()),
    ],
)
def test_verdict_changes_lie_between_samples(
    values: list[float], kept: list[bool], crossings: tuple[float, ...]
) -> None:
    assert verdict_changes(np.array(values), np.array(kept)) == crossings


def test_figures_say_where_the_verdict_changes(page: Page) -> None:
    words = {div["aria-label"] for div in page.all("div") if "aria-label" in div}
    # The largest kept loss of `cat` is 0.05 + 0.01 * 19, the smallest removed one 3.
    assert "Histogram of the losses of class cat; p_clean crosses tau at 1.62" in words
    assert f"Histogram of the losses of class {BRACES}; p_clean never crosses tau" in words


def test_losses_are_drawn_as_the_mixture_saw_them(tmp_path: Path) -> None:
    page, _ = make(tmp_path, settings=("select.loss=gce", "probe.q=0.5")).write()
    assert "GCE loss" in page.text("losses")
    assert "cross entropy (nats)" not in page.text("losses")
    ends = [(1 - np.exp(-0.5 * loss)) / 0.5 for loss in (0.24, 3.0)]
    words = [div.get("aria-label", "") for div in page.all("div")]
    assert (
        f"Histogram of the losses of class cat; p_clean crosses tau at {np.mean(ends):.2f}" in words
    )


def test_only_the_worst_classes_get_a_histogram(tmp_path: Path) -> None:
    page, _ = make(tmp_path, settings=("report.classes=2",)).write()
    assert "Shown are the 2 of 3 classes" in page.text("losses")
    titles = [d["aria-label"] for d in page.all("div") if "Histogram" in d.get("aria-label", "")]
    assert [title.split(";")[0].rsplit("class ")[1] for title in titles] == ["cat", BOLD]


def test_a_fallback_stands_in_the_title(tmp_path: Path) -> None:
    rules = {0: ("pooled", "one mode"), 1: ("keep_all", "one mode; all classes together: one mode")}
    text = make(tmp_path, rules=rules).write()[0].text("losses")
    assert "cat judged by the mixture of all classes 12 of 42 removed" in text
    assert f"{BOLD} judged by no mixture: kept whole 1 of 31" in text
    assert f"{BRACES} 0 of 30 removed" in text


# --- Edges -----------------------------------------------------------------------------------


def test_nothing_removed(tmp_path: Path) -> None:
    page, result = make(tmp_path, [Row(f"k{i}", i % 3, i % 3) for i in range(30)]).write()
    assert page.all("img") == []
    assert result.counts["suspicious_shown"] == 0
    assert "Nothing was removed." in page.text("gallery")
    assert "Nothing was removed." in page.text("classes")
    assert "Removed, by reason none" in page.text("overview")
    assert "Every sample could be read." in page.text("unreadable")
    assert "No shard is damaged." in page.text("accounts")


def test_everything_removed(tmp_path: Path) -> None:
    made = make(tmp_path, [removed(f"r{i}", i % 3, 0, 2.0) for i in range(30)])
    made.records["write"].facts["clean"] = []
    page, result = made.write()
    assert result.counts["suspicious_shown"] == 30
    assert "0 kept (0.0 %) + 30 removed (100.0 %)" in page.text("overview")
    assert "Clean shards none written" in page.text("overview")


def test_nothing_judged(tmp_path: Path) -> None:
    made = make(tmp_path, [Row(f"b{i}", reason=Reason.UNDECODABLE) for i in range(5)])
    page, _ = made.write()
    assert "No sample was judged." in page.text("tau")
    assert "3 classes have no readable sample" in page.text("classes")
    assert len(page.rows("unreadable")) == 1 + 5


def test_gallery_can_be_left_out(tmp_path: Path) -> None:
    page, result = make(tmp_path, settings=("report.gallery=0",)).write()
    assert page.all("img") == []
    assert result.counts["suspicious_shown"] == 0
    assert "report.gallery is 0" in page.text("gallery")


def test_one_class_whose_mixture_is_not_a_number(tmp_path: Path) -> None:
    rows = [Row("a"), Row("b"), removed("c", 0, 0, 4.0)]
    made = make(tmp_path, rows, ("only",), n_shards=1)
    for name in ("weight_clean", "mean_noisy", "variance_noisy"):
        at = made.classes.column_names.index(name)
        made.classes = made.classes.set_column(at, name, pa.array([float("nan")]))
    page, _ = made.write()
    assert "only 1 of 3 removed (33.3 %)" in page.text("losses")
    assert "0 for another class than they are labelled, and 1 for their own" in page.text("classes")
    assert page.rows("classes")[1][:4] == ["only", "3", "2", "33.3 %"]
    assert "nan" not in page.text("losses")


def test_a_sample_without_a_label_or_a_class_without_a_sample(tmp_path: Path) -> None:
    rows = [Row("a"), Row("b", 2, 2), Row("c", reason=Reason.NO_LABEL, detail="no .cls")]
    page, _ = make(tmp_path, rows).write()
    assert [row[0] for row in page.rows("classes")[1:3]] == ["cat", BRACES]
    assert "1 class has no readable sample" in page.text("classes")


def test_many_samples_and_classes_stay_quick_and_small(tmp_path: Path) -> None:
    n_samples, n_classes = 200_000, 1000
    rng = np.random.default_rng(0)
    made = make(
        tmp_path, [removed("only", 0, 1, 3.0)], tuple(f"class {i}" for i in range(n_classes))
    )
    label_N = rng.integers(0, n_classes, n_samples).astype(np.int32)
    wrong_N = rng.random(n_samples) < 0.3
    reason_N = np.where(wrong_N, Reason.HIGH_LOSS, Reason.KEPT).astype(np.uint8)
    lost_N = rng.random(n_samples) < 0.01
    reason_N[lost_N] = Reason.UNDECODABLE
    first = made.index.table.slice(0, 1).to_pylist()[0]
    index = SampleIndex(
        pa.table(
            {
                "key": pa.array([f"{i:06}" for i in range(n_samples)]),
                **{
                    name: np.full(n_samples, first[name], SCHEMA.field(name).type.to_pandas_dtype())
                    for name in ("shard", "offset", "size", "image_offset", "image_size")
                },
                "label": label_N,
                "reason": np.zeros(n_samples, np.uint8),
                "detail": pa.nulls(n_samples, pa.string()),
            }
        ),
        made.index.shards,
        made.index.classes,
    )
    loss_N = np.where(wrong_N, rng.normal(4, 1, n_samples), rng.gamma(1, 0.2, n_samples))
    losses = LossTable(
        np.where(lost_N, np.nan, loss_N).astype(np.float32),
        np.zeros(n_samples, np.float32),
        np.where(lost_N, -1, rng.integers(0, n_classes, n_samples)).astype(np.int32),
        np.full(n_samples, -1, np.int8),
    )
    p_clean_N = np.where(lost_N, np.nan, np.where(wrong_N, 0.1, 0.9))
    details = pa.chunked_array([pa.nulls(n_samples, pa.string())])
    scores = scores_table(index, losses, p_clean_N, reason_N, details)
    big = replace(
        made,
        index=index,
        scores=scores,
        classes=classes_of(index, scores, {}),
        records=records_of(scores, 0.6),
    )
    start = time.monotonic()
    page, result = big.write()
    assert time.monotonic() - start < 8
    assert result.counts["size_bytes"] < 3_000_000
    assert result.counts["suspicious_shown"] == 60
    removed_count = int(np.count_nonzero(wrong_N & ~lost_N))
    assert f"{removed_count:,} removed" in page.text("overview")
    # Nobody's class takes two places as long as 60 classes have something to show.
    assert len({item["data-class"] for item in page.shown("suspicious")}) == 60


# --- Words for numbers -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("share", "text"),
    [(0.0, "0.0 %"), (0.0001, "< 0.1 %"), (0.5, "50.0 %"), (0.99999, "> 99.9 %"), (1.0, "100.0 %")],
)
def test_percentages_never_hide_the_rest(share: float, text: str) -> None:
    assert show_percent(share) == text


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1000, "1.0 kB"),
        (2_570_240, "2.6 MB"),
        (10**18, "1000.0 PB"),
    ],
)
def test_sizes(size_bytes: int, text: str) -> None:
    assert show_size(size_bytes) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.016, "0.02 s"), (12.34, "12.3 s"), (119.6, "2 min 00 s"), (3600, "1 h 00 min")],
)
def test_durations(seconds: float, text: str) -> None:
    assert show_duration(seconds) == text


def test_small_probabilities() -> None:
    assert show_p(1e-9) == "< 0.0001"
    assert show_p(0.25) == "0.2500"

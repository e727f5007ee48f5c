"""Labels: where they stand, what they mean, and what is said when they mean nothing."""

import json

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import csv, parquet

from shardsieve.data.reason import Reason
from shardsieve.errors import LabelError
from shardsieve.shards.labels import (
    JsonLabels,
    MemberLabels,
    TableLabels,
    find_classes,
    label_source,
    read_classes,
    resolve_labels,
)


def from_cls(content):
    return MemberLabels("cls").read(content, "s.cls")


def from_json(content, field="label"):
    return JsonLabels(field).read(content, "s.json")


def texts(*values, names=False):
    """Columns `given` and `is_name` as the index stage makes them."""
    names = [names] * len(values) if isinstance(names, bool) else names
    return (
        pa.chunked_array([pa.array(values, pa.string())]),
        pa.chunked_array([pa.array(names, pa.bool_())]),
    )


def resolved(*values, classes, names=False):
    label_N, reason_N = resolve_labels(*texts(*values, names=names), classes)
    assert label_N.dtype == np.int32 and reason_N.dtype == np.uint8
    return label_N.tolist(), [Reason(reason) for reason in reason_N]


# A member's whole content.


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"3", "3"),
        (b"3\n", "3"),
        (b"  3 \r\n", "3"),
        (b"\xef\xbb\xbf3", "3"),
        (b"\xef\xbb\xbfcat\n", "cat"),
        ("Käse".encode(), "Käse"),
        (b"tabby cat", "tabby cat"),
        (b"caf\xe9", "caf\\xe9"),
    ],
)
def test_cls(content, text):
    given = from_cls(content)
    assert given.text == text
    assert not given.is_name
    assert given.detail is None


@pytest.mark.parametrize("content", [b"", b"\n", b"  \t", b"\xef\xbb\xbf"])
def test_empty_cls(content):
    assert from_cls(content) == (None, False, "s.cls is empty")


# A field of the JSON member.


@pytest.mark.parametrize(
    ("value", "text", "is_name"),
    [
        (3, "3", False),
        (-1, "-1", False),
        (3.0, "3", False),
        (10**30, str(10**30), False),
        ("3", "3", True),
        ("cat", "cat", True),
        (" cat ", " cat ", True),
        ("Käse", "Käse", True),
    ],
)
def test_json_values(value, text, is_name):
    for content in (json.dumps({"label": value}), json.dumps({"label": value}, ensure_ascii=False)):
        assert from_json(content.encode()) == (text, is_name, None)


@pytest.mark.parametrize("value", [None, True, False, 3.5, [3], {"id": 3}])
def test_json_values_that_are_no_label(value):
    given = from_json(json.dumps({"label": value}).encode())
    assert given.text is None
    assert given.detail == f"s.json: the label {value!r} is neither a name nor an integer"


@pytest.mark.parametrize("number", [b"NaN", b"Infinity", b"1e999"])
def test_json_numbers_that_are_none(number):
    given = from_json(b'{"label": ' + number + b"}")
    assert given.text is None and "neither a name nor an integer" in given.detail


def test_nested_json_field():
    content = json.dumps({"meta": {"class": {"id": 7}}, "class": 1}).encode()
    assert from_json(content, "meta.class.id").text == "7"
    assert from_json(content, "meta.class.name").detail == "s.json has no field meta.class.name"
    assert from_json(content, "class.id").detail == "s.json has no field class.id"
    assert from_json(b"[1]", "label").detail == "s.json has no field label"


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"label: 3", b"\xff\xfe\xfa", b'{"label": 3}}', b"[" * 200_000, b"9" * 5000],
    ids=["empty", "open", "yaml", "bytes", "twice", "deep", "huge"],
)
def test_bad_json_is_said(content):
    given = from_json(content)
    assert given.text is None
    assert given.detail.startswith(("s.json is not JSON: ", "s.json has no field"))


def test_json_with_a_byte_order_mark():
    assert from_json(b'\xef\xbb\xbf{"label": 3}').text == "3"


@pytest.mark.parametrize("content", [rb'{"label": "\ud800"}', b'{"label": "\xed\xa0\x80"}'])
def test_half_a_surrogate_pair_is_still_text(content):
    given = from_json(content)
    # Arrow stores UTF-8 only: this would raise.
    assert pa.array([given.text], pa.string()).null_count == 0
    assert given.text == r"\ud800"


def test_empty_json_name():
    assert from_json(b'{"label": ""}') == (None, False, "s.json: empty label")


# A table beside the shards.


def table_file(tmp_path, keys, labels, suffix="parquet", names=("key", "label")):
    path = tmp_path / f"labels.{suffix}"
    table = pa.table([keys, labels], names=list(names))
    (csv.write_csv if suffix == "csv" else parquet.write_table)(table, path)
    return path


def look_up(path, *keys):
    labels, is_name = label_source(str(path)).of_keys(pa.array(keys, pa.string()))
    assert labels.type == pa.string()
    return labels.to_pylist(), is_name


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_table_of_integers(tmp_path, suffix):
    path = table_file(tmp_path, ["00017", "17", "a/b"], [2, 0, -5], suffix)
    assert look_up(path, "17", "gone", "a/b", "00017", "017") == (
        ["0", None, "-5", "2", None],
        False,
    )


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_table_of_names(tmp_path, suffix):
    path = table_file(tmp_path, ["b", "a", "c"], ["cat", "3", "NA"], suffix)
    assert look_up(path, "a", "b", "c", "d") == (["3", "cat", "NA", None], True)


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_empty_and_missing_labels_are_no_labels(tmp_path, suffix):
    names = table_file(tmp_path, ["a", "b"], pa.array(["", "cat"]), suffix)
    assert look_up(names, "a", "b")[0] == [None, "cat"]
    numbers = table_file(tmp_path, ["a", "b"], pa.array([None, 3]), suffix)
    assert look_up(numbers, "a", "b")[0] == [None, "3"]
    nothing = table_file(tmp_path, ["a", "b"], pa.array([None, None]), suffix)
    assert look_up(nothing, "a", "b")[0] == [None, None]


@pytest.mark.parametrize(
    "labels",
    [
        pa.array([4.0, None, 2.0]),
        pa.array([4, None, 2], pa.uint8()),
        pa.array([4, None, 2], pa.int32()).dictionary_encode(),
        pa.array([4, None, 2], pa.uint64()),
        pa.array([4, None, 2]).cast(pa.decimal128(22, 2)),
    ],
    ids=lambda labels: str(labels.type),
)
def test_numeric_types(tmp_path, labels):
    path = table_file(tmp_path, ["a", "b", "c"], labels)
    assert look_up(path, "a", "b", "c") == (["4", None, "2"], False)


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()])
def test_text_types(tmp_path, kind):
    words = pa.array(["cat", None, "3"], kind)
    for labels in (words, words.dictionary_encode()):
        path = table_file(tmp_path, pa.array(["a", "b", "c"], kind), labels)
        assert look_up(path, "a", "b", "c") == (["cat", None, "3"], True)


def test_dictionary_and_integer_keys(tmp_path):
    path = table_file(tmp_path, pa.array(["a", "b"]).dictionary_encode(), [1, 2])
    assert look_up(path, "b", "a")[0] == ["2", "1"]
    path = table_file(tmp_path, pa.array([17, 18]), [1, 2])
    assert look_up(path, "18", "17")[0] == ["2", "1"]


@pytest.mark.parametrize("keys", [pa.array([[1]]), pa.array([b"\xff"])], ids=["list", "bytes"])
def test_keys_that_are_no_text(tmp_path, keys):
    with pytest.raises(LabelError, match=r"labels\.parquet: the keys are .*, not text"):
        TableLabels(table_file(tmp_path, keys, [1]))


@pytest.mark.parametrize(
    "labels",
    [pa.array([0.5]), pa.array([2**63], pa.uint64()), pa.array([[1]]), pa.array([0], pa.date32())],
    ids=lambda labels: str(labels.type),
)
def test_labels_that_are_neither(tmp_path, labels):
    with pytest.raises(LabelError, match=r"the labels are .*, not names or integers"):
        TableLabels(table_file(tmp_path, ["a"], labels))


def test_times_are_no_classes(tmp_path):
    (tmp_path / "labels.csv").write_text("key,label\na,2024-01-01 10:00:00\n")
    with pytest.raises(LabelError, match=r"the labels are timestamp\[s\], not names or integers"):
        TableLabels(tmp_path / "labels.csv")


def test_missing_columns_are_named(tmp_path):
    path = table_file(tmp_path, ["a"], [1], names=("id", "label"))
    with pytest.raises(LabelError, match=r"no column key \(has: id, label\).*needs the columns"):
        TableLabels(path)
    path = table_file(tmp_path, ["a"], [1], "csv", names=("id", "class"))
    with pytest.raises(LabelError, match=r"no column key and no column label \(has: id, class\)"):
        TableLabels(path)


def test_more_columns_do_not_matter(tmp_path):
    (tmp_path / "l.csv").write_text("note,label,key\nx,1,a\ny,2,b\n")
    assert look_up(tmp_path / "l.csv", "b", "a")[0] == ["2", "1"]


def test_contradicting_keys_are_refused(tmp_path):
    path = table_file(tmp_path, ["a", "b", "b", "c", "c"], [1, 2, 3, 0, 0])
    with pytest.raises(LabelError, match=r"1 keys have more than one label, the first is 'b'"):
        TableLabels(path)


def test_repeated_keys_that_agree_are_fine(tmp_path):
    path = table_file(tmp_path, ["a", "a", "b", "b"], [1, 1, None, 2])
    assert look_up(path, "a", "b")[0] == ["1", "2"]


def test_unreadable_tables(tmp_path):
    with pytest.raises(LabelError, match=r"gone\.csv: cannot read the label table"):
        label_source(str(tmp_path / "gone.csv"))
    with pytest.raises(LabelError, match=r"gone\.parquet: cannot read the label table"):
        label_source(str(tmp_path / "gone.parquet"))
    for name, content in [
        ("a.parquet", b""),
        ("b.parquet", b"key,label\na,1\n" * 9),
        ("c.csv", b""),
        ("d.csv", b"key,label\na,1,2\n"),
        ("e.csv", b"key,label\n\xff,1\n"),
    ]:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(LabelError, match=rf"{name}: not a (parquet|csv) table"):
            label_source(str(tmp_path / name))


@given(
    st.dictionaries(
        st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8),
        st.integers(-(2**63), 2**63 - 1) | st.none(),
        min_size=1,
        max_size=20,
    ),
    st.randoms(),
)
def test_table_is_a_dictionary(tmp_path_factory, labels, rng):
    path = table_file(tmp_path_factory.mktemp("t"), list(labels), pa.array(labels.values()))
    asked = [*labels, "not there"]
    rng.shuffle(asked)
    expected = [None if labels.get(key) is None else str(labels[key]) for key in asked]
    assert look_up(path, *asked)[0] == expected


@pytest.mark.parametrize(
    ("spec", "kind", "setting"),
    [
        ("cls", MemberLabels, "cls"),
        (".CLS", MemberLabels, "cls"),
        ("label.txt", MemberLabels, "label.txt"),
        ("csv", MemberLabels, "csv"),
        ("json", MemberLabels, "json"),
        ("json:a.b", JsonLabels, ["a", "b"]),
    ],
)
def test_label_source(spec, kind, setting):
    source = label_source(spec)
    assert type(source) is kind
    assert getattr(source, "extension", None) == setting or source.path == setting


# Class names.


def test_class_names_from_json_and_text(tmp_path):
    (tmp_path / "a.json").write_text('["dog", "cat", "größe"]', encoding="utf-8")
    (tmp_path / "a.txt").write_text("dog\r\n  cat \n\ngröße\n", encoding="utf-8")
    for name in ("a.json", "a.txt"):
        assert read_classes(tmp_path / name) == ("dog", "cat", "größe")


@pytest.mark.parametrize(("name", "content"), [("a.json", '["dog", "cat"]'), ("a.txt", "dog\ncat")])
def test_class_names_with_a_byte_order_mark(tmp_path, name, content):
    (tmp_path / name).write_text(content, encoding="utf-8-sig")
    assert read_classes(tmp_path / name) == ("dog", "cat")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", b"[", "not JSON"),
        ("a.json", b'{"0": "cat"}', "a JSON list of names is needed"),
        ("a.json", b'["cat", 3]', "a JSON list of names is needed"),
        ("a.json", b"[]", "names no class"),
        ("a.txt", b" \n\n", "names no class"),
        ("a.txt", b"cat\ndog\ncat \n", "the class 'cat' is named twice"),
        ("a.json", b'["a", "b", "b", "a"]', "the class 'a' is named twice"),
        ("a.txt", b"caf\xe9\n", "the class names are not UTF-8 text"),
    ],
)
def test_bad_class_files(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(LabelError, match=rf"{name}: {message}"):
        read_classes(tmp_path / name)


def test_missing_class_file(tmp_path):
    with pytest.raises(LabelError, match=r"gone\.txt: cannot read the class names: No such file"):
        read_classes(tmp_path / "gone.txt")


# Which classes there are.


def test_classes_of_integers():
    given = texts("0", "2", None, "-1", "+3", " 2")
    assert find_classes(*given, 6, None) == ("0", "1", "2", "3")
    assert find_classes(*given, 6, 10) == tuple("0123456789")
    assert find_classes(*given, 6, 2) == ("0", "1")


def test_classes_of_names():
    assert find_classes(*texts("dog", "cat", None, "dog"), 4, None) == ("cat", "dog")
    # Strings of a JSON field or a text column are names, even "10".
    assert find_classes(*texts("2", "10", "2", names=True), 3, None) == ("10", "2")


def test_mixed_labels_are_refused():
    with pytest.raises(LabelError, match=r"mixed: 2 integers such as '3' and 1 names"):
        find_classes(*texts("3", "cat", "4", None), 4, None)


def test_no_label_at_all_says_what_to_do():
    with pytest.raises(LabelError, match=r"no sample has a label.*--labels: cls, json:FIELD"):
        find_classes(*texts(None, None), 2, None)


def test_negative_labels_only_are_outside():
    assert find_classes(*texts("-1", "-2"), 2, None) == ("0",)


@pytest.mark.parametrize(
    ("largest", "n_samples", "fine"),
    [(999, 3, True), (1000, 3, False), (1000, 1001, True), (5000, 5000, False), (10**17, 9, False)],
)
def test_a_label_too_large_for_a_class_index(largest, n_samples, fine):
    given = texts("0", str(largest))
    if fine:
        assert len(find_classes(*given, n_samples, None)) == largest + 1
    else:
        with pytest.raises(LabelError, match=rf"largest label is {largest:,}, .*--classes"):
            find_classes(*given, n_samples, None)


def test_numbers_of_classes_settles_huge_labels():
    assert find_classes(*texts("0", "9" * 40), 2, 3) == ("0", "1", "2")


# What a label means.


def test_integers_are_positions_and_names_are_names():
    labels, reasons = resolved("1", "dog", "bird", None, "2", classes=("cat", "dog"))
    assert labels == [1, 1, -1, -1, -1]
    assert reasons == [
        Reason.KEPT,
        Reason.KEPT,
        Reason.LABEL_OUTSIDE,
        Reason.NO_LABEL,
        Reason.LABEL_OUTSIDE,
    ]


def test_a_name_that_looks_like_a_number():
    classes = ("5", "3", "4")
    assert resolved("3", names=True, classes=classes) == ([1], [Reason.KEPT])
    assert resolved("03", names=True, classes=classes)[1] == [Reason.LABEL_OUTSIDE]
    # As a number it could mean the class of that name or of that position.
    with pytest.raises(LabelError, match="class 0 is named '5'"):
        resolved("3", "0", names=[True, False], classes=classes)
    # Names that are their own position can only be read one way.
    assert resolved("1", "1", names=[True, False], classes=("0", "1"))[0] == [1, 1]


def test_a_quoted_number_that_names_no_class_is_a_number():
    assert resolved("1", names=True, classes=("cat", "dog")) == ([1], [Reason.KEPT])
    assert resolved("7", names=True, classes=("cat", "dog")) == ([-1], [Reason.LABEL_OUTSIDE])


@pytest.mark.parametrize(
    "text",
    [
        "-1",
        "-0001",
        "3",
        "4294967296",
        str(2**64),
        *(sign + "9" * n for sign in "-+ " for n in (17, 18, 19, 400)),
    ],
)
def test_integers_outside(text):
    assert resolved(text, classes=("a", "b", "c")) == ([-1], [Reason.LABEL_OUTSIDE])


@pytest.mark.parametrize("text", ["02", "+2", " 2 ", "2\n", "000000000000002"])
def test_ways_to_write_two(text):
    assert resolved(text, classes=("a", "b", "c")) == ([2], [Reason.KEPT])


@pytest.mark.parametrize("text", ["2.0", "0x2", "2 3", "²", "1e0", "--2", ""])
def test_what_is_no_integer_is_a_name(text):
    assert resolved(text, classes=("a", "b", "c"))[1] == [Reason.LABEL_OUTSIDE]


@pytest.mark.parametrize("classes", [("cat", "dog", "bird", "nil"), ("0", "1", "cat", "3", "dog")])
@given(
    values=st.lists(
        st.none()
        | st.integers(-5, 12).map(str)
        | st.sampled_from(["cat", "dog", "12", "nobody", "0"])
        | st.integers().map(str),
        min_size=1,
        max_size=30,
    ),
    data=st.data(),
)
def test_resolve_against_plain_python(classes, values, data):
    numbered = any(name.isdigit() for name in classes)
    names = data.draw(st.lists(st.booleans(), min_size=len(values), max_size=len(values)))
    expected = []
    for text, is_name in zip(values, names, strict=True):
        if text is None:
            expected.append((-1, Reason.NO_LABEL))
            continue
        number = text.lstrip("-").isdigit()
        if number and (not is_name or not numbered):
            label = int(text)
        else:
            label = classes.index(text) if text in classes else -1
        inside = 0 <= label < len(classes)
        expected.append((label, Reason.KEPT) if inside else (-1, Reason.LABEL_OUTSIDE))
    labels, reasons = resolved(*values, names=names, classes=classes)
    assert list(zip(labels, reasons, strict=True)) == expected

"""A file that is filled piece by piece is the file that is written at once."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardsieve.data.fill import ColumnFile, TextSize, text_size
from shardsieve.data.table import column, read_ipc
from shardsieve.errors import DataError
from shardsieve.shards.gather import as_text, gather

SCHEMA = pa.schema(
    [("key", pa.string()), ("n", pa.int64()), ("u", pa.uint8()), ("detail", pa.string())]
)
texts = st.text(max_size=5)
rows = st.tuples(texts, st.integers(-(2**63), 2**63 - 1), st.integers(0, 255), st.none() | texts)


def batch_of(rows):
    return pa.record_batch(
        [
            pa.array(list(values), field.type)
            for values, field in zip(zip(*rows, strict=True), SCHEMA, strict=True)
        ],
        schema=SCHEMA,
    )


def sizes(batches):
    return {
        name: TextSize(
            *map(sum, zip(*(text_size(batch.column(name)) for batch in batches), strict=True))
        )
        for name in ("key", "detail")
    }


@given(st.lists(st.lists(rows, min_size=1, max_size=20), min_size=1, max_size=5), st.data())
@settings(max_examples=60)
def test_pieces_make_the_whole(tmp_path_factory, pieces, data):
    path = tmp_path_factory.mktemp("fill") / "table.arrow"
    # A slice has buffers that begin before it.
    first = data.draw(st.integers(0, len(pieces[0]) - 1))
    batches = [batch_of(piece) for piece in pieces]
    batches[0] = batches[0].slice(first)
    n_rows = sum(batch.num_rows for batch in batches)
    with ColumnFile(path, SCHEMA, n_rows, sizes(batches)) as file:
        for batch in batches:
            file.append(batch)
    made = read_ipc(path)
    made.validate(full=True)
    assert made.to_pylist() == pa.Table.from_batches(batches).to_pylist()
    assert all(made.column(name).num_chunks == 1 for name in SCHEMA.names)
    assert column(made, "n").base is not None
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_file_that_is_not_finished_does_not_appear(tmp_path):
    path, batch = tmp_path / "table.arrow", batch_of([("a", 1, 2, None)])
    with pytest.raises(RuntimeError), ColumnFile(path, SCHEMA, 2, sizes([batch, batch])) as file:
        file.append(batch)
        raise RuntimeError
    assert not path.exists()
    with (
        pytest.raises(ValueError, match="1 rows were appended, not 2"),
        ColumnFile(path, SCHEMA, 2, sizes([batch, batch])) as file,
    ):
        file.append(batch)
    assert not path.exists()


def test_too_much_text_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"column key are 2,147,483,648 bytes.*several runs"):
        ColumnFile(tmp_path / "x", SCHEMA, 9, {"key": TextSize(2**31, 0)})


@given(st.binary(max_size=300), st.lists(st.tuples(st.integers(0, 300), st.integers(0, 300))))
@settings(max_examples=60)
def test_gather_copies_ranges(data, spans):
    spans = [(min(at, len(data)), size) for at, size in spans]
    spans = [(at, min(size, len(data) - at)) for at, size in spans]
    at_N = np.array([at for at, _ in spans], np.int64)
    size_N = np.array([size for _, size in spans], np.int32)
    want = [data[at : at + size] for at, size in spans]
    assert gather(np.frombuffer(data, np.uint8), at_N, size_N).to_pylist() == want


def test_gather_in_pieces(monkeypatch):
    data = np.random.default_rng(0).bytes(5000)
    at_N = np.array([0, 10, 4000, 3, 100, 4999])
    size_N = np.array([5, 3000, 0, 7, 64, 1])
    want = [data[at : at + size] for at, size in zip(at_N, size_N, strict=True)]
    for piece in (1, 8, 64, 5000):
        monkeypatch.setattr("shardsieve.shards.gather._PIECE", piece)
        assert gather(bytearray(data), at_N, size_N).to_pylist() == want


def test_text_must_be_text_value_by_value():
    assert as_text(pa.array(["ä".encode(), b""], pa.binary())).to_pylist() == ["ä", ""]
    # Together they would be one letter.
    assert as_text(pa.array([b"\xc3", b"\xa4"], pa.binary())) is None

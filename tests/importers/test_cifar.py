"""CIFAR in its four published versions, and other labels for it."""

import io
import pickle
import struct
from typing import ClassVar

import numpy as np
import pytest
from PIL import Image

from shardsieve.errors import DataError, LabelError
from shardsieve.importers.layouts import Options

TEN = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
HUNDRED = [f"fine {label}" for label in range(100)]


class Python2Pickler(pickle._Pickler):
    """Writes strings as Python 2 did, which is how CIFAR's files are."""

    dispatch: ClassVar = dict(pickle._Pickler.dispatch)

    def save_text(self, text):
        data = text if isinstance(text, bytes) else text.encode("latin1")
        self.write(pickle.BINSTRING + struct.pack("<i", len(data)) + data)

    dispatch[str] = dispatch[bytes] = save_text


def dump(path, content):
    out = io.BytesIO()
    Python2Pickler(out, protocol=2).dump(content)
    path.write_bytes(out.getvalue().replace(b"numpy._core.", b"numpy.core."))


def made(n_classes, count, seed):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (count, 3072), np.uint8), rng.integers(0, n_classes, count)


def python_ten(root):
    folder = root / "cifar-10-batches-py"
    folder.mkdir()
    data, labels = made(10, 17, 0)
    for number in range(5):
        part = slice(3 * number, 3 * number + 3)
        content = {"batch_label": "x", "labels": labels[part].tolist(), "data": data[part]}
        dump(folder / f"data_batch_{number + 1}", content)
    dump(folder / "test_batch", {"labels": labels[15:].tolist(), "data": data[15:]})
    dump(folder / "batches.meta", {"label_names": TEN, "num_vis": 3072})
    return data, labels


def binary_ten(root):
    folder = root / "cifar-10-batches-bin"
    folder.mkdir()
    data, labels = made(10, 17, 0)
    records = np.concatenate([labels[:, None].astype(np.uint8), data], axis=1)
    for number in range(5):
        part = records[3 * number : 3 * number + 3]
        (folder / f"data_batch_{number + 1}.bin").write_bytes(part.tobytes())
    (folder / "test_batch.bin").write_bytes(records[15:].tobytes())
    (folder / "batches.meta.txt").write_text("\n".join(TEN) + "\n\n")
    return data, labels


def python_hundred(root):
    folder = root / "cifar-100-python"
    folder.mkdir()
    data, labels = made(100, 17, 0)
    for name, part in (("train", slice(0, 15)), ("test", slice(15, 17))):
        fine = labels[part].tolist()
        coarse = [label // 5 for label in fine]
        dump(folder / name, {"fine_labels": fine, "coarse_labels": coarse, "data": data[part]})
    dump(folder / "meta", {"fine_label_names": HUNDRED, "coarse_label_names": ["x"] * 20})
    return data, labels


def binary_hundred(root):
    folder = root / "cifar-100-binary"
    folder.mkdir()
    data, labels = made(100, 17, 0)
    header = np.stack([labels // 5, labels], axis=1).astype(np.uint8)
    records = np.concatenate([header, data], axis=1)
    (folder / "train.bin").write_bytes(records[:15].tobytes())
    (folder / "test.bin").write_bytes(records[15:].tobytes())
    (folder / "fine_label_names.txt").write_text("\n".join(HUNDRED) + "\n")
    return data, labels


VERSIONS = {
    "cifar10": [python_ten, binary_ten],
    "cifar100": [python_hundred, binary_hundred],
}
CASES = [(kind, make) for kind, makers in VERSIONS.items() for make in makers]


@pytest.mark.parametrize("inside", [False, True], ids=["parent", "folder"])
@pytest.mark.parametrize(
    ("kind", "make"), CASES, ids=lambda value: getattr(value, "__name__", value)
)
def test_every_version(tmp_path, run_import, kind, make, inside):
    root = tmp_path / "SRC"
    root.mkdir()
    data, labels = make(root)
    source = next(root.iterdir()) if inside else root
    got = run_import(kind, source)
    assert list(got.labels.values()) == labels[:15].tolist()
    assert got.classes == (TEN if kind == "cifar10" else HUNDRED)
    assert got.keys == [f"train-{row:08d}" for row in range(15)]
    for png, pixels in zip(got.images.values(), data, strict=False):
        with Image.open(io.BytesIO(png)) as image:
            assert image.format == "PNG"
            assert np.array_equal(np.asarray(image), pixels.reshape(3, 32, 32).transpose(1, 2, 0))
    test = run_import(kind, source, "TEST", Options(split="test"))
    assert list(test.labels.values()) == labels[15:].tolist()


def test_versions_give_the_same_shards(tmp_path, run_import):
    for name, make in (("py", python_ten), ("bin", binary_ten)):
        (tmp_path / name).mkdir()
        make(tmp_path / name)
    one, other = (run_import("cifar10", tmp_path / name, name + "-OUT") for name in ("py", "bin"))
    assert list(one.images.values()) == list(other.images.values())
    assert list(one.labels.values()) == list(other.labels.values())


def cifar_n(path, labels, **more):
    import torch

    other = (labels[:15] + 1) % 10
    sets = {"clean_label": labels[:15], "worse_label": other, "aggre_label": labels[:15], **more}
    torch.save(sets, path)
    return other


def test_cifar_n(tmp_path, run_import):
    _, labels = python_ten(tmp_path)
    other = cifar_n(tmp_path / "CIFAR-10_human.pt", labels)
    options = Options(labels=tmp_path / "CIFAR-10_human.pt", label_set="worse_label")
    got = run_import("cifar10", tmp_path, options=options)
    assert list(got.labels.values()) == other.tolist()
    assert [more["clean_label"] for more in got.metadata.values()] == labels[:15].tolist()

    with pytest.raises(LabelError, match=r"several label sets; choose .*aggre_label, worse_label"):
        run_import("cifar10", tmp_path, "A", Options(labels=tmp_path / "CIFAR-10_human.pt"))
    with pytest.raises(LabelError, match="no label set 'worst'; choose with --label-set"):
        run_import("cifar10", tmp_path, "A", Options(labels=options.labels, label_set="worst"))
    with pytest.raises(LabelError, match="for the training images alone"):
        run_import("cifar10", tmp_path, "A", Options(split="test", labels=options.labels))
    with pytest.raises(LabelError, match="give --labels, too"):
        run_import("cifar10", tmp_path, "A", Options(label_set="worse_label"))


def test_cifar_100n_is_about_the_fine_classes(tmp_path, run_import):
    import torch

    _, labels = python_hundred(tmp_path)
    sets = {"clean_label": labels[:15], "noisy_label": labels[:15][::-1].copy()}
    torch.save({**sets, "noisy_coarse_label": labels[:15] // 5}, tmp_path / "n.pt")
    got = run_import("cifar100", tmp_path, options=Options(labels=tmp_path / "n.pt"))
    assert list(got.labels.values()) == labels[:15][::-1].tolist()


def test_labels_in_another_order_are_refused(tmp_path, run_import):
    _, labels = python_ten(tmp_path)
    cifar_n(tmp_path / "n.pt", labels[::-1].copy())
    options = Options(labels=tmp_path / "n.pt", label_set="worse_label")
    with pytest.raises(LabelError, match=r"is CIFAR's label for only \d+\.\d% of the images"):
        run_import("cifar10", tmp_path, options=options)


def test_one_array_of_labels(tmp_path, run_import):
    _, labels = python_ten(tmp_path)
    np.save(tmp_path / "mine.npy", (labels[:15] + 3) % 10)
    got = run_import("cifar10", tmp_path, options=Options(labels=tmp_path / "mine.npy"))
    assert list(got.labels.values()) == ((labels[:15] + 3) % 10).tolist()
    np.save(tmp_path / "short.npy", labels[:9])
    with pytest.raises(LabelError, match="labels has 9 labels, and there are 15 images"):
        run_import("cifar10", tmp_path, "A", Options(labels=tmp_path / "short.npy"))
    np.save(tmp_path / "float.npy", labels[:15] / 2)
    with pytest.raises(LabelError, match="no list of whole numbers"):
        run_import("cifar10", tmp_path, "A", Options(labels=tmp_path / "float.npy"))
    np.save(tmp_path / "ordered.npy", {"aggre_label": labels}, allow_pickle=True)
    with pytest.raises(LabelError, match=r"in TensorFlow's order: use CIFAR-10_human\.pt"):
        run_import("cifar10", tmp_path, "A", Options(labels=tmp_path / "ordered.npy"))


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        from pathlib import Path

        return Path.touch, (self.path,)


def test_a_pickle_that_is_a_program_does_not_run(tmp_path, run_import):
    import torch

    python_ten(tmp_path)
    trap = tmp_path / "was-run"
    torch.save({"aggre_label": Evil(trap)}, tmp_path / "evil.pt")
    with pytest.raises(LabelError, match="cannot be read without running it"):
        run_import("cifar10", tmp_path, "A", Options(labels=tmp_path / "evil.pt"))
    file = tmp_path / "cifar-10-batches-py" / "data_batch_3"
    file.write_bytes(pickle.dumps({"labels": Evil(trap)}))
    with pytest.raises(DataError, match=r"data_batch_3: not one of CIFAR's pickles: it calls"):
        run_import("cifar10", tmp_path)
    assert not trap.exists()


def test_wrong_layout_is_named(tmp_path, run_import):
    root = tmp_path / "SRC"
    root.mkdir()
    with pytest.raises(
        DataError, match=r"none of its files are in it. Expected cifar-10-batches-p"
    ):
        run_import("cifar10", root)
    python_ten(root)
    with pytest.raises(
        DataError, match=r"it looks like cifar10. Expected cifar-100-python/ with t"
    ):
        run_import("cifar100", root)
    folder = root / "cifar-10-batches-py"
    (folder / "data_batch_4").unlink()
    with pytest.raises(DataError, match=r"cifar-10-batches-py lacks data_batch_4. Expected"):
        run_import("cifar10", root)
    for content, says in (
        (b"", "not one of CIFAR's pickles"),
        (pickle.dumps([1]), "a pickled dict was expected, not list"),
        (pickle.dumps({"labels": [1]}), "'data' is no array of"),
        (pickle.dumps({"data": np.zeros((2, 3072), np.uint8), "labels": [1]}), "2 images but no"),
    ):
        (folder / "data_batch_4").write_bytes(content)
        with pytest.raises(DataError, match=says):
            run_import("cifar10", root)
    binary_hundred(root)
    (root / "cifar-100-binary" / "train.bin").write_bytes(bytes(3073))
    with pytest.raises(DataError, match="3,073 bytes are no whole number of CIFAR records of 3,07"):
        run_import("cifar100", root)

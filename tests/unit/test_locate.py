"""From what a user writes to the list of shards."""

import shutil

import pytest

from shardsieve.errors import ShardError
from shardsieve.shards.locate import locate_shards


@pytest.fixture
def folder(tmp_path):
    for name in ["b-0001.tar", "b-0000.tar", "a-0002.tar", "a-0010.tar", "notes.md"]:
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "deep" / "er" / "c.tar").write_bytes(b"")
    return tmp_path


def located(*patterns):
    paths = locate_shards([str(pattern) for pattern in patterns])
    assert all(path.is_absolute() and path.is_file() for path in paths)
    return [path.name for path in paths]


def test_plain_paths_keep_their_order(folder):
    assert located(folder / "b-0001.tar", folder / "a-0002.tar", folder / "b-0000.tar") == [
        "b-0001.tar",
        "a-0002.tar",
        "b-0000.tar",
    ]


def test_relative_paths_become_absolute(folder, monkeypatch):
    monkeypatch.chdir(folder / "deep")
    assert locate_shards(["../a-0002.tar", "er/c.tar"]) == [
        folder / "a-0002.tar",
        folder / "deep" / "er" / "c.tar",
    ]


def test_braces(folder):
    assert located(folder / "b-{0000..0001}.tar") == ["b-0000.tar", "b-0001.tar"]
    assert located(folder / "{b-0001,a-0010}.tar") == ["b-0001.tar", "a-0010.tar"]


def test_globs_are_sorted(folder):
    assert located(folder / "[ab]-00*.tar") == [
        "a-0002.tar",
        "a-0010.tar",
        "b-0000.tar",
        "b-0001.tar",
    ]
    assert located(folder / "**" / "c.tar") == ["c.tar"]
    # Braces are expanded first, so their order comes before the names'.
    assert located(folder / "{b,a}-000?.tar") == ["b-0000.tar", "b-0001.tar", "a-0002.tar"]


def test_a_folder_gives_its_tars_and_not_those_below(folder):
    assert located(folder) == ["a-0002.tar", "a-0010.tar", "b-0000.tar", "b-0001.tar"]


def test_a_name_with_brackets_is_a_name_when_it_exists(folder):
    shutil.copy(folder / "b-0000.tar", folder / "x[1].tar")
    assert located(folder / "x[1].tar") == ["x[1].tar"]


@pytest.mark.parametrize("suffix", ["txt", "list"])
def test_lists(folder, suffix, monkeypatch):
    other = folder / "elsewhere"
    other.mkdir()
    (other / "d.tar").write_bytes(b"")
    listing = folder / f"shards.{suffix}"
    lines = [
        "# b",
        "b-{0000..0001}.tar",
        "",
        "   # more",
        f"  {other / 'd.tar'}  \r",
        "a-*.tar",
        "",
    ]
    listing.write_text("\n".join(lines))
    monkeypatch.chdir(other)  # relative lines are beside the list, not here
    assert located(listing) == ["b-0000.tar", "b-0001.tar", "d.tar", "a-0002.tar", "a-0010.tar"]
    (other / "outer.txt").write_text(f"../shards.{suffix}\n../deep/er\n", encoding="utf-8-sig")
    assert located("outer.txt")[-2:] == ["a-0010.tar", "c.tar"]


def test_a_glob_in_a_list_in_a_folder_with_brackets(folder):
    strange = folder / "run[1]"
    strange.mkdir()
    (strange / "x.tar").write_bytes(b"")
    (strange / "all.txt").write_text("*.tar\n")
    assert located(strange / "all.txt") == ["x.tar"]


def test_links_keep_their_names(folder):
    # A download cache holds the bytes under their hash.
    (folder / "blobs").mkdir()
    (folder / "blobs" / "5f70bf18").write_bytes(b"")
    (folder / "train-0000.tar").symlink_to(folder / "blobs" / "5f70bf18")
    assert located(folder / "train-*.tar") == ["train-0000.tar"]


def test_missing_shards_are_listed(folder):
    with pytest.raises(ShardError, match=r"^2 of 4 shards are missing: .*-0002.tar, .*-0003.tar\."):
        located(folder / "b-{0000..0003}.tar")
    with pytest.raises(ShardError, match=r"100 of 100 .* and 95 more\. Check the path"):
        located(folder / "z-{00..99}.tar")
    with pytest.raises(ShardError, match=r"1 of 1 shards are missing: .*gone\.txt"):
        located(folder / "gone.txt")


@pytest.mark.parametrize("again", ["b-0000.tar", "deep/../b-0000.tar", "link.tar", "b-*.tar"])
def test_a_shard_named_twice(folder, again):
    (folder / "link.tar").symlink_to(folder / "b-0000.tar")
    with pytest.raises(ShardError, match=r"^named twice: .*b-0000\.tar\. Name every shard once"):
        located(folder / "b-0000.tar", folder / again)


@pytest.mark.parametrize("pattern", ["b-{0000..0001.tar", "{a,b.tar"])
def test_unbalanced_braces(folder, pattern):
    with pytest.raises(ShardError, match=r"the braces are not balanced"):
        located(folder / pattern)


def test_nothing_to_read(folder, monkeypatch):
    with pytest.raises(ShardError, match=r"deep: the folder holds no \.tar file"):
        located(folder / "deep")
    with pytest.raises(ShardError, match=r"nothing matches this pattern"):
        located(folder / "q*.tar")
    (folder / "empty.txt").write_text("# nothing\n")
    with pytest.raises(ShardError, match=r"no shards were named"):
        located(folder / "empty.txt")
    # An empty shell variable is not the folder one happens to be in.
    monkeypatch.chdir(folder)
    for patterns in ([], [""], [" "]):
        with pytest.raises(ShardError, match=r"no shards were named"):
            locate_shards(patterns)


def test_lists_that_cannot_be_read(folder):
    # `ls > all.txt` names itself.
    (folder / "all.txt").write_text("a-0002.tar\nall.txt\n")
    with pytest.raises(ShardError, match=r"all\.txt: the list names itself"):
        located(folder / "all.txt")
    (folder / "latin.txt").write_bytes(b"caf\xe9.tar\n")
    with pytest.raises(ShardError, match=r"latin\.txt: cannot read the list of shards"):
        located(folder / "latin.txt")

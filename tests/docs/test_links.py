"""Links and pictures of README, CONTRIBUTING and docs lead somewhere, and nothing lies unused."""

from urllib.parse import urlsplit

import pytest
from blocks import PAGES, ROOT
from markdown_it import MarkdownIt

IMAGES = ROOT / "docs" / "images"


def targets_of(page):
    """Where a page's links and pictures lead within the repository."""
    tokens = MarkdownIt("commonmark").enable("table").parse(page.read_text(encoding="utf-8"))
    found = []
    for token in tokens:
        for child in token.children or ():
            address = child.attrGet("href") or child.attrGet("src")
            if address and not urlsplit(str(address)).scheme:
                found.append((page.parent / str(address).partition("#")[0]).resolve())
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page):
    for target in targets_of(page):
        assert target.exists(), target


def test_every_page_is_reached_from_the_readme():
    reached = set(targets_of(ROOT / "README.md"))
    assert {page for page in PAGES if page.name != "README.md"} <= reached


def test_every_picture_is_shown_and_small():
    shown = {target for page in PAGES for target in targets_of(page)}
    for file in IMAGES.iterdir():
        assert file in shown, f"{file.name} is shown on no page"
        assert file.stat().st_size < 100_000, f"{file.name} is too large to look at in passing"

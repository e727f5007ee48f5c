"""Pictures of a run's report, in Debian's Chromium, light and dark."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from playwright.sync_api import ViewportSize

# What is photographed: file name, the heading's anchor, and the schemes it is wanted in.
_PARTS = (
    ("overview", "overview", ("light", "dark")),
    ("classes", "classes", ("light",)),
    ("losses", "losses", ("dark",)),
    ("map", "map", ("light",)),
    ("gallery", "gallery", ("light", "dark")),
)
_SIZE: ViewportSize = {"width": 1180, "height": 900}


def photograph(report: Path, out: Path) -> list[Path]:
    """Takes the pictures that the docs show.

    Args:
        report: The page.
        out: Folder that gets `report-PART.png`, and `report-PART-dark.png`.

    Raises:
        FileNotFoundError: There is no Chromium.
    """
    from playwright.sync_api import sync_playwright

    found = shutil.which("chromium") or shutil.which("chromium-browser")
    if found is None:
        raise FileNotFoundError("no chromium here (Debian: apt-get install chromium)")
    taken = []
    with sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=found, args=["--no-sandbox", "--disable-gpu"]
        )
        for scheme in ("light", "dark"):
            page = browser.new_page(viewport=_SIZE, color_scheme=scheme)
            page.goto(report.resolve().as_uri(), wait_until="load")
            for name, anchor, schemes in _PARTS:
                if scheme not in schemes:
                    continue
                _scroll_to(page, anchor)
                file = out / f"report-{name}{'-dark' if scheme == 'dark' else ''}.png"
                page.screenshot(path=file)
                taken.append(_smaller(file))
            page.close()
        browser.close()
    return taken


def _scroll_to(page: Any, anchor: str) -> None:
    if anchor == _PARTS[0][1]:
        page.evaluate("window.scrollTo(0, 0)")
        return
    # What is far below gets its height when it is come near to: the first jump lands beside it.
    for _ in range(3):
        page.evaluate(f"document.getElementById('{anchor}').scrollIntoView()")
        page.wait_for_timeout(200)


def _smaller(file: Path) -> Path:
    """Reduces a picture to 256 colours, which halves it and is not seen."""
    from PIL import Image

    with Image.open(file) as image:
        few = image.convert("RGB").quantize(256, method=Image.Quantize.MEDIANCUT)
    few.save(file, optimize=True)
    return file

"""The report as people see it: no complaint, filters that filter, keys, light and dark."""

import re
import tarfile

import pytest
from tiny import add_member, write_shards

import shardsieve

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(settings, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    shards = write_shards(folder / "shards")
    with tarfile.open(shards.paths[-1], "a") as tar:
        add_member(tar, "zz-lost.cls", b"0")
    return shardsieve.clean(shards.patterns, folder / "RUN", settings(report__map=100))


@pytest.fixture(scope="module")
def url(run):
    return run.report.as_uri()


def visible(page):
    return page.evaluate(
        "[...document.querySelectorAll('.gallery > li')].filter((i) => i.offsetParent)"
        ".map((i) => ({ ...i.dataset, text: i.textContent }))"
    )


def test_every_section_is_there_and_nothing_is_asked_for(url, chromium, open_page):
    context = chromium.new_context(offline=True)
    page = context.new_page()
    asked = []
    page.on("request", lambda request: asked.append(request.url.split(":")[0]))
    page.on("console", lambda message: asked.append(f"console: {message.text}"))
    page.goto(url)
    assert set(asked) <= {"file", "data"} and asked.count("file") == 1
    sections = page.evaluate("[...document.querySelectorAll('section')].map((s) => s.id)")
    links = page.evaluate("[...document.querySelectorAll('nav a')].map((a) => a.hash.slice(1))")
    assert links == sections
    for name in ("overview", "classes", "losses", "map", "gallery", "tau", "time", "reproduce"):
        assert page.is_visible(f"#{name} h2"), name
    broken = "[...document.images].filter((i) => i.complete && !i.naturalWidth).length"
    assert page.evaluate(broken) == 0
    # Nothing is wider than the window but what scrolls in itself.
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    context.close()


def test_galleries_filter(url, open_page):
    page = open_page(url)
    everything = visible(page)
    assert page.inner_text(".filters output") == f"{len(everything)} of {len(everything)} shown"
    page.check("input[name='gallery'][value='suspicious']")
    suspicious = visible(page)
    assert 0 < len(suspicious) < len(everything)
    assert all("suspicious" in item["galleries"].split() for item in suspicious)
    page.select_option("select[name='class']", "1")
    both = visible(page)
    assert both == [item for item in suspicious if item["class"] == "1"] != []
    page.fill("input[name='text']", "S2-")
    some = visible(page)
    assert some == [item for item in both if "s2-" in item["text"].lower()]
    assert page.inner_text(".filters output").startswith(f"{len(some)} of ")
    page.fill("input[name='text']", "")
    page.select_option("select[name='class']", "")
    page.check("input[name='gallery'][value='']")
    page.select_option("select[name='reason']", "no_image")
    [lost] = visible(page)
    assert lost["galleries"] == "quarantined" and "zz-lost" in lost["text"]


def test_the_keyboard_reaches_everything(url, open_page):
    page = open_page(url)
    reached = []
    for _ in range(40):
        page.keyboard.press("Tab")
        reached.append(
            page.evaluate(
                "(({ tagName, name, hash, type }) => name || hash || type || tagName)"
                "(document.activeElement)"
            )
        )
        style = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert style == "solid", f"nobody sees where {reached[-1]} is"
        if reached[-1] == "text":
            break
    assert reached[0] == "#overview"
    assert [name for name in reached if name in ("gallery", "class", "reason", "text")] == [
        "gallery", "class", "reason", "text"
    ]  # fmt: skip
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("ArrowRight")
    assert page.evaluate("new FormData(document.querySelector('form')).get('gallery')")


def test_light_and_dark(url, open_page):
    grounds, inks = [], []
    for scheme in ("light", "dark"):
        page = open_page(url, color_scheme=scheme)
        for found, what in ((grounds, "backgroundColor"), (inks, "color")):
            colour = page.evaluate(f"getComputedStyle(document.body).{what}")
            found.append(sum(map(int, re.findall(r"\d+", colour)[:3])))
        # Figures take their colours from the page.
        stroke = page.evaluate("getComputedStyle(document.querySelector('#losses svg text')).fill")
        assert stroke not in ("rgb(0, 0, 0)", "")
    assert grounds[0] > 600 > 200 > grounds[1]
    assert inks[0] < 200 < 600 < inks[1]


def test_without_scripts_everything_is_shown(url, chromium):
    context = chromium.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(url)
    assert not page.is_visible(".filters")
    items = page.locator(".gallery > li")
    assert items.count() > 5
    assert all(items.nth(i).is_visible() for i in range(items.count()))
    context.close()

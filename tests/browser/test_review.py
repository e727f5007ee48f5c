"""Deciding with the keyboard in a real browser, and what is left of it after a SIGKILL."""

import json
import re
import signal
import subprocess
import sys
import tarfile

import pytest
from browsing import wait_until
from reviewable import reviewable

import shardsieve
from shardsieve.data.decisions import read_decisions
from shardsieve.pipeline import run_stages

pytestmark = pytest.mark.slow


@pytest.fixture
def start():
    """Starts `shardsieve review RUN` and returns the process and the address of its page."""
    processes = []

    def make(run):
        process = subprocess.Popen(
            [sys.executable, "-m", "shardsieve", "review", str(run)],
            stdout=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        url = process.stdout.readline().strip()
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/[\w-]{43}/", url)
        return process, url

    yield make
    for process in processes:
        process.kill()
        process.wait()
        process.stdout.close()


def wait_for_decided(page, count):
    wait_until(page, f"document.getElementById('status').textContent.endsWith('{count} decided')")


def relabel(page, name):
    page.keyboard.press("r")
    page.fill("#label", name)
    page.keyboard.press("Enter")


def test_twenty_decisions_outlive_a_sigkill_and_are_written(
    shards, settings, tmp_path, start, open_page
):
    config = settings()
    run = shardsieve.clean(shards.patterns, tmp_path / "RUN", config)
    before = {row["key"]: row for row in run.scores.to_pylist()}
    process, url = start(run.path)
    page = open_page(url)
    page.wait_for_selector("#items li[aria-selected='true']")
    keys = page.evaluate("state.items.map((item) => item.key)")
    expected = {}
    for number in range(14):
        expected[keys[number]] = ("drop", None) if number % 3 == 1 else ("keep", None)
        page.keyboard.press("d" if number % 3 == 1 else "k")
    for number in range(14, 20):
        name = str((before[keys[number]]["label"] + 1) % 3)
        expected[keys[number]] = ("relabel", name)
        relabel(page, name)
    wait_for_decided(page, 20)
    process.send_signal(signal.SIGKILL)
    process.wait()
    page.close()

    process, url = start(run.path)
    page = open_page(url)
    wait_for_decided(page, 20)
    page.click("[data-gallery='decided']")
    wait_until(page, "state.gallery === 'decided' && state.items.length === 20")
    shown = page.evaluate("state.items.map((item) => [item.key, [item.decision, item.label]])")
    assert {key: tuple(what) for key, what in shown} == expected
    assert [key for key, _ in shown] == keys[19::-1], "the last decision comes first"

    run_stages(["select", "write", "report"], run.path, config)
    after = {row["key"]: row for row in run.scores.to_pylist()}
    written = set()
    for path in run.clean_shards:
        with tarfile.open(path) as tar:
            written |= {info.name.split(".")[0] for info in tar}
    for key, (what, label) in expected.items():
        assert (key in written) is after[key]["kept"] is (what != "drop")
        assert after[key]["final_label"] == (int(label) if label else before[key]["label"])
    for key, row in after.items():
        if key not in expected:
            assert (key in written) is row["kept"] is before[key]["kept"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return reviewable(tmp_path_factory.mktemp("review"), per_shard=100)


def test_arrows_undo_and_filters(run, start, open_page):
    _, url = start(run)
    page = open_page(url)
    wait_until(page, "state.items.length === 50")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowLeft")
    assert page.evaluate("state.current") == 1
    row = page.evaluate("columns()")
    page.keyboard.press("ArrowDown")
    assert page.evaluate("state.current") == 1 + row > 2
    page.keyboard.press("ArrowUp")
    page.keyboard.press("k")
    wait_for_decided(page, 1)
    assert page.evaluate("state.current") == 2
    assert "kept" in page.inner_text("#item-1 .mark")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("d")
    page.wait_for_selector("#item-1 .mark.drop")
    page.keyboard.press("u")
    page.wait_for_selector("#item-1 .mark.keep")
    page.keyboard.press("u")
    wait_for_decided(page, 0)
    assert page.query_selector("#item-1 .mark") is None
    assert read_decisions(run).standing == {}

    page.select_option("#class", "1")
    wait_until(page, "state.items.length && state.items.every((i) => i.given === '1')")
    page.select_option("#class", "")
    page.fill("#text", "s1-0")
    wait_until(page, "state.items.length && state.items.every((i) => /^s1-0/.test(i.key))")
    # A key that is typed into a field is text and no decision.
    page.fill("#text", "")
    page.focus("#text")
    page.keyboard.type("kdru")
    wait_until(page, "state.total === 0")
    assert read_decisions(run).standing == {}


def test_a_wrong_class_is_asked_again_and_escape_leaves_everything(run, start, open_page):
    _, url = start(run)
    page = open_page(url)
    wait_until(page, "state.items.length === 50")
    relabel(page, "no such class")
    assert page.is_visible("#dialog")
    assert "No class" in page.inner_text("#label-problem")
    page.keyboard.press("Escape")
    assert not page.is_visible("#dialog")
    assert read_decisions(run).standing == {}
    page.click("[data-gallery='quarantined']")
    wait_until(page, "state.gallery === 'quarantined' && state.items.length === 1")
    assert page.is_disabled("#keep") and page.is_disabled("#relabel")
    page.keyboard.press("k")
    assert page.evaluate("fetch('about').then((a) => a.json()).then((a) => a.decided)") == 0


def test_everything_is_reached_with_tab(run, start, open_page):
    _, url = start(run)
    page = open_page(url)
    wait_until(page, "state.items.length === 50")
    reached = set()
    for _ in range(25):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.id || document.activeElement.tagName"))
    assert {"class", "reason", "text", "items", "keep", "drop", "relabel", "undo"} <= reached


def test_a_page_elsewhere_can_neither_read_nor_decide(run, start, chromium, tmp_path):
    """What a foreign page in the same browser can do, even one that knows the token."""
    from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
    from threading import Thread

    _, url = start(run)
    key = "s0-000"
    body = json.dumps({"row": 0, "key": key, "decision": "drop"})
    (tmp_path / "evil.html").write_text(f"""<!doctype html><img src="{url}image/0" id="i">
<iframe src="{url}" id="f"></iframe>
<script>
const tries = [
  fetch("{url}about").then((r) => r.text()),
  fetch("{url}decide", {{method: "POST", body: {json.dumps(body)}, headers:
    {{"Content-Type": "application/json", "X-Shardsieve-Token": "{url.split("/")[3]}"}}}}),
  fetch("{url}decide", {{method: "POST", mode: "no-cors", body: {json.dumps(body)}}})
    .then((r) => r.type),
];
window.outcome = Promise.allSettled(tries).then((all) => all.map((r) => r.value ?? r.status));
</script>""")

    class Handler(SimpleHTTPRequestHandler):
        def __init__(self, *arguments):
            super().__init__(*arguments, directory=str(tmp_path))

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as evil:
        thread = Thread(target=evil.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        page = chromium.new_page()
        page.goto(f"http://localhost:{evil.server_port}/evil.html")
        outcome = page.evaluate("window.outcome")
        width = page.evaluate("document.getElementById('i').naturalWidth")
        page.close()
        evil.shutdown()
        thread.join()
    # Blindly sent, the last one may be answered; what it gets is a refusal that it cannot read.
    assert outcome[:2] == ["rejected", "rejected"] and outcome[2] in ("opaque", "rejected")
    assert width == 0
    assert read_decisions(run).standing == {}

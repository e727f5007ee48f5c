"""What the review answers, and what it refuses: over a real socket, as an attacker would ask."""

import http.client
import json
import socket
import threading
import time

import pytest
from reviewable import reviewable

from shardsieve.data.decisions import FILE, read_decisions
from shardsieve.errors import ConfigError, DataError, StaleArtefact
from shardsieve.review.server import ADDRESS, MOST_BODY_BYTES, TOKEN_HEADER, ReviewServer

GOOD = object()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return reviewable(tmp_path_factory.mktemp("review"))


@pytest.fixture
def server(run):
    (run / FILE).unlink(missing_ok=True)
    server = ReviewServer(run)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def ask(server, path, *, method="GET", body=None, token=True, **headers):
    """Sends a request exactly as written; header names come with underscores, None leaves out."""
    base = {"Host": f"{ADDRESS}:{server.server_port}"}
    if body is not None:
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        base |= {
            "Content-Type": "application/json",
            "Content-Length": str(len(body)),
            "Origin": f"http://{ADDRESS}:{server.server_port}",
            TOKEN_HEADER: server.token,
        }
    base |= {name.replace("_", "-"): value for name, value in headers.items()}
    connection = http.client.HTTPConnection(ADDRESS, server.server_port, timeout=20)
    target = f"/{server.token}/{path}" if token else path
    connection.putrequest(method, target, skip_host=True, skip_accept_encoding=True)
    for name, value in base.items():
        if value is not None:
            connection.putheader(name, value)
    connection.endheaders(body)
    response = connection.getresponse()
    data = response.read()
    connection.close()
    return response, data


def get_json(server, path):
    response, data = ask(server, path)
    assert response.status == 200, data
    return json.loads(data)


def decide(server, row, decision, label=None, **options):
    key = server.samples.name_of(row).key
    body = {"row": row, "key": key, "decision": decision, "label": label}
    return ask(server, "decide", method="POST", body=body, **options)


# --- What it answers ---------------------------------------------------------------------------


def test_galleries_and_their_order(server):
    about = get_json(server, "about")
    counts = {gallery["name"]: gallery["count"] for gallery in about["galleries"]}
    assert counts == {"suspicious": 20, "borderline": 1, "suggested": 20, "quarantined": 1,
                      "all": 81, "decided": 0}  # fmt: skip
    assert about["classes"] == ["0", "1", "2"]
    items = get_json(server, "items?gallery=suspicious")["items"]
    assert [item["row"] % 4 for item in items] == [0] * 20
    assert items == sorted(items, key=lambda item: item["p_clean"])
    assert all(item["given"] != item["suggested"] for item in items)
    [lost] = get_json(server, "items?gallery=quarantined")["items"]
    assert (lost["key"], lost["judged"], lost["image"]) == ("zz-lost", False, False)
    assert lost["reason"] == "no_image" and lost["detail"]


def test_filters_by_class_reason_and_text_go_together(server):
    items = get_json(server, "items?gallery=all&label=2")["items"]
    assert items and all(item["given"] == "2" for item in items)
    items = get_json(server, "items?gallery=all&reason=high_loss&text=S1-")["items"]
    assert len(items) == 10
    assert all(item["key"].startswith("s1-") and not item["kept"] for item in items)
    assert get_json(server, "items?gallery=all&text=nothing")["total"] == 0
    tail = get_json(server, "items?gallery=all&start=78")
    assert (tail["total"], len(tail["items"])) == (81, 3)


def test_images_are_the_bytes_in_the_tar(server, run):
    row = 5
    response, data = ask(server, f"image/{row}")
    index = server.samples.index
    start = int(index.numbers("image_offset")[row])
    assert data == index.shards[0].path.read_bytes()[start : start + len(data)]
    assert response.headers["Content-Type"] == "image/jpeg"
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert response.headers["Cache-Control"] == "no-store"
    assert "frame-ancestors 'none'" in response.headers["Content-Security-Policy"]


def test_decisions_are_on_the_disk_when_they_are_answered(server, run):
    for row, what, label in ((0, "keep", None), (1, "drop", None), (4, "relabel", "2")):
        response, data = decide(server, row, what, label)
        assert response.status == 200
    assert json.loads(data)["decided"] == 3
    lines = [json.loads(line) for line in (run / FILE).read_text().splitlines()]
    assert [(line["key"], line["decision"], line.get("label")) for line in lines] == [
        ("s0-000", "keep", None), ("s0-001", "drop", None), ("s0-004", "relabel", "2"),
    ]  # fmt: skip
    assert lines[0]["shard"] == "train-0000.tar" and lines[0]["given"] in "012"
    decided = get_json(server, "items?gallery=decided")["items"]
    assert [item["row"] for item in decided] == [4, 1, 0]
    _, data = ask(server, "undo", method="POST", body={})
    assert json.loads(data) == {
        "undone": True, "key": "s0-004", "decision": "none", "label": None, "decided": 2,
    }  # fmt: skip
    assert [one.decision for one in read_decisions(run).standing.values()] == ["keep", "drop"]


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"row": 81}, 400),
        ({"row": -1}, 400),
        ({"row": "0"}, 400),
        ({"key": "s0-001"}, 409),
        ({"decision": "burn"}, 400),
        ({"decision": "relabel"}, 400),
        ({"decision": "relabel", "label": "9"}, 400),
        ({"row": 80, "key": "zz-lost"}, 400),
        ({"path": "/etc/passwd"}, 400),
    ],
)
def test_decisions_that_make_no_sense_are_refused(server, run, change, status):
    body = {"row": 0, "key": "s0-000", "decision": "keep", **change}
    response, data = ask(server, "decide", method="POST", body=body)
    assert response.status == status, data
    assert json.loads(data)["error"]
    assert (run / FILE).read_bytes() == b""


# --- What it refuses ---------------------------------------------------------------------------


def refused(server, status, path="decide", method="POST", body=GOOD, **options):
    if body is GOOD:
        body = {"row": 0, "key": "s0-000", "decision": "drop"}
    response, data = ask(server, path, method=method, body=body, **options)
    assert response.status == status, data
    # Nothing of the run leaks into a refusal, and nothing has changed.
    assert b"s0-" not in data
    assert (server.samples, server.log.standing) == (server.samples, {})
    assert read_decisions(server.log._file.parent).history == ()


def test_only_this_machine_can_connect(server):
    assert server.server_address[0] == "127.0.0.1"


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", "http://127.0.0.1", "http://127.0.0.1:1", None]
)
def test_another_origin_is_refused(server, origin):
    refused(server, 403, Origin=origin)
    if origin is not None:
        refused(server, 403, path="about", method="GET", body=None, Origin=origin)


def test_another_host_is_refused(server):
    # DNS rebinding: the name of a foreign page is pointed at 127.0.0.1.
    for host in (f"evil.example:{server.server_port}", "evil.example", ADDRESS, "", None):
        refused(server, 403, Host=host)
        refused(server, 403, path="", method="GET", body=None, Host=host)


def test_a_cross_site_navigation_is_refused(server):
    for site in ("cross-site", "same-site"):
        refused(server, 403, path="image/0", method="GET", body=None, Sec_Fetch_Site=site)


@pytest.mark.parametrize("path", ["/", "//", "/about", "/x/about", "/x/image/0", "/{short}/about"])
def test_without_the_token_nothing_is_shown(server, path):
    path = path.replace("{short}", server.token[:-1])
    refused(server, 403, path=path, method="GET", body=None, token=False)


def test_the_token_in_the_address_is_not_enough_to_change_something(server):
    refused(server, 403, **{TOKEN_HEADER: None})
    refused(server, 403, **{TOKEN_HEADER: "x" * 43})
    refused(server, 403, **{TOKEN_HEADER: "\xe9"})


@pytest.mark.parametrize(
    "media_type", ["application/x-www-form-urlencoded", "multipart/form-data", "text/plain", None]
)
def test_what_a_form_can_send_is_refused(server, media_type):
    refused(server, 415, Content_Type=media_type)


@pytest.mark.parametrize(
    "path",
    [
        "../decisions.jsonl", "../../RUN/decisions.jsonl", "..%2fdecisions.jsonl",
        "image/../../../etc/passwd", "image/..", "image/-1", "image/0/../../about", "image/1e3",
        "....//etc/passwd", "%2e%2e/%2e%2e/etc/passwd", "..\\..\\etc\\passwd", "/etc/passwd",
        "review.css/../../server.py", "static/../server.py", "image/%00", "image/9" + "9" * 30,
        "items.html", "review.js%00", "./about",
    ],
)  # fmt: skip
def test_paths_lead_nowhere(server, path):
    refused(server, 404, path=path, method="GET", body=None)
    refused(server, 404, path=path)


def test_a_body_of_100_mb_is_refused_before_it_is_read(server):
    start = time.monotonic()
    refused(server, 413, body=b"", Content_Length=str(100_000_000))
    refused(server, 413, body=b"x" * (MOST_BODY_BYTES + 1))
    assert time.monotonic() - start < 5
    # A client that sends all the same finds nobody who reads it, and the server goes on.
    sent = 0
    with socket.create_connection((ADDRESS, server.server_port), timeout=20) as raw:
        head = (
            f"POST /{server.token}/decide HTTP/1.1\r\nHost: {ADDRESS}:{server.server_port}\r\n"
            f"Origin: http://{ADDRESS}:{server.server_port}\r\n{TOKEN_HEADER}: {server.token}\r\n"
            "Content-Type: application/json\r\nContent-Length: 100000000\r\n\r\n"
        )
        raw.sendall(head.encode())
        try:
            while sent < 100_000_000:
                sent += raw.send(b" " * 1_000_000)
        except (ConnectionError, TimeoutError):
            pass
    assert sent < 100_000_000
    assert get_json(server, "about")["decided"] == 0


@pytest.mark.parametrize("length", [None, "-1", "ten", "1_0", "+5"])
def test_a_body_without_a_size_is_refused(server, length):
    refused(server, 411, Content_Length=length)


def test_a_body_in_chunks_is_refused(server):
    refused(server, 411, Transfer_Encoding="chunked")


@pytest.mark.parametrize("method", ["PUT", "DELETE", "OPTIONS", "PATCH"])
def test_other_methods_are_unknown(server, method):
    response, _ = ask(server, "about", method=method)
    assert response.status == 501


def test_a_port_that_is_taken_is_named(server, run):
    with pytest.raises(ConfigError, match="choose another one with --port"):
        ReviewServer(run, server.server_port)


def test_nothing_to_review(tmp_path):
    with pytest.raises(StaleArtefact, match="nothing to review here"):
        ReviewServer(tmp_path)


def test_decisions_that_cannot_be_read_stop_it_at_the_start(run):
    (run / FILE).write_text("nonsense\n")
    with pytest.raises(DataError, match="line 1"):
        ReviewServer(run)
    (run / FILE).unlink()


def test_an_image_that_is_gone_is_said(tmp_path):
    run = reviewable(tmp_path, per_shard=8)
    server = ReviewServer(run)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        for path in (tmp_path / "shards").iterdir():
            path.unlink()
        response, data = ask(server, "image/0")
        assert response.status == 404
        assert "No such file" in json.loads(data)["error"]
        assert ask(server, "image/16")[0].status == 404, "the sample without an image"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

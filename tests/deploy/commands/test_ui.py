"""`ui`: what its server lets in, what it shows of good, live and broken runs, and how it ends."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import re
import shutil
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from deploy.border import REPORT_BEGINS
from deploy.commands import ui
from deploy.commands.ui_pages import Pages
from deploy.errors import WrongUse, bootstrap_command
from deploy.pod.base.folder import write_json
from deploy.ui.web import server
from deploy.ui.web.guard import REPORT_POLICY, form_key
from tests.deploy.conftest import SOURCE, Project, wait_until
from tests.support.browser import browser, chromium
from tests.support.load import under_load

TOKEN = "token-of-this-test"
GOOD = "good-20261128-223718-c47a"
HOSTILE = '"><script>document.title="owned"</script>'
RECORD = {
    "run_id": GOOD, "target": "local", "provider": "local", "state": "succeeded", "attempt": 1,
    "created": "2026-11-28T22:37:18", "commit": "0" * 40, "fraction": 0.5, "backbone": "iresnet", "run_dir": "nowhere",
    "machine": "box", "seconds": 111.0, "spend": {"box": 1.25}, "name": "good",
}  # fmt: skip


@dataclass
class Site:
    """A real server of a folder of runs, and a client that holds its key."""

    project: Path
    port: int

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    def ask(self, path: str, method: str = "GET", body: str = "", **headers: str) -> tuple[int, Any, str]:
        """Status, headers and text. Underscores of header names stand for dashes; an empty header is not sent."""
        given = {"cookie": f"sniperface-{self.port}={TOKEN}", "host": self.host}
        given |= {name.replace("_", "-").lower(): value for name, value in headers.items()}
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=under_load(20))
        with contextlib.closing(connection):
            connection.putrequest(method, path, skip_host=True)
            for name, value in given.items():
                if value:
                    connection.putheader(name, value)
            connection.putheader("content-length", str(len(body)))
            connection.endheaders(body.encode())
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read().decode()

    def text(self, path: str) -> str:
        status, _, text = self.ask(path)
        assert status == 200, text
        return text

    def run(self, run_id: str, events: list[dict[str, Any]] | None = None, **changes: Any) -> Path:
        """Write the folder of a run."""
        folder = self.project / "runs" / run_id
        write_json(folder / "run.json", {**RECORD, "run_id": run_id, **changes})
        lines = [json.dumps({"time": 1.0, "epoch": 0, **each}) for each in events or ()]
        (folder / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        return folder


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    (tmp_path / "conf" / "deploy").mkdir(parents=True)
    shutil.copy(SOURCE / "conf" / "deploy" / "local.yaml", tmp_path / "conf" / "deploy")
    with ui._listening(0) as listener:
        serving = server.server_of(Pages(tmp_path), listener, TOKEN)
        thread = threading.Thread(target=serving.run, kwargs={"sockets": [listener]})
        thread.start()
        wait_until(lambda: serving.started)
        yield Site(tmp_path, listener.getsockname()[1])
        serving.should_exit = True
        thread.join(under_load(20))
        assert not thread.is_alive()


def test_a_page_needs_the_key_and_the_right_host(site: Site) -> None:
    """The key of the address becomes a cookie that scripts cannot read and other sites cannot send."""
    assert site.ask("/", cookie="")[0] == 403
    assert site.ask("/", cookie=f"sniperface-{site.port}=wrong")[0] == 403
    assert site.ask("/static/page.js", cookie="")[0] == 403
    status, headers, _ = site.ask(f"/?token={TOKEN}&sort=cost", cookie="")
    assert (status, headers["location"]) == (303, "/?sort=cost")
    assert headers["set-cookie"] == f"sniperface-{site.port}={TOKEN}; Path=/; HttpOnly; SameSite=Strict"
    assert site.ask(f"//evil.example/?token={TOKEN}", cookie="")[1]["location"] == "/evil.example/"
    assert site.ask("/?token=wrong", cookie="")[0] == 403
    status, headers, _ = site.ask("/")
    assert status == 200
    assert headers["content-security-policy"].startswith("default-src 'none'; script-src 'self';")
    assert headers["cross-origin-resource-policy"] == "same-origin"
    for host in ("evil.example", f"evil.example:{site.port}", "127.0.0.1", "", f"127.0.0.1:{site.port + 1}"):
        assert site.ask("/", host=host)[0] in (400, 421), host
    assert site.ask("/", host=f"LOCALHOST:{site.port}")[0] == 200


def test_only_its_own_form_can_stop_a_run(site: Site) -> None:
    site.run("going", state="running", target="gone")
    path, body = "/runs/going/stop", urlencode({"key": form_key(TOKEN)})
    assert site.ask(path, "POST", body, cookie="")[0] == 403
    assert site.ask(path, "POST", body, origin="http://evil.example")[0] == 403
    assert site.ask(path, "POST", body, origin="null")[0] == 403
    assert site.ask(path, "POST", body, origin=f"http://127.0.0.1:{site.port + 1}")[0] == 403
    assert site.ask(path, "POST", body, sec_fetch_site="cross-site")[0] == 403
    assert site.ask(path, "POST", "key=" + TOKEN)[0] == 400
    assert site.ask(path, "POST")[0] == 400
    assert site.ask(path, "POST", "key=" + "x" * 10_000)[0] == 400
    assert site.ask(f"{path}?token={TOKEN}", "POST", body, cookie="")[0] == 403
    assert [site.ask(path, method, body)[0] for method in ("DELETE", "PUT")] == [405, 405]
    assert "Stopping" not in site.text("/runs/going")
    assert f'value="{form_key(TOKEN)}"' in site.text(path)
    status, headers, _ = site.ask(path, "POST", body, origin=f"http://{site.host}", sec_fetch_site="same-origin")
    assert (status, headers["location"]) == (303, "/runs/going")
    wait_until(lambda: "unknown target" in site.text("/runs/going"))  # the answer of `stop`, on the page
    assert "is succeeded: there is nothing to stop" in site.ask("/runs/x/stop", "POST", body)[2] or site.run("x")
    assert "there is nothing to stop" in site.ask("/runs/x/stop", "POST", body)[2]


def test_a_broken_run_is_one_sentence_and_the_others_are_as_ever(site: Site) -> None:
    site.run(GOOD, [{"event": "eval", "what": "trained", "accuracy": 0.875, "step": 3}])
    broken: dict[str, Any] = {
        "not-json": "{",
        "no-object": "[1]",
        "other-fields": {"run_id": "other-fields"},
        "wrong-types": {**RECORD, "run_id": "wrong-types", "phases": [1]},
        "wrong-seconds": {**RECORD, "run_id": "wrong-seconds", "seconds": []},
        "a-copy": RECORD,
        "-dash": {**RECORD, "run_id": "-dash"},
        "no-record": None,
    }
    if os.name == "posix":
        broken[HOSTILE.replace("/", "|") + "\n\x1b[31m"] = "{"
        broken[os.fsdecode(b"not utf-8 \xff")] = "{"
    for name, content in broken.items():
        folder = site.project / "runs" / name
        folder.mkdir()
        if content is not None:
            text = content if isinstance(content, str) else json.dumps(content)
            (folder / "run.json").write_text(text, encoding="utf-8")
    (site.project / "runs" / "a-file").write_text("", encoding="utf-8")
    text = site.text("/")
    assert "87.5%" in text
    assert text.count("<li>") == len(broken)
    assert "the folder was copied or renamed" in text
    assert "<script>document" not in text
    assert "\x1b" not in text
    assert "cannot be shown: its run.json is damaged" in site.ask("/runs/not-json")[2]
    for path in ("/runs/none", "/runs/..%2F..%2Fetc", "/runs/%ff", "/compare?run=good", "/nothing", "/static/../x"):
        status, _, text = site.ask(path)
        assert status in (400, 404), path
        assert "Traceback" not in text


def test_whatever_the_files_of_a_run_say_its_page_shows_it_as_text(site: Site) -> None:
    events = [
        {"event": "start", "epochs": 40, "steps_per_epoch": 3, "step": 0},
        {"event": "step", "step": 1, "loss": 5.5, "images_per_s": 90.0, "what": HOSTILE},
        {"event": "step", "step": 2, "loss": 4.5},
        {"event": "mining", "step": 2, "count": 3, "coverage": 0.5},
        {"event": "eval", "what": "trained", "accuracy": 0.75, "step": 2},
    ]
    folder = site.run("odd", events, reason=HOSTILE, name=HOSTILE, target=HOSTILE, state=HOSTILE, created=HOSTILE)
    (folder / "train.log").write_text(f"first\r\n\x1b[31m{HOSTILE}\x1b[2J\n", encoding="utf-8")
    (folder / "status.json").write_text("{", encoding="utf-8")
    write_json(folder / "plan.json", {"limits": {"max_usd": 5}, "phases": [{"name": HOSTILE}], "usd_per_hour": []})
    text = site.run("fine", events) and site.text("/runs/fine")
    assert "polyline" in text
    assert "Dotted: new pseudo-IDs" in text
    for path in ("/", "/runs/odd", "/runs/odd/stop"):
        text = site.text(path)
        assert "<script>document" not in text, path
        assert "&lt;script&gt;document" in text, path
        assert not re.search(r"\son\w+=|\sstyle=", text)
    assert "of $5.00" in site.text("/runs/odd")
    shutil.copy(folder / "train.log", site.run("fine", events))
    assert "\\x1b[2J" in site.text("/runs/fine")
    write_json(folder / "plan.json", {"limits": 3, "phases": 3})
    assert "polyline" not in site.text("/runs/odd/stop")


def test_runs_are_sorted_and_compared_as_the_commands_do(site: Site) -> None:
    for name, accuracy in (("a", 0.7), ("b", 0.9), ("c", 0.8)):
        folder = site.run(name, [{"event": "eval", "what": "trained", "accuracy": accuracy}], name=None)
        (folder / "config.yaml").write_text(f"lr: {accuracy}\nseed: 1\n", encoding="utf-8")
    order = re.findall(r'<a href="/runs/(\w)"', site.text("/?sort=accuracy"))
    assert order == ["b", "c", "a"]
    assert re.findall(r'<a href="/runs/(\w)"', site.text("/?sort=nothing")) == ["c", "b", "a"]
    text = site.text("/compare?run=a&run=b")
    assert text.count("polyline") + text.count("<circle") == 2
    for words in ("70.0% (epoch 0)", "90.0% (epoch 0)", '<th scope="row">lr</th><td>0.7</td><td>0.9</td>'):
        assert words in text
    assert "seed" not in text
    for path in ("/compare", "/compare?run=a"):
        assert "choose two runs or more in the list" in site.ask(path)[2]


def test_a_report_is_shown_without_any_right(site: Site) -> None:
    folder = site.run(GOOD)
    assert "has no report" in site.ask(f"/runs/{GOOD}/report")[2]
    (folder / "report.html").write_bytes(b"<script>alert(1)</script>")
    assert site.ask(f"/runs/{GOOD}/report")[0] == 400
    (folder / "report.html").write_bytes(REPORT_BEGINS + b"<title>r</title>")
    status, headers, text = site.ask(f"/runs/{GOOD}/report")
    assert (status, text.endswith("<title>r</title>")) == (200, True)
    assert headers["content-security-policy"] == REPORT_POLICY
    assert f'href="/runs/{GOOD}/report"' in site.text(f"/runs/{GOOD}")


def test_what_costs_money_is_asked_for_only_on_request(site: Site) -> None:
    assert "not asked yet" in site.text("/machines")
    assert site.ask("/machines/ask")[0] == 405
    assert site.ask("/machines/ask", "POST", "key=x")[0] == 400
    assert site.ask("/machines/ask", "POST", urlencode({"key": form_key(TOKEN)}))[0] == 303
    wait_until(lambda: "answered <time" in site.text("/machines"))
    text = site.text("/machines")
    assert "Nothing costs money" in text
    assert "conf/deploy/local.yaml" in text


def test_an_open_page_hears_of_a_change_and_of_the_end(site: Site) -> None:
    folder = site.run(GOOD, [{"event": "eval", "what": "trained", "accuracy": 0.5, "step": 1}])
    connection = http.client.HTTPConnection("127.0.0.1", site.port, timeout=under_load(20))
    with contextlib.closing(connection):
        headers = {"cookie": f"sniperface-{site.port}={TOKEN}", "accept": "text/event-stream"}
        connection.request("GET", f"/runs/{GOOD}", headers=headers)
        answer = connection.getresponse()
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert "50.0%" in event(answer)
        with open(folder / "metrics.jsonl", "a", encoding="utf-8") as file:
            new = {"time": 2.0, "epoch": 1, "step": 2, "event": "eval", "what": "trained", "accuracy": 0.625}
            file.write(f"{json.dumps(new)}\n")
        assert "62.5%" in event(answer)
        shutil.rmtree(folder)
        assert "there is no run" in event(answer)
    # The server's end, while a page is open, is in the fixture; here the client has left.
    assert "There" not in site.text("/")


def event(answer: http.client.HTTPResponse) -> str:
    """The HTML of the next event. Skips signs of life."""
    while not (line := answer.readline().decode()).startswith("data: "):
        assert line, "the stream has ended"
    return str(json.loads(line.removeprefix("data: "))["html"])


@pytest.mark.slow
def test_ctrl_c_ends_it_with_a_page_open_and_a_run_can_be_stopped(project: Project) -> None:
    """The command as a user starts it: a live run is seen and stopped in the page, as `stop` does it."""
    run_id = project.json("train", "--detach", "--set", "train.epochs=1000", "--set", "train.step_s=0.05")["run_id"]
    page = project.start("ui")
    assert page.stdout is not None
    told = [page.stdout.readline() for _ in range(2)]
    port, token = re.fullmatch(r"http://127\.0\.0\.1:(\d+)/\?token=(\S{40,})", told[1].strip()).groups()  # type: ignore[union-attr]
    site = Site(project.path, int(port))
    key = {"cookie": f"sniperface-{port}={token}"}
    path = f"/runs/{run_id}"

    def seen(words: str) -> bool:
        return words in site.ask(path, **key)[2]

    wait_until(lambda: seen("seen <time") and seen("polyline") and seen("rank 0 step"))
    assert site.ask(f"{path}/stop", "POST", urlencode({"key": form_key(token)}), **key)[0] == 303
    wait_until(lambda: seen("Stopped") and seen('class="badge stopped"'), 60)
    assert seen("asking run")
    assert project.json("status")["state"] == "stopped"
    connection = http.client.HTTPConnection("127.0.0.1", site.port, timeout=under_load(20))
    with contextlib.closing(connection):
        connection.request("GET", "/", headers={**key, "accept": "text/event-stream"})
        answer = connection.getresponse()
        event(answer)
        page.send_signal(signal.SIGINT)
        assert page.wait(under_load(20)) == 0
    assert page.stderr is not None
    assert "Traceback" not in page.stderr.read()


def test_a_browser_that_drops_a_connection_prints_nothing_on_windows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There asyncio's own choice is ProactorEventLoop, which shuts down a connection that is gone (CPython 83191)."""
    monkeypatch.setattr(sys, "platform", "win32")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        made = server.server_of(Pages(tmp_path), listener, TOKEN)
    assert made.config.get_loop_factory() is asyncio.SelectorEventLoop


def test_wrong_use_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(WrongUse, match=f"--port {port} cannot be used"), ui._listening(port):
            pass
    for text in ("0", "80", "65536", "x", "-1", "8_000"):
        with pytest.raises(WrongUse, match="give a number from 1024 to 65535"):
            ui._port(text)
    monkeypatch.setitem(sys.modules, "deploy.ui.web.server", None)
    monkeypatch.delattr("deploy.ui.web.server")
    with pytest.raises(WrongUse, match="packages that are not installed") as missing:
        ui._server()
    assert missing.value.next_command == bootstrap_command("ui", "ui")


# Headings of one word that take more than one line. A comparison has ids of runs as headings, which may break.
BROKEN_WORDS = """[...document.querySelectorAll('th, .short td:first-child')].filter((cell) => {
  const range = document.createRange();
  range.selectNodeContents(cell);
  const isWord = !/\\s/.test(cell.textContent.trim()) && !cell.querySelector('.hidden');
  return isWord && new Set([...range.getClientRects()].map((each) => each.top)).size > 1;
}).map((cell) => cell.textContent)"""


@pytest.mark.slow
def test_in_a_real_browser(site: Site, tmp_path: Path) -> None:
    program = chromium()
    if program is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    first = [{"event": "step", "step": step, "loss": 5 - step / 100, "epoch": 0} for step in range(400)]
    folder = site.run("one", first, name=HOSTILE)
    (folder / "train.log").write_text("line\n" * 500 + HOSTILE, encoding="utf-8")
    site.run("two", [{"event": "eval", "what": "trained", "accuracy": 0.5, "step": 1}])
    (site.project / "runs" / "broken").mkdir()
    address = f"http://{site.host}"
    with browser(program, tmp_path / "profile") as tab:
        tab.open(f"{address}/?token={TOKEN}")
        assert tab.run("location.search + document.cookie") == ""
        for width, dark in ((400, False), (1000, True), (1600, False)):
            tab.look_like(width, dark=dark)
            for path in ("/", "/runs/one", "/runs/one/stop", "/compare?run=one&run=two", "/machines"):
                tab.open(address + path)
                assert tab.run("document.documentElement.scrollWidth <= innerWidth"), (width, path)
                assert tab.run("document.title.endsWith('Sniperface')"), path
                assert path.startswith("/compare") or tab.run(BROKEN_WORDS) == [], (width, path)
        tab.open(f"{address}/")
        tab.run("document.querySelectorAll('[name=run]').forEach((box) => { box.checked = true })")
        site.run("three")
        tab.wait_for("document.querySelectorAll('[name=run]').length === 3")
        assert tab.run("document.querySelectorAll('[name=run]:checked').length") == 2  # what a person does stays
        tab.run("document.querySelector('#choose button').click()")
        tab.wait_for("document.querySelector('h1').textContent === 'Compare 2 runs'")
        for number in range(60):
            site.run(f"more{number}")
        tab.look_like(400, dark=False)
        tab.open(f"{address}/")  # of a long list, the button is always in sight
        assert tab.run("document.querySelector('#choose button').getBoundingClientRect().bottom <= innerHeight")
        for _ in range(20):  # and it hides nothing that has the focus
            tab.press("Tab")
        assert tab.run("document.activeElement.getBoundingClientRect().bottom") <= tab.run(
            "document.querySelector('.bar').getBoundingClientRect().top"
        )
        tab.open(f"{address}/runs/one")
        tab.wait_for("document.querySelector('#log').scrollTop > 0")
        with open(folder / "metrics.jsonl", "a", encoding="utf-8") as file:
            file.write('{"event": "eval", "time": 2, "epoch": 3, "step": 400, "what": "trained", "accuracy": 0.75}\n')
        tab.wait_for("document.body.innerText.includes('75.0%')")
        assert tab.run("document.querySelector('#lost').hidden")
        assert tab.problems == []


FOCUSED = "document.activeElement.outerHTML.slice(0, 60)"


@pytest.mark.slow
def test_in_a_real_browser_the_keyboard_keeps_its_place_while_a_page_changes(site: Site, tmp_path: Path) -> None:
    program = chromium()
    if program is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    folder = site.run("one", name="first")
    (folder / "report.html").write_bytes(REPORT_BEGINS)
    site.run("two", name="second", target="t" * 60)
    with browser(program, tmp_path / "profile") as tab:
        tab.open(f"http://{site.host}/?token={TOKEN}")
        for number, place in enumerate((".sorts a", '.what a[href="/runs/one"]', "#choose button", "#pick-one")):
            tab.run(f"document.querySelector('#live {place}').focus()")
            focused = tab.run(FOCUSED)
            site.run(f"more{number}")
            tab.wait_for(f"document.getElementById('pick-more{number}') !== null")
            assert tab.run(FOCUSED) == focused
        for width in (360, 768, 1440):  # a long target takes no room from the name
            tab.look_like(width, dark=False)
            assert tab.run("document.documentElement.scrollWidth <= innerWidth"), width
            assert tab.run("document.querySelector('.what').getBoundingClientRect().width >= 120"), width
        tab.open(f"http://{site.host}/runs/one")
        tab.run("document.querySelector('a[href$=report]').focus()")
        (folder / "train.log").write_text("a line", encoding="utf-8")
        tab.wait_for("document.getElementById('log') !== null")
        assert tab.run("document.activeElement.textContent") == "Report"
        nodes = tab.call("Accessibility.getFullAXTree")["nodes"]
        told = {
            (each["role"]["value"], each["name"]["value"]) for each in nodes if not each["ignored"] and "name" in each
        }
        for role, name in (("region", "last lines of the log"), ("link", "Report"), ("heading", "first succeeded")):
            assert (role, name) in told  # what a screen reader says
        assert tab.run("document.getElementById('lost').role") == "alert"

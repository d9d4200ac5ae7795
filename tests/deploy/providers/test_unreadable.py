"""A machine whose entry in the provider's list does not fit is listed, and can be released; it hides no other."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

from deploy.billing import bills
from deploy.commands import ps, stop
from deploy.errors import NoMachine, StepFailed
from deploy.providers.docker import DockerProvider
from deploy.providers.runpod import RunPodProvider
from deploy.runs.session import Reach
from deploy.specs.machine import MachineSpec
from deploy.specs.settings import Docker, RunPod, Settings, Target
from deploy.ui.screen import Screen

FAMILY = "sniperface-laptop-runpod-"


class Account:
    """A server that answers as `told` says, for the path of a request, and notes what was deleted."""

    def __init__(self) -> None:
        self.told: dict[str, Any] = {"/v2/pods": {"pods": []}, "/v2/clusters": {"clusters": []}}
        self.told["/v2/network-volumes"] = {"networkVolumes": []}
        self.deleted: list[str] = []
        account = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._say(200, account.told.get(self.path.partition("?")[0], {}))

            def do_DELETE(self) -> None:
                account.deleted.append(self.path)
                self._say(200, {})

            def _say(self, code: int, value: Any) -> None:
                data = json.dumps(value).encode()
                self.send_response(code)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def account(monkeypatch: pytest.MonkeyPatch) -> Iterator[Account]:
    made = Account()
    monkeypatch.setenv("RUNPOD_API_BASE_URL", f"http://127.0.0.1:{made.server.server_port}")
    monkeypatch.setenv("RUNPOD_API_KEY", "rpa_TEST")
    yield made
    made.server.shutdown()
    made.server.server_close()


@pytest.fixture
def laptop(tmp_path: Path) -> Path:
    (tmp_path / "laptop" / "conf" / "deploy").mkdir(parents=True)
    (tmp_path / "laptop" / "conf" / "deploy" / "runpod.yaml").write_text(
        "provider: runpod\nroot: /workspace/s\ngpus: [NVIDIA A40]\n"
    )
    return tmp_path / "laptop"


def provider(laptop: Path) -> RunPodProvider:
    return RunPodProvider(Settings(laptop, Target("runpod", "runpod", "/workspace/s", options=RunPod())))


def pod(id: Any, name: Any, **other: Any) -> dict[str, Any]:
    return {"id": id, "name": name, "status": "RUNNING", "cost": 0.5, "gpu": {"id": "A40", "count": 1}, **other}


GOOD = pod("good1", f"{FAMILY}a")
WRONG: list[dict[str, Any]] = [
    {"cost": "lots"}, {"cost": 1e999}, {"cost": -1}, {"gpu": [1]}, {"runtime": {"gpus": 5}},
    {"runtime": {"ports": [1]}},
    {"mounts": {"persistent": {"size": "x"}}}, {"status": None}, {"createdAt": 5}, {"cluster": {"rank": "0", "id": []}},
    {"ssh": {"direct": {"port": "22"}}},
]  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG, ids=str)
def test_a_pod_with_one_wrong_field_is_listed_and_released(account: Account, laptop: Path, wrong: Any) -> None:
    name = f"{FAMILY}b"
    account.told["/v2/pods"]["pods"] = [GOOD, {**pod("bad1", name), **wrong}]
    made = provider(laptop)
    good, bad = made.list()
    assert (good.name, good.fault) == (f"{FAMILY}a", None)
    assert (bad.name, bad.id, bad.usd_per_hour) == (name, "bad1", 0.0)
    assert "RunPod: pod bad1" in str(bad.fault)
    with pytest.raises(NoMachine, match="cannot be used: RunPod: pod bad1"):
        made.find(name)
    with pytest.raises(NoMachine, match="no second machine is requested"):
        made.acquire(MachineSpec(f"{FAMILY}c", FAMILY, PurePosixPath("/workspace/s")))
    made.release(bad)
    assert account.deleted == ["/v2/pods/bad1"]


@pytest.mark.parametrize("entry", [None, 5, [], {}, {"id": "x1"}, {"id": "x1", "name": 7}, {"id": "../x", "name": 7}])
def test_an_entry_without_a_name_is_told_and_hides_nothing(
    account: Account, laptop: Path, capsys: pytest.CaptureFixture[str], entry: Any
) -> None:
    """It cannot be known whose it is: `ps` says that it may bill, and `down` does not touch it."""
    account.told["/v2/pods"]["pods"] = [entry, GOOD]
    (row,) = ps.bills(laptop, Screen())
    assert row["machine"] == f"{FAMILY}a"
    assert capsys.readouterr().err.count("it may bill") == 1
    stop.down(laptop, "runpod", None, Screen(), every=False, orphans=False, anyway=True)
    assert account.deleted == ["/v2/pods/good1"]


def test_an_unreadable_pod_is_in_ps_and_down_releases_it(
    account: Account, laptop: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    account.told["/v2/pods"]["pods"] = [pod("bad1", f"{FAMILY}b", cost="lots")]
    (row,) = ps.bills(laptop, Screen())
    assert (row["machine"], row["usd"]) == (f"{FAMILY}b", None)
    assert "its price is not known: RunPod: pod bad1, cost is 'lots' instead of a number" in row["note"]
    stop.down(laptop, "runpod", None, Screen(), every=False, orphans=False, anyway=False)
    assert account.deleted == ["/v2/pods/bad1"]
    assert f"released {FAMILY}b" in capsys.readouterr().out


def test_a_named_entry_without_an_id_is_kept_in_view(account: Account, laptop: Path) -> None:
    """Nothing can release it by itself, so `down` says where to."""
    account.told["/v2/pods"]["pods"] = [pod("../../x", f"{FAMILY}b")]
    with pytest.raises(StepFailed, match=r"could not be released and still bills: .*no id") as caught:
        stop.down(laptop, "runpod", None, Screen(), every=False, orphans=False, anyway=True)
    assert "https://console.runpod.io/pods" in str(caught.value.next_command)
    assert account.deleted == []


@pytest.mark.parametrize(
    "wrong", [{"compute": None}, {"compute": {"podCount": "2"}}, {"pods": {"byStatus": []}}], ids=str
)
def test_an_unreadable_cluster_is_listed_and_released(account: Account, laptop: Path, wrong: Any) -> None:
    compute = {"podCount": 2, "gpuTypeId": "H100"}
    cluster = {"id": "c1", "name": f"{FAMILY}d", "type": "TRAINING", "compute": compute, "pods": {"byStatus": {}}}
    account.told["/v2/clusters"]["clusters"] = [{**cluster, **wrong}]
    member = pod("m1", "any", cluster={"id": "c1", "rank": 0})
    for members in ([], [member], [{**member, "cost": "x"}]):
        account.told["/v2/pods"]["pods"] = members
        account.told["/v2/clusters/c1"] = cluster
        account.deleted.clear()
        (found,) = provider(laptop).list()
        assert (found.name, found.group) == (f"{FAMILY}d", "c1")
        assert "cluster c1" in str(found.fault) or "pod m1" in str(found.fault)
        provider(laptop).release(found)
        assert account.deleted == ["/v2/clusters/c1"]


@pytest.mark.parametrize("pods", [None, 5, "x", {}, [0] * 10_001], ids=lambda each: str(each)[:10])
def test_what_is_no_list_is_one_sentence(account: Account, laptop: Path, pods: Any) -> None:
    account.told["/v2/pods"] = {"pods": pods}
    with pytest.raises(StepFailed, match="RunPod's list of pods is no list"):
        bills.priced(Reach(provider(laptop).settings))


@pytest.mark.parametrize("about", [{}, {"Config": {}}, {"NetworkSettings": 5, "Config": {"Labels": {}}}], ids=str)
def test_a_container_that_is_described_otherwise_keeps_its_name(laptop: Path, about: dict[str, Any]) -> None:
    from docker.models.containers import Container

    settings = Settings(laptop, Target("docker", "docker", "/root/s", options=Docker()))
    found = DockerProvider(settings)._listed(Container(attrs={"Id": "c" * 64, "Name": "/sniperface-x", **about}))
    assert (found.name, found.id) == ("sniperface-x", "c" * 64)
    assert "Docker: container cccccccccccc" in str(found.fault)

"""A RunPod provider connected to the emulator; both use a fake clock, so tests do not wait."""

from __future__ import annotations

import dataclasses
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

from deploy.billing.bills import priced
from deploy.providers.runpod import RunPodProvider
from deploy.providers.runpod.ratelimit import Limits
from deploy.runs.session import Reach
from deploy.specs.machine import Machine, MachineSpec, node_name
from deploy.specs.names import project_word
from deploy.specs.settings import RunPod, Settings, Target
from tests.support.emulators import contract
from tests.support.emulators.clock import MovedClock
from tests.support.emulators.runpod import KEY, Emulator

GPUS = ("NVIDIA RTX A4500", "NVIDIA A40")
LIMITS = Limits(request_s=5, log_idle_s=2, probe_s=2)
ROOT = "/workspace/sniperface"


@dataclass
class Rig:
    emulator: Emulator
    clock: MovedClock
    project: Path
    api: str
    limits: Limits = LIMITS
    said: list[str] = field(default_factory=list)

    def provider(self, **options: Any) -> RunPodProvider:
        told = {"gpus": GPUS, "image": "me/sniperface:1", "api": self.api, "max_usd_per_hour": 1.0, **options}
        target = Target("runpod", "runpod", ROOT, options=RunPod(**told))
        provider = RunPodProvider(Settings(self.project, target), clock=self.clock, limits=self.limits)
        provider.say = self.said.append
        return provider

    def spec(self, run: str = "r1", node: int = 0, nodes: int = 1) -> MachineSpec:
        family = f"sniperface-{project_word(self.project.name)}-runpod"
        return MachineSpec(node_name(f"{family}-{run}", node), family, PurePosixPath(ROOT), node, nodes)

    def acquire(self, run: str = "r1", **options: Any) -> Machine:
        return self.provider(**options).acquire(self.spec(run))

    def acquire_all(self, nodes: int = 2, run: str = "r1", **options: Any) -> list[Machine]:
        """Acquire several machines for one run in turn, with one provider, as the launcher does."""
        provider = self.provider(**options)
        return [provider.acquire(self.spec(run, node, nodes)) for node in range(nodes)]

    @property
    def creations(self) -> int:
        """The number of requests for a pod, successful or not."""
        counts = self.emulator.counts()
        return sum(
            counts[f"POST {each}"]
            for each in ("/v2/pods", "/graphql podFindAndDeployOnDemand", "/graphql podRentInterruptable")
        )

    def on(self, verb: str) -> str:
        """A pattern for Emulator.fail that matches the requests of a verb."""
        v2 = {"create": "^POST /v2/pods$", "list": "^GET /v2/pods$", "get": "^GET /v2/pods/[^/]+$", "end": "^DELETE"}
        sdk = {"create": "podFindAndDeploy", "list": "myself", "get": "graphql pod$", "end": "podTerminate"}
        return (v2 if self.api == "v2" else sdk)[verb]

    def intents(self) -> list[str]:
        return sorted(path.stem for path in (self.project / ".sniperface" / "intents").glob("*.json"))

    def with_limits(self, **limits: Any) -> Rig:
        return dataclasses.replace(self, limits=dataclasses.replace(self.limits, **limits))


def rig(api: str, project: Path, monkeypatch: pytest.MonkeyPatch, **about: Any) -> Iterator[Rig]:
    """Yield a Rig, then check all requests and answers against RunPod's specification, even if a test failed."""
    clock = MovedClock()
    emulator = Emulator(clock=clock, **about)
    emulator.holds_streams = False  # only tests about silent streams wait for them
    monkeypatch.setenv("RUNPOD_API_BASE_URL", emulator.url)
    monkeypatch.setenv("RUNPOD_API_KEY", KEY)
    monkeypatch.setenv("HOME", str(project))
    monkeypatch.setenv("USERPROFILE", str(project))
    for proxy in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(proxy, raising=False)
    try:
        yield Rig(emulator, clock, project, api)
        assert breaches(emulator) == []
    finally:
        emulator.close()


def listed(rig: Rig) -> list[dict[str, Any]]:
    """The entries of `ps` for this project, from the provider only."""
    provider = rig.provider()
    at = Reach(provider.settings)
    at.provider = provider
    return [each.bill.to_json() for each in priced(at)]


def of(rig: Rig, name: str) -> Any:
    """The emulator's record of a pod."""
    return rig.emulator.pod(name)


def killed(rig: Rig, nodes: int = 1, **options: Any) -> None:
    """Simulate that the laptop's process dies while a machine starts, so that not even its cleanup runs."""

    class Killed(BaseException):
        pass

    def die(seconds: float) -> None:
        del seconds
        rig.emulator.down()
        raise Killed

    sleep, rig.clock.sleep = rig.clock.sleep, die  # type: ignore[method-assign]
    with pytest.raises(Killed):
        rig.acquire_all(nodes, **options)
    rig.clock.sleep = sleep  # type: ignore[method-assign]
    rig.emulator.down(False)
    assert rig.emulator.names == [rig.spec().name]
    assert rig.intents() == [rig.spec().name]


def ctrl_c_while_it_starts(rig: Rig) -> None:
    """Press Ctrl-C in the first pause after a machine was created."""
    sleep = rig.clock.sleep

    def slept(seconds: float) -> None:
        sleep(seconds)
        if rig.emulator.names:
            raise KeyboardInterrupt

    rig.clock.sleep = slept  # type: ignore[method-assign]


def ctrl_c_while_it_is_made(rig: Rig, on: str) -> None:
    """Press Ctrl-C during the request `on`: RunPod executes it, and nobody reads the answer."""
    create = rig.emulator.account.create

    def interrupted(**about: Any) -> Any:
        pod = create(**about)
        os.kill(os.getpid(), signal.SIGINT)
        return pod

    rig.emulator.account.create = interrupted  # type: ignore[method-assign]
    rig.emulator.fail("done-late", on)


def breaches(emulator: Emulator) -> list[str]:
    """Violations of the contract in our requests and the emulator's answers, except answers replaced by a fault."""
    found = []
    for each in emulator.exchanges:
        if not each.path.startswith("/v2/") or each.path == contract.SPECIFICATION_PATH:
            continue
        body = contract.problems_of_body(each.method, each.path, _json(each.body), emulator.account.specification)
        query = contract.problems_of_query(each.method, each.path, each.query, each.headers)
        answer = []
        if each.status and not each.fault:
            answer = contract.problems_of_answer(each.method, each.path, each.status, each.answer_headers, each.answer)
        found += [f"{each.what}: {problem}" for problem in (*body, *query, *answer)]
    return found


def _json(body: bytes) -> Any:
    import json

    return json.loads(body) if body else None

"""Calls to RunPod's API for one deploy of a pod that boots in 90 s, against a loop that polls once a second.

Both run against the emulator, over real HTTP. The clock is simulated, so the 90 s pass at once; the benchmark counts
the calls that would be made in that time. The peer creates the same pod with the same functions, then polls each
second, as a loop with `sleep(1)` does, until the SSH server answers.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # lets the script run from any folder

from benchmarks._claims import Claim, quick, report
from deploy.providers.rented import answers_ssh
from deploy.providers.runpod import key
from deploy.providers.runpod.api import TooMany
from deploy.providers.runpod.pod_request import Wanted
from deploy.providers.runpod.ratelimit import Limits, Pace
from deploy.providers.runpod.rest import RestApi
from tests.support.emulators.clock import MovedClock
from tests.support.emulators.rig import Rig
from tests.support.emulators.runpod import KEY, Emulator

BOOT_S = 90
LIMIT = 15  # calls a minute


def ours(api: str, folder: Path) -> tuple[int, float]:
    """Return the calls in the busiest minute, and the seconds until the pod was ready."""
    clock = MovedClock()
    emulator = _emulator(clock)
    Rig(emulator, clock, folder, api).acquire()
    emulator.close()
    return emulator.most_calls_a_minute(), clock.now()


def peer() -> tuple[int, float]:
    clock = MovedClock()
    emulator = _emulator(clock)
    api = RestApi(key.load(), Impatient(clock), Limits())
    pod = api.create(Wanted("peer", "me/sniperface:1", "NVIDIA A40", 1, "ssh-ed25519 AAAA"))
    while not (pod.host and pod.port and answers_ssh(pod.host, pod.port, 2)):
        clock.sleep(1)
        try:
            pod = api.get(pod.id)
        except TooMany:
            continue  # 60 a minute are allowed, and one was the creation
    emulator.close()
    return emulator.most_calls_a_minute(), clock.now()


class Impatient(Pace):
    """Sends every call at once, whatever quota RunPod reports."""

    def __init__(self, clock: MovedClock) -> None:
        super().__init__(clock, 0, print)

    def take(self, calls: int = 1, *, urgent: bool = False) -> None:
        del calls, urgent


def _emulator(clock: MovedClock) -> Emulator:
    emulator = Emulator(clock=clock, boot_s=BOOT_S)
    os.environ.update(RUNPOD_API_BASE_URL=emulator.url, RUNPOD_API_KEY=KEY)
    return emulator


def main() -> int:
    is_quick = quick()
    with tempfile.TemporaryDirectory() as folder:
        v2, v2_s = ours("v2", Path(folder) / "v2")
        sdk, _ = ours("sdk", Path(folder) / "sdk")
    second, second_s = peer()
    claims = [
        Claim("API calls in the busiest minute, v2", v2, second, "calls", second / v2, 60 / LIMIT),
        Claim("API calls in the busiest minute, sdk", sdk, second, "calls", second / sdk, 60 / LIMIT),
        Claim("v2 within 15 a minute", v2, LIMIT, "calls", LIMIT / v2, 1.0),
        Claim("a pod of 90 s is had after", v2_s, second_s, "s", second_s / v2_s, 0.9),
    ]
    return report("api_calls", claims, is_quick=is_quick)


if __name__ == "__main__":
    sys.exit(main())

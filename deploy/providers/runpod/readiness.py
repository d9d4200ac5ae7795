"""From a pod that was promised to one that answers: RUNNING is not ready, not each machine is what was asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from deploy.errors import NoMachine
from deploy.providers.runpod import events
from deploy.providers.runpod.api import Conflict, Forbidden, Gone, Pod, Refused
from deploy.providers.runpod.identity import Identity, read
from deploy.providers.runpod.ratelimit import answers_ssh, polls
from deploy.providers.runpod.retry import Asking

LOOK_S = 20.0  # between two looks into the log of one that runs and does not answer
ADDRESS_S = 60.0  # after a restart an address is unknown for a moment
SECOND_LOOK_S = 10.0
LOG_WAITS_S = (2.0, 5.0)  # a log may lag behind its pod


class Unfit(Exception):
    """A pod that is not what was asked for, or will never be."""

    def __init__(self, why: str, evidence: Sequence[str] = ()) -> None:
        super().__init__(why)
        self.why = why
        self.evidence = tuple(evidence)


@dataclass(frozen=True)
class Boot:
    asking: Asking
    wait_min: float
    min_memory_gib: float | None
    min_cuda: str | None = None

    def ready(self, pod: Pod) -> tuple[Pod, Identity]:
        """An SSH server has said who it is, and the machine has what it should have. Else Unfit, or NoMachine."""
        clock, say = self.asking.clock, self.asking.say
        began = clock.now()
        until = began + self.wait_min * 60
        waits = polls()
        look_at: float | None = None
        while True:
            self._refuse_unfit(pod)
            if pod.status != "RUNNING" or not pod.host or not pod.port:
                say(f"{pod} is {pod.status}: waiting for its container, {clock.now() - began:.0f} s")
            elif answers_ssh(pod.host, pod.port, self.asking.limits.probe_s):
                try:
                    return self._known(pod)
                except Gone as error:
                    raise Unfit("it vanished while it started") from error
            else:
                if look_at is not None and clock.now() >= look_at:
                    self._refuse_bad_start(pod)
                    look_at = None
                look_at = look_at or clock.now() + LOOK_S
                say(f"{pod} runs: waiting for its SSH server, {clock.now() - began:.0f} s")
            wait_s = next(waits)
            if clock.now() + wait_s > until:
                raise NoMachine(
                    f"{pod}, {pod.name}, did not answer within wait_min: {self.wait_min:g} (it is {pod.status})",
                    evidence=self.asking.last_lines(pod),
                    next_command="set a longer wait_min in the target's file, if its image is large",
                )
            clock.sleep(wait_s)
            try:
                pod = self.asking.pod(pod.id, patience_s=until - clock.now())
            except Gone as error:
                raise Unfit("it vanished while it started") from error

    def addressed(self, pod: Pod) -> Pod:
        """The pod with its address as it is now. Gone when it is."""
        until = self.asking.clock.now() + ADDRESS_S
        waits = polls()
        while not (pod.host and pod.port):
            wait_s = next(waits)
            if not pod.is_alive or self.asking.clock.now() + wait_s > until:
                raise NoMachine(f"{pod}, {pod.name}, is {pod.status} and has no address")
            self.asking.say(f"{pod} is {pod.status}: waiting for its address")
            self.asking.clock.sleep(wait_s)
            pod = self.asking.pod(pod.id)
        return pod

    def identity(self, pod: Pod) -> Identity:
        """From the log, once a start; empty where there is no log to read."""
        known = self.asking.notes.identity(pod)
        if known.host_keys or not self.asking.api.has_log:
            return known
        identity = self._read(pod)
        for wait_s in LOG_WAITS_S:
            if identity.host_keys:
                break
            self.asking.clock.sleep(wait_s)
            identity = self._read(pod)
        if identity.host_keys:
            self.asking.notes.remember(pod, identity)
        else:
            self.asking.say(f"the log of {pod} names no host key: the first connection pins the one it meets")
        return identity

    def _read(self, pod: Pod) -> Identity:
        # Some earlier: the keys are printed at boot, by a clock that may be another one than the API's.
        since = events.earlier(pod.started, 60) if pod.started else None
        try:
            return read(self.asking.ask(lambda: list(self.asking.api.log(pod.id, since, None, 5000))))
        except (Conflict, Forbidden, Gone, Refused):  # no log yet, or none for this key: the pod itself may be well
            return Identity()

    def _known(self, pod: Pod) -> tuple[Pod, Identity]:
        identity = self.identity(pod)
        if pod.gpus_seen == 0 and identity.gpus is None:  # a reading that comes late looks the same
            self.asking.clock.sleep(SECOND_LOOK_S)
            pod = self.asking.pod(pod.id)
            if pod.gpus_seen == 0:
                raise Unfit("it came without GPUs")
        self._refuse_unfit(pod, identity)
        if self.min_memory_gib and not (pod.memory_gib or identity.memory_gib):
            self.asking.say(f"neither {pod} nor its image tells its memory: min_memory_gib is not checked")
        return pod, identity

    def _refuse_bad_start(self, pod: Pod) -> None:
        """The image says so itself, and would on each machine: waiting longer only costs."""
        identity = self._read(pod) if self.asking.api.has_log else Identity()
        if identity.bad_start:
            raise NoMachine(
                f"the container of {pod} did not start well: {identity.bad_start}", evidence=self.asking.last_lines(pod)
            )

    def _refuse_unfit(self, pod: Pod, identity: Identity | None = None) -> None:
        if not pod.is_alive:
            raise Unfit(f"it ended while it started ({pod.status})", self.asking.last_lines(pod))
        if pod.gpu_count == 0 or (identity and identity.gpus == 0):
            raise Unfit("it came without GPUs")
        if self.min_cuda and pod.cuda and _version(pod.cuda) < _version(self.min_cuda):
            raise Unfit(f"its driver knows CUDA {pod.cuda} at most, less than min_cuda: {self.min_cuda}")
        memory = pod.memory_gib or (identity and identity.memory_gib)
        if self.min_memory_gib and memory and memory < self.min_memory_gib:
            raise Unfit(f"it has {memory:.0f} GiB of memory, less than min_memory_gib: {self.min_memory_gib:g}")


def _version(text: str) -> tuple[int, ...]:
    """12.8 as (12, 8); what is no version is above any, so that nothing is refused for it."""
    parts = text.split(".")
    return tuple(map(int, parts)) if all(part.isdecimal() for part in parts) else (1 << 30,)

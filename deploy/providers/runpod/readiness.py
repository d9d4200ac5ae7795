"""Wait until a pod answers by SSH, and check that it matches the request. RUNNING does not mean ready."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from deploy.errors import NoMachine
from deploy.providers.rented import Clock, answers_ssh
from deploy.providers.runpod import events, signs
from deploy.providers.runpod.api import SHOWS_S, ApiError, Conflict, Forbidden, Gone, LogLine, Pod, Refused
from deploy.providers.runpod.identity import Identity, read
from deploy.providers.runpod.retry import Asking
from deploy.providers.runpod.signs import CLOSED_PORT, EMPTY_LOG, Signs

FIRST_LOOK_S = 4.0  # before the first read of the log of a pod that does not answer yet
LOOK_S = 20.0  # between two reads
LOOK_PATIENCE_S = 10.0
NO_ADDRESS_S = 20.0  # limit for a running container without a published SSH port
CLOSED_S = 20.0  # limit for an SSH port that does not answer although the container reports that its server is ready
SILENT_USED_S = 180.0  # least silent_s for a pod that was in use: a wrong refusal leaves it billing beside a second one
ADDRESS_S = 60.0  # limit for the address, which is unknown for a moment after a restart
SECOND_LOOK_S = 10.0
LOG_WAITS_S = (2.0, 5.0)  # a log may lag behind its pod


class Unfit(Exception):
    """A pod does not match the request, or never will. `everywhere`: other candidates would fail too."""

    def __init__(self, why: str, evidence: Sequence[str] = (), *, everywhere: bool = False) -> None:
        super().__init__(why)
        self.why = why
        self.evidence = tuple(evidence)
        self.everywhere = everywhere


@dataclass
class _Wait:
    """State of the wait for a pod: since when something is missing, and the last signs from its log.

    A host reports the creation of the container before it pulls the image, so an empty log means that nothing happens.
    A change of the pod's status is a sign of progress, too.
    """

    clock: Clock
    began: float
    look_at: float
    silent_s: float  # limit
    heard: Signs | None = None  # None: the log could not be read yet, so silence means nothing
    status: str = ""
    silent_since: float | None = None
    without_address_since: float | None = None
    closed_since: float | None = None

    @property
    def seconds(self) -> float:
        return self.clock.now() - self.began

    def see(self, pod: Pod) -> None:
        now = self.clock.now()
        runs = pod.status == "RUNNING"
        has_address = bool(pod.host and pod.port)
        missing = runs and pod.up_s is not None and not has_address
        self.without_address_since = (self.without_address_since or now) if missing else None
        is_silent = self.heard is not None and not self.heard.last
        has_changed, self.status = pod.status != self.status, pod.status
        self.silent_since = (now if has_changed else self.silent_since or now) if is_silent else None
        is_closed = runs and has_address and self.heard is not None and self.heard.is_ready
        self.closed_since = (self.closed_since or now) if is_closed else None

    def is_due(self) -> bool:
        """Return whether to read the log now; if so, schedule the next read. A refusal needs a fresh log."""
        if self.clock.now() < self.look_at and not self.is_silent:
            return False
        self.look_at = self.clock.now() + LOOK_S
        return True

    @property
    def is_silent(self) -> bool:
        return self.silent_since is not None and self.clock.now() - self.silent_since >= self.silent_s

    def words(self, pod: Pod) -> str:
        state = f"{pod} is {pod.status}"
        if pod.host and pod.port:
            missing = "its SSH server"
        else:
            missing = "its SSH port" if pod.up_s is not None and pod.status == "RUNNING" else "its container"
        last = f" ({self.heard.last})" if self.heard and self.heard.last else ""
        return f"{state}: waiting for {missing}, {self.seconds:.0f} s{last}"


@dataclass(frozen=True)
class Boot:
    asking: Asking
    wait_min: float
    min_memory_gib: float | None
    min_cuda: str | None
    silent_s: float

    def ready(
        self, pod: Pod, refuse: Callable[[Pod], None] = lambda _: None, *, is_unused: bool = False
    ) -> tuple[Pod, Identity]:
        """Wait until the pod's SSH server answers and the pod matches the request. Raises Unfit, or NoMachine.

        Each state of the pod is checked, by `refuse` too; the first one before any wait. `is_unused`: the pod is new,
        so a refusal releases it.
        """
        clock, limit_s, probe_s = self.asking.clock, self.wait_min * 60, self.asking.limits.probe_s
        silent_s = self.silent_s if is_unused else max(self.silent_s, SILENT_USED_S)
        wait = _Wait(clock, clock.now(), clock.now() + FIRST_LOOK_S, silent_s)
        for waited_s in clock.polls(limit_s):
            try:
                if waited_s:
                    pod = self.asking.pod(pod.id, patience_s=limit_s - waited_s)
                self._refuse_unfit(pod)
                refuse(pod)
                if pod.status == "RUNNING" and pod.host and pod.port and answers_ssh(pod.host, pod.port, probe_s):
                    return self._known(pod)
            except Gone as error:
                if not is_unused or waited_s > SHOWS_S:
                    raise Unfit("it vanished while it started") from error
                self.asking.say(f"{pod} is not listed yet, {waited_s:.0f} s")
                continue
            if self.asking.api.has_log and wait.is_due():
                wait.heard = self._heard(pod) or wait.heard
            wait.see(pod)
            self._refuse_lost(wait)
            self.asking.say(wait.words(pod))
        raise NoMachine(
            f"{pod}, {pod.name}, did not answer within wait_min: {self.wait_min:g} (it is {pod.status})",
            evidence=self.asking.last_lines(pod),
            next_command="set a longer wait_min in the target's file, if its image is large",
        )

    def addressed(self, pod: Pod) -> Pod:
        """Wait for the pod's current address. Raises Gone when the pod is gone, NoMachine without an address."""
        for waited_s in self.asking.clock.polls(ADDRESS_S):
            if waited_s:
                pod = self.asking.pod(pod.id)
            if pod.host and pod.port:
                return pod
            if not pod.is_alive:
                break
            self.asking.say(f"{pod} is {pod.status}: waiting for its address")
        raise NoMachine(f"{pod}, {pod.name}, is {pod.status} and has no address")

    def identity(self, pod: Pod) -> Identity:
        """Return the identity from the log, read once per start. Empty without a readable log."""
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
            self.asking.say(f"the log of {pod} has no host key: the first connection pins the key it receives")
        return identity

    def _read(self, pod: Pod) -> Identity:
        try:
            return read(self.asking.ask(lambda: self._log_of(pod), bills=True))
        except (Conflict, Forbidden, Gone, Refused):  # no log yet, or no access for this key: the pod may still be fine
            return Identity()

    def _log_of(self, pod: Pod) -> list[LogLine]:
        # 60 s earlier: the keys are printed at boot, by a clock that may differ from the API's.
        since = events.earlier(pod.started, 60) if pod.started else None
        return list(self.asking.api.log(pod.id, since, 5000))

    def _known(self, pod: Pod) -> tuple[Pod, Identity]:
        identity = self.identity(pod)
        if pod.gpus_seen == 0 and identity.gpus is None:  # the reading may only be late
            self.asking.clock.sleep(SECOND_LOOK_S)
            pod = self.asking.pod(pod.id)
            if pod.gpus_seen == 0:
                raise Unfit("it has no GPUs")
        self._refuse_unfit(pod, identity)
        if self.min_memory_gib and not (pod.memory_gib or identity.memory_gib):
            self.asking.say(f"neither {pod} nor its image reports its memory: min_memory_gib is not checked")
        return pod, identity

    def _heard(self, pod: Pod) -> Signs | None:
        """Read the signs in the log; None when it cannot be read now, or not with this key.

        Raises Unfit for a fault that the host reports, NoMachine for one that our image reports.
        """
        try:
            lines = self.asking.ask(lambda: self._log_of(pod), LOOK_PATIENCE_S, bills=True)
        except ApiError:
            return None
        heard, told = signs.read(lines), [line.text for line in lines][-5:]
        if heard.fault:
            raise Unfit(f"its host reports: {heard.fault}", everywhere=heard.everywhere)
        bad_start = read(lines).bad_start
        if bad_start:  # it would fail on every machine
            raise NoMachine(f"the container of {pod} failed to start: {bad_start}", evidence=told)
        return heard

    def _refuse_lost(self, wait: _Wait) -> None:
        """Raise Unfit when something is missing for too long: it will not come, and waiting costs money."""
        now = self.asking.clock.now()
        if wait.without_address_since is not None and now - wait.without_address_since >= NO_ADDRESS_S:
            raise Unfit("its container runs, but its SSH port has no public address")
        if wait.is_silent:
            raise Unfit(f"it is {wait.status}, {EMPTY_LOG}")
        if wait.closed_since is not None and now - wait.closed_since >= CLOSED_S:
            raise Unfit(f"its SSH server is ready, but its port {CLOSED_PORT}")

    def _refuse_unfit(self, pod: Pod, identity: Identity | None = None) -> None:
        if not pod.is_alive:
            raise Unfit(f"it ended while it started ({pod.status})", self.asking.last_lines(pod))
        if pod.gpu_count == 0 or (identity and identity.gpus == 0):
            raise Unfit("it has no GPUs")
        if self.min_cuda and pod.cuda and _version(pod.cuda) < _version(self.min_cuda):
            raise Unfit(f"its driver supports CUDA {pod.cuda} at most, less than min_cuda: {self.min_cuda}")
        memory = pod.memory_gib or (identity and identity.memory_gib)
        if self.min_memory_gib and memory and memory < self.min_memory_gib:
            raise Unfit(f"it has {memory:.0f} GiB of memory, less than min_memory_gib: {self.min_memory_gib:g}")


def _version(text: str) -> tuple[int, ...]:
    """Parse 12.8 as (12, 8). Any other text ranks above all versions, so that it never causes a refusal."""
    parts = text.split(".")
    return tuple(map(int, parts)) if all(part.isdecimal() for part in parts) else (1 << 30,)

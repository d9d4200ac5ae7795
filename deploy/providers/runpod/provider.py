"""Provider for RunPod. Machines are found by name, in RunPod's list alone. A single machine is one pod."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

from deploy.errors import CannotTrain, DeployError, NoMachine
from deploy.providers.rented import Clock, refuse_unreadable
from deploy.providers.runpod import clusters, key, prices
from deploy.providers.runpod.api import Api, ApiError, Gone, Offer, Pod
from deploy.providers.runpod.cache import Notes
from deploy.providers.runpod.candidates import Candidate, choose, rentals
from deploy.providers.runpod.clusters import Clusters
from deploy.providers.runpod.create import Making
from deploy.providers.runpod.identity import Identity
from deploy.providers.runpod.messages import in_words
from deploy.providers.runpod.pod_request import Wanted
from deploy.providers.runpod.ratelimit import Limits, Pace
from deploy.providers.runpod.readiness import Boot, Unfit
from deploy.providers.runpod.retry import Asking, of_family
from deploy.providers.runpod.start import image_of, min_cuda
from deploy.providers.ssh_key import project_key
from deploy.specs.machine import HOST, USER, Address, Card, Image, Machine, MachineSpec, Rental, Volume
from deploy.specs.names import listed_prefixes
from deploy.specs.provider import Provider
from deploy.specs.settings import RunPod, Settings

if TYPE_CHECKING:
    from deploy.providers.runpod.rest import RestApi
    from deploy.providers.runpod.trial import RunPodTrial

PYTHON = "auto"  # as the machine says: that of our image, or of the environment that is made there


class RunPodProvider(Provider):
    """Provide machines on RunPod.

    With `api: v2`, host keys come from the machine's log, which only the account's API key can read. With `api: sdk`
    there is no log: `host_keys` stays empty, and the first connection to each pod pins its key.

    `say` receives progress messages.
    """

    def __init__(self, settings: Settings, *, clock: Clock | None = None, limits: Limits | None = None) -> None:
        if not isinstance(settings.target.options, RunPod):
            raise TypeError(f"not a RunPod target: {settings.target.name}")
        super().__init__(settings)
        self.options = settings.target.options
        self.clock = clock or Clock()
        self.limits = limits or Limits()

    def acquire(self, spec: MachineSpec) -> Machine:
        with self._words():
            if spec.nodes > 1:
                clusters.refuse(self.settings, self.options, spec.nodes)
                return self._clusters.acquire(spec)
            pods = self._pods.all()
            refuse_unreadable(pods, spec.family, self.settings.target.name)
            self._notes.tidy({pod.name for pod in pods}, self.clock.time())
            self._end_preempted(pods, spec.family)
            for pod in of_family(pods, spec.family):
                self.say(f"found existing {pod}, named {pod.name}")
                try:
                    is_unused = self._making.is_unused(self._pods, pod)
                    return self._fit(self._machine(*self._boot.ready(pod, is_unused=is_unused)))
                except Unfit as unfit:
                    if not self._making.give_back_unused(self._pods, pod, unfit):
                        self.say(f"leaving {pod} unchanged: {unfit.why}")
            return self._making.new(self._pods, spec)

    def _end_preempted(self, pods: Sequence[Pod], family: str) -> None:
        """Remove the family's spot pods that RunPod stopped: their disk is deleted, and they never start again."""
        for pod in pods if self.options.spot else ():
            if pod.is_stopped and pod.name.startswith(family) and not pod.volume_gb:
                self.say(f"removing {pod}, named {pod.name}, which RunPod has stopped")
                self._pods.end(pod)

    def find(self, name: str) -> Machine | None:
        """Find a machine by name, with its current address: the port changes at each restart.

        Raises NoMachine if its entry cannot be read.
        """
        with self._words():
            pods = self._asking.pods(self.limits.look_s)
            pod = next(iter(of_family(_alone(pods), name, exactly=True)), None)
            if pod is None and self._has_clusters:
                pod = self._clusters.find(name, pods)
            if pod is None:
                return None
            if pod.fault:
                raise NoMachine(f"{name} cannot be used: {pod.fault}")
            try:
                pod = self._boot.addressed(pod)
            except Gone:
                return None
            return self._machine(pod, self._boot.identity(pod), name)

    def price(self) -> float | None:
        """Return the hourly price of the first candidate; None without candidates."""
        candidates = self._candidates
        return candidates[0].usd_per_hour if candidates else None

    def card(self) -> Card | None:
        """Return the GPUs of the first candidate; None without one, or when the catalogue lists no memory."""
        first = next(iter(self._candidates), None)
        if first is None or not first.memory_gib:
            return None
        return Card(first.gpu, self.options.gpu_count, int(first.memory_gib * (1 << 30)))

    def image(self) -> Image:
        return image_of(self.options, str(self.settings.root))

    def offers(self) -> Sequence[Rental]:
        """List the catalogue for single machines. With `api: sdk`, only the target's own GPUs."""
        return rentals(self.options, *self._catalogue)

    def trial(self) -> RunPodTrial:
        from deploy.providers.runpod.trial import RunPodTrial

        return RunPodTrial(self.settings, self._rest, self._asking, self._with)

    def _with(self, settings: Settings, candidates_s: float) -> RunPodProvider:
        return RunPodProvider(settings, clock=self.clock, limits=replace(self.limits, candidates_s=candidates_s))

    def list(self) -> list[Machine]:
        """List the project's machines, also stopped ones: their disks bill. Without an address, the host is empty."""
        mine = listed_prefixes(self.settings)
        with self._words():
            pods = self._asking.pods(self.limits.look_s)
            named = [(pod, pod.name) for pod in _alone(pods) if pod.name.startswith(mine)]
            named += self._clusters.named(mine, pods) if self._has_clusters else []
        found = [self._machine(pod, self._noted(pod), name) for pod, name in named]
        alive = {pod.id for pod, _ in named if pod.is_alive}
        unknown = "RunPod reports no price for it"
        return [
            replace(each, fault=unknown) if each.id in alive and not each.usd_per_hour and not each.fault else each
            for each in found
        ]

    def volumes(self) -> Sequence[Volume]:
        """List the volumes of the whole account. This project creates none, so a name does not show the owner."""
        with self._words():
            found = self._asking.told(self._asking.ask(self._api.volumes, self.limits.look_s))
        return [
            Volume(
                each.id,
                each.name,
                each.gb,
                prices.network_volume(each.gb, each.kind),
                each.data_center,
                None if each.kind else "twice as much for a fast volume; api: sdk does not report its kind",
                each.fault,
            )
            for each in found
        ]

    def release(self, machine: Machine) -> None:
        """Release a machine. One of a cluster releases the whole cluster: RunPod cannot end one of its pods alone."""
        plain = clusters.plain_name(machine.name)
        with self._words():
            if machine.group:
                self._clusters.end_by_id(machine.group, f"cluster {machine.group}, {plain},")
            elif machine.id:
                self._asking.terminate(machine.id, f"pod {machine.id}, {machine.name},")
            else:
                for pod in [pod for pod in self._pods.all() if pod.name == machine.name]:
                    self._pods.end(pod)
                for cluster in self._clusters.all() if self._has_clusters else []:
                    if cluster.name in (plain, machine.name):
                        self._clusters.end(cluster)
        self._notes.done_with(plain if machine.group else machine.name)

    def log(self, machine: Machine) -> Iterator[str]:
        """Yield the container's output, even when SSH is down. Empty with `api: sdk`, which has no log."""
        with self._words():
            if self._api.has_log and machine.id:
                lines = self._asking.ask(lambda: self._api.log(machine.id, None, 5000))
                yield from (line.text for line in lines if line.source == "container")

    # From a pod to a machine

    def _fit(self, machine: Machine) -> Machine:
        """Return the machine if it reports that it can train. Raises Unfit otherwise."""
        try:
            self.check(machine)
        except CannotTrain as error:
            raise Unfit(error.message, error.evidence) from error
        return machine

    def _noted(self, pod: Pod) -> Identity | None:
        """Return what is known of its log without a request; None if the log must be read first."""
        known = self._notes.identity(pod)
        return known if known.host_keys or not self._api.has_log else None

    def _machine(self, pod: Pod, identity: Identity | None, name: str = "") -> Machine:
        private = project_key(self.settings)[0]
        return Machine(
            name=name or pod.name,
            root=self.settings.root,
            python=PYTHON,
            usd_per_hour=self._price(pod, name or pod.name),
            address=Address(
                _fitting(HOST, pod.host) or "",
                pod.port,
                _fitting(USER, pod.user),
                str(private),
                identity.host_keys if identity else (),
                first_use=identity is not None and not identity.host_keys,
            ),
            id=pod.id,
            created=self._created(pod),
            gpu=pod.gpu,
            gpus=pod.gpu_count or self.options.gpu_count,
            is_stopped=pod.is_stopped,
            group=pod.cluster,
            fault=pod.fault,
        )

    def _price(self, pod: Pod, name: str) -> float:
        """Return US dollars an hour; 0 if nobody knows them.

        RunPod has reported 0 for pods that run and bill. The price of the request counts then, else the catalogue's:
        a machine without a price would have no limit of cost.
        """
        if pod.is_stopped:
            return prices.stopped_disk(pod.volume_gb)
        if pod.usd_per_hour or pod.fault or not pod.is_alive:
            return pod.usd_per_hour
        noted = self._notes.intended(clusters.plain_name(name)).get("usd_per_hour")
        if isinstance(noted, int | float) and noted > 0:
            return float(noted)
        return self._listed_prices.get(pod.gpu or "", 0.0) * (pod.gpu_count or self.options.gpu_count)

    def _created(self, pod: Pod) -> float | None:
        """Return when a pod was created, by this computer's clock.

        The uptime is the last choice, because each restart resets it.
        """
        note = self._notes.intended(pod.name)
        noted = note.get("made") if note.get("pod") == pod.id else None
        told = pod.created and pod.created - self._api.ahead_s
        return told or noted or (self.clock.time() - pod.up_s if pod.up_s else None)

    # Created on first use, because this reads the key or imports a library

    @cached_property
    def _api(self) -> Api:
        if self.options.api == "sdk":
            from deploy.providers.runpod.sdk import SdkApi

            return SdkApi(key.load(), self._pace, self.limits)
        return self._rest

    @cached_property
    def _rest(self) -> RestApi:
        from deploy.providers.runpod.rest import RestApi

        return RestApi(key.load(), self._pace, self.limits)

    @cached_property
    def _pace(self) -> Pace:
        return Pace(self.clock, self.limits.calls_per_minute, self._tell)

    @property
    def _candidates(self) -> Sequence[Candidate]:
        return choose(self.options, *self._catalogue).candidates

    @cached_property
    def _catalogue(self) -> tuple[Sequence[Offer], str | None]:
        """The catalogue and the data centre of the volume, for plans and offers. A creation asks for the stock anew."""
        with self._words():
            return self._making.catalogue(self._pods.product)

    @cached_property
    def _listed_prices(self) -> dict[str, float]:
        """GPU, by the name that a pod reports -> US dollars an hour for one; {} if the catalogue cannot be read now."""
        options = self.options
        asked = options.gpus, options.gpu_count, options.cloud, None
        try:
            offers = self._asking.ask(lambda: self._api.offers(*asked), self.limits.look_s)
        except (ApiError, DeployError):
            return {}
        return {name: each.usd_per_gpu_hour for each in offers for name in (each.title, each.gpu)}

    @property
    def _has_clusters(self) -> bool:
        return self.options.api == "v2"

    @cached_property
    def _pods(self) -> _Pods:
        return _Pods(self._asking, self._boot, self._making, self._machine, self._fit)

    @cached_property
    def _clusters(self) -> Clusters:
        return Clusters(self._rest, self._asking, self._boot, self._making, self._machine, self._fit)

    @cached_property
    def _making(self) -> Making:
        return Making(self.settings, self.options, self._asking, lambda usd: self.waste(usd))

    @cached_property
    def _asking(self) -> Asking:
        return Asking(self._api, self.clock, self.limits, self._notes, self._tell)

    @cached_property
    def _boot(self) -> Boot:
        options, cuda = self.options, min_cuda(self.options, self.settings.project)
        return Boot(self._asking, options.wait_min, options.min_memory_gib, cuda, options.silent_s)

    @cached_property
    def _notes(self) -> Notes:
        return Notes(self.settings.notes)

    def _tell(self, text: str) -> None:
        with contextlib.suppress(OSError):  # a closed terminal must not prevent a release
            self.say(text)

    def _words(self) -> contextlib.AbstractContextManager[None]:
        return in_words(self.settings.where)


@dataclass(frozen=True)
class _Pods:
    """Single pods, as the `Kind` that `Making` creates."""

    asking: Asking
    boot: Boot
    making: Making
    machine: Callable[[Pod, Identity], Machine]
    fit: Callable[[Machine], Machine]
    word = "pod"
    product = "POD"

    def create(self, wanted: Wanted) -> Pod:
        return self.asking.api.create(wanted)

    def all(self, *, bills: bool = False) -> list[Pod]:
        return _alone(self.asking.pods(bills=bills))

    def ready(self, made: Pod) -> Machine:
        pod, identity = self.boot.ready(made, self.making.refuse_other, is_unused=True)
        return self.fit(self.machine(pod, identity))

    def end(self, made: Pod) -> None:
        self.asking.terminate(made.id, f"{made}, {made.name},")


def _alone(pods: Sequence[Pod]) -> list[Pod]:
    """Return the pods outside clusters: a pod of a cluster never counts as a single machine."""
    return [pod for pod in pods if pod.cluster is None]


def _fitting(kind: re.Pattern[str], value: str | None) -> str | None:
    """Return a host or user if it is valid, else None: a pod without an address can still be released."""
    return value if value and kind.fullmatch(value) else None

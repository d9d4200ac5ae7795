"""The four verbs for pods: what is there is found by name; what is made is noted first; what is no good goes back."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property

from deploy import image
from deploy.errors import DeployError, NoMachine, WrongUse, command
from deploy.keys import project_key
from deploy.machine import Address, Machine, MachineSpec, Volume
from deploy.plan import slug
from deploy.providers.runpod import events, key, prices
from deploy.providers.runpod.api import Api, ApiError, Forbidden, Gone, LogLine, Pod, Refused, Unclear, Wanted
from deploy.providers.runpod.asking import Asking, of_family
from deploy.providers.runpod.boot import Boot, Unfit
from deploy.providers.runpod.candidates import Candidate, Chosen, Refusal, choose
from deploy.providers.runpod.identity import Identity
from deploy.providers.runpod.notes import Notes
from deploy.providers.runpod.pace import Clock, Limits, Pace, polls
from deploy.providers.runpod.words import first_words, in_words, no_candidate, public_line, unlike_room
from deploy.settings import RunPod, Settings

PYTHON = "/opt/sniperface/bin/python"  # of our image


class RunPodProvider:
    """With `api: v2` a machine's host keys come from its log, which only the account's key opens. With `api: sdk` there
    is no log: `host_keys` stay empty, and the first connection to each pod pins its key.

    `say` is told what is waited for.
    """

    def __init__(self, settings: Settings, *, clock: Clock | None = None, limits: Limits | None = None) -> None:
        if not isinstance(settings.target.options, RunPod):
            raise TypeError(f"no target of RunPod: {settings.target.name}")
        self.settings = settings
        self.options = settings.target.options
        self.clock = clock or Clock()
        self.limits = limits or Limits()
        self.say: Callable[[str], None] = _silent

    def acquire(self, spec: MachineSpec) -> Machine:
        with self._words():
            pods = self._asking.pods()
            self._notes.tidy({pod.name for pod in pods}, self.clock.time())
            for pod in of_family(pods, spec.family):
                self.say(f"{pod} is there already, as {pod.name}")
                try:
                    return self._machine(*self._boot.ready(pod))
                except Unfit as unfit:
                    self._leave_or_give_back(pod, unfit)
            return self._new(spec)

    def find(self, name: str) -> Machine | None:
        """With the address as it is now: the port is another one after each restart."""
        with self._words():
            pods = of_family(self._asking.pods(self.limits.look_s), name, exactly=True)
            try:
                pod = self._boot.addressed(pods[0]) if pods else None
            except Gone:
                pod = None
            return self._machine(pod, self._boot.identity(pod)) if pod else None

    def price(self) -> float | None:
        """Of the first candidate that may be asked for."""
        with self._words():
            return next((candidate.usd_per_hour for candidate in self._choose().candidates), None)

    def list(self) -> list[Machine]:
        """Stopped ones too: their disks bill. One without an address (yet) has an empty host."""
        mine = f"sniperface-{slug(self.settings.project.name)}-"
        with self._words():
            pods = [pod for pod in self._asking.pods(self.limits.look_s) if pod.name.startswith(mine)]
        return [self._machine(pod, self._notes.identity(pod)) for pod in pods]

    def volumes(self) -> Sequence[Volume]:
        """Of the whole account: nothing here makes one, so a name says nothing of whose it is."""
        with self._words():
            found = self._asking.ask(self._api.volumes, self.limits.look_s)
        return [
            Volume(
                each.id,
                each.name,
                each.gb,
                prices.network_volume(each.gb, each.kind),
                each.data_center,
                None if each.kind else "twice as much if it is a fast one, which api: sdk does not tell",
            )
            for each in found
        ]

    def release(self, machine: Machine) -> None:
        with self._words():
            named = [] if machine.id else [pod.id for pod in self._asking.pods() if pod.name == machine.name]
            for pod_id in [machine.id] if machine.id else named:
                self._asking.terminate(pod_id, f"pod {pod_id}, {machine.name},")
        self._notes.done_with(machine.name)

    def log(self, machine: Machine, *, follow: bool = False) -> Iterator[str]:
        """What the container printed, also when SSH is down; with `follow` across cuts, for as long as it is read.

        Nothing with `api: sdk`, which has no log.
        """
        waits = polls()

        def stream(cursor: str | None) -> Iterator[LogLine]:
            return self._asking.ask(lambda: self._api.log(machine.id, None, cursor, 5000, live=follow))

        def between() -> bool:
            if follow:
                self.clock.sleep(next(waits))
            return follow

        with self._words():
            if self._api.has_log:
                yield from (line.text for line in events.follow(stream, between) if line.source == "container")

    # A new one

    def _new(self, spec: MachineSpec) -> Machine:
        target, chosen = self.settings.target.name, self._choose()
        refusals, twins = [*chosen.refusals], False
        public_key = public_line(project_key(self.settings)[1])
        for candidate in chosen.candidates:
            self._notes.intend(spec.name, target=target, candidate=str(candidate), asked=self.clock.time())
            self.say(f"asking for {candidate}, {candidate.usd_per_hour:.2f} USD an hour")
            try:
                pod, was_unclear = self._asking.create(self._wanted(spec.name, candidate, public_key))
            except (Refused, Forbidden) as error:
                refusals.append(Refusal(str(candidate), str(error), by_rule=unlike_room(error)))
                continue
            except Unclear as error:  # the note stays: there may be a pod
                raise NoMachine(
                    f"RunPod did not say whether it made the pod {spec.name}; if it did, it bills: {error}",
                    next_command=f"{command(f'deploy --on {target}')}   (finds it by its name)",
                ) from error
            except (ApiError, DeployError):
                self._notes.done_with(spec.name)
                raise
            except BaseException:  # Ctrl-C while RunPod was making it; the note stays, should it show later
                self.say(f"seeing whether {spec.name} was made, to give it back")
                self._asking.end_all(spec.name)
                raise
            twins = twins or was_unclear
            try:
                return self._handed_out(pod, spec.name, may_have_twins=twins)
            except Unfit as unfit:
                self.say(f"{pod} is given back: {unfit.why}")
                self._asking.terminate(pod.id, f"{pod}, {pod.name},")
                refusals.append(Refusal(str(candidate), first_words(unfit.why, unfit.evidence)))
        if twins:
            self._asking.end_all(spec.name)
        self._notes.done_with(spec.name)
        raise no_candidate(target, refusals)

    def _handed_out(self, pod: Pod, name: str, *, may_have_twins: bool) -> Machine:
        """From here on it bills: it is handed out, given back, or named in the error."""
        note = {"target": self.settings.target.name, "pod": pod.id, "made": self.clock.time()}
        try:
            self._notes.intend(name, **note)
            self._refuse_dear(pod)
            pod, identity = self._boot.ready(pod)
            self._refuse_dear(pod)  # not every API tells the price at once
            if may_have_twins:
                self._asking.end_all(name, but=pod.id)
            machine = self._machine(pod, identity)
            self._notes.intend(name, **note, handed_out=True)
            return machine
        except Unfit:
            raise  # goes back, and the next candidate is tried
        except BaseException as error:
            self.say(f"giving {pod} back")
            try:
                self._asking.terminate(pod.id, f"{pod}, {pod.name},")
                if may_have_twins:
                    self._asking.end_all(name)
            except DeployError as left:
                raise NoMachine(f"{error or 'interrupted'}; and {left}", next_command=left.next_command) from error
            self._notes.done_with(name)
            raise

    def _refuse_dear(self, pod: Pod) -> None:
        ceiling = self.options.max_usd_per_hour
        if ceiling is not None and pod.usd_per_hour > ceiling + 1e-9:
            raise Unfit(f"it costs {pod.usd_per_hour:.2f} USD an hour, more than max_usd_per_hour: {ceiling:g}")

    def _choose(self) -> Chosen:
        options, where = self.options, f"conf/deploy/{self.settings.target.name}.yaml"
        center = None
        if options.volume:
            volume = options.volume
            if options.cloud != "SECURE":
                raise WrongUse(f"volume in {where}: network volumes are in the SECURE cloud only")
            try:
                center = self._asking.ask(lambda: self._api.data_center_of(volume))
            except Gone as error:
                raise WrongUse(f"volume in {where}: RunPod has no network volume '{volume}'") from error
            if options.data_centers and center not in options.data_centers:
                raise WrongUse(f"the volume '{volume}' is in {center}, which data_centers in {where} leaves out")
        asked = options.gpus, options.gpu_count, options.cloud, options.min_cuda
        return choose(options, self._asking.ask(lambda: self._api.offers(*asked)), center)

    def _wanted(self, name: str, candidate: Candidate, public_key: str) -> Wanted:
        options = self.options
        return Wanted(
            name=name,
            image=self._image(),
            gpu=candidate.gpu,
            gpu_count=options.gpu_count,
            public_key=public_key,
            cloud=options.cloud,
            data_center=candidate.data_center,
            min_cuda=options.min_cuda,
            disk_gib=options.disk_gib,
            volume=options.volume,
            volume_path=options.volume_path,
            registry=options.registry,
        )

    def _image(self) -> str:
        """Without a tag of the user's it is the environment's own, under which `invoke push` has put it."""
        name = self.options.image
        has_tag = ":" in name.rpartition("/")[2] or "@" in name
        return name if has_tag else f"{name}:{image.tag(self.settings.project)}"

    # One that is there

    def _leave_or_give_back(self, pod: Pod, unfit: Unfit) -> None:
        """One that was in use is never ended here, whatever the settings say now; one that never was goes back."""
        intent = self._notes.intended(pod.name)
        if intent.get("pod") == pod.id and not intent.get("handed_out"):
            self.say(f"{pod} is given back: {unfit.why}")
            self._asking.terminate(pod.id, f"{pod}, {pod.name},")
            self._notes.done_with(pod.name)
        else:
            self.say(f"{pod} is left as it is: {unfit.why}")

    def _machine(self, pod: Pod, identity: Identity) -> Machine:
        private = project_key(self.settings)[0]
        return Machine(
            name=pod.name,
            provider="runpod",
            root=self.settings.root,
            python=PYTHON,
            usd_per_hour=prices.stopped_disk(pod.volume_gb) if pod.is_stopped else pod.usd_per_hour,
            address=Address(
                pod.host or "", pod.port, pod.user, str(private), identity.host_keys, first_use=not identity.host_keys
            ),
            id=pod.id,
            created=self._created(pod),
            gpu=pod.gpu,
            is_stopped=pod.is_stopped,
        )

    def _created(self, pod: Pod) -> float | None:
        """The uptime begins anew with each restart, so it is the last thing to go by."""
        note = self._notes.intended(pod.name)
        noted = note.get("made") if note.get("pod") == pod.id else None
        return pod.created or noted or (self.clock.time() - pod.up_s if pod.up_s else None)

    # Made when they are first needed: the key is read, a library imported

    @cached_property
    def _api(self) -> Api:
        pace = Pace(self.clock, self.limits.calls_per_minute, self._tell)
        if self.options.api == "sdk":
            from deploy.providers.runpod.sdk import SdkApi

            return SdkApi(key.load(), pace)
        from deploy.providers.runpod.rest import RestApi

        return RestApi(key.load(), pace, self.limits)

    @cached_property
    def _asking(self) -> Asking:
        return Asking(self._api, self.clock, self.limits, self._notes, self._tell)

    @cached_property
    def _boot(self) -> Boot:
        return Boot(self._asking, self.options.wait_min, self.options.min_memory_gib)

    @cached_property
    def _notes(self) -> Notes:
        return Notes(self.settings.notes)

    def _tell(self, text: str) -> None:
        self.say(text)

    def _words(self) -> contextlib.AbstractContextManager[None]:
        return in_words(f"conf/deploy/{self.settings.target.name}.yaml")


def _silent(text: str) -> None:
    del text

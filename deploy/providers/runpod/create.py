"""Create a pod or a cluster, one candidate at a time.

Each is noted before the request, returned if it is good, and released otherwise. Pods and clusters share this code,
because the same things may go wrong.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from deploy.errors import DeployError, NoMachine, WrongUse, command
from deploy.providers.runpod.api import (
    SHOWS_S,
    ApiError,
    Cluster,
    Forbidden,
    Gone,
    Offer,
    Pod,
    Refused,
    TooMany,
    Unclear,
    Unreachable,
)
from deploy.providers.runpod.candidates import Candidate, Refusal, at_spot, choose
from deploy.providers.runpod.messages import ROOM, cannot_pull, no_candidate
from deploy.providers.runpod.pod_request import Wanted
from deploy.providers.runpod.readiness import Unfit
from deploy.providers.runpod.retry import Asking, of_family
from deploy.providers.runpod.start import image_of, min_cuda, start_of
from deploy.providers.ssh_key import project_key, public_line
from deploy.specs.estimate import plural
from deploy.specs.machine import Machine, MachineSpec
from deploy.specs.settings import RunPod, Settings

T = TypeVar("T", bound=Pod | Cluster)

DISK_GIB = 40  # at least; small images have room in it
DISK_BESIDE_GIB = 30  # for environment, code and checkpoints beside large images


def disk_gib(options: RunPod, root: str, data_bytes: int) -> int:
    """PURE: return the GiB of a pod's disk. /dev/shm may have no room for the images, and its size cannot be requested.

    They need no room on the pod's disk if the root is on a network volume.
    """
    if options.disk_gib is not None:
        return options.disk_gib
    own = 0 if image_of(options, root).is_kept else math.ceil(data_bytes / (1 << 30))
    return max(DISK_GIB, own + DISK_BESIDE_GIB)


class Kind(Protocol[T]):
    """What RunPod creates and ends as one unit: pods or clusters."""

    word: str  # its name in messages and notes
    product: str  # its name in the catalogue

    def create(self, wanted: Wanted) -> T:
        """Send one request. Raises ApiError on failure."""

    def all(self, *, bills: bool = False) -> Sequence[T]:
        """List them. `bills`: one was requested, so the call waits for a lost network."""

    def ready(self, made: T) -> Machine:
        """Wait until a new one answers and matches the request. Raises Unfit if it does not, or never will."""

    def end(self, made: T) -> None: ...


@dataclass
class _Search:
    """What the candidates that were tried leave behind."""

    refusals: list[Refusal]
    may_exist: bool = False  # a request was sent, and was not refused
    twins_until: float | None = None  # by then, a request without an answer is carried out and listed, or never
    bad_image: Unfit | None = None  # that no host can pull


@dataclass(frozen=True)
class Making:
    settings: Settings
    options: RunPod
    asking: Asking
    waste: Callable[[float], None]  # gets the dollars of each that is released again

    def new(self, kind: Kind[T], spec: MachineSpec) -> Machine:
        """Create a machine of the first candidate that has room and fits. Raises NoMachine."""
        name, chosen = spec.name, choose(self.options, *self.catalogue(kind.product))
        search = _Search([*chosen.refusals])
        public_key = public_line(project_key(self.settings)[1])
        disk = disk_gib(self.options, self.settings.target.root, spec.data_bytes)
        until = self.asking.clock.now() + self.asking.limits.candidates_s
        for candidate in chosen.candidates:
            if self.asking.clock.now() > until:
                why = "not requested: the time for it is over"
                search.refusals.append(Refusal(str(candidate), why, was_asked=False))
                continue
            try:
                self._announce(kind, candidate, spec)
                wanted = self._wanted(name, spec.nodes, candidate, public_key, disk)
                if machine := self._tried(kind, wanted, candidate, search):
                    return machine
            except (ApiError, DeployError):  # it is released already, or named
                raise
            except BaseException:  # Ctrl-C or an unexpected error; the note stays, as it may appear later
                if self.asking.notes.intended(name):  # otherwise it is released
                    limit_s = SHOWS_S if search.may_exist else 0.0
                    words = f", for {limit_s:.0f} s" if limit_s else ""
                    self.asking.say(f"checking whether {name} was created, to release it{words}")
                    for _ in self.asking.clock.polls(limit_s):
                        if self._end_all(kind, name):
                            break
                raise
            if search.bad_image:
                break
        self._end_twins(kind, name, search.twins_until)
        self.asking.notes.done_with(name)
        if search.bad_image:
            image_name = start_of(self.options, self.settings.project).image
            raise cannot_pull(self.settings, image_name, search.bad_image.why)
        raise no_candidate(self.settings, search.refusals, kind.word if spec.nodes > 1 else "machine")

    def _announce(self, kind: Kind[T], candidate: Candidate, spec: MachineSpec) -> None:
        """Note a request and its price, so that its name is known after a crash, and tell the user."""
        self.asking.notes.intend(
            spec.name,
            kind=kind.word,
            target=self.settings.target.name,
            candidate=str(candidate),
            usd_per_hour=candidate.usd_per_hour,
            asked=self.asking.clock.time(),
        )
        several = f"{spec.nodes} x " if spec.nodes > 1 else ""
        spot = "a spot pod: " if self.options.spot else ""
        price = f"{spec.nodes * candidate.usd_per_hour:.2f} USD an hour"
        self.asking.say(f"requesting {spot}{several}{candidate}, {price}")

    def _tried(self, kind: Kind[T], wanted: Wanted, candidate: Candidate, search: _Search) -> Machine | None:
        """Request a candidate. Returns the machine; None if it was refused or does not fit, which `search` then has."""
        try:
            made, was_unclear = self._requested(kind, wanted, search)
        except (Refused, Forbidden) as error:
            if error.may_exist:
                search.twins_until = self.asking.clock.now() + SHOWS_S
            by_rule = isinstance(error, Refused) and not ROOM.search(str(error))
            is_forbidden = isinstance(error, Forbidden)
            search.refusals.append(Refusal(str(candidate), str(error), by_rule, is_forbidden=is_forbidden))
            return None
        machine, began = None, self.asking.clock.now()
        if was_unclear:
            search.twins_until = began + SHOWS_S
        try:
            machine = self._handed_out(kind, made, wanted.name, search.twins_until)
        except Unfit as unfit:
            self.asking.say(f"releasing {made}: {unfit.why}")
            kind.end(made)
            search.refusals.append(Refusal(str(candidate), ": ".join([unfit.why, *unfit.evidence[-1:]])))
            search.bad_image = unfit if unfit.everywhere else None
        finally:
            if machine is None:
                hours = (self.asking.clock.now() - began) / 3600
                self.waste(wanted.nodes * candidate.usd_per_hour * hours)
        return machine

    def _requested(self, kind: Kind[T], wanted: Wanted, search: _Search) -> tuple[T, bool]:
        """Create one, and tell whether it was unclear at first. Raises Refused, Forbidden, NoMachine, ApiError."""
        name, notes = wanted.name, self.asking.notes

        def make() -> T:
            before, search.may_exist = search.may_exist, True
            try:
                return kind.create(wanted)
            except (TooMany, Unreachable, Refused, Forbidden):  # it was not carried out
                search.may_exist = before
                raise

        try:
            return self.asking.create(
                make, lambda: next(iter(of_family(kind.all(bills=True), name, exactly=True)), None)
            )
        except (Refused, Forbidden):  # the next candidate writes the note anew
            raise
        except Unreachable:  # nothing was sent, so nothing was created
            notes.done_with(name)
            raise
        except Unclear as error:  # the note stays: it may exist
            raise NoMachine(
                f"RunPod did not confirm that it created the {kind.word} {name}, which may exist and bill: {error}",
                next_command=f"{command(f'deploy --on {self.settings.target.name}')}   (finds it by its name)",
            ) from error
        except (ApiError, DeployError):
            notes.done_with(name)
            raise

    def _handed_out(self, kind: Kind[T], made: T, name: str, twins_until: float | None) -> Machine:
        """Return the machine once it is ready. It bills already: a failure releases it, or names it in the error."""
        notes = self.asking.notes
        note = {**notes.intended(name), "name": name, kind.word: made.id, "made": self.asking.clock.time()}
        try:
            notes.intend(**note)
            machine = kind.ready(made)
            self._end_twins(kind, name, twins_until, but=made.id)
            notes.intend(**note, handed_out=True)
            return machine
        except Unfit:
            raise  # the caller releases it and tries the next candidate
        except BaseException as error:
            self.asking.say(f"releasing {made}")
            try:
                kind.end(made)
                self._end_twins(kind, name, twins_until)
            except DeployError as left:
                raise NoMachine(f"{error or 'interrupted'}; and {left}", next_command=left.next_command) from error
            notes.done_with(name)
            raise

    def is_unused(self, kind: Kind[T], made: T) -> bool:
        """Return whether this computer requested it, and no command has received it yet."""
        intent = self.asking.notes.intended(made.name)
        return intent.get(kind.word) == made.id and not intent.get("handed_out")

    def give_back_unused(self, kind: Kind[T], made: T, unfit: Unfit) -> bool:
        """Release a pod or cluster that was never in use. Returns whether it was released.

        One that was in use is never ended here, whatever the settings.
        """
        if not self.is_unused(kind, made):
            return False
        self.asking.say(f"releasing {made}: {unfit.why}")
        kind.end(made)
        self.asking.notes.done_with(made.name)
        return True

    def refuse_other(self, pod: Pod) -> None:
        """Raise Unfit for a pod that RunPod placed differently than requested, as far as the API reports it."""
        options, ceiling = self.options, self.options.max_usd_per_hour
        if ceiling is not None and pod.usd_per_hour > ceiling + 1e-9:
            raise Unfit(f"it costs {pod.usd_per_hour:.2f} USD an hour, more than max_usd_per_hour: {ceiling:g}")
        if options.data_centers and pod.data_center and pod.data_center not in options.data_centers:
            raise Unfit(f"it is in {pod.data_center}, which is not in data_centers")
        if self.asking.api.names_gpus_by_id and pod.gpu and pod.gpu not in options.gpus:
            raise Unfit(f"it has {pod.gpu}, which is not in gpus")
        if pod.gpu_count and pod.gpu_count < options.gpu_count:
            raise Unfit(f"it has {plural(pod.gpu_count, 'GPU')}, fewer than gpu_count: {options.gpu_count}")

    def catalogue(self, product: str) -> tuple[Sequence[Offer], str | None]:
        """Return the offers, and the data centre of the target's volume, if it has one. Raises WrongUse."""
        options, where, api = self.options, self.settings.where, self.asking.api
        center = None
        if options.volume:
            volume = options.volume
            if options.cloud != "SECURE":
                raise WrongUse(f"volume in {where}: network volumes are in the SECURE cloud only")
            try:
                center = self.asking.ask(lambda: api.data_center_of(volume))
            except Gone as error:
                raise WrongUse(f"volume in {where}: RunPod has no network volume '{volume}'") from error
            if options.data_centers and center not in options.data_centers:
                raise WrongUse(f"the volume '{volume}' is in {center}, which is not in data_centers in {where}")
        asked = options.gpus, options.gpu_count, options.cloud, min_cuda(options, self.settings.project), product
        offers = self.asking.told(self.asking.ask(lambda: api.offers(*asked)), "it is not offered")
        if options.spot:
            offers = at_spot(offers, self.asking.ask(lambda: api.spot_prices(options.gpu_count, options.cloud)))
        return offers, center

    def _end_twins(self, kind: Kind[T], name: str, until: float | None, but: str = "") -> None:
        """Release all that show under a name until then, but one. None: each request had an answer."""
        if until is None:
            return
        left_s = max(0.0, until - self.asking.clock.now())
        if left_s:
            self.asking.say(f"checking for {left_s:.0f} s whether a request without an answer created {name} late")
        for _ in self.asking.clock.polls(left_s):
            self._end_all(kind, name, but)

    def _end_all(self, kind: Kind[T], name: str, but: str = "") -> bool:
        """Release all that are listed under a name, but one. Returns whether there was any."""
        found = [each for each in of_family(kind.all(bills=True), name, exactly=True) if each.id != but]
        for each in found:
            kind.end(each)
        return bool(found)

    def _wanted(self, name: str, nodes: int, candidate: Candidate, public_key: str, disk: int) -> Wanted:
        options, start = self.options, start_of(self.options, self.settings.project)
        return Wanted(
            name=name,
            image=start.image,
            gpu=candidate.gpu,
            gpu_count=options.gpu_count,
            public_key=public_key,
            cloud=options.cloud,
            data_center=candidate.data_center,
            min_cuda=min_cuda(options, self.settings.project),
            min_memory_gib=options.min_memory_gib,
            disk_gib=disk,
            volume=options.volume,
            volume_path=options.volume_path,
            registry=options.registry,
            nodes=nodes,
            args=start.args,
            bid_usd_per_gpu_hour=candidate.usd_per_hour / options.gpu_count if options.spot else None,
            unattended_min=options.unattended_min if nodes == 1 else None,  # no pod of a cluster ends alone
        )

"""Provider for Lambda Cloud. Machines are found by the name in their tag, in the account's list alone."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TypeVar

from deploy.errors import CannotTrain, DeployError, NoMachine, StepFailed, WrongUse, command
from deploy.pod.base.retry import API_PAUSES_S, endless
from deploy.providers.lambda_cloud import candidates
from deploy.providers.lambda_cloud.api import (
    DUPLICATE,
    INACTIVE,
    KEY_VARIABLE,
    NO_CAPACITY,
    QUOTA,
    TAG_CHARACTERS,
    WHERE_TO_GET,
    ApiError,
    Instance,
    InstanceType,
    LambdaApi,
    NeverSent,
    load_key,
)
from deploy.providers.lambda_cloud.options import LambdaCloud
from deploy.providers.rented import Clock, answers_ssh, readable, refuse_unreadable
from deploy.providers.ssh_key import project_key, public_line
from deploy.specs.machine import Address, Card, Image, Machine, MachineSpec, Rental
from deploy.specs.names import listed_prefixes
from deploy.specs.provider import Provider
from deploy.specs.settings import Settings
from deploy.specs.trial import Trial

T = TypeVar("T")
PYTHON = "auto"  # of the environment that is made there
LOOK_S = 20.0  # of retries of calls that only read
PATIENCE_S = 90.0  # the same for calls that end a machine, or look for one that may exist
ADDRESS_S = 60.0
SHOWS_S = 30.0  # in which the API may not know a new machine yet, which it bills all the same
PROBE_S = 5.0
CONSOLE = "https://cloud.lambda.ai/instances"


class Unfit(Exception):
    """A machine does not match the request, or will never answer."""


class LambdaProvider(Provider):
    """Provide virtual machines of Lambda Cloud. `say` receives progress messages.

    Its API has no console log. File systems of the account are not used, so there are no volumes to list.
    """

    def __init__(self, settings: Settings, *, clock: Clock | None = None) -> None:
        if not isinstance(settings.target.options, LambdaCloud):
            raise TypeError(f"not a target on Lambda Cloud: {settings.target.name}")
        super().__init__(settings)
        self.options = settings.target.options
        self.clock = clock or Clock()
        self._reported: set[str] = set()  # entries that cannot be read
        self._launched: dict[str, float] = {}  # id -> when this command launched it

    def acquire(self, spec: MachineSpec) -> Machine:
        """Find a machine of the family that is ready, or launch one. Raises WrongUse for a long name, and NoMachine."""
        if len(spec.name) > TAG_CHARACTERS:
            raise WrongUse(
                f"the machine's name {spec.name} has more than {TAG_CHARACTERS} characters: give a shorter name"
            )
        with self._words():
            found_all = self._instances()
            refuse_unreadable(found_all, spec.family, self.settings.target.name)
            mine = [each for each in found_all if each.is_alive and spec.fits(each.name)]
            for found in sorted(mine, key=lambda each: (each.status != "active", each.created or 0.0)):
                self.say(f"found existing {found}, named {found.name}")
                try:
                    return self._ready(found)
                except Unfit as unfit:
                    self.say(f"leaving {found} unchanged: {unfit}")
            return self._new(spec)

    def find(self, name: str) -> Machine | None:
        """Find a machine by name. Raises NoMachine if it has no address yet."""
        with self._words():
            words = ""
            for _ in self.clock.polls(ADDRESS_S):
                found = next((each for each in self._instances() if each.is_alive and each.name == name), None)
                if found is None:
                    return None
                if found.fault:
                    raise NoMachine(f"{name} cannot be used: {found.fault}")
                if found.host:
                    return self._machine(found)
                words = f"{found}, {name}, is {found.status} and has no address"
            raise NoMachine(words)

    def price(self) -> float | None:
        return self._candidates[0][0].usd_per_hour if self._candidates else None

    def card(self) -> Card | None:
        first = self._candidates[0][0] if self._candidates else None
        if first is None or not first.memory_gib:
            return None
        return Card(first.gpu, first.gpus, int(first.memory_gib * (1 << 30)))

    def image(self) -> Image:
        """No image of Lambda's has the training environment, and nothing of a machine outlives it."""
        return Image(self.options.image_family or "Lambda Stack", has_environment=False)

    def offers(self) -> Sequence[Rental]:
        with self._words():
            return candidates.rentals(self.options, self._types)

    def trial(self) -> Trial | None:
        """Raises WrongUse: a trial finds out whether a machine ends itself, and here none can."""
        raise WrongUse(
            "Lambda Cloud gives a machine no key to end itself, so there is nothing for --rent to try",
            next_command=command(f"doctor --on {self.settings.target.name}"),
        )

    def list(self) -> list[Machine]:
        mine = listed_prefixes(self.settings)
        with self._words():
            return [self._machine(each) for each in self._instances() if each.is_alive and each.name.startswith(mine)]

    def release(self, machine: Machine) -> None:
        with self._words():
            ids = [machine.id] if machine.id else [each.id for each in self._instances() if each.name == machine.name]
            for id in ids:
                self._end(id, machine.name)

    # Creation

    def _new(self, spec: MachineSpec) -> Machine:
        refusals = candidates.refusals(self.options, self._types)
        key_name = self._key_name() if self._candidates else ""
        for kind, region in self._candidates:
            self.say(f"requesting {kind.name} in {region}, {kind.usd_per_hour:.2f} USD an hour")
            try:
                return self._requested(spec.name, kind, region, key_name)
            except ApiError as error:
                if error.code not in (NO_CAPACITY, QUOTA):
                    raise
                why = "no capacity" if error.code == NO_CAPACITY else str(error)
            except Unfit as unfit:
                why = str(unfit)
            refusals.append(f"{kind.name} in {region}: {why}")
        name, where = self.settings.target.name, self.settings.where
        raise NoMachine(
            f"Lambda Cloud has no machine for target '{name}' now",
            evidence=refusals or ["no instance type fits the target"],
            next_command=f"{command(f'offers --on {name}')}   (then name other instance_types or regions in {where})",
        )

    def _requested(self, name: str, kind: InstanceType, region: str, key_name: str) -> Machine:
        """Launch a machine, and wait until it is ready. It bills at once: a failure releases it, or names it."""
        made: Instance | None = None
        try:
            made = self._launch(name, kind, region, key_name)
            return self._ready_or_released(made, name)
        except (ApiError, DeployError, Unfit):  # it is released already, or named
            raise
        except BaseException as error:  # Ctrl-C or an unexpected error, at any line since the request
            self.say(f"releasing {made}" if made else f"checking whether {name} was started, to release it")
            if made or (made := self._appearing(name)):
                self._end_after(error, made, name)
            raise

    def _ready_or_released(self, made: Instance, name: str) -> Machine:
        began = self.clock.now()
        try:
            return self._ready(made, is_new=True)
        except Exception as error:
            self.say(f"releasing {made}: {error}")
            self._end_after(error, made, name)
            self.waste(made.type.usd_per_hour * (self.clock.now() - began) / 3600)
            raise

    def _end_after(self, error: BaseException, made: Instance, name: str) -> None:
        """Terminate a machine that is not handed out. Raises NoMachine with both reasons if it still bills."""
        try:
            self._end(made.id, name)
        except DeployError as left:
            raise NoMachine(f"{error or 'interrupted'}; and {left}", next_command=left.next_command) from error

    def _launch(self, name: str, kind: InstanceType, region: str, key_name: str) -> Instance:
        """Launch one machine. After no answer, look for it by its name: a second request could make a second one."""
        try:
            waits, until = endless(API_PAUSES_S), self.clock.now() + PATIENCE_S
            while True:
                try:
                    id = self._api.launch(name, kind.name, region, key_name, self.options.image_family)
                    break
                except ApiError as error:
                    wait_s = max(next(waits), error.after_s)
                    if error.status != 429 or self.clock.now() + wait_s > until:  # a 429 was not carried out
                        raise
                    self.clock.sleep(wait_s)
            self._launched[id] = self.clock.now()
            created = self.clock.time() + self._api.ahead_s
            return Instance(id, name, "booting", kind, region, created=created)
        except NeverSent:
            raise
        except ApiError as error:
            if not error.is_unclear:
                raise
            found = self._appearing(name)
            if found is None:
                raise NoMachine(
                    f"Lambda Cloud did not confirm that it started {name}, which may exist and bill: {error}",
                    next_command=f"{command('ps')}   (shows it), or look at {CONSOLE}",
                ) from error
            return found
        except DeployError as error:  # an answer that cannot be read: it may exist
            if found := self._appearing(name):
                self._end_after(error, found, name)
            raise

    def _appearing(self, name: str) -> Instance | None:
        """Look for a machine of this name until a request that was carried out must show in the list."""
        for _ in self.clock.polls(SHOWS_S):
            for each in self._instances(PATIENCE_S):
                if each.is_alive and each.name == name:
                    return each
        return None

    def _ready(self, made: Instance, *, is_new: bool = False) -> Machine:
        """Wait until it answers by SSH, and check it. Raises Unfit if it does not match, NoMachine if it is late."""
        limit_s = self.options.wait_min * 60
        for waited_s in self.clock.polls(limit_s):
            if waited_s:
                made = self._seen(made, max(LOOK_S, limit_s - waited_s), new_s=waited_s if is_new else None)
            if not made.is_alive or made.status == "unhealthy":
                raise Unfit(f"it is {made.status}")
            if dear := candidates.too_dear(self.options, made.type):
                raise Unfit(f"it costs {dear}")
            if made.status == "active" and made.host and answers_ssh(made.host, self.options.port, PROBE_S):
                break
            self.say(f"{made} is {made.status}: waiting for its SSH server, {waited_s:.0f} s")
        else:
            raise NoMachine(
                f"{made}, {made.name}, did not answer within wait_min: {self.options.wait_min:g} (it is {made.status})",
                next_command=f"set a longer wait_min in {self.settings.where}",
            )
        machine = self._machine(made)
        try:
            self.check(machine)
        except CannotTrain as error:
            raise Unfit(error.message) from error
        return machine

    def _seen(self, made: Instance, patience_s: float, *, new_s: float | None) -> Instance:
        """The machine as the API has it now. `new_s`: seconds since it was launched; None for one that was found."""
        try:
            seen = self._ask(lambda: self._api.instance(made.id), patience_s)
        except ApiError as error:
            if error.is_gone and new_s is not None and new_s <= SHOWS_S:
                return made
            if error.is_gone:
                raise Unfit("it vanished while it started") from error
            raise
        return seen if seen.created or new_s is None else replace(seen, created=made.created)

    def _end(self, id: str, name: str) -> None:
        """Terminate a machine. One that is gone, or about to end, is success. Raises StepFailed."""
        try:
            if not id:
                raise ApiError("its entry has no id")
            self._terminate(id)
        except ApiError as error:
            if not error.is_gone and not self._has_ended(id):
                raise StepFailed(
                    f"machine {id}, {name}, could not be released and still bills: {error}",
                    next_command=f"terminate it at {CONSOLE}",
                ) from error

    def _terminate(self, id: str) -> None:
        """Raises ApiError; of a new machine, "gone" only after SHOWS_S, when the API knows it."""
        waits, until = endless(API_PAUSES_S), self._launched.get(id, float("-inf")) + SHOWS_S
        while True:
            try:
                return self._ask(lambda: self._api.terminate(id), PATIENCE_S)
            except ApiError as error:
                wait_s = next(waits)
                if not error.is_gone or self.clock.now() + wait_s > until:
                    raise
                self.clock.sleep(wait_s)

    def _has_ended(self, id: str) -> bool:
        """Whether a machine ends already, as after a request without an answer: the API refuses a second one."""
        try:
            return bool(id) and not self._api.instance(id).is_alive
        except ApiError as error:
            return error.is_gone
        except DeployError:
            return False

    def _key_name(self) -> str:
        """Return the name under which the account has this project's public key; add the key if it is new."""
        line = public_line(project_key(self.settings)[1])
        found = self._ask(self._api.key_names).get(line)
        if found:
            return found
        name = f"sniperface-{hashlib.sha256(line.encode()).hexdigest()[:12]}"
        try:
            self._api.add_key(name, line)
        except ApiError as error:  # of another command at the same time, or without an answer
            if error.code != DUPLICATE and not error.is_passing:
                raise
            found = self._ask(self._api.key_names).get(line)
            if not found:
                raise
            return found
        return name

    # Choice

    @cached_property
    def _types(self) -> Sequence[InstanceType]:
        return readable(self._ask(self._api.types), self._reported, self.say, "it is not offered")

    @cached_property
    def _candidates(self) -> Sequence[tuple[InstanceType, str]]:
        """The machines to request, in this order."""
        with self._words():
            return candidates.choose(self.options, self._types)

    # Calls

    def _machine(self, made: Instance) -> Machine:
        return Machine(
            name=made.name,
            root=self.settings.root,
            python=PYTHON,
            usd_per_hour=made.type.usd_per_hour,
            address=Address(
                made.host or "",
                self.options.port,
                self.options.user,
                str(project_key(self.settings)[0]),
                first_use=True,
            ),
            id=made.id,
            created=None if made.created is None else made.created - self._api.ahead_s,
            gpu=made.type.gpu,
            gpus=made.type.gpus,
            fault=made.fault,
        )

    def _instances(self, patience_s: float = LOOK_S) -> Sequence[Instance]:
        return readable(self._ask(self._api.instances, patience_s), self._reported, self.say, "it may bill")

    def _ask(self, call: Callable[[], T], patience_s: float = LOOK_S) -> T:
        """Retry a call that is safe to repeat. Raises the last ApiError after `patience_s`."""
        until, waits = self.clock.now() + patience_s, endless(API_PAUSES_S)
        while True:
            try:
                return call()
            except ApiError as error:
                wait_s = max(next(waits), error.after_s)
                if not error.is_passing or self.clock.now() + wait_s > until:
                    raise
                with contextlib.suppress(OSError):  # a closed terminal must not prevent a release
                    self.say(f"{error}; trying again in {wait_s:.0f} s")
                self.clock.sleep(wait_s)

    @cached_property
    def _api(self) -> LambdaApi:
        return LambdaApi(load_key(), self.clock)

    @contextlib.contextmanager
    def _words(self) -> Iterator[None]:
        """Translate errors of the API into errors that tell the user what to do."""
        try:
            yield
        except ApiError as error:
            raise self._in_words(error) from error

    def _in_words(self, error: ApiError) -> DeployError:
        if error.status == 401:
            return WrongUse(
                f"Lambda Cloud does not accept the API key in {KEY_VARIABLE}: {error}", next_command=WHERE_TO_GET
            )
        if error.code == INACTIVE:
            return NoMachine(
                f"Lambda Cloud: the account is inactive: {error}", next_command="look at https://cloud.lambda.ai"
            )
        if error.status == 403:
            return WrongUse(f"the API key has no permission for this: {error}", next_command=WHERE_TO_GET)
        if error.status == 0:
            fix = "check that this computer is online, and check HTTPS_PROXY and LAMBDA_API_BASE_URL"
            return NoMachine(f"Lambda Cloud cannot be reached: {error}", next_command=fix)
        if error.is_passing:
            return NoMachine(f"Lambda Cloud's API does not answer: {error}")
        return StepFailed(f"Lambda Cloud: {error}", next_command=f"look at {self.settings.where}")

"""Access a target and its runs: on their machine or, once that is gone, in the copy on the laptop."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import Any

from deploy.errors import CannotTrain, NoMachine, StepFailed, WrongUse, command
from deploy.pod.base.folder import FINAL_STATES, LIVE_STATES, RunFolder, private_folder, read_json
from deploy.pod.base.lock import Busy, Lock, is_held
from deploy.providers import PROVIDERS
from deploy.runs import job, records, watchdog
from deploy.runs.records import Record
from deploy.runs.situation import Situation
from deploy.shell import LinkLost, LocalShell, Shell, open_shell
from deploy.shell.awake import awake_s
from deploy.specs.gpus import Renting, refuse_other_machine
from deploy.specs.machine import Machine, MachineSpec
from deploy.specs.names import family_name
from deploy.specs.options import Options
from deploy.specs.provider import Provider
from deploy.specs.settings import Settings, load
from deploy.workspace import devices, environment
from deploy.workspace.devices import Devices

Prepared = tuple[Machine, PurePath]  # a settled machine with code and environment, and the folder of the code


class Reach:
    """One target during one command. Each machine is looked up once and connected once."""

    def __init__(self, settings: Settings, situation: Situation | None = None) -> None:
        self.settings = self._own = settings  # _own: without what a request says about renting
        self.situation = situation or Situation(settings.project)
        if settings.notes.is_dir():  # an older version, or a user, may have made it readable by others
            private_folder(settings.notes)
        self.provider: Provider = PROVIDERS[settings.target.provider](settings)
        self.wasted_usd = 0.0  # for machines that were made for a command and released, as it failed
        self.given_up: set[str] = set()  # machines whose guard could not release them
        self.snapshot: str | None = None  # of the code, once it is checked: all machines of the command get this one
        self.devices: dict[str, Devices] = {}  # of machines that were checked when they were acquired
        # Makes the environment on a machine that lacks it, while the provider can still try another machine.
        self.prepare: Callable[[Machine], Prepared] | None = None
        self.prepared: dict[str, Prepared] = {}
        self.limit_s: float | None = None  # time for each machine to answer; None: each call has its own limit
        self._asked = Renting()  # that the settings have
        self._listed: dict[str, Machine] = {}
        self._machines: dict[str, Machine | None] = {}
        self._shells: dict[str, Shell] = {}

    def __enter__(self) -> Reach:
        return self

    def __exit__(self, *_: object) -> None:
        for shell in self._shells.values():
            shell.close()

    def rent(self, asked: Renting, *, at_any_price: bool = False) -> None:
        """Let --gpus and --spot win over the target's keys and over variables of the environment.

        Names are looked up in the provider's catalogue. Raises WrongUse for what the target or the provider has not,
        and if the target's machine has other GPUs. `at_any_price`: only to look, so neither price nor machine matters.
        """
        if self._asked == asked:
            return
        own, where = self._own.target, self._own.where
        options, choice = asked.applied(
            own.options, own.name, where, lambda of: self._rent_by(of).offers() or (), at_any_price=at_any_price
        )
        self._rent_by(options)
        if choice is not None and not at_any_price:
            family = family_name(self.settings)
            used = [machine for machine in self.machines() if machine.name.startswith(family)]
            # A stopped machine that the provider may end at any moment is removed for a new one.
            used = [machine for machine in used if not (machine.is_stopped and options.is_preemptible)]
            refuse_other_machine(asked, choice, used, own.name)
        self._asked = asked

    def _rent_by(self, options: Options) -> Provider:
        self.settings = replace(self._own, target=replace(self._own.target, options=options))
        self.provider = PROVIDERS[self._own.target.provider](self.settings)
        return self.provider

    def acquire(self, spec: MachineSpec, say: Callable[[str], None]) -> Machine:
        """Return a machine of the target; provision one if there is none. Reports progress through `say`."""
        self.provider.say = say
        self.provider.check = self._check
        self.provider.waste = self.waste
        machine = self.provider.acquire(spec)
        self._machines[machine.name] = machine
        return machine

    def waste(self, usd: float) -> None:
        """Count the cost of a machine that was made and released without having trained."""
        self.wasted_usd += max(0.0, usd)

    def _check(self, machine: Machine) -> None:
        """Check that the environment can use the GPUs that are paid for. Raises CannotTrain, or NoMachine.

        Where the environment is yet to be made, the driver is asked first. Then `prepare` makes it, and torch is asked;
        without `prepare`, `provision.ready` asks torch later.
        """
        self.forget(machine.name)  # cached data may belong to an earlier machine that was released
        self._machines[machine.name] = machine
        device = self.settings.target.device
        try:
            shell = self.shell(machine)
            settled = environment.settle(machine, shell, self.settings.project)
            has_torch = environment.is_ready(settled, shell, self.settings.project)
            if not has_torch:
                self._refuse(devices.driver_fault(devices.ask_driver(shell), device, machine.gpus))
                if self.prepare is not None:
                    self.prepared[machine.name] = self.prepare(machine)
                    settled, has_torch = self.prepared[machine.name][0], True
            if has_torch:
                found = self._ask_torch(shell, settled)
                self._refuse(devices.fault(found, device, promised=machine.gpus))
                self.devices[machine.name] = found
        except LinkLost as lost:
            self.forget(machine.name)
            raise NoMachine(lost.message, evidence=lost.evidence, next_command=lost.next_command) from lost
        except BaseException:
            self.forget(machine.name)
            raise

    def _ask_torch(self, shell: Shell, machine: Machine) -> Devices:
        """Ask torch for the GPUs. In an environment that was just made, no answer is a fault of the host."""
        try:
            return devices.ask(shell, machine.python)
        except LinkLost:
            raise
        except StepFailed as failed:
            if machine.name not in self.prepared:
                raise
            raise CannotTrain(failed.message, evidence=failed.evidence) from failed

    def _refuse(self, fault: str | None) -> None:
        if fault:
            raise CannotTrain(fault, next_command=devices.advice(self.settings.target.name))

    def machines(self) -> list[Machine]:
        """List all machines of this project. `machine` then asks the provider only for what the list leaves out."""
        found = self.provider.list()
        self._listed = {machine.name: machine for machine in found}
        return found

    def in_use_again(self) -> Machine | None:
        """The machine that `acquire` would find, by the list of `machines`; None without one. Asks nobody."""
        family = family_name(self.settings)
        named = (machine for name, machine in sorted(self._listed.items()) if name.startswith(family))
        return next((machine for machine in named if not machine.is_stopped and not machine.fault), None)

    def machine_of_target(self) -> Machine | None:
        """The first machine of the target, with or without a run; None if there is none now."""
        family = family_name(self.settings)
        names = (machine.name for machine in self.machines() if machine.name.startswith(family))
        return self.machine(next(names, family.rstrip("-")))

    def machine(self, name: str) -> Machine | None:
        """The machine of this name; None if it is gone."""
        if name not in self._machines:
            listed = self._listed.get(name)
            self._machines[name] = listed if listed and listed.can_be_reached else self.provider.find(name)
        return self._machines[name]

    def shell(self, machine: Machine) -> Shell:
        """The one shell on a machine. After a lost connection it asks the provider for the current address."""
        if machine.name not in self._shells:
            name = machine.name
            self._shells[name] = open_shell(machine, self.settings.notes, lambda: self.provider.find(name))
            target = self.settings.target
            if target.options.is_shared and not machine.is_here:  # a host that the target's file names
                self._shells[name].silent_fix = target.options.silent_fix(target.name, self.settings.where)
            if self.limit_s is not None:
                self._shells[name].give_up_at = awake_s() + self.limit_s
        return self._shells[machine.name]

    def renew(self) -> None:
        """Give each connected machine `limit_s` again, for another round of questions."""
        if self.limit_s is not None:
            for shell in self._shells.values():
                shell.give_up_at = awake_s() + self.limit_s

    def forget(self, name: str) -> None:
        """Close the connection to a released machine; `machine` returns None for it from now on."""
        self._machines[name] = None
        self.devices.pop(name, None)
        self.prepared.pop(name, None)
        shell = self._shells.pop(name, None)
        if shell is not None:
            shell.close()

    def run(self, record: Record) -> Reached:
        """Where to read a run: in its folder on the machine, else in the copy on the laptop."""
        machine = self.machine(record.machine)
        if machine:
            record = self._charge(record, machine)
            shell, folder = self.shell(machine), RunFolder(machine.path(record.run_dir))
            if shell.listdir(folder.path):
                if watchdog.greet(self.settings, machine, shell, folder.path.parent.parent) == "stuck":
                    self.given_up.add(machine.name)
                return Reached(self, record, shell, folder, machine)
        return Reached(self, record, LocalShell(), records.home(self.settings.runs, record.run_id), None)

    def others(self, record: Record, *names: str) -> list[Reached]:
        """A run on the machines other than rank 0's, or on those of these names, without machines that are gone."""
        there = [(name, at) for name, at in record.others.items() if not names or name in names]
        reached = [self.run(replace(record, machine=name, run_dir=at, others={})) for name, at in there]
        return [each for each in reached if each.machine is not None]

    def look(self, record: Record) -> tuple[Record, job.Status | None]:
        """Read the state of a run from its machine, and update run.json.

        Raises BadAnswer for an invalid answer. The cost is recorded before the machine is asked. It stays if the
        machine vanishes then, although `record` is older.
        """
        machine = self.machine(record.machine)
        record = self._charge(record, machine) if machine else record
        seen = job.look(self.shell(machine), RunFolder(machine.path(record.run_dir))) if machine else None
        if seen and seen.attempt == record.attempt:
            seconds = round(seen.ended - seen.started, 1) if seen.ended and seen.started else None
            record = self._charge(record, machine, seen) if machine else record
            return self._update(record, state=seen.state, reason=seen.reason, seconds=seconds), seen
        if record.state in FINAL_STATES:
            return record, None
        if record.state in records.STARTING:
            if is_launching(self.settings, record.run_id):
                return record, None
            reason = "the command that started it ended before the job ran"
            return self._update(record, state="failed", reason=reason), None
        gone = "its folder on the machine is gone" if machine else f"its machine {record.machine} is gone"
        spend = records.most_spent(record.spend, records.written_spend(self.settings.runs, record))
        return self._update(record, state="lost", reason=gone, spend=spend), None

    def _update(self, record: Record, **changes: Any) -> Record:
        return self.situation.note(records.update(self.settings.runs, record, **changes))

    def charge(self, record: Record) -> Record:
        """Record what a run's machines have cost, by the provider's list alone: they may be out of reach."""
        found = (each for each in self.machines() if each.name == record.machine and not each.is_stopped)
        machine = next(found, None)
        return self._charge(record, machine) if machine else record

    def _charge(self, record: Record, machine: Machine, seen: job.Status | None = None) -> Record:
        """Record what its machines have cost by now. `seen`: the status of rank 0, if it was read."""
        lives = seen.state in LIVE_STATES if seen else record.state not in FINAL_STATES
        hours = records.hours_since(record, machine.created, time.time())
        usd_per_hour = machine.usd_per_hour * len(record.machines)
        told = seen.spend_usd if seen else 0.0
        usd = records.credible_usd(told, usd_per_hour=usd_per_hour, hours=hours, lives=lives)
        return self.situation.note(records.spent(self.settings.runs, record, {record.machine: usd}))

    def unfinished(self, run_id: str | None = None) -> Reached | None:
        """The target's newest run that is stopped, failed, lost or expired, or the named one.

        Raises WrongUse if the named run is in another state or on another target.
        """
        name = self.settings.target.name
        if run_id is not None:
            record = records.choose(self.situation.records, run_id, name)
            if record.target == name:
                record, _ = self.look(record)
            if record.target != name or record.state not in records.UNFINISHED:
                raise WrongUse(
                    f"run {record.run_id} is {record.state} on target '{record.target}': only a run of "
                    f"'{name}' that was stopped, failed, lost or expired can be resumed",
                    next_command=command("runs"),
                )
            return self.run(record)
        for record in self.situation.of(name):
            record, _ = self.look(record)
            if record.state in records.UNFINISHED:
                return self.run(record)
        return None

    def refuse_second(self) -> None:
        """Raise WrongUse if a run is live on the target: a target runs one job at a time."""
        name = self.settings.target.name
        for record in self.situation.of(name):
            if record.state not in FINAL_STATES or record.state == "lost":  # a lost run may be reachable again
                record, _ = self.look(record)
            if record.state not in FINAL_STATES:
                raise WrongUse(
                    f"run {record.run_id} is {record.state} on target '{name}': wait for it, or stop it",
                    next_command=command(f"stop --run {record.run_id}"),
                )


@dataclass(frozen=True)
class Reached:
    """A run and where to read it. `machine` is None if only the copy on the laptop is left."""

    reach: Reach
    record: Record
    shell: Shell
    folder: RunFolder
    machine: Machine | None

    @property
    def settings(self) -> Settings:
        return self.reach.settings

    @property
    def home(self) -> RunFolder:
        """The run's folder on this laptop."""
        return records.home(self.settings.runs, self.record.run_id)

    def need_machine(self) -> Machine:
        """The run's machine. Raises StepFailed if it is gone."""
        if self.machine is None:
            raise StepFailed(
                f"the machine of run {self.record.run_id} no longer exists; downloaded results are in {self.home.path}"
            )
        return self.machine

    def read_plan(self) -> dict[str, Any]:
        """The run's plan as it was carried out. Raises WrongUse without one."""
        return records.plan_of(self.settings.runs, self.record)

    def look(self) -> tuple[Reached, job.Status | None]:
        """The same run with its current state, and its status if it was read."""
        record, seen = self.reach.look(self.record)
        return replace(self, record=record), seen

    def others(self, *names: str) -> list[Reached]:
        """The same run on its other machines, or on those of these names, in the order of their ranks.

        A machine that is gone is left out. If this machine is gone, all are.
        """
        return self.reach.others(self.record, *names) if self.machine is not None else []

    def events(self) -> list[dict[str, Any]]:
        """The run's newest events of each kind."""
        return job.all_events(self.shell, self.folder.metrics)


def target(project: Path, name: str, situation: Situation | None = None) -> Reach:
    """Open a target for the duration of a command. Raises WrongUse for a target that cannot be loaded."""
    return Reach(load(project, name), situation)


@contextlib.contextmanager
def run(
    project: Path,
    target_name: str,
    run_id: str | None,
    look_after: Callable[[Reach, str | None], None] | None = None,
    situation: Situation | None = None,
) -> Iterator[Reached]:
    """Open the named run, or the newest of the target. A named run determines its target by itself.

    `look_after` is called with the target before the machine is asked about the run. It is called again, with the
    machine's name, if the guard there has given up: the machine may be gone afterwards.
    """
    settings, situation = load(project, target_name), situation or Situation(project)
    record = records.choose(situation.records, run_id, settings.target.name)
    with Reach(settings if record.target == settings.target.name else load(project, record.target), situation) as reach:
        if look_after:
            look_after(reach, None)
            record = records.choose(situation.records, record.run_id, record.target)
        reached = reach.run(record)
        if look_after and record.machine in reach.given_up:
            look_after(reach, record.machine)
            reached = reach.run(records.choose(situation.records, record.run_id, record.target))
        yield reached


@contextlib.contextmanager
def launching(settings: Settings) -> Iterator[Callable[[str], None]]:
    """Hold the target's launch lock until the job runs. Yields a function that notes the run's id in it.

    Raises WrongUse while another command holds the lock.
    """
    private_folder(settings.notes)
    try:
        with Lock(_launch_lock(settings), {"run_id": "of another command"}).acquire() as lock:
            yield lambda run_id: lock.write({"run_id": run_id})
    except Busy as busy:
        name = settings.target.name
        raise WrongUse(
            f"run {busy.holder.get('run_id', 'of another command')} is being started on target '{name}': wait for it",
            next_command=command(f"status --on {name}"),
        ) from busy


def is_launching(settings: Settings, run_id: str | None = None) -> bool:
    """Whether a living command of this laptop is starting the run, or any run on this target."""
    lock = _launch_lock(settings)
    return is_held(lock) and (run_id is None or read_json(lock).get("run_id") == run_id)


def _launch_lock(settings: Settings) -> Path:
    return settings.notes / f"launching-{settings.target.name}.lock"

"""Provision machines and put everything on them that a job needs: code, environment, data, secrets."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePath

from deploy.errors import NoMachine, WrongUse, command
from deploy.pod.base.folder import RunFolder
from deploy.runs import watchdog
from deploy.runs.session import Reach
from deploy.shell import LinkLost, Shell, transfer
from deploy.specs import memory, shards
from deploy.specs.estimate import Stopwatch, plural
from deploy.specs.facts import Facts
from deploy.specs.machine import Machine, MachineSpec, node_name
from deploy.specs.names import family_name
from deploy.specs.plan import TRAIN_LABELS, Plan, make
from deploy.specs.settings import Settings
from deploy.specs.shards import WHOLE
from deploy.steps.code_check import check_code, prove_code
from deploy.steps.rendezvous import meet
from deploy.steps.resolve import Checked, block_rows, job_secrets
from deploy.ui.paths import near
from deploy.ui.plan_table import gpus_of
from deploy.ui.screen import Screen
from deploy.workspace import code, devices, environment, staging
from deploy.workspace import dataset as data
from deploy.workspace.shards import Dealing, refuse_undividable, staged_blocks
from deploy.workspace.sources import Origin


@dataclass(frozen=True)
class Ready:
    """A machine on which the job can start, and the plan completed with what only the machine knows."""

    machine: Machine
    plan: Plan
    facts: Facts


def ready_all(
    at: Reach,
    machines: Sequence[Machine],
    checked: Checked,
    facts: Facts,
    screen: Screen,
    watch: Stopwatch,
    *,
    trains: bool = True,
) -> list[Ready]:
    """Prepare every machine of a run. Returns them in the order in which torchrun will rank them.

    `trains`: they are prepared for the request's own training, so its steps must fit into their GPU memory.
    """
    made: list[Ready] = []
    dealing = Dealing(shards.count(checked.config, len(machines)))
    for number, machine in enumerate(machines):
        if len(machines) > 1:
            screen.say(f"machine {number + 1} of {len(machines)}")
        made.append(ready(at, machine, checked, facts, screen, watch, trains=trains, node=number, dealing=dealing))
    if len(made) == 1:
        return made
    ranked: dict[int, Ready] = {}
    places = meet([(each.machine, at.shell(each.machine)) for each in made])
    for each, place in zip(made, places, strict=True):
        told = replace(each.facts, place=place)
        ranked[place.rank] = Ready(each.machine, make(at.settings, checked.request, told, tryout=checked.tryout), told)
        through = f" through {place.interface}" if place.interface else ""
        screen.say(f"node {place.rank}: {each.machine.name} at {place.address}{through}")
    return [ranked[rank] for rank in sorted(ranked)]


def ready(
    at: Reach,
    machine: Machine,
    checked: Checked,
    facts: Facts,
    screen: Screen,
    watch: Stopwatch,
    *,
    trains: bool,
    node: int,
    dealing: Dealing,
) -> Ready:
    """Put environment, code and data on the machine, each only if it is missing. `node`: the number of the machine."""
    settings, shell, name = at.settings, at.shell(machine), machine.name
    with watch.phase("code"):
        nodes = checked.request.nodes or settings.target.nodes
        prepared = at.prepared.get(name)
        machine, folder = prepared or ready_code(settings, machine, shell, screen, nodes, at.snapshot)
        if not machine.is_here:
            known = at.devices.get(name)
            hardware = devices.seen(shell, settings, machine.python, folder, known=known, promised=machine.gpus)
            facts = replace(facts, hardware=hardware)
            if trains:
                refuse_too_much(make(settings, checked.request, facts, tryout=checked.tryout), facts)
    with watch.phase("data"):
        return _ready_data(at, machine, folder, checked, facts, screen, node, dealing)


def _ready_data(
    at: Reach,
    machine: Machine,
    folder: PurePath,
    checked: Checked,
    facts: Facts,
    screen: Screen,
    node: int,
    dealing: Dealing,
) -> Ready:
    settings, shell = at.settings, at.shell(machine)
    dataset = checked.dataset or _found_there(machine, shell, checked, facts, folder, screen)
    gpus = facts.hardware.gpus if facts.hardware else 0
    fraction, pack, shard = checked.request.fraction, checked.request.pack, WHOLE
    pack_images(settings, checked, screen)  # in case the packed files were deleted
    if dealing.of > 1:
        refuse_undividable(dataset, fraction, dealing.of)
        asked = (shell, settings, machine.root, dataset, fraction, pack)
        shard = dealing.choose(node, lambda each: staging.is_there(*asked, each))
    blocks = staged_blocks(dataset, fraction, shard)
    packing = data.packing_of(settings.notes, dataset, fraction, pack, blocks)
    there = (shell, settings, machine.root)
    place = staging.choose_place(*there, dataset, fraction, gpus=gpus, shard=shard, packing=packing)
    facts = replace(
        facts,
        python=machine.python,
        machine=machine,
        snapshot=folder.name,
        data=data.facts(dataset, fraction, packing, shard, blocks),
        data_path=place.path,
    )
    plan = make(settings, checked.request, facts, tryout=checked.tryout)
    if not machine.is_here:
        screen.say(
            f"hardware: {gpus_of(plan)}, {plan.cores} cores, so {plural(plan.processes or 0, 'process', 'processes')}"
        )
    with screen.copying("staging") as progress:
        make_room = partial(staging.free, shell, settings, place)
        staged = staging.stage(shell, machine, folder, plan, dataset, progress, packing, make_room)
    words = staged or place.words
    screen.say(f"data: {words.replace(str(place.path), near(place.path)) if machine.is_here else words}")
    return Ready(machine, plan, facts)


def refuse_too_much(plan: Plan, facts: Facts) -> None:
    """Raise WrongUse for a step that exceeds the GPUs' memory, before anything is paid for or uploaded."""
    if plan.memory:
        gpu = plan.gpu or (facts.card.name if facts.card else "its GPU")
        memory.refuse_too_much(plan.memory, facts.config, gpu)


def pack_images(settings: Settings, checked: Checked, screen: Screen) -> None:
    """Pack images that are uploaded packed, before a machine is paid for. Blocks that are packed already are kept."""
    if checked.dataset is None:
        return
    packing = data.packing_of(settings.notes, checked.dataset, checked.request.fraction, checked.request.pack)
    if packing and packing.missing:
        with screen.copying("packing") as progress:
            packing.make(settings.project, progress)
        screen.say(f"packed {packing.words} ({packing.folder})")


@contextlib.contextmanager
def acquired_all(
    at: Reach, plan: Plan, screen: Screen, watch: Stopwatch, *, keep: bool = False
) -> Iterator[list[Machine]]:
    """Acquire as many machines as the plan needs, each with `acquired`."""
    with contextlib.ExitStack() as stack:
        yield [
            stack.enter_context(acquired(at, plan.machine, screen, watch, keep=keep, node=node, plan=plan))
            for node in range(plan.nodes)
        ]


@contextlib.contextmanager
def acquired(
    at: Reach,
    name: str,
    screen: Screen,
    watch: Stopwatch,
    *,
    keep: bool = False,
    node: int = 0,
    plan: Plan | None = None,
) -> Iterator[Machine]:
    """Acquire a machine of the target. If the work on it fails, a machine that was made for it is released."""
    if at.snapshot is None:
        check_code(at.settings)  # before it costs anything
    name = node_name(name, node)
    with watch.phase("machine"):
        # The machine may store the images on its disk, because RAM may have no room for them.
        data_bytes = plan.data.bytes if plan and plan.data.where != "machine" else 0
        nodes = plan.nodes if plan else 1
        spec = MachineSpec(name, family_name(at.settings), at.settings.root, node, nodes, data_bytes)
        if plan and not keep:  # with --keep, a machine that fails is not replaced by another one
            at.prepare = lambda found: ready_code(at.settings, found, at.shell(found), screen, plan.nodes, at.snapshot)
        machine = at.acquire(spec, screen.say)
    try:
        yield machine
    except BaseException:
        if machine.name == name and not keep:
            at.provider.release(machine)
            at.waste(machine.usd_per_hour * (time.time() - (machine.created or time.time())) / 3600)
            if not machine.is_here:
                screen.say(f"released {machine.name}, which was created for this command; --keep keeps it")
        elif not machine.is_here and machine.usd_per_hour:
            down = command(f"down --on {at.settings.target.name}")
            screen.say(f"{machine.name} still costs ${machine.usd_per_hour:.2f} an hour: {down}")
        raise


def ready_code(
    settings: Settings, machine: Machine, shell: Shell, screen: Screen, nodes: int, tree: str | None
) -> tuple[Machine, PurePath]:
    """Upload the code, start the guard and make the environment. Returns the settled machine and its code folder.

    `tree`: the snapshot of the code, if it is checked already.
    """
    machine = greet(settings, machine, shell, screen)
    snapshot = code.place(settings.project, shell, machine.root, tree or prove_code(settings))
    folder = machine.root / "code" / snapshot
    screen.say(f"code: {near(folder) if machine.is_here else folder}")
    armed = watchdog.arm(settings, machine, shell, folder, nodes)
    if armed:
        screen.say(f"guarded: {armed}")
    environment.ensure(machine, shell, settings.project, folder, screen.say)
    return machine, folder


def greet(settings: Settings, machine: Machine, shell: Shell, screen: Screen) -> Machine:
    """Check that a machine answers and that its root is writable. Raises NoMachine."""
    try:
        machine = environment.settle(machine, shell, settings.project)
        test = {"path": str(machine.root / ".write-test")}
        shell.calls([("write", {**test, "data": b""}), ("remove", test)])
    except LinkLost as lost:
        raise NoMachine(lost.message, evidence=lost.evidence, next_command=lost.next_command) from lost
    except OSError as error:
        raise NoMachine(
            f"the folder {machine.root} of target '{settings.target.name}' cannot be written: {error.strerror}",
            next_command=f"set another root in {settings.where}",
        ) from error
    if not machine.is_here:
        screen.say(f"machine: {machine.name}")
    return machine


def bring_own_files(settings: Settings, shell: Shell, machine: Machine, checked: Checked, plan: Plan) -> None:
    """Upload to the run folder: the user's checkpoint and its JSON, labels of images stored elsewhere, secrets."""
    folder = RunFolder(machine.path(plan.run_dir))
    secrets = {**({} if machine.is_here else job_secrets(settings, checked)), **watchdog.webhook(settings)}
    if secrets:
        watchdog.write_secrets(shell, folder.secrets, secrets)
    if checked.request.resume not in ("none", "auto"):
        for file in (Path(checked.request.resume), Path(checked.request.resume).with_suffix(".json")):
            if file.exists():
                transfer.push(shell, file, machine.path(plan.resume).with_suffix(file.suffix))
    if checked.request.labels and not plan.stage and plan.data.where != "here":
        transfer.push(shell, Path(checked.request.labels), folder.path / TRAIN_LABELS)


def _found_there(
    machine: Machine, shell: Shell, checked: Checked, facts: Facts, folder: PurePath, screen: Screen
) -> data.Dataset:
    """Find images that are on the machine. Those of the try-out are prepared there, once."""
    path = machine.path(facts.data.path) if not checked.tryout else machine.root / "data" / "orl" / "images.npy"
    if checked.tryout and shell.size(path.with_name("manifest.json")) is None:
        screen.say(f"preparing the ORL photographs there (only once): {path}")
        for _ in shell.stream([machine.python, "-m", "app.prepare", "source=orl", f"out={path}"], cwd=folder):
            pass
    labels = checked.config["data"].get("labels_path")
    own = Path(checked.request.labels) if checked.request.labels else None
    try:
        return data.find(
            Origin("machine", path, shell),
            block_rows(checked.config["data"]),
            machine.path(labels) if labels else None,
            own,
        )
    except WrongUse as error:
        raise WrongUse(f"on the machine {error.message}", next_command=error.next_command) from error

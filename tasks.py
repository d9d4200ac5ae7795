"""The commands: each calls one function of deploy/ and prints the answer. `invoke --list` shows them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

# Invoke disables bytecode files. Without them every command compiles all of deploy/ again, which takes 0.25 s.
sys.dont_write_bytecode = bool(sys.flags.dont_write_bytecode)

from deploy.commands.program import Command, CommandLine, task
from deploy.specs import flags
from deploy.specs.request import Request

# Everything else is imported when a command runs: `invoke --list` must be quick.
if TYPE_CHECKING:
    from deploy.ui.screen import Screen

PROJECT = Path(__file__).resolve().parent

Document = dict[str, Any]


# Headings of the commands in the help.
RUNS, MACHINES, MODELS, PROJECT_ITSELF = "Runs", "Machines and money", "Data and models", "This project"


@task(
    *flags.DEPLOY,
    group=RUNS,
    examples=(
        "deploy --on ssh",
        "deploy --on runpod --pack jpeg95",
    ),
)
def deploy(screen: Screen, target: str, nodes: str | None, pack: str | None, **rented: Any) -> Document:
    """Make a target ready: machine, environment, code and data. A second call does only what is missing."""
    from deploy.commands import train as launch

    return launch.deploy(PROJECT, target, screen, pack=pack, several=nodes, **rented)


@task(
    *flags.flags_of(Request),
    *flags.TRAIN,
    group=RUNS,
    examples=(
        "train",
        "train --on ssh --data data/faces/images.npy --fraction 0.01",
        "train --on runpod --gpus A100:2 --dry-run",
        "train --name lr_03 --set train.optimizer.lr=0.03",
        "train --resume runs/RUN/checkpoints/epoch_023.pt --set train.epochs=48",
        "train --sweep train.optimizer.lr=0.03,0.1",
        "train --sweep train.optimizer.lr=0.03,0.1 --on gpu1,gpu2",
    ),
)
def train(
    screen: Screen, sweeps: list[str], detach: bool, dry_run: bool, keep: bool, yes: bool, **request: Any
) -> Document:
    """Deploy what is missing, start the job, follow it and download the checkpoint. Ctrl-C leaves the job running."""
    from deploy.commands import spread, sweep
    from deploy.commands import train as launch
    from deploy.specs.request import How, parse_request
    from deploy.specs.sweep import targets_of

    how = How(detach, dry_run, keep, yes)
    if sweeps and len(targets := targets_of(request["target"])) > 1:
        return spread.spread(PROJECT, sweeps, targets, request, screen, how)
    if sweeps:
        return sweep.sweep(PROJECT, sweeps, request, screen, how)
    return launch.train(PROJECT, parse_request(**request), screen, how)


@task(*flags.ATTACH, group=RUNS, examples=("attach --on ssh",))
def attach(_: Screen, target: str, run_id: str | None, write: bool) -> int:
    """Show the live tmux session of a run; leave it with Ctrl-b d."""
    from deploy.commands import attach as attaching

    return attaching.attach(PROJECT, target, run_id, write=write)


@task(flags.ON, flags.RUN, group=MACHINES, examples=("ssh --on runpod",))
def ssh(_: Screen, target: str, run_id: str | None) -> int:
    """Open a shell on the machine of a run, in its folder."""
    from deploy.commands import enter

    return enter.ssh(PROJECT, target, run_id)


@task(*flags.EXEC, group=MACHINES, examples=("exec --on ssh -- nvidia-smi",), name="exec")
def execute(screen: Screen, target: str, run_id: str | None, words: list[str]) -> int:
    """Run one command on the machine of a run, in its checkout and environment. Its exit code is passed on."""
    from deploy.commands import execute as executing

    return executing.execute(PROJECT, target, run_id, words, screen)


@task(flags.ON, flags.RUN, flags.JSON, group=MACHINES, examples=("ssh-config --on runpod",))
def ssh_config(screen: Screen, target: str, run_id: str | None) -> Document:
    """Write an entry in ~/.ssh/config, so that `ssh sniperface-RUN` reaches the machine."""
    from deploy.commands import enter

    return enter.ssh_config(PROJECT, target, run_id, screen)


@task(*flags.LOGS, group=RUNS, examples=("logs --follow",))
def logs(screen: Screen, target: str, run_id: str | None, follow: bool) -> None:
    """Print the log of a run."""
    from deploy.commands import logs as log

    log.logs(PROJECT, target, run_id, screen, follow=follow)


@task(
    *flags.STATUS,
    group=RUNS,
    examples=(
        "status --watch",
        "status --on ssh --json",
    ),
)
def status(screen: Screen, target: str, run_id: str | None, watch: bool) -> Document:
    """Show how a run is doing: one answer from machine, supervisor and app."""
    from deploy.commands import status as state

    return state.status(PROJECT, target, run_id, screen, watch=watch)


@task(*flags.WATCH, group=RUNS, examples=("watch --on runpod --max-usd 20",))
def watch(screen: Screen, target: str, run_id: str | None, max_usd: str | None) -> Document:
    """Stay with a run until it is over: download its checkpoints, and replace a machine that vanishes."""
    from deploy.commands import watch as watching
    from deploy.specs.request import parse_dollars

    return watching.watch(PROJECT, target, run_id, screen, max_usd=parse_dollars(max_usd))


@task(*flags.RUNS, group=RUNS, examples=("runs --sort accuracy",))
def runs(screen: Screen, sort: str | None) -> None:
    """List all runs that this laptop knows, newest first."""
    from deploy.commands import runs as listing

    screen.rows("Runs", listing.list_runs(PROJECT, sort), listing.COLUMNS)


@task(*flags.COMPARE, group=RUNS, examples=("compare lr_03 lr_1",))
def compare(screen: Screen, names: list[str]) -> Document:
    """Compare runs by what is on this laptop: settings that differ, accuracy, curves, speed and cost."""
    from deploy.commands import compare as comparing

    return comparing.compare(PROJECT, names, screen)


@task(*flags.UI, group=RUNS, examples=("ui", "ui --port 8601"))
def ui(screen: Screen, port: str | None) -> int:
    """Show all runs in the browser, live: curves, logs, comparisons, machines. Only this computer can open it."""
    from deploy.commands import ui as page

    return page.ui(PROJECT, port, screen)


@task(*flags.NOTE, group=RUNS, examples=('note lr_03 "half the rate, 48 epochs"',))
def note(screen: Screen, words: list[str]) -> Document:
    """Keep a note on a run. `runs`, `status` and `compare` show it."""
    from deploy.commands import note as noting

    return noting.note(PROJECT, words, screen)


@task(*flags.REMOVE, group=RUNS, examples=("rm lr_03", "rm lr_03 lr_1 --yes"))
def rm(screen: Screen, names: list[str], yes: bool) -> list[Document]:
    """Delete runs that are over from this laptop, after a question. Other machines keep what they have."""
    from deploy.commands import remove

    return remove.remove(PROJECT, names, screen, yes=yes)


@task(flags.ON, flags.RUN, flags.JSON, group=RUNS, examples=("stop --on ssh",))
def stop(screen: Screen, target: str, run_id: str | None) -> Document:
    """End a run with a checkpoint; `invoke train --resume auto` continues it."""
    from deploy.commands import stop as ending

    return ending.stop(PROJECT, target, run_id, screen)


@task(
    *flags.FETCH_CHECKPOINT,
    group=RUNS,
    examples=(
        "fetch-checkpoint --which best",
        "fetch-checkpoint --on ssh --which 14 --to model.pt",
    ),
)
def fetch_checkpoint(
    screen: Screen, target: str, run_id: str | None, which: str, to: str | None, watch: bool
) -> Document:
    """Download a checkpoint, verified. Never replaces a checkpoint that was trained on more data."""
    from deploy.commands import watch as watching

    return watching.fetch_checkpoint(PROJECT, target, run_id, which, to, screen, watch=watch)


@task(
    *flags.PREPARE,
    group=MODELS,
    examples=(
        "prepare --source folder --path photos --held-out 1000",
        "prepare --source pairs --path photos/pairs.csv --align auto",
        "prepare --source synthetic --identities 2000 --per-identity 20",
    ),
)
def prepare(screen: Screen, target: str, source: str, out: str | None, encoded: bool, **options: str | None) -> int:
    """Make images.npy, labels.npy and manifest.json from photographs or drawn faces. Resumes after an interruption."""
    from deploy.commands import app

    files = {name: options.pop(name) for name in ("path", "labels", "landmarks")}
    return app.prepare(PROJECT, target, screen, source=source, files=files, out=out, options=options, encoded=encoded)


@task(*flags.DATA, group=MODELS, examples=("data --data data/photos --verify",))
def data(screen: Screen, data: str | None, verify: bool) -> int:
    """Tell what a prepared data set contains: people, images, suspects, what was left out, its identity."""
    from deploy.commands import app

    return app.data(PROJECT, data, screen, verify=verify)


@task(*flags.MINE, group=MODELS, examples=("mine --which best",))
def mine(screen: Screen, target: str, run_id: str | None, which: str, out: str | None, overrides: list[str]) -> int:
    """Compute pseudo-IDs of a run's data from one of its checkpoints: pseudo_ids.npy, a report, a picture."""
    from deploy.commands import app

    return app.mine(PROJECT, target, run_id, which, out, overrides, screen)


@task(
    *flags.EVALUATE,
    group=MODELS,
    examples=(
        "evaluate --sets lfw.bin,pairs.csv",
        'evaluate --weights "runs/*/checkpoints/*.pt"',
        "evaluate --gallery data/gallery --probes data/probes",
    ),
)
def evaluate(screen: Screen, target: str, run_id: str | None, which: str | None, **options: Any) -> int:
    """Measure how well checkpoints or files of weights tell people apart: a table, eval.json, ROC curves."""
    from deploy.commands import app

    return app.evaluate(PROJECT, target, run_id, which, screen, **options)


@task(
    *flags.EXPORT,
    group=MODELS,
    examples=("export --which best --out model.onnx", "export --out small.onnx --set precision=int8"),
)
def export(screen: Screen, target: str, run_id: str | None, which: str, out: str | None, overrides: list[str]) -> int:
    """Write a checkpoint as ONNX, compare it with torch on real images and check it by the challenge's rules."""
    from deploy.commands import app

    return app.export(PROJECT, target, run_id, which, out, overrides, screen)


@task(flags.JSON, group=MACHINES)
def ps(screen: Screen) -> int:
    """List what costs money, as the providers report it: machines and volumes, orphans first.

    The exit code is 1 if an account does not answer, because the list may then lack some of it.
    """
    from deploy.commands import ps as bills

    return bills.ps(PROJECT, screen)


@task(*flags.COST, group=MACHINES, examples=("cost", "cost --days 7 --json"))
def cost(screen: Screen, days: str) -> Document:
    """Show what runs have cost, by day and target, as far as this laptop recorded it."""
    from deploy.commands import cost as costs

    return costs.cost(PROJECT, days, screen)


@task(
    *flags.OFFERS,
    group=MACHINES,
    examples=(
        "offers",
        "offers --gpus A100:2",
        "offers --set backbone=iresnet50 --set train.batch.size=256",
    ),
)
def offers(screen: Screen, **request: Any) -> None:
    """List the GPUs that can be rented now: price an hour, memory, and whether this training fits."""
    from deploy.commands import offers as offering
    from deploy.specs.request import parse_request

    screen.rows("Offers", offering.offers(PROJECT, parse_request(**request)), offering.COLUMNS)


@task(
    *flags.DOWN,
    group=MACHINES,
    examples=(
        "down --on runpod",
        "down --orphans",
    ),
)
def down(screen: Screen, target: str, run_id: str | None, every: bool, orphans: bool, anyway: bool) -> list[Document]:
    """Release machines, so that they cost nothing. Runs end with a checkpoint, and their results are downloaded.

    A host that was not rented stays: images that you staged in its RAM are removed.
    """
    from deploy.commands import stop as ending

    return ending.down(PROJECT, target, run_id, screen, every=every, orphans=orphans, anyway=anyway)


@task(
    *flags.BUILD,
    group=MACHINES,
    examples=(
        "build",
        "build --cpu",
    ),
)
def build(screen: Screen, target: str, **arguments: Any) -> None:
    """Build the image that machines are made from. An image of an unchanged environment is reused."""
    from deploy.providers import image

    image.build(PROJECT, target, screen.say, image.arguments(**arguments))


@task(*flags.PUSH, group=MACHINES, examples=("push --image me/sniperface",))
def push(screen: Screen, target: str, repository: str | None, **arguments: Any) -> None:
    """Push the image to a registry, and build it first if necessary. Log in with `docker login` before."""
    from deploy.providers import image

    image.push(PROJECT, target, repository, screen.say, image.arguments(**arguments))


@task(*flags.DOCTOR, group=MACHINES, examples=("doctor --on ssh", "doctor --on runpod --rent"))
def doctor(screen: Screen, target: str, rent: bool, yes: bool) -> int:
    """Check the setup, and suggest fixes. With --rent, also try a machine of the provider for a few cents."""
    from deploy.commands import rental

    return rental.doctor(PROJECT, target, screen, rent=rent, yes=yes)


@task(
    *flags.TARGET,
    group=MACHINES,
    examples=("target list", "target add ssh --host gpu-box --user me"),
)
def target(screen: Screen, words: list[str], **options: str | None) -> Any:
    """List targets, or write one of your own, outside git, after a test of its machine."""
    from deploy.commands import target as own

    return own.target(PROJECT, words, screen, **options)


@task(*flags.BENCH, group=PROJECT_ITSELF, examples=("bench --quick",))
def bench(_: Screen, quick: bool) -> int:
    """Run every benchmark. The exit code is 1 if a claim does not hold."""
    from deploy.commands import app

    return app.bench(PROJECT, quick=quick)


COMMAND_LINE = CommandLine(PROJECT, {each.name: each for each in list(globals().values()) if isinstance(each, Command)})
COMMAND_LINE.take_over()
if __name__ == "__main__":
    COMMAND_LINE.start(sys.argv[1:])

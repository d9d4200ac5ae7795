"""The Invoke commands: read the flags, call one function of deploy/, print the answer. `invoke --list` shows them."""

from __future__ import annotations

import contextlib
import copy
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from invoke.context import Context
from invoke.exceptions import Exit
from invoke.main import program
from invoke.parser.context import ParserContext
from invoke.tasks import Task
from invoke.tasks import task as invoke_task

# Invoke disables bytecode files. Without them every command compiles all of deploy/ again, which takes 0.25 s.
sys.dont_write_bytecode = bool(sys.flags.dont_write_bytecode)

from deploy.commands import flags
from deploy.commands.flags import Flag

# Everything else is imported when a command runs: `invoke --list` must be quick.
if TYPE_CHECKING:
    from deploy.ui.screen import Screen

PROJECT = Path(__file__).resolve().parent

ON = {"on": "target: the name of a file in conf/deploy (default: local)"}
RUN = {"run": "run id, or the beginning of it (default: the newest run of the target)"}
BUILD = {
    "cpu": "for machines without a GPU; --pip-options should then name PyTorch's CPU packages",
    "base": "image to build on (default: the Dockerfile's, NVIDIA's for CUDA)",
    "pip-options": "options for pip inside the build, such as another index; they stay readable in the image",
}
PACK = {"pack": "how to send images of this computer: none (default), lossless, or jpeg50 to jpeg100, which is lossy"}
NODES = {"nodes": "machines for one run (default: the target's nodes, else 1)"}
JSON = {"json": "print one JSON document on stdout; messages go to stderr"}


@contextlib.contextmanager
def _telling(as_json: bool = False) -> Iterator[Screen]:
    """Turn our errors into one message and their exit code, without a traceback."""
    from deploy.commands.signals import Ended, ended_in_order
    from deploy.errors import DeployError, StepFailed
    from deploy.ui.screen import Screen

    screen = Screen(as_json)
    try:
        with ended_in_order():
            yield screen
    except Ended as ended:
        print(ended.words, file=sys.stderr)
        raise
    except DeployError as error:
        screen.error(error)
        raise Exit(code=error.exit_code) from error
    except OSError as error:
        screen.error(StepFailed(str(error)))
        raise Exit(code=StepFailed.exit_code) from error
    except KeyboardInterrupt as error:
        print("interrupted", file=sys.stderr)
        raise Exit(code=130) from error


class Command(Task):  # type: ignore[type-arg]
    """A task that runs only if this project knows every word of the command line."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        check_command_line()
        context: Context = args[0]
        if context.config.run.dry:
            raise Exit("error: Invoke's own dry-run setting is not supported: use train --dry-run", code=2)
        return super().__call__(*args, **kwargs)


def task(**about: Any) -> Callable[..., Any]:
    return invoke_task(klass=Command, auto_shortflags=False, **about)


def commands() -> dict[str, dict[str, Flag]]:
    """All commands with their flags, as Invoke derives them."""
    found = {}
    for each in [value for value in globals().values() if isinstance(value, Command)]:
        looked_at = copy.copy(each)
        looked_at.help = dict(each.help)  # get_arguments empties it
        own = ParserContext(name=each.name, args=looked_at.get_arguments()).flags
        name = each.name.replace("_", "-")
        found[name] = {flag: Flag(about.takes_value, about.kind is list) for flag, about in own.items()}
    return found


def check_command_line() -> None:
    """Refuse words that Invoke would ignore, and print the version if requested. Both end the program.

    Called when this file is loaded, before Invoke parses the command line, and again before a command runs.
    """
    if not program.argv:
        return  # imported, not run
    words = program.argv[1:]
    with _telling("--json" in words):
        asks_version = flags.check(words, commands())
    if asks_version:
        print(flags.version(PROJECT))
        raise Exit(code=0)


@task(help={**ON, **NODES, **PACK, **JSON})
def deploy(
    _: Context, on: str = "local", nodes: str | None = None, pack: str | None = None, json: bool = False
) -> None:
    """Make a target ready: machine, environment, code and data. A second call does only what is missing."""
    from deploy.commands import train as launch

    with _telling(json) as screen:
        screen.document(launch.deploy(PROJECT, on, screen, pack=pack, several=nodes))


@task(
    help={
        **ON,
        "fraction": "share of the data, above 0 and up to 1 (default: 1)",
        "resume": "auto: continue the newest unfinished run; none: a new run (default); PATH: start from a checkpoint",
        "run": "with --resume auto: which unfinished run (default: the newest of the target)",
        "recipe": "name of a file in conf/recipe (default: the configuration's)",
        "data": "an images.npy, or the folder it is in (default: the target's, else the ORL try-out)",
        "labels": "for --recipe supervised, labels to learn instead of labels.npy, such as the pseudo_ids.npy of mine",
        **PACK,
        **NODES,
        "set": "key=value of the configuration, such as --set train.epochs=5; repeatable",
        "env": "KEY=VALUE, a variable of the job's environment; repeatable; no secrets",
        "queue": "if another run is on the machine, wait there for its end; the data stays cached",
        "detach": "do not follow the job",
        "yes": "accept the cost without a question",
        "keep": "if it fails before the job runs, keep a machine that was created for it",
        "dry-run": "print the plan and end; change nothing",
        **JSON,
    },
    iterable=["set_", "env"],
)
def train(
    _: Context,
    on: str = "local",
    fraction: str | None = None,
    resume: str | None = None,
    run: str | None = None,
    recipe: str | None = None,
    data: str | None = None,
    labels: str | None = None,
    pack: str | None = None,
    nodes: str | None = None,
    set_: list[str] | None = None,
    env: list[str] | None = None,
    queue: bool = False,
    detach: bool = False,
    keep: bool = False,
    yes: bool = False,
    dry_run: bool = False,
    json: bool = False,
) -> None:
    """Deploy what is missing, start the job, follow it and download the checkpoint. Ctrl-C leaves the job running."""
    from deploy.commands import train as launch
    from deploy.specs.request import parse_request

    with _telling(json) as screen:
        request = parse_request(
            target=on,
            fraction=fraction,
            resume=resume,
            run=run,
            recipe=recipe,
            data=data,
            labels=labels,
            pack=pack,
            nodes=nodes,
            overrides=set_ or (),
            env=env or (),
            queue=queue,
        )
        screen.document(launch.train(PROJECT, request, screen, detach=detach, dry_run=dry_run, keep=keep, yes=yes))


@task(help={**ON, **RUN, "write": "send keyboard input to the job (default: read-only)"})
def attach(_: Context, on: str = "local", run: str | None = None, write: bool = False) -> None:
    """Show the live tmux session of a run; leave it with Ctrl-b d."""
    from deploy.commands import status as looking

    with _telling():
        code = looking.attach(PROJECT, on, run, write=write)
    if code:
        raise Exit(code=code)


@task(help={**ON, **RUN})
def ssh(_: Context, on: str = "local", run: str | None = None) -> None:
    """Open a shell on the machine of a run, in its folder."""
    from deploy.commands import enter

    with _telling():
        code = enter.ssh(PROJECT, on, run)
    if code:
        raise Exit(code=code)


@task(name="ssh-config", help={**ON, **RUN, **JSON})
def ssh_config(_: Context, on: str = "local", run: str | None = None, json: bool = False) -> None:
    """Write an entry in ~/.ssh/config, so that `ssh sniperface-RUN` reaches the machine."""
    from deploy.commands import enter

    with _telling(json) as screen:
        screen.document(enter.ssh_config(PROJECT, on, run, screen))


@task(help={**ON, **RUN, "follow": "follow the log until the job ends"})
def logs(_: Context, on: str = "local", run: str | None = None, follow: bool = False) -> None:
    """Print the log of a run."""
    from deploy.commands import status as looking

    with _telling() as screen:
        looking.logs(PROJECT, on, run, screen, follow=follow)


@task(help={**ON, **RUN, **JSON, "watch": "repeat every two seconds until the run is over"})
def status(_: Context, on: str = "local", run: str | None = None, json: bool = False, watch: bool = False) -> None:
    """Show how a run is doing: one answer from machine, supervisor and app."""
    from deploy.commands import status as looking

    with _telling(json) as screen:
        screen.document(looking.status(PROJECT, on, run, screen, watch=watch))


@task(
    help={
        **ON,
        **RUN,
        **JSON,
        "max-usd": "stop the run at this cost in USD of all its machines and attempts (default: the target's max_usd)",
    },
)
def watch(
    _: Context, on: str = "local", run: str | None = None, max_usd: str | None = None, json: bool = False
) -> None:
    """Stay with a run until it is over: download its checkpoints, and replace a machine that vanishes."""
    from deploy.commands import watch as watching
    from deploy.specs.request import parse_dollars

    with _telling(json) as screen:
        screen.document(watching.watch(PROJECT, on, run, screen, max_usd=parse_dollars(max_usd)))


@task(help=JSON)
def runs(_: Context, json: bool = False) -> None:
    """List all runs that this laptop knows, newest first."""
    from deploy.commands import status as looking

    with _telling(json) as screen:
        screen.rows("Runs", looking.list_runs(PROJECT), ("run_id", "target", "state", "seconds", "backbone", "reason"))


@task(help={**ON, **RUN, **JSON})
def stop(_: Context, on: str = "local", run: str | None = None, json: bool = False) -> None:
    """End a run with a checkpoint; `invoke train --resume auto` continues it."""
    from deploy.commands import stop as ending

    with _telling(json) as screen:
        screen.document(ending.stop(PROJECT, on, run, screen))


@task(
    name="fetch-checkpoint",
    help={
        **ON,
        **RUN,
        "which": "latest (default), best on held-out people, best:SET by one of train.eval.sets, or an epoch",
        "to": "file or folder to write (default: runs/<run>/checkpoints)",
        "watch": "also download every newer one until the run is over",
        **JSON,
    },
)
def fetch_checkpoint(
    _: Context,
    on: str = "local",
    run: str | None = None,
    which: str = "latest",
    to: str | None = None,
    watch: bool = False,
    json: bool = False,
) -> None:
    """Download a checkpoint, verified. Never replaces a checkpoint that was trained on more data."""
    from deploy.commands import watch as watching

    with _telling(json) as screen:
        screen.document(watching.fetch_checkpoint(PROJECT, on, run, which, to, screen, watch=watch))


@task(
    help={
        **ON,
        "source": "orl, folder (one sub-folder a person), array (an .npy that exists), parquet, rec or synthetic",
        "path": "the folder, the .npy file, the .parquet file or a folder of them, the .rec file or its folder",
        "labels": "labels.npy of an array",
        "image-column": "of parquet, the column of image files (default: one with a usual name)",
        "label-column": "of parquet, the column of identities (default: one with a usual name)",
        "split": "of parquet, which split of a folder that holds several, such as train",
        "decoder": "of rec, cpu, or dali on a GPU (default: cpu)",
        "identities": "of synthetic, how many people (default: 2000)",
        "per-identity": "of synthetic, how many photographs of each (default: 20)",
        "variation-pct": "of synthetic, how much the faces of one person differ, 0 to 100 (default: 100)",
        "seed": "of synthetic, which people: another number, other people (default: 0)",
        "out": "output: a folder, or a path ending in .npy (default: data/<name>)",
        "held-out": "keep the last N images, in whole blocks, for measuring: other people "
        "(default: orl 100, synthetic a tenth, else 0)",
        "align": "of folder, auto: find the best face in each photograph and align it by five points; "
        "all: 112x112 images too; none (default): animals and other subjects",
        "landmarks": "of folder, a CSV file of five points for each photograph, such as the landmarks.csv of align",
        "fit": "of folder, how to scale without alignment: crop (default), squash or pad",
        "min-face": "of align, the smallest width of a face in pixels of the photograph (default: 40)",
        "min-score-pct": "of align, the lowest score of a face, 70 to 100 (default: 90)",
        "not-found": "of align, photographs without a face: skip (default) or keep",
        "several": "of align, photographs with several faces: best (default) or skip",
        "unreadable": "skip: leave out images that cannot be read, and list them in the manifest",
        "workers": "processes that make the images (default: one a core); the result is the same",
        **JSON,
    },
)
def prepare(
    _: Context,
    on: str = "local",
    source: str = "orl",
    path: str | None = None,
    labels: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    split: str | None = None,
    decoder: str | None = None,
    identities: str | None = None,
    per_identity: str | None = None,
    seed: str | None = None,
    variation_pct: str | None = None,
    out: str | None = None,
    held_out: str | None = None,
    align: str | None = None,
    landmarks: str | None = None,
    fit: str | None = None,
    min_face: str | None = None,
    min_score_pct: str | None = None,
    not_found: str | None = None,
    several: str | None = None,
    unreadable: str | None = None,
    workers: str | None = None,
    json: bool = False,
) -> None:
    """Make images.npy, labels.npy and manifest.json from photographs or drawn faces. Resumes after an interruption."""
    from deploy.commands import app as apps

    options = {
        "image_column": image_column,
        "label_column": label_column,
        "split": split,
        "decoder": decoder,
        "identities": identities,
        "per_identity": per_identity,
        "seed": seed,
        "variation_pct": variation_pct,
        "held_out": held_out,
        "align": align,
        "fit": fit,
        "min_face": min_face,
        "min_score_pct": min_score_pct,
        "not_found": not_found,
        "several": several,
        "unreadable": unreadable,
        "workers": workers,
    }
    files = {"path": path, "labels": labels, "landmarks": landmarks}
    with _telling(json) as screen:
        code = apps.prepare(PROJECT, on, screen, source=source, files=files, out=out, options=options)
    if code:
        raise Exit(code=code)


@task(
    help={
        **ON,
        **RUN,
        "which": "latest, best, or a number: the epoch",
        "out": "folder for the results (default: runs/<run>/mining/<checkpoint>)",
        "set": "key=value of the configuration, such as --set mining.method=parity; repeatable",
    },
    iterable=["set_"],
)
def mine(
    _: Context,
    on: str = "local",
    run: str | None = None,
    which: str = "latest",
    out: str | None = None,
    set_: list[str] | None = None,
) -> None:
    """Compute pseudo-IDs of a run's data from one of its checkpoints: pseudo_ids.npy, a report, a picture."""
    from deploy.commands import app as apps

    with _telling() as screen:
        code = apps.mine(PROJECT, on, run, which, out, set_ or [], screen)
    if code:
        raise Exit(code=code)


@task(
    help={
        **ON,
        **RUN,
        "which": "latest, best, or a number: the epoch (default: every checkpoint of the run)",
        "weights": "files of weights, such as 'runs/*/checkpoints/*.pt', instead of a run's checkpoints",
        "sets": "verification sets, separated by commas: .bin, .csv or images.npy (default: the held-out people)",
        "out": "folder for the results (default: runs/<run>/evaluation)",
        "set": "key=value of the configuration, such as --set backbone=iresnet50; repeatable",
    },
    iterable=["set_"],
)
def evaluate(
    _: Context,
    on: str = "local",
    run: str | None = None,
    which: str | None = None,
    weights: str | None = None,
    sets: str | None = None,
    out: str | None = None,
    set_: list[str] | None = None,
) -> None:
    """Measure how well checkpoints or files of weights tell people apart: a table, eval.json, ROC curves."""
    from deploy.commands import app as apps

    with _telling() as screen:
        code = apps.evaluate(PROJECT, on, run, which, screen, weights=weights, sets=sets, out=out, overrides=set_ or [])
    if code:
        raise Exit(code=code)


@task(
    help={
        **ON,
        **RUN,
        "which": "latest, best, or a number: the epoch",
        "out": "the file (default: runs/<run>/<checkpoint>.onnx)",
        "set": "option of the export, such as --set opset=17; repeatable",
    },
    iterable=["set_"],
)
def export(
    _: Context,
    on: str = "local",
    run: str | None = None,
    which: str = "latest",
    out: str | None = None,
    set_: list[str] | None = None,
) -> None:
    """Write a checkpoint as ONNX, compare it with torch on real images and check it by the challenge's rules."""
    from deploy.commands import app as apps

    with _telling() as screen:
        code = apps.export(PROJECT, on, run, which, out, set_ or [], screen)
    if code:
        raise Exit(code=code)


@task(help=JSON)
def ps(_: Context, json: bool = False) -> None:
    """List what costs money, as the providers report it: machines and volumes, orphans first."""
    from deploy.billing.bills import COLUMNS
    from deploy.commands import status as looking

    with _telling(json) as screen:
        screen.rows("Machines and volumes", looking.bills(PROJECT, screen), COLUMNS)


@task(
    help={
        **ON,
        "run": "the machine of this run",
        "all": "every machine of this project, of any target",
        "orphans": "every machine on which no run of this laptop is alive",
        "anyway": "release it within a minute, even if its results cannot be downloaded",
        **JSON,
    },
)
def down(
    _: Context,
    on: str = "local",
    run: str | None = None,
    all: bool = False,
    orphans: bool = False,
    anyway: bool = False,
    json: bool = False,
) -> None:
    """Release machines, so that they cost nothing. Runs end with a checkpoint, and their results are downloaded."""
    from deploy.commands import stop as ending

    with _telling(json) as screen:
        screen.document(ending.down(PROJECT, on, run, screen, every=all, orphans=orphans, anyway=anyway))


@task(
    help={"on": "target whose Docker engine builds: a file in conf/deploy (default: docker)", **BUILD},
)
def build(
    _: Context, on: str = "docker", cpu: bool = False, base: str | None = None, pip_options: str | None = None
) -> None:
    """Build the image that machines are made from. An image of an unchanged environment is reused."""
    from deploy.providers import image

    with _telling() as screen:
        image.build(PROJECT, on, screen.say, image.arguments(cpu, base, pip_options))


@task(
    help={
        "on": "target that will pull it, a file in conf/deploy (default: runpod)",
        "image": "name in the registry, such as me/sniperface (default: the target's)",
        **BUILD,
    },
)
def push(
    _: Context,
    on: str = "runpod",
    image: str | None = None,
    cpu: bool = False,
    base: str | None = None,
    pip_options: str | None = None,
) -> None:
    """Push the image to a registry, and build it first if necessary. Log in with `docker login` before."""
    from deploy.providers.image import arguments
    from deploy.providers.image import push as push_image

    with _telling() as screen:
        push_image(PROJECT, on, image, screen.say, arguments(cpu, base, pip_options))


@task(help={**ON, **JSON})
def doctor(_: Context, on: str = "local", json: bool = False) -> None:
    """Check the setup, and suggest fixes."""
    from deploy.commands import status as looking

    with _telling(json) as screen:
        findings: list[dict[str, Any]] = looking.examine(PROJECT, on)
        screen.rows("Set-up", findings, ("what", "level", "found", "fix"))
    if any(finding["level"] == "problem" for finding in findings):
        raise Exit(code=1)


@task(help={"quick": "smaller sizes, less certain numbers"})
def bench(_: Context, quick: bool = False) -> None:
    """Run every benchmark. The exit code is 1 if a claim does not hold."""
    from deploy.commands import app as apps

    with _telling():
        code = apps.bench(PROJECT, quick=quick)
    if code:
        raise Exit(code=code)


check_command_line()

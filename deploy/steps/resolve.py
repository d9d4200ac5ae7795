"""Look up and check everything that a run needs, before anything is written or started."""

from __future__ import annotations

import json
import posixpath
import secrets
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path, PurePath, PurePosixPath
from typing import Any, TypeVar

from deploy.errors import DeployError, StepFailed, WrongUse, bootstrap_command
from deploy.pod.base.redact import SHORTEST
from deploy.runs import records, watchdog
from deploy.runs.session import Reach
from deploy.shell import LocalShell, load_ssh
from deploy.specs import files, memory, shards
from deploy.specs.estimate import NEWEST
from deploy.specs.facts import Continuation, DataFacts, Facts
from deploy.specs.request import DATA_KEY, LABELS_KEY, Request, hydra_override, user_overrides
from deploy.specs.settings import Settings
from deploy.specs.shards import Shard
from deploy.steps import continuing
from deploy.steps.code_check import check_code
from deploy.steps.continuing import Start
from deploy.steps.measured import measured_in, succeeded_of
from deploy.workspace import code, compression, devices, sources
from deploy.workspace import dataset as data
from deploy.workspace.shards import refuse_undividable, staged_blocks
from deploy.workspace.sources import Origin

# The app's programs that the laptop calls need seconds; the limit allows for a machine under load.
APP_LIMIT_S = 120

T = TypeVar("T")


@dataclass(frozen=True)
class Checked:
    """A valid request, with what the checks found."""

    request: Request
    config: Mapping[str, Any]
    tryout: bool  # no data is configured: use the ORL photographs, and prepare them if missing
    images: Origin
    dataset: data.Dataset | None  # None: not prepared yet, or on a machine not provisioned yet
    continues: Continuation | None
    note: str | None  # what the user should know about how the request was read
    suspicious: tuple[str, ...]  # tracked files that look like credentials, for a warning


def check(reach: Reach, request: Request, suspicious: tuple[str, ...] | None = None) -> Checked:
    """Check a request. Raises WrongUse for the first thing that cannot work. `reach` then rents what it asks for.

    `suspicious`: of an earlier check in the same command. The code is not checked again then.
    """
    settings = reach.settings
    _refuse_secrets(settings, overrides=request.overrides, env=request.env)
    _check_nodes(settings, request.nodes or settings.target.nodes, queue=request.queue)
    _refuse_missing_files(settings, request.overrides)
    if settings.is_local:
        request = replace(request, overrides=files.absolute(request.overrides, Path.cwd()))
    start = continuing.start_of(reach, request)
    return _check_start(reach, start, suspicious)


def _check_start(reach: Reach, start: Start, suspicious: tuple[str, ...] | None) -> Checked:
    """Check the request of a start, which may be an earlier run's, against code, configuration and data."""
    request = start.request
    reach.rent(request.renting)
    settings = reach.settings
    origin = sources.named(settings, request.data)
    if request.data and origin:
        request = replace(request, data=str(origin.path) if origin.where == sources.HERE else request.data)
    if request.labels:
        request = replace(request, labels=str(Path(request.labels).absolute()))
        if not Path(str(request.labels)).is_file():
            raise WrongUse(f"--labels {request.labels} is not a file: give an int32 .npy with a label for each image")
    with ThreadPoolExecutor(1) as beside:  # the configuration is read by another process, which takes as long
        judged = beside.submit(check_code, settings) if suspicious is None else None
        if not settings.is_local:
            beside.submit(load_ssh)
        config, words = _configuration(settings, request, origin)
    _refuse_missing_packages(settings, config)
    origin, tryout = sources.configured(settings, origin, config)
    nodes = request.nodes or settings.target.nodes
    of = shards.count(config, nodes)
    if of > 1 and settings.target.on_lost_node == "go_on":
        raise WrongUse(
            f"on_lost_node: go_on of {settings.where} does not work with data.shards=by_node, because the images of a "
            "lost machine are lost too: set on_lost_node: end, or give --set data.shards=whole"
        )
    dataset = None
    if origin.is_known and not (tryout and origin.files and origin.files.size(origin.path) is None):
        dataset = _find_data(settings.project, request.labels, origin, config["data"])
        data.refuse_other_fraction(dataset, request.fraction)
        refuse_undividable(dataset, request.fraction, of)
    encoded = dataset is not None and dataset.offsets is not None
    by_file = "pack" not in request.given and start.continues is None  # a lossy copy is another data set
    pack, in_vain = compression.chosen_kind(settings, None if by_file else request.pack, origin, encoded=encoded)
    request = replace(request, pack=pack)
    notes = []
    if start.checkpoint is not None:
        known_id = None if dataset is None else data.known_id(settings.notes, dataset, request.fraction, pack)
        notes = resume_notes(settings.project, words, start.checkpoint, known_id, own=start.is_own, machines=nodes)
    note = "; ".join(filter(None, (start.note, in_vain, *notes))) or None
    return Checked(
        request, config, tryout, origin, dataset, start.continues, note, judged.result() if judged else suspicious or ()
    )


def resume_notes(
    project: Path,
    words: Sequence[str],
    checkpoint: Mapping[str, Any],
    dataset_id: str | None,
    *,
    own: bool,
    machines: int,
) -> list[str]:
    """Ask the app whether the configuration `words` can continue from a checkpoint, by its JSON. Returns its notes.

    `own`: it is the newest checkpoint of the continued run. The job checks again, with facts that only its machine
    knows. Raises WrongUse with the app's message.
    """
    question = {"note": checkpoint, "data": dataset_id, "own": own, "machines": machines}
    answer = app(project, "app.resumable", words, stdin=json.dumps(question).encode("utf-8"))
    notes: list[str] = json.loads(answer)["notes"]
    return notes


def _check_nodes(settings: Settings, nodes: int, *, queue: bool) -> None:
    """Raise WrongUse for more machines than the target's file allows."""
    settings.target.options.refuse_nodes(nodes, settings.target.name, settings.where)
    if nodes > 1 and queue:
        raise WrongUse("--queue is for runs on one machine: leave it out, or give --nodes 1")


def _refuse_missing_files(settings: Settings, overrides: Sequence[str]) -> None:
    """Raise WrongUse for a file in --set that the job cannot find, before a machine is made.

    A relative path means this folder. On another machine, it means a file of the code, which is sent.
    """
    for override in overrides:
        key, paths = files.named(override)
        for path in paths:
            here = Path(path).absolute()
            if settings.is_local:
                if not here.exists():
                    raise WrongUse(f"--set {key}: there is no {here}; give one such as {files.EXAMPLES[key]}")
            elif not PurePosixPath(path).is_absolute() and not _is_sent(settings, path):
                raise WrongUse(
                    f"--set {key}: {path} is no file of the code, and nothing else of this computer is sent; give its "
                    f"path on the machine, such as /workspace/{PurePath(path).name}"
                )


def _is_sent(settings: Settings, path: str) -> bool:
    """Whether a path that is relative to the project, as the machine reads it, is in the copy that a job runs in."""
    return code.is_sent(settings.project, posixpath.normpath(path), settings.target.exclude)


def _refuse_missing_packages(settings: Settings, config: Mapping[str, Any]) -> None:
    """Raise WrongUse for a run here that needs packages which bootstrap.py installs on request only.

    Other machines have them: they are part of the image and of the environment that is made there.
    """
    if not settings.is_local:
        return
    by_bootstrap = f"which is not installed here: `{bootstrap_command('train --set track=wandb', 'wandb')}` installs it"
    if config.get("track") == "wandb" and find_spec("wandb") is None:
        raise WrongUse(f"track=wandb needs the package wandb, {by_bootstrap}, or give --set track=none")
    copies = settings.target.sync_to
    if watchdog.is_s3(copies) and find_spec("s3fs") is None:
        raise sources.no_s3(f"sync_to: {copies} of {settings.where}")


def _refuse_secrets(settings: Settings, **words_of: Sequence[str]) -> None:
    """Raise WrongUse for a secret in --set or --env: all users of a machine see command lines, and plans are kept."""
    words = [("--set" if name == "overrides" else "--env", each) for name in words_of for each in words_of[name]]
    for name, value in watchdog.named_secrets(settings).items():
        for flag, word in words:
            if len(value) >= SHORTEST and value in word:
                key = word.partition("=")[0]
                raise WrongUse(
                    f"{flag} {key} holds the value of {name}: leave it out, and read {name} from the environment "
                    "of the run"
                )


def gather(reach: Reach, checked: Checked) -> Facts:
    """Look up everything that can be known before a machine is provisioned. This computer counts as provisioned."""
    settings = reach.settings
    price = _known(reach.provider.price)
    several = (checked.request.nodes or settings.target.nodes) > 1
    warm = reach.in_use_again() if settings.is_rented and not several else None
    if warm is not None and warm.usd_per_hour:
        price = warm.usd_per_hour
    succeeded = succeeded_of(reach.situation.of(settings.target.name))
    return Facts(
        now=datetime.now().astimezone(),  # the same hour comes twice when summer ends
        token=secrets.token_hex(2),
        python=sys.executable if settings.is_local else "python",
        code=replace(code.look(settings.project, settings.target.exclude), suspicious=checked.suspicious),
        data=_data_facts(settings, checked),
        config=checked.config,
        hardware=devices.here(LocalShell(), settings) if settings.is_local else None,
        windows=sys.platform == "win32" and settings.is_local,
        measured=measured_in(settings.runs, succeeded, checked.config, checked.request.nodes or settings.target.nodes),
        phases=[record.phases for record in succeeded[:NEWEST] if record.phases],
        usd_per_hour=price,
        continues=checked.continues,
        image=_known(reach.provider.image),
        # A provider that did not answer is not asked again.
        card=None if price is None else _known(reach.provider.card),
        warm=warm.name if warm else None,
        memory=memory.read(settings.project),
        secrets=_secret_names(settings, checked),
    )


def gather_again(settings: Settings, checked: Checked, facts: Facts, like: Facts | None = None) -> Facts:
    """The facts of another request to the same target: `facts`, with what may differ looked up. No provider is asked.

    The code stays the same, so that all runs of a command train with it. `like`: facts that were just looked up for the
    same recipe, backbone and machines: the same earlier runs count.
    """
    # With this command's own runs.
    succeeded = [] if like else succeeded_of(records.every(settings.runs, settings.target.name))
    nodes = checked.request.nodes or settings.target.nodes
    return replace(
        facts,
        now=datetime.now().astimezone(),  # the same hour comes twice when summer ends
        token=secrets.token_hex(2),
        data=_data_facts(settings, checked),
        config=checked.config,
        measured=like.measured if like else measured_in(settings.runs, succeeded, checked.config, nodes),
        phases=like.phases if like else [record.phases for record in succeeded[:NEWEST] if record.phases],
        secrets=_secret_names(settings, checked),
    )


def _secret_names(settings: Settings, checked: Checked) -> tuple[str, ...]:
    if settings.is_local:
        return ()
    names = {*watchdog.own_secrets(settings), *watchdog.webhook(settings), *job_secrets(settings, checked)}
    return tuple(sorted(names))


def job_secrets(settings: Settings, checked: Checked) -> dict[str, str]:
    """Secrets of this computer's environment that the job gets. A local job needs none: it inherits the environment."""
    if settings.is_local:
        return {}
    track = str(checked.config.get("track", "none"))
    return watchdog.job_secrets(settings, track=track, data=str(checked.images.path))


def _data_facts(settings: Settings, checked: Checked) -> DataFacts:
    fraction, labels = checked.request.fraction, checked.request.labels
    shard = Shard(0, shards.count(checked.config, checked.request.nodes or settings.target.nodes))
    if checked.dataset is not None:
        classes = data.count_classes(checked.dataset, fraction) if memory.learns_classes(checked.config) else None
        blocks = staged_blocks(checked.dataset, fraction, shard)
        packed = data.packing_of(settings.notes, checked.dataset, fraction, checked.request.pack, blocks)
        return replace(data.facts(checked.dataset, fraction, packed, shard, blocks), classes=classes)
    if checked.tryout:
        assert isinstance(checked.images.path, PurePath)
        about = data.orl_facts(checked.images.path, fraction, checked.images.where)
        return replace(about, train_labels=labels, shard=shard)
    return replace(data.unseen_facts(checked.images, labels), shard=shard)


def _configuration(settings: Settings, request: Request, origin: Origin | None) -> tuple[dict[str, Any], Sequence[str]]:
    """Resolve the request's configuration with the app. Returns it with the overrides that produce it.

    Without data it is the try-out's, unless the configuration itself names data.
    """
    decided = [hydra_override("data.data_fraction", request.fraction)]
    decided += [hydra_override(LABELS_KEY, request.labels)] if request.labels else []
    words = [*user_overrides(request, tryout=not origin), *decided]
    if origin:
        words.append(hydra_override(DATA_KEY, str(origin.path)))
    try:
        config = app_config(settings.project, words)
    except WrongUse as error:  # of a key that was typed as a flag
        if request.recipe and error.message.startswith(f"recipe={request.recipe} "):
            raise WrongUse(f"--{error.message.replace('=', ' ', 1)}") from error
        raise
    if not origin and config["data"].get("binary_cache_path"):
        words = [*user_overrides(request, tryout=False), *decided]
        config = app_config(settings.project, words)
    return config, words


def _known(ask: Callable[[], T]) -> T | None:
    """The provider's answer; None without a key or an answer: provisioning reports what it means for the run."""
    try:
        return ask()
    except DeployError:
        return None


def _find_data(project: Path, typed: str | None, origin: Origin, config: Mapping[str, Any]) -> data.Dataset:
    """Find images and labels. `typed`: labels to learn, instead of those of the configuration's section `data`."""
    labels, own = config.get("labels_path"), typed or config.get("train_labels_path")
    return data.find(origin, block_rows(config), project / labels if labels else None, project / own if own else None)


def block_rows(config: Mapping[str, Any]) -> int:
    """Rows of a block of images whose manifest does not say it, by the configuration's section `data`."""
    return int(config.get("block_size", 8192))


def prepare_orl(reach: Reach, checked: Checked, say: Callable[[str], None]) -> Checked:
    """Prepare the try-out's photographs on this computer, once. Returns the request with its data in place."""
    images = checked.images
    if checked.dataset is not None or not images.is_known:
        return checked
    project = reach.settings.project
    if not images.files or images.files.size(images.path) is None:  # else: for an earlier request of this command
        say(f"preparing the ORL photographs (only once): {images.path}")
        app(project, "app.prepare", ["source=orl", f"out={images.path}"])
    return replace(checked, dataset=_find_data(project, checked.request.labels, images, checked.config["data"]))


def app_config(project: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """The resolved configuration. Raises WrongUse with the app's own message for a wrong key or value."""
    config: dict[str, Any] = json.loads(app(project, "app.config", overrides))
    return config


def app(project: Path, module: str, argv: Sequence[str], *, stdin: bytes = b"") -> str:
    """Run one of the app's small programs from the project folder. Returns its output. Raises WrongUse, StepFailed."""
    result = LocalShell().run(
        [sys.executable, "-m", module, *argv],
        cwd=project,
        env={"PYTHONUTF8": "1", "PYTHONIOENCODING": "utf-8"},
        stdin=stdin,
        limit_s=APP_LIMIT_S,
        check=False,
    )
    if result.exit_code == 2:
        raise WrongUse(" ".join(result.complaint))
    if not result:
        missing = b"ModuleNotFoundError" in result.stderr
        raise StepFailed(
            f"python -m {module} failed with exit code {result.exit_code}",
            evidence=result.complaint,
            next_command=bootstrap_command() if missing else None,
        )
    return result.text

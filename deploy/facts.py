"""Everything that is looked up, and can be refused, before the first thing is written or started."""

from __future__ import annotations

import json
import os
import secrets
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from deploy import checkpoints, code, data, runs
from deploy.errors import StepFailed, WrongUse
from deploy.plan import (
    DATA_KEY,
    Continuation,
    DataFacts,
    Facts,
    Request,
    hydra_override,
    user_overrides,
)
from deploy.runs import Record
from deploy.settings import Settings
from deploy.shell import LocalShell

# The two programs of the app that the laptop asks need seconds; the limit is for a machine under load.
APP_LIMIT_S = 120
BOOTSTRAP = "python bootstrap.py invoke train"


@dataclass(frozen=True)
class Unfinished:
    """The run that `--resume auto` means, with what is known about its whole checkpoints on the machine."""

    record: Record
    checkpoints: list[dict[str, Any]]


@dataclass(frozen=True)
class Checked:
    """A request that can be carried out, with what the checks found."""

    request: Request
    config: Mapping[str, Any]
    tryout: bool  # no data is configured: the ORL photographs are used, and prepared when they are not there
    images: Path
    dataset: data.Dataset | None  # None: still to be prepared
    continues: Continuation | None
    note: str | None  # something the user should know about how the request was understood


def check(settings: Settings, request: Request, unfinished: Unfinished | None) -> Checked:
    """Raise WrongUse for the first thing that cannot work."""
    note = continues = None
    if request.resume == "auto":
        note = f"nothing to resume on target '{settings.target.name}': starting a new run"
        if unfinished:
            request, continues = _continue(settings, request, unfinished)
            note = f"continuing run {unfinished.record.run_id} ({unfinished.record.state}), attempt {continues.attempt}"
    if request.data:
        request = replace(request, data=str(Path(request.data).absolute()))
    path = Path(request.data) if request.data else settings.data
    wanted = user_overrides(request, tryout=False)
    config = app_config(settings.project, [*wanted, *_data_override(path), _fraction(request)])
    configured = config["data"].get("binary_cache_path")
    if path is None and configured:
        path = settings.project / configured
    tryout = path is None
    if tryout and user_overrides(request, tryout=True) != wanted:
        config = app_config(settings.project, [*user_overrides(request, tryout=True), _fraction(request)])
    if path is None:
        path = settings.project / "data" / "orl" / "images.npy"
    dataset = None if tryout and not path.exists() else find_data(settings, path, config)
    if dataset is not None:
        data.facts(dataset, request.fraction)
    if request.resume not in ("none", "auto"):
        request = replace(request, resume=str(Path(request.resume).absolute()))
        checkpoints.check_usable(Path(request.resume), config["model"])
    if continues and unfinished and unfinished.checkpoints:
        checkpoints.check_fits(unfinished.checkpoints[-1], config["model"])
    return Checked(request, config, tryout, path, dataset, continues, note)


def gather(settings: Settings, checked: Checked) -> Facts:
    """What the plan is made from."""
    fraction = checked.request.fraction
    backbone = str(checked.config["backbone"]["name"])
    facts_of_data: DataFacts = (
        data.facts(checked.dataset, fraction) if checked.dataset else data.orl_facts(checked.images, fraction)
    )
    return Facts(
        now=datetime.now(),
        token=secrets.token_hex(2),
        python=sys.executable,
        code=code.look(settings.project),
        data=facts_of_data,
        config=checked.config,
        hardware=LocalShell().hardware(),
        windows=sys.platform == "win32",
        measured_images_per_s=runs.measured_images_per_s(settings.runs, settings.target.name, backbone),
        continues=checked.continues,
    )


def find_data(settings: Settings, path: Path, config: Mapping[str, Any]) -> data.Dataset:
    labels = config["data"].get("labels_path")
    return data.find(path, int(config["data"].get("block_size", 8192)), settings.project / labels if labels else None)


def prepare_orl(settings: Settings, checked: Checked) -> Checked:
    """The try-out's photographs, made once; the same request with its data in place."""
    if checked.dataset is not None:
        return checked
    app(settings.project, "app.prepare", ["source=orl", f"out={checked.images}"])
    return replace(checked, dataset=find_data(settings, checked.images, checked.config))


def app_config(project: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """The resolved configuration; a wrong key or value comes back as the app's own sentence."""
    config: dict[str, Any] = json.loads(app(project, "app.config", overrides))
    return config


def app(project: Path, module: str, argv: Sequence[str]) -> str:
    """The output of one of the app's small programs, run from the project folder."""
    result = LocalShell().run(
        [sys.executable, "-m", module, *argv],
        cwd=project,
        env={**os.environ, "PYTHONUTF8": "1", "PYTHONIOENCODING": "utf-8"},
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
            next_command=BOOTSTRAP if missing else None,
        )
    return result.text


def _continue(settings: Settings, request: Request, unfinished: Unfinished) -> tuple[Request, Continuation]:
    """The earlier run's own request; a flag that says something else is a contradiction, not a change."""
    record = unfinished.record
    plan = runs.plan_of(settings.runs, record)
    told = {**plan["request"], "overrides": tuple(plan["request"]["overrides"]), "given": frozenset()}
    earlier = Request(**{**told, "resume": "auto"})
    for flag in _contradictions(request, earlier):
        raise WrongUse(
            f"{flag} contradicts run {record.run_id}, which --resume auto would continue: leave it out, or start a "
            "new run with --resume none"
        )
    # A run that began from a checkpoint of the user's, and has none of its own yet, begins from that one again.
    resume = "auto" if unfinished.checkpoints or plan["resume"] == "none" else str(plan["resume"])
    return earlier, Continuation(record.run_id, record.attempt + 1, resume)


def _contradictions(request: Request, earlier: Request) -> Iterator[str]:
    if "fraction" in request.given and request.fraction != earlier.fraction:
        yield f"--fraction {request.fraction:g}"
    if "recipe" in request.given and request.recipe != earlier.recipe:
        yield f"--recipe {request.recipe}"
    if "data" in request.given and str(Path(request.data or "").absolute()) != earlier.data:
        yield f"--data {request.data}"
    yield from (f"--set {item}" for item in request.overrides if item not in earlier.overrides)


def _data_override(path: Path | None) -> list[str]:
    return [hydra_override(DATA_KEY, str(path))] if path else []


def _fraction(request: Request) -> str:
    return hydra_override("data.data_fraction", request.fraction)

"""Run the app's other commands on the run's machine, with the results downloaded, or on this computer."""

from __future__ import annotations

import secrets
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path, PurePath
from typing import Any

from deploy import border
from deploy.border import Name, Place, chosen
from deploy.errors import StepFailed, WrongUse, command, quoted
from deploy.pod.base.folder import read_json
from deploy.runs import checkpoints, records, session
from deploy.runs.session import Reached
from deploy.shell import LocalShell, transfer
from deploy.specs import flags
from deploy.specs.estimate import Stopwatch
from deploy.specs.names import family_name, slug
from deploy.specs.request import DATA_KEY, hydra_override
from deploy.steps.provision import acquired, ready_code
from deploy.ui.paths import near
from deploy.ui.screen import Screen
from deploy.workspace.encoded import IMAGES
from deploy.workspace.sources import HERE, ON_THE_MACHINE

FLAGS = "SNIPERFACE_FLAGS"  # app/errors.py reads it


def prepare(
    project: Path,
    target: str,
    screen: Screen,
    *,
    source: str,
    files: Mapping[str, str | None],
    out: str | None,
    options: Mapping[str, str | None],
    encoded: bool = False,
) -> int:
    """Make a data set with app.prepare, here or on a target's machine. Returns the exit code.

    `files` are options that name files and folders: `path`, `labels`, `landmarks`. For a machine, all paths are paths
    on it. `options` are passed on unchanged. `encoded`: keep image files instead of pixels.
    Raises WrongUse for an `out` that does not fit.
    """
    file_name = f"images{IMAGES[encoded]}"
    if out and Path(out).suffix in IMAGES and Path(out).suffix != IMAGES[encoded]:
        raise WrongUse(f"--out {out} does not fit: give {file_name}, its folder, or {'no ' * encoded}--encoded")
    path, given = files.get("path"), {key: file for key, file in files.items() if file}
    name = slug(Path(path).stem) if path and source != "orl" else source
    words = [f"source={source}"]
    more = [f"{key}={value}" for key, value in options.items() if value is not None]
    with session.target(project, target) as at:
        if at.settings.is_local:
            place = Path(out).absolute() if out else project / "data" / name
            place = place if place.suffix in IMAGES else place / file_name
            words += [f"out={place}"]
            words += [f"{key}={Path(file).absolute()}" for key, file in given.items()]
            as_json = ["json=true"] if screen.as_json else []
            return _here(project, "app.prepare", [*words, *more, *as_json], flags.PREPARE)
        with acquired(at, f"{family_name(at.settings)}prepare-{secrets.token_hex(3)}", screen, Stopwatch()) as machine:
            shell = at.shell(machine)
            machine, folder = ready_code(at.settings, machine, shell, screen, 1, None)
            there = machine.path(out) if out else machine.root / "data" / name
            there = there if there.suffix in IMAGES else there / file_name
            words += [f"out={there}", *(f"{key}={file}" for key, file in given.items())]
            for line in shell.stream([machine.python, "-m", "app.prepare", *words, *more], cwd=folder):
                screen.say(line)
            flag = f"evaluate --on {target} --sets" if source == "pairs" else f"train --on {target} --data"
            screen.say("use it with: " + command(flag + f" machine:{there}"))
            screen.document({"target": target, "data": f"machine:{there}"})
    return 0


def data(project: Path, path: str | None, screen: Screen, *, verify: bool) -> int:
    """Print what a data set of this computer contains, with app.data. Returns the exit code."""
    place = Path(path).absolute() if path else project / "data" / "orl"
    words = [f"data={place}", *(["verify=true"] if verify else [])]
    words += ["json=true"] if screen.as_json else []
    return _here(project, "app.data", words, flags.DATA)


def evaluate(
    project: Path,
    target: str,
    run_id: str | None,
    which: str | None,
    screen: Screen,
    *,
    weights: str | None,
    sets: str | None,
    gallery: str | None,
    probes: str | None,
    fit: str | None,
    out: str | None,
    overrides: Sequence[str],
) -> int:
    """Evaluate checkpoints of a run, or any files of weights, with app.evaluate. Returns the exit code."""
    overrides = [*([f"fit={fit}"] if fit else []), *overrides]
    if weights is not None:
        words = [f"weights={_from_here(project, weights)}"]
        places = {"sets": sets, "gallery": gallery, "probes": probes}
        words += [*(f"{key}={_from_here(project, place)}" for key, place in places.items() if place), *overrides]
        words += [f"out={Path(out).absolute()}"] if out else []
        return _here(project, "app.evaluate", words, flags.EVALUATE)
    with session.run(project, target, run_id) as reached:
        checkpoint = _checkpoint(reached, which or "latest", screen)
        chosen = reached.folder.checkpoints / (checkpoint["file"] if which else "*.pt")
        each_set = [_bring(reached, "sets", each.strip(), _set_file) for each in sets.split(",")] if sets else []
        named = [f"sets={','.join(each_set)}"] if sets else []
        searched = {"gallery": gallery, "probes": probes}
        named += [f"{key}={_bring(reached, key, place, _people_file)}" for key, place in searched.items() if place]
        own = Path(reached.home.path) / "evaluation"
        place = Path(out).absolute() if out else own
        return _app(reached, "app.evaluate", [f"weights={chosen}", *named, *overrides], place, screen)


def of_checkpoint(
    project: Path,
    target: str,
    run_id: str | None,
    which: str,
    out: str | None,
    overrides: Sequence[str],
    screen: Screen,
    *,
    module: str,
    place: str,
) -> int:
    """Run a command of the app on one checkpoint. Returns the exit code.

    Without `out` the results go to `place` in the run's folder; {stem} is the checkpoint's name without suffix.
    """
    if out:
        chosen(Path(out).absolute())  # refused before the work
    with session.run(project, target, run_id) as reached:
        checkpoint = _checkpoint(reached, which, screen)
        file = checkpoint["file"]
        below = place.format(stem=PurePath(file).stem).split("/")
        own = border.place(Path(reached.home.path), *below, what=reached.shell.name).path
        words = [f"checkpoint={reached.folder.checkpoints / file}", *overrides]
        if module == "app.export" and PurePath(out or own).suffix == ".onnx":
            words += _measured(reached, checkpoint["sha256"], overrides)
        return _app(reached, module, words, Path(out).absolute() if out else own, screen)


# Pseudo-IDs of a run's data, and the checkpoint as ONNX.
mine = partial(of_checkpoint, module="app.mine", place="mining/{stem}")
export = partial(of_checkpoint, module="app.export", place="{stem}.onnx")


def bench(project: Path, *, quick: bool) -> int:
    """Run every benchmark. Returns 1 if a claim does not hold. Raises WrongUse without benchmarks."""
    scripts = sorted((project / "benchmarks").glob("[!._]*.py"))
    if not scripts:
        raise WrongUse(f"there is no benchmark in {project / 'benchmarks'}")
    codes = [
        LocalShell().foreground([sys.executable, str(script), *(["--quick"] if quick else [])], cwd=project)
        for script in scripts
    ]
    return 1 if any(codes) else 0


def _checkpoint(reached: Reached, which: str, screen: Screen) -> dict[str, Any]:
    """The JSON of the checkpoint that `which` selects. Prints by which measure it is the best."""
    found = checkpoints.whole(reached.shell, reached.folder)
    chosen, by = checkpoints.choose(found, which, reached.record.run_id)
    if by:
        screen.say(f"{chosen['file']}: {by}")
    return chosen


def _measured(reached: Reached, sha256: str, overrides: Sequence[str]) -> list[str]:
    """The results of `evaluate` for `export`, which writes their thresholds, if they have this checkpoint."""
    file = reached.home.path / "evaluation" / "eval.json"
    is_given = any(each.startswith("evaluation=") for each in overrides)
    if is_given or not Path(file).is_file() or f'"{sha256}"' not in Path(file).read_text("utf-8", "replace"):
        return []
    if reached.machine is None or reached.machine.is_here:
        return [f"evaluation={file}"]
    there = reached.folder.path / "results" / "of_evaluate.json"
    transfer.push(reached.shell, Path(file), there)
    return [f"evaluation={there}"]


def _app(reached: Reached, module: str, words: Sequence[str], out: Path, screen: Screen) -> int:
    """Run `python -m module *words out=…` with the run's code and environment. Results end up at `out` here."""
    if reached.machine is None or reached.machine.is_here:
        more = _images_here(reached, words, screen)
        return _here(reached.settings.project, module, [*words, *more, f"out={out}"], flags.EVALUATE)
    _spare_checkpoints(out)
    plan = reached.read_plan()
    there = reached.folder.path / "results" / out.name
    argv = [plan["argv"][0], "-m", module, *words, f"out={there}"]
    try:
        for line in reached.shell.stream(argv, cwd=reached.machine.path(plan["cwd"])):
            screen.say(line)
    except StepFailed as failed:
        raise _without_images(reached, plan) or failed from failed
    most = border.FILE_BYTES["result"]
    if out.suffix:
        beside = [".json"] if out.suffix == ".onnx" else []  # what the file takes, and the thresholds
        for suffix in [out.suffix, *beside]:
            transfer.fetch(reached.shell, there.with_suffix(suffix), chosen(out.with_suffix(suffix)), most_bytes=most)
    else:
        what, listed = f"{reached.shell.name}: the results", reached.shell.listdir(there)[: border.RESULTS_MOST]
        for name in [Name(each, what, like=border.RESULT) for each in listed]:
            transfer.fetch(reached.shell, there / name, Place(out, (name,)), most_bytes=most)
    screen.say(f"downloaded: {near(out)}")
    return 0


def _images_here(reached: Reached, words: Sequence[str], screen: Screen) -> list[str]:
    """A word for the app, if a run's machine is gone but this laptop has the images that were sent to it."""
    plan = records.carried_out(reached.settings.runs, reached.record.run_id)
    data = plan.get("data")
    if (
        not isinstance(data, dict)
        or Path(str(plan.get("data_path"))).exists()
        or any(word.startswith(f"{DATA_KEY}=") for word in words)
    ):
        return []
    project = reached.settings.project
    decided = read_json(Path(reached.home.plan)).get("data")  # by this computer, before a machine said anything
    decided = decided if isinstance(decided, dict) else {}
    sent = decided.get("path") if decided.get("where") == HERE else None
    images = Path(str(sent)) if sent else project / "data" / "orl" / "images.npy"
    known = read_json(images.with_name("manifest.json")).get("dataset_id")
    if not images.is_file() or known is None or known != data.get("dataset_id"):
        return []
    screen.say(f"with the images that are here: {near(images)}")
    return [hydra_override(DATA_KEY, str(images))]


def _spare_checkpoints(out: Path) -> None:
    """Raise WrongUse if a downloaded result would replace a checkpoint or the JSON beside one."""
    said = read_json(out.with_suffix(".json")).get("file")
    if out.suffix and said is not None and (said != out.name) == (out.suffix == ".onnx"):
        raise WrongUse(f"--out {out} would replace {said} or the JSON that describes it: give another name or folder")


def _without_images(reached: Reached, plan: Mapping[str, Any]) -> StepFailed | None:
    """Why a command failed, if the machine no longer has the images of the run: `down` and a restart empty its RAM."""
    path, given = str(plan["data_path"]), plan["request"].get("data")
    if reached.machine is None or reached.shell.size(reached.machine.path(path)) is not None:
        return None
    run, target = reached.record.run_id, reached.record.target
    again = f"a run with --data {quoted(given)}" if given else "deploy"
    return StepFailed(
        f"target '{target}' no longer has the images of run {run}, {path}: {again} stages them again",
        next_command=None if given else command(f"deploy --on {target}"),
    )


def _here(project: Path, module: str, words: Sequence[str], of_command: Sequence[flags.Flag]) -> int:
    """Run a command of the app on this computer. It is told which options are flags, so that its errors name those."""
    names = " ".join(flag.name.replace("-", "_") for flag in of_command)
    return LocalShell().foreground([sys.executable, "-m", module, *words], cwd=project, env={FLAGS: names})


def _from_here(project: Path, files: str) -> str:
    """Files, separated by commas, for the app, which runs in the project's folder."""
    here = Path.cwd()
    return files if here == project else ",".join(str(here / each.strip()) for each in files.split(",") if each.strip())


def _bring(reached: Reached, key: str, text: str, file_of: Callable[[str, str], Path]) -> str:
    """The path on the run's machine of a file that `key` names. One on this laptop is uploaded once."""
    if reached.machine is None or reached.machine.is_here:
        return _from_here(reached.settings.project, text)
    if text.startswith(ON_THE_MACHINE):
        return str(reached.machine.path(text[len(ON_THE_MACHINE) :]))
    file = file_of(key, text)
    kind = [] if key == "sets" else [key]
    there = reached.folder.path.parent.parent.joinpath("sets", *kind, file.parent.name, file.name)
    for beside in [file, *(_beside(file) if file.suffix in IMAGES else [])]:
        transfer.push(reached.shell, beside, there.with_name(beside.name))
    return str(there)


def _set_file(key: str, text: str) -> Path:
    file = Path(text).absolute()
    file = _images_in(file) or file
    if not file.is_file():
        raise WrongUse(f"--{key} {text}: no such file on this computer; write machine:/path for a file on the machine")
    if file.suffix not in (".bin", *IMAGES):
        raise WrongUse(
            f"--{key} {text} names other files, which are not uploaded with it: make an images.npy of it by "
            f"`{command(f'prepare --source pairs --path {file.name}')}` and give that, or copy all to the machine and "
            f"give {ON_THE_MACHINE}/path/{file.name}"
        )
    return file


def _people_file(key: str, text: str) -> Path:
    """The images of a gallery or of probes."""
    file = Path(text).absolute()
    file = file if file.suffix in IMAGES else _images_in(file) or file / "images.npy"
    if not file.is_file():
        raise WrongUse(
            f"--{key} {text} has no images.npy on this computer; make one by "
            f"`{command(f'prepare --source folder --align auto --path {Path(text).name}')}` and give its folder, or "
            f"write {ON_THE_MACHINE}/path for a folder on the machine"
        )
    return file


def _images_in(folder: Path) -> Path | None:
    return next((folder / f"images{end}" for end in IMAGES if (folder / f"images{end}").is_file()), None)


def _beside(images: Path) -> list[Path]:
    """The files that belong to an images.npy or images.jpegs, if they exist."""
    names = ("pairs.npy", "labels.npy", "people.csv", "manifest.json", "offsets.npy")
    return [path for name in names if (path := images.with_name(name)).exists()]

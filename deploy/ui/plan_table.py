"""Make table rows of a plan and, after the run, of expected and actual values."""

from __future__ import annotations

from collections.abc import Sequence

from deploy.errors import command
from deploy.pod.base.addresses import shown
from deploy.pod.base.limits import LAPTOP
from deploy.specs.estimate import Compared, Phase, duration, plural, rough
from deploy.specs.facts import CodeFacts
from deploy.specs.gpus import typed
from deploy.specs.mining import Search
from deploy.specs.plan import Plan
from deploy.specs.settings import OPTIONS

NAMES_SHOWN = 5
TOLD_FROM = 0.1  # from this difference on, as a share of the fraction, the plan tells what whole blocks come to
# What pip downloads for the environment: the sum of the locked files for Linux on x86-64 and Python 3.12, as
# `uv pip compile --format pylock.toml` lists their sizes.
DOWNLOAD_GB = 3.0


def plan_rows(plan: Plan) -> list[tuple[str, str]]:
    data = plan.data
    code = f"commit {plan.code.commit[:12]}" if plan.code.commit else "no commit yet"
    changed = f" plus {plural(plan.code.changed_files, 'changed file')}" if plan.code.changed_files else ""
    if plan.code.kind == "copy":
        code, changed = "a copy of the code folders (this folder is no git repository)", ""
    where = f"staged into {plan.data_path}" if plan.stage else f"read in place from {_place(plan.data_path)}"
    minutes = "unknown" if plan.expected_minutes is None else f"about {plan.expected_minutes:.1f}"
    return [
        ("where", f"target {plan.target}: {_hardware(plan)}; {plan.root}"),
        *_rents(plan),
        *_environment(plan),
        ("code", code + changed),
        *_travelling(plan.code),
        *_secrets(plan),
        ("data", f"{data.name}: {_images(plan)}, {where}"),
        *([("shards", _shards(plan))] if plan.data.shard.of > 1 else []),
        *([("sent", _packed(plan))] if data.packed else []),
        *([] if data.ready or not data.rows else [("", "will be prepared from the ORL photographs")]),
        ("fraction", _fraction(plan)),
        ("job", f"recipe {plan.recipe}, backbone {plan.backbone['name']}, {plural(plan.epochs, 'epoch')}"),
        ("processes", f"{_processes(plan)}, {plan.batch_size} images each"),
        *([("mining", _search(plan.search))] if plan.search else []),
        ("precision", plan.precision),
        *([("GPU memory", plan.memory.words)] if plan.memory else []),
        ("resume", f"{plan.resume} (attempt {plan.attempt})"),
        ("expected minutes", f"{minutes} ({plan.expected_from})"),
        *_parts(plan),
        ("expected dollars", dollars(plan, plan.expected_usd) + (" (spot)" if plan.spot else "")),
        *_release(plan),
    ]


def _place(path: str) -> str:
    """An address without its secrets, or a path as it is: a folder may have `#` in its name."""
    return shown(path) if "://" in path else path


def _search(search: Search) -> str:
    """Which neighbour search mining makes, and how long one takes by arithmetic."""
    how = "all pairs are compared" if search.how == "exact" else "near cells are compared (ivf)"
    one = f"{rough(search.core_s)} of one core, or {rough(search.gpu_s)} of one GPU (not measured)"
    return f"{plural(search.times, 'search', 'searches')} among {search.images:,} images, {how}: {one} each"


def _rents(plan: Plan) -> list[tuple[str, str]]:
    """The GPUs that --gpus asks for, by the catalogue's names."""
    if not plan.rents or not plan.request.gpus:
        return []
    names, count = plan.rents
    then = ", else ".join(names)
    return [("rents", f"{count} x {then} ({typed(plan.request.gpus)})")]


def _environment(plan: Plan) -> list[tuple[str, str]]:
    """The image of a pod, and what making the environment there takes. No pod has been timed yet."""
    if plan.image is None:
        if plan.container_image is None:
            return []
        build = command(f"build --on {plan.target}")
        return [("image", plan.container_image or f"none yet of this environment: {build} makes it")]
    if plan.image.has_environment:
        return [("image", f"{plan.image.name}, with the training environment")]
    once = "kept on the volume" if plan.image.is_kept else "again on each new machine, because no volume keeps it"
    measured = any(phase.name == "code" and phase.seconds is not None for phase in plan.phases)
    time = "the time is in parts, under code" if measured else "paid minutes, unmeasured"
    return [
        ("image", f"{plan.image.name}, without the training environment"),
        ("environment", f"made on the machine, {once}: about {DOWNLOAD_GB:g} GB of packages to download; {time}"),
    ]


def _travelling(code: CodeFacts) -> list[tuple[str, str]]:
    """Files that the user may not expect to be uploaded, or to be left out."""
    rows = []
    if code.left_out:
        reason = "a sparse checkout without them" if code.kind == "git" else "no git repository"
        many = plural(len(code.left_out), "file or folder", "files or folders")
        rows.append(("left out", f"{many} ({reason}): {_some(code.left_out)}"))
    if code.excluded_files is not None:
        rows.append(("excluded", f"{plural(code.excluded_files, 'file')}, {_bytes(code.excluded_bytes)}, by exclude"))
    if code.untracked:
        many = plural(len(code.untracked), "file is", "files are")
        rows.append(("untracked", f"{many} uploaded that git does not track: {_some(code.untracked)}"))
    if code.suspicious:
        rows.append(("warning", f"tracked files look like credentials and are uploaded: {_some(code.suspicious)}"))
    return rows


def _secrets(plan: Plan) -> list[tuple[str, str]]:
    if OPTIONS[plan.provider].is_local:
        return []
    whose = "a rented machine" if plan.rented else "the machine"
    return [("secrets", f"{whose} receives {', '.join(plan.secrets) or 'none'}")]


def _release(plan: Plan) -> list[tuple[str, str]]:
    """Who releases the machine, if it cannot do so itself."""
    if plan.limits.release != LAPTOP:
        return []
    hands = "keep `invoke watch` running, or end it with `invoke down`"
    return [("release", f"this machine cannot end itself: it bills until a command on this computer does; {hands}")]


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:NAMES_SHOWN]) + (", …" if len(names) > NAMES_SHOWN else "")


def _parts(plan: Plan) -> list[tuple[str, str]]:
    """Expected time and cost of each phase, as far as earlier runs on this target show."""
    known = [_part(phase, plan.epochs) for phase in plan.phases if phase.seconds is not None]
    return [("parts", ", ".join(known))] if len(known) > 1 else []


def _part(phase: Phase, epochs: int) -> str:
    seconds = phase.seconds or 0.0
    more = [f"{duration(seconds / epochs)} an epoch"] if phase.name == "training" and epochs > 1 else []
    more += [f"${phase.usd:.2f}"] if phase.usd else []
    return f"{phase.name} {duration(seconds)}" + (f" ({', '.join(more)})" if more else "")


def dollars(plan: Plan, usd: float | None, of: str = "") -> str:
    """Dollars, and the price of an hour. `of`: of what, if not of one run."""
    if plan.usd_per_hour == 0:
        return "0.00"
    rate = "an unknown price" if plan.usd_per_hour is None else f"${plan.usd_per_hour:.2f}"
    return f"{'unknown' if usd is None else f'{usd:.2f}'}{of}, at {rate} an hour"


def _hardware(plan: Plan) -> str:
    if plan.cores is None:
        if plan.warm:
            return f"machine {plan.warm} is there already and is used again"
        machines = "the machine is" if plan.nodes == 1 else f"{plan.nodes} machines are"
        return f"{machines} {'not allocated yet' if plan.rented else 'looked at when the run starts'}"
    several = f"{plan.nodes} machines, the first with " if plan.nodes > 1 else ""
    return f"{several}{gpus_of(plan)}, {plan.cores} cores"


def gpus_of(plan: Plan) -> str:
    if not plan.gpus:
        return f"CPU ({plan.no_gpu})" if plan.no_gpu else "CPU"
    return f"{plural(plan.gpus, 'GPU')} ({plan.gpu})"


def _images(plan: Plan) -> str:
    if not plan.data.rows:
        return f"checked in place ({_place(plan.data.path)})"
    return f"{plan.data.rows} images, {plan.data.train_rows} to train on"


def _fraction(plan: Plan) -> str:
    """The fraction and, if whole blocks come to another share of the images, what is trained on.

    The images of `prepare` are in a hundred blocks or more. Others are in blocks of data.block_size.
    """
    rows, whole, asked = plan.data.train_rows, plan.data.whole_rows, plan.fraction
    if not whole or abs(rows / whole - asked) <= TOLD_FROM * asked:
        return f"{asked:g}"
    smaller = "" if plan.data.dataset_id else f"; --set data.block_size={max(1, whole // 100)} makes smaller ones"
    return f"{asked:g}, but {rows} of {whole} images: a fraction takes whole blocks of {plan.data.block_rows}{smaller}"


def _shards(plan: Plan) -> str:
    size = f": {_mib(plan.data.bytes)} at most" if plan.data.bytes else ""
    return f"each of {plan.data.shard.of} machines reads its own part of the images{size}"


def _packed(plan: Plan) -> str:
    data = plan.data
    loss = "nothing is lost" if data.packed == "lossless" else "lossy: another data set than the original"
    if data.packed_bytes is None:
        return f"packed as {data.packed} ({loss}), before a machine is requested"
    return f"packed as {data.packed} ({loss}): {_mib(data.packed_bytes)} instead of {_mib(data.bytes)}"


def _bytes(count: int) -> str:
    return _mib(count) if count >= 1 << 20 else plural(count, "byte")


def _mib(count: int) -> str:
    return f"{count / (1 << 20):,.1f} MiB"


def _processes(plan: Plan) -> str:
    several = f"on each of {plan.nodes} machines " if plan.nodes > 1 else ""
    if plan.processes is None:
        return f"{several}one a GPU, or two without"
    return f"{several}{plan.processes}, each with {plural(int(plan.env['OMP_NUM_THREADS']), 'thread')}"


def compared_rows(parts: Sequence[Compared]) -> list[tuple[str, ...]]:
    """One row per phase of a run: name, time expected and taken, dollars expected and taken."""
    return [
        (each.name, duration(each.expected_s), duration(each.taken_s), _usd(each.expected_usd), _usd(each.taken_usd))
        for each in parts
    ]


def _usd(dollars: float | None) -> str:
    return "-" if not dollars else f"${dollars:.3f}"

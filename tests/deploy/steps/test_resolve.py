"""What a request becomes before anything is started: each decision alone, and the app's small programs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

from deploy.errors import NoMachine, StepFailed, WrongUse, bootstrap_command
from deploy.pod.base.notify import WEBHOOK
from deploy.pod.base.redact import SHORTEST
from deploy.specs.facts import Facts
from deploy.specs.request import Request
from deploy.specs.settings import Settings, Ssh, Target
from deploy.specs.shards import Shard
from deploy.steps import resolve
from deploy.steps.resolve import Checked
from deploy.workspace import compression, sources
from deploy.workspace.sources import HERE, MACHINE, URL, Origin, UrlFiles, no_s3, parse
from tests.deploy.specs.test_plan import CONFIG, FACTS
from tests.deploy.support.rented import Rented

FAR = Origin(MACHINE, PurePosixPath("/x/images.npy"), None)
CHECKED = Checked(Request(), {**CONFIG, "data": {}}, True, FAR, None, None, None, ())


def settings(folder: Path, *, away: bool = True, **about: Any) -> Settings:
    """A target on this computer, or on a host of the user's."""
    if away:
        return Settings(folder, Target("far", "ssh", "/w", **{"options": Ssh(host="box"), **about}))
    return Settings(folder, Target("local", "local", "root", **about))


def test_a_queue_is_for_one_machine(tmp_path: Path) -> None:
    pair = settings(tmp_path, options=Ssh(hosts=("a", "b")))
    for nodes, queue in ((1, False), (1, True), (2, False)):
        resolve._check_nodes(pair, nodes, queue=queue)
    with pytest.raises(WrongUse, match="--queue is for runs on one machine: leave it out, or give --nodes 1"):
        resolve._check_nodes(pair, 2, queue=True)
    with pytest.raises(WrongUse, match="nodes 2"):
        resolve._check_nodes(settings(tmp_path), 2, queue=False)


class Without:
    """An importer that finds none of these packages."""

    def __init__(self, *names: str) -> None:
        self.names = names

    def __call__(self, name: str) -> object:
        return None if name in self.names else object()


@pytest.mark.parametrize(
    ("missing", "track", "sync_to", "words"),
    [
        (("wandb", "s3fs"), "none", None, None),
        (("wandb", "s3fs"), "none", "/copies", None),
        (("s3fs",), "wandb", None, None),
        (("wandb",), "none", "s3://a/b", None),
        (("wandb",), "wandb", None, "track=wandb needs the package wandb, which is not installed here"),
        (("s3fs",), "none", "s3://a/b", no_s3("sync_to: s3://a/b of conf/deploy/local.yaml").message),
    ],
)
def test_a_package_that_is_installed_on_request_only(
    tmp_path: Path, missing: tuple[str, ...], track: str, sync_to: str | None, words: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """It is needed on this computer alone: other machines have it in their environment."""
    monkeypatch.setattr(resolve, "find_spec", Without(*missing))
    resolve._refuse_missing_packages(settings(tmp_path, sync_to=sync_to), {"track": track})
    here = settings(tmp_path, away=False, sync_to=sync_to)
    if words is None:
        resolve._refuse_missing_packages(here, {"track": track})
    else:
        with pytest.raises(WrongUse) as error:
            resolve._refuse_missing_packages(here, {"track": track})
        assert str(error.value).startswith(words)


@pytest.mark.parametrize(
    ("value", "overrides", "env", "words"),
    [
        ("s" * SHORTEST, ["a=1", f"x.y=a{'s' * SHORTEST}b"], [], "--set x.y holds the value of OWN"),
        ("s" * SHORTEST, [], ["B=1", f"A={'s' * SHORTEST}"], "--env A holds the value of OWN"),
        ("s" * (SHORTEST - 1), ["x=" + "s" * SHORTEST], [], None),  # such a word is in many texts
        ("s" * SHORTEST, ["x=" + "s" * (SHORTEST - 1)], ["A=1"], None),
    ],
)
def test_no_secret_is_typed(
    tmp_path: Path, value: str, overrides: list[str], env: list[str], words: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTHER", "o" * SHORTEST)
    monkeypatch.setenv("OWN", value)
    where = settings(tmp_path, secrets=("OTHER", "OWN"))
    if words is None:
        resolve._refuse_secrets(where, overrides=overrides, env=env)
    else:
        with pytest.raises(WrongUse, match=words):
            resolve._refuse_secrets(where, overrides=overrides, env=env)


GIVEN = Origin(URL, PurePosixPath("x"), UrlFiles())


@pytest.mark.parametrize(
    ("away", "origin", "configured", "where", "path", "is_tryout"),
    [
        (False, GIVEN, "faces.npy", URL, "x", False),
        (False, None, "faces.npy", HERE, "{}/faces.npy", False),
        (True, None, "faces.npy", HERE, "{}/faces.npy", False),
        (True, None, "/faces.npy", MACHINE, "/faces.npy", False),
        (False, None, "{}/x/faces.npy", HERE, "{}/x/faces.npy", False),
        (False, None, None, HERE, "{}/data/orl/images.npy", True),
        (True, None, None, MACHINE, "/w/data/orl/images.npy", True),
        (True, GIVEN, None, URL, "x", False),
    ],
)
def test_where_the_images_are(
    tmp_path: Path, away: bool, origin: Origin | None, configured: str | None, where: str, path: str, is_tryout: bool
) -> None:
    """What was given, else what is configured, else the photographs of the try-out."""
    config = {"data": {"binary_cache_path": configured and configured.format(tmp_path.as_posix())}}
    found, told = sources.configured(settings(tmp_path, away=away), origin, config)
    assert (found.where, str(found.path).replace("\\", "/"), told) == (
        where,
        path.format(tmp_path.as_posix()),
        is_tryout,
    )


LAPTOP = Origin(HERE, Path("images.npy"), None)
SERVED = parse("https://host/images.npy?signature=x", Path(), local=False)


@pytest.mark.parametrize(
    ("given", "by_file", "again", "origin", "away", "encoded", "kind", "note"),
    [
        (None, None, False, LAPTOP, True, False, "none", None),
        (None, "jpeg95", False, LAPTOP, True, False, "jpeg95", None),
        ("lossless", "jpeg95", False, LAPTOP, True, False, "lossless", None),
        ("none", "jpeg95", False, LAPTOP, True, False, "none", None),
        (None, "jpeg95", True, LAPTOP, True, False, "none", None),  # as it was before
        (None, "jpeg95", False, LAPTOP, True, True, "none", "pack: jpeg95 of conf/deploy/far.yaml is for pixels"),
        (None, "jpeg95", False, LAPTOP, False, False, "none", "these stay here: not packed"),
        (None, "jpeg95", False, FAR, True, False, "none", "these are on the machine: not packed"),
        (None, "jpeg95", False, SERVED, True, False, "none", "these are at https://host/images.npy"),
        ("jpeg95", None, False, LAPTOP, True, True, WrongUse, "--pack jpeg95 is for pixels"),
        ("jpeg95", None, False, LAPTOP, False, False, WrongUse, "these stay here: leave it out"),
        ("jpeg95", None, False, FAR, True, False, WrongUse, "these are on the machine: leave it out"),
        ("none", None, False, FAR, True, True, "none", None),
    ],
)
def test_how_images_are_packed(
    tmp_path: Path, given: str | None, by_file: str | None, again: bool, origin: Origin, away: bool, encoded: bool,
    kind: Any, note: str | None, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """The flag decides, or else the target's file. A flag in vain is refused; a key in vain is told."""
    monkeypatch.setattr("deploy.workspace.compression.NEEDED", {})
    where = settings(tmp_path, away=away, pack=by_file)
    typed = given or ("none" if again else None)  # a continued run keeps its earlier way
    if kind is WrongUse:
        with pytest.raises(WrongUse, match=note):
            compression.chosen_kind(where, typed, origin, encoded=encoded)
        return
    told, words = compression.chosen_kind(where, typed, origin, encoded=encoded)
    assert told == kind
    assert (words is None) if note is None else (note in str(words) and "signature" not in str(words))


def test_pixels_are_meant_unless_image_files_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deploy.workspace.compression.NEEDED", {"no_such_module": "pillow"})
    with pytest.raises(WrongUse, match="--pack jpeg95 needs pillow, not installed here"):
        compression.chosen_kind(settings(tmp_path, pack="jpeg95"), None, LAPTOP)


def test_which_secrets_the_plan_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the job, of the guard's copies and the webhook. A job of this computer inherits its environment."""
    for name in ("OWN", "WANDB_API_KEY", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "x")
    monkeypatch.delenv("AWS_SESSION_TOKEN", raising=False)
    about: dict[str, Any] = {"secrets": ("OWN",), "notify": "https://host/x"}
    tracked = replace(CHECKED, config={**CHECKED.config, "track": "wandb"})
    assert resolve.job_secrets(settings(tmp_path, **about), tracked) == {"OWN": "x", "WANDB_API_KEY": "x"}
    assert resolve.job_secrets(settings(tmp_path, **about), CHECKED) == {"OWN": "x"}
    assert resolve.job_secrets(settings(tmp_path, away=False, **about), tracked) == {}
    assert resolve._secret_names(settings(tmp_path, **about), tracked) == tuple(
        sorted(("OWN", WEBHOOK, "WANDB_API_KEY"))
    )
    assert resolve._secret_names(settings(tmp_path, away=False, **about), tracked) == ()
    s3 = replace(CHECKED, images=parse("s3://bucket/images.npy", tmp_path, local=False))
    assert set(resolve.job_secrets(settings(tmp_path), s3)) == {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}


def test_a_provider_that_does_not_answer_is_not_known() -> None:
    def silent() -> str:
        raise NoMachine("no key")

    def broken() -> str:
        raise KeyError("a fault of ours")

    assert resolve._known(lambda: "a") == "a"
    assert resolve._known(silent) is None
    with pytest.raises(KeyError):
        resolve._known(broken)


def test_facts_of_data_that_nobody_has_read_yet(tmp_path: Path) -> None:
    """Of the try-out its size is known; of images on a machine only the place."""
    orl = resolve._data_facts(settings(tmp_path), replace(CHECKED, request=Request(fraction=0.5, labels="/l.npy")))
    whole = resolve._data_facts(settings(tmp_path), CHECKED)
    assert (orl.name, orl.ready, orl.train_labels, orl.rows) == ("orl", False, "/l.npy", whole.rows)
    assert 0 < orl.train_rows < whole.train_rows
    unseen = resolve._data_facts(settings(tmp_path), replace(CHECKED, tryout=False))
    assert (unseen.path, unseen.rows, unseen.where, unseen.shard.of) == ("/x/images.npy", 0, MACHINE, 1)
    by_node = replace(CHECKED, config={**CHECKED.config, "data": {"shards": "by_node"}})
    for checked in (by_node, replace(by_node, tryout=False)):
        for nodes, told in ((None, 3), (2, 2)):
            asked = replace(checked, request=Request(nodes=nodes))
            assert resolve._data_facts(settings(tmp_path, nodes=3), asked).shard == Shard(0, told)


def measured(rented: Rented, run_id: str, **plan: Any) -> None:
    """A run that succeeded and was measured, with phases."""
    rented.record(run_id, seconds=60.0, phases={"code": 1.0})
    rented.plan(run_id, recipe="self_supervised", backbone=CONFIG["backbone"], **plan)
    lines = '{"event": "start", "step": 10, "steps_per_epoch": 5, "train_rows": 100}\n'
    lines += '{"event": "end", "step": 20, "seconds": 50.0}\n'
    (rented.settings.runs / run_id / "metrics.jsonl").write_text(lines, encoding="utf-8")


def test_the_next_request_of_a_command_counts_its_earlier_runs(tmp_path: Path) -> None:
    """Unless facts of a like request were just looked up. What was decided about the code and the machine stays."""
    rented = Rented(tmp_path)
    measured(rented, "a")
    measured(rented, "b", nodes=2)
    rented.record("c", phases=None)
    told = replace(FACTS, usd_per_hour=3.0)
    again = resolve.gather_again(rented.settings, CHECKED, told)
    assert (len(again.measured), again.phases, again.usd_per_hour) == (1, [{"code": 1.0}] * 2, 3.0)
    assert again.config is CHECKED.config
    assert again.token != told.token
    assert len(again.token) == 4
    assert again.data.name == "orl"
    pair = replace(CHECKED, request=Request(nodes=2))
    assert len(resolve.gather_again(rented.settings, pair, told).measured) == 1
    assert len(resolve.gather_again(rented.settings, replace(CHECKED, request=Request(nodes=3)), told).measured) == 0
    like: Facts = replace(FACTS, measured=(), phases=[{"data": 2.0}])
    assert resolve.gather_again(rented.settings, CHECKED, told, like).phases == [{"data": 2.0}]
    assert resolve.gather_again(rented.settings, CHECKED, told, like).measured == ()


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """A project whose app does what its argument says."""
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "__init__.py").write_text("", encoding="utf-8")
    (tmp_path / "app" / "does.py").write_text(
        "import sys\nword = sys.argv[1]\n"
        "if word == 'echo': print(sys.stdin.read(), sys.flags.utf8_mode)\n"
        "elif word == 'import': import no_such_module\n"
        "else: print('one', 'two', sep='\\n', file=sys.stderr); sys.exit(int(word))\n",
        encoding="utf-8",
    )
    return tmp_path


def test_the_apps_programs_answer_or_say_why_not(program: Path) -> None:
    assert resolve.app(program, "app.does", ["echo"], stdin="grüße".encode()).split() == ["grüße", "1"]
    with pytest.raises(WrongUse) as wrong:
        resolve.app(program, "app.does", ["2"])
    assert str(wrong.value) == "one two"
    with pytest.raises(StepFailed, match=r"python -m app\.does failed with exit code 3") as failed:
        resolve.app(program, "app.does", ["3"])
    assert (failed.value.evidence, failed.value.next_command) == (("one", "two"), None)
    with pytest.raises(StepFailed) as missing:
        resolve.app(program, "app.does", ["import"])
    assert missing.value.next_command == bootstrap_command()

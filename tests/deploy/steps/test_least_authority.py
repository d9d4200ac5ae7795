"""A machine receives only the secrets that its run needs."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy.errors import WrongUse
from deploy.runs import watchdog
from deploy.specs.settings import Settings, load
from deploy.steps.code_check import check_code
from tests.deploy.conftest import Project, git

ALL = {
    "WANDB_API_KEY": "wandb-value",
    "AWS_ACCESS_KEY_ID": "access-value",
    "AWS_SECRET_ACCESS_KEY": "secret-value",
    "RUNPOD_API_KEY": "account-value",
    "MY_TOKEN": "token-value",
}
S3 = ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"]
PROJECT = Path(watchdog.__file__).parents[2]


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ALL.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_SESSION_TOKEN", raising=False)


def target(folder: Path, *lines: str, provider: str = "runpod") -> Settings:
    needs = {"runpod": "gpus: [a]\nimage: me/x\n", "ssh": "host: box\n", "docker": "", "local": ""}[provider]
    file = folder / "conf" / "deploy" / "there.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join([f"provider: {provider}", "root: /w", needs, *lines]))
    return load(folder, "there", {})


@pytest.mark.parametrize("name", ["runpod", "ssh", "docker"])
def test_a_target_as_shipped_gives_nothing(name: str) -> None:
    settings = load(PROJECT, name, {})
    assert watchdog.own_secrets(settings) == {}
    assert watchdog.job_secrets(settings, track="none", data="machine:/x") == {}


def test_a_secret_of_a_file_with_line_ends_of_windows_is_clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`set -a; . ./.env` keeps the CR, and the job would fail with such a key on a machine that costs money."""
    monkeypatch.setenv("MY_TOKEN", "token-value\r")
    monkeypatch.setenv("WANDB_API_KEY", "\r")
    told = watchdog.job_secrets(target(tmp_path, "secrets: [MY_TOKEN]"), track="wandb", data="/x")
    assert told == {"MY_TOKEN": "token-value"}


@pytest.mark.parametrize(
    ("lines", "track", "data", "job", "keeper"),
    [
        ([], "none", "/x", [], []),
        ([], "wandb", "/x", ["WANDB_API_KEY"], []),
        ([], "none", "s3://faces/images.npy", S3, []),
        (["sync_to: s3://faces/keep"], "none", "/x", [], S3),
        (["sync_to: /workspace/keep"], "none", "https://host/s3://x", [], []),
        (["secrets: [MY_TOKEN]"], "none", "/x", ["MY_TOKEN"], ["MY_TOKEN"]),
        (["secrets: [NOT_SET]"], "wandb", "s3://a", [*S3, "WANDB_API_KEY"], []),
    ],
)
def test_secrets_go_by_need(
    tmp_path: Path, lines: list[str], track: str, data: str, job: list[str], keeper: list[str]
) -> None:
    settings = target(tmp_path, *lines)
    assert sorted(watchdog.job_secrets(settings, track=track, data=data)) == job
    assert sorted(watchdog.own_secrets(settings)) == keeper


@pytest.mark.parametrize(
    ("provider", "lines", "rented"),
    [
        ("runpod", [], True),
        ("ssh", [], False),
        ("docker", [], False),
        ("local", [], False),
        ("ssh", ["trust: rented"], True),
        ("runpod", ["trust: own"], False),
    ],
)
def test_whose_machine_it_is(tmp_path: Path, provider: str, lines: list[str], rented: bool) -> None:
    assert target(tmp_path, *lines, provider=provider).is_rented is rented


def test_a_wrong_trust_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WrongUse, match=r"trust .*'mine'.* own, rented"):
        target(tmp_path, "trust: mine")


def test_a_rented_machine_gets_no_tracked_credential(tmp_path: Path) -> None:
    git(tmp_path, "init", "--quiet")
    (tmp_path / "test.pem").write_text("x\n")
    git(tmp_path, "add", "test.pem")
    assert check_code(target(tmp_path, "trust: own")) == ("test.pem",)
    with pytest.raises(WrongUse, match=r"test\.pem .*rented machine.*allow_files: \[test\.pem\]"):
        check_code(target(tmp_path))
    assert check_code(target(tmp_path, "allow_files: [test.pem]")) == ()


def test_the_plan_names_what_travels(project: Project) -> None:
    """The real command names the secrets before a machine is requested, and never shows their values."""
    file = project.path / "conf" / "deploy" / "there.yaml"
    file.write_text("provider: runpod\nroot: /w\ngpus: [a]\nimage: me/x\nsync_to: s3://faces/keep\n")
    shown = project.invoke("train", "--on", "there", "--dry-run").stdout
    assert "a rented machine receives AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY\n" in shown
    assert not any(value in shown for value in ALL.values())


def test_compose_passes_no_secret_on() -> None:
    text = (PROJECT / "compose.yaml").read_text(encoding="utf-8")
    assert not [name for name in ALL if name in text]

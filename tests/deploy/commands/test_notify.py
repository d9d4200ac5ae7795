"""`notify` and `notify_command`, as a user sets them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from deploy.errors import WrongUse
from deploy.specs.settings import load
from tests.deploy.conftest import Project, wait_until
from tests.deploy.pod.test_notify import SECRET, Hook
from tests.deploy.pod.test_notify import hooks as hooks
from tests.support.files import contents


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "conf" / "deploy" / "box.yaml"
    path.parent.mkdir(parents=True)
    path.write_text("provider: local\nroot: .sniperface/box\n", encoding="utf-8")
    return tmp_path


def test_a_persons_settings_hold_for_all_targets_and_a_target_wins(folder: Path) -> None:
    home = {"XDG_CONFIG_HOME": str(folder / "config"), "APPDATA": str(folder / "config")}
    own = folder / "config" / "sniperface" / "settings.yaml"
    assert load(folder, "box", home).target.notify is None
    own.parent.mkdir(parents=True)
    own.write_text(f"notify: https://hooks.example.org/{SECRET}\nnotify_pct: 90\n", encoding="utf-8")
    target = load(folder, "box", home).target
    assert (target.notify, target.notify_pct) == (f"https://hooks.example.org/{SECRET}", 90.0)
    (folder / "conf" / "deploy" / "box.yaml").write_text(
        "provider: local\nroot: .sniperface/box\nnotify_pct: 50\n", encoding="utf-8"
    )
    assert load(folder, "box", home).target.notify_pct == 50.0
    assert (
        load(folder, "box", {**home, "SNIPERFACE_NOTIFY": "http://localhost/x"}).target.notify == "http://localhost/x"
    )
    own.write_text("notifi: x\n", encoding="utf-8")
    with pytest.raises(WrongUse, match=r"unknown key in .*settings\.yaml 'notifi': did you mean 'notify'"):
        load(folder, "box", home)


def test_an_address_that_may_leak_is_refused_without_being_shown(folder: Path) -> None:
    file, lines = folder / "conf" / "deploy" / "box.yaml", "provider: local\nroot: .sniperface/box\n"
    file.write_text(f"{lines}notify_pct: 101\n", encoding="utf-8")
    with pytest.raises(WrongUse, match="must be a percentage up to 100"):
        load(folder, "box", {})
    file.write_text(f"{lines}notify: https://hooks.example.org/{SECRET}\n", encoding="utf-8")
    with pytest.raises(WrongUse, match="is a secret in a file that git tracks: move it to") as tracked:
        load(folder, "box", {})
    file.write_text(lines, encoding="utf-8")
    with pytest.raises(WrongUse, match="does not begin with https://") as plain:
        load(folder, "box", {"SNIPERFACE_NOTIFY": f"http://hooks.example.org/{SECRET}"})
    assert SECRET not in f"{tracked.value} {plain.value}"


NO_ADDRESS = "is not a webhook, it is no address: give the https address of a webhook, or http to this machine"
NO_HTTPS = "is not a webhook, it does not begin with https://: give the https address"
PERCENT = "notify_pct in conf/deploy/box.local.yaml must be a number above 0, such as 1.5, not"
# A line of a target's file -> what its message says: the key, and a value that works.
WRONG = {
    f"notify: {SECRET}": NO_ADDRESS,
    "notify: 5": NO_ADDRESS,
    "notify: true": NO_ADDRESS,
    f"notify: hooks.example.org/{SECRET}": NO_ADDRESS,
    "notify: https://": NO_ADDRESS,
    f"notify: 'https://hooks.example.org/{SECRET} x'": NO_ADDRESS,
    f'notify: "https://hooks.example.org/{SECRET}\\e[2J"': NO_ADDRESS,
    f"notify: https://hooks.example.org:99999/{SECRET}": NO_ADDRESS,
    f"notify: 'https://[::1/{SECRET}'": NO_ADDRESS,
    f"notify: ftp://hooks.example.org/{SECRET}": NO_HTTPS,
    f"notify: http://hooks.example.org/{SECRET}": NO_HTTPS,
    f"notify: [https://hooks.example.org/{SECRET}]": "notify in conf/deploy/box.local.yaml must be one text",
    f"notify: {{url: https://hooks.example.org/{SECRET}}}": "notify in conf/deploy/box.local.yaml must be one text",
    f"notify_command: [echo, {SECRET}]": "notify_command in conf/deploy/box.local.yaml must be one text",
    'notify_command: "echo \\0"': "notify_command in conf/deploy/box.local.yaml has a NUL character",
    "notify_pct: 0": PERCENT,
    "notify_pct: -5": PERCENT,
    "notify_pct: 101": "notify_pct in conf/deploy/box.local.yaml must be a percentage up to 100, such as 80",
    "notify_pct: .nan": PERCENT,
    "notify_pct: 80%": PERCENT,
    "notify_pct: true": PERCENT,
    "notify_pct: [80]": PERCENT,
    "notify_pct:": PERCENT,
    "notifi: x": "unknown key in conf/deploy/box.local.yaml 'notifi': did you mean 'notify'",
}


@pytest.mark.parametrize("line", WRONG)
def test_a_wrong_notify_is_one_sentence_without_the_secret(folder: Path, line: str) -> None:
    file = folder / "conf" / "deploy" / "box.local.yaml"
    (folder / "conf" / "deploy" / "box.yaml").unlink()
    file.write_text(f"provider: local\nroot: .sniperface/box\n{line}\n", encoding="utf-8")
    with pytest.raises(WrongUse) as wrong:
        load(folder, "box", {"XDG_CONFIG_HOME": str(folder / "config"), "APPDATA": str(folder / "config")})
    assert WRONG[line] in wrong.value.message
    assert wrong.value.exit_code == 2
    assert SECRET not in wrong.value.message
    assert "\n" not in wrong.value.message


def test_a_wrong_notify_ends_train_before_anything_is_written(project: Project) -> None:
    project.env["SNIPERFACE_NOTIFY"] = f"http://hooks.example.org/{SECRET}"
    told = project.invoke("train", code=2).stderr
    assert NO_HTTPS in told
    assert SECRET not in told
    assert not (project.path / "runs").exists()


def test_a_run_tells_the_webhook_and_the_laptops_command(project: Project, hooks: Callable[..., Hook]) -> None:
    hook = hooks()
    said = project.path.parent / "said"
    project.env |= {
        "SNIPERFACE_NOTIFY": hook.url,
        "SNIPERFACE_NOTIFY_COMMAND": f"printf %s \"$SNIPERFACE_TEXT\" > '{said}'; exit 3",
    }
    done = project.invoke("train")
    assert "notify_command failed: " in done.stderr
    wait_until(lambda: hook.texts)
    run_id = hook.texts[0].split()[1]
    assert hook.texts[0].startswith(f"run {run_id} succeeded on local: accuracy ")
    assert said.read_text(encoding="utf-8") == f"run {run_id} succeeded"
    assert SECRET not in done.stdout + done.stderr
    for file, content in contents(project.path):
        assert SECRET.encode() not in content, file

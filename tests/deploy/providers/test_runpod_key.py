"""The API key is found, or refused with a reason. It appears in no error, log, file or process list."""

from __future__ import annotations

import logging
import subprocess
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deploy.errors import WrongUse
from deploy.providers.runpod import key
from tests.support.emulators.rig import Rig
from tests.support.emulators.runpod import KEY
from tests.support.load import under_load

PROJECT = Path(__file__).parents[3]


@pytest.fixture
def boot_s() -> float:
    return 10


def config(home: Path, text: str) -> None:
    (home / ".runpod").mkdir()
    (home / ".runpod" / "config.toml").write_text(text, encoding="utf-8")


def test_it_comes_from_the_file_of_runpods_own_package(both: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RUNPOD_API_KEY")
    config(both.project, f'[default]\napi_key = "{KEY}"\n')
    assert both.acquire().id == "pod0001"


def test_the_file_is_the_one_that_the_package_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """RunPod's package writes the file, in a separate process with another home folder."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    write = "from runpod import set_credentials; set_credentials('abc')"
    subprocess.run([sys.executable, "-c", write], check=True, timeout=under_load(60))
    assert key.load({}).reveal() == "abc"


def test_the_variable_is_stronger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    config(tmp_path, '[default]\napi_key = "of the file"\n')
    assert key.load({"RUNPOD_API_KEY": " of-the-variable\r\n"}).reveal() == "of-the-variable"


@pytest.mark.parametrize(
    ("variable", "text", "words"),
    [
        ("", None, "neither RUNPOD_API_KEY nor"),
        ("", "", "neither RUNPOD_API_KEY nor"),
        ("", "[other]\napi_key = 'x'", "neither RUNPOD_API_KEY nor"),
        ("", "default = 3", "neither RUNPOD_API_KEY nor"),
        ("", "[default]\napi_key = s3cret-not-quoted", "cannot be read as TOML"),
        ("s3cret\nkey", None, "spaces or characters invalid in a key"),
        ("s3crét", None, "spaces or characters invalid in a key"),
        ("", "[default]\napi_key = 's3cret key'", "spaces or characters invalid in a key"),
    ],
)
def test_without_a_usable_one_it_says_what_to_do(
    variable: str, text: str | None, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    if text is not None:
        config(tmp_path, text)
    with pytest.raises(WrongUse, match=words) as caught:
        key.load({"RUNPOD_API_KEY": variable})
    assert "s3cr" not in str(caught.value)
    assert list(causes(caught.value.__context__)) == []
    assert "console.runpod.io" in (caught.value.next_command or "")


def test_a_provider_can_be_made_without_a_key(both: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan needs none."""
    monkeypatch.delenv("RUNPOD_API_KEY")
    both.provider()


FAULTS: list[dict[str, Any]] = [
    {},
    {"fail": ("502", 3)},
    {"fail": ("cut", 3)},
    {"fail": ("429", 2)},
    {"fail": ("cut", 999)},
    {"fail": ("502", 999)},
    {"refuse": (400, f"no room for Bearer {KEY}")},
    {"refuse": (402, f"balance of {KEY} too low")},
    {"refuse": (422, f"Syntax Error near {KEY}")},
    {"keys": {"other"}},
    {"url": "http://127.0.0.1:1"},
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: "-".join(map(str, fault)) or "none")
def test_it_is_seen_nowhere(
    both: Rig,
    fault: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """With any fault the key is in no message, no traceback or its causes, no log of any level, no repr and no file."""
    caplog.set_level(logging.DEBUG)
    seen: list[str] = []
    if "fail" in fault:
        both.emulator.fail(fault["fail"][0], times=fault["fail"][1], retry_after_s=1)
    if "refuse" in fault:
        both.emulator.refuse(*fault["refuse"], 9)
    if "keys" in fault:
        both.emulator.keys = fault["keys"]
    if "url" in fault:
        monkeypatch.setenv("RUNPOD_API_BASE_URL", fault["url"])
    provider = both.provider()
    for verb in (
        lambda: provider.acquire(both.spec()),
        lambda: provider.find(both.spec().name),
        provider.list,
        lambda: provider.release(provider.find(both.spec().name) or provider.list()[0]),
    ):
        try:
            seen.append(repr(verb()))
        except Exception as error:
            told = (error, getattr(error, "evidence", ()), getattr(error, "next_command", ""), *causes(error))
            seen += [repr(told), str(error), "".join(traceback.format_exception(error))]
    seen += [repr(vars(provider)), repr(vars(provider._api)), *both.said, caplog.text, *capfd.readouterr()]
    seen += [path.read_text(errors="replace") for path in both.project.rglob("*") if path.is_file()]
    assert not any(KEY in text for text in seen), next(text for text in seen if KEY in text)


def causes(error: BaseException | None) -> Iterator[str]:
    while error is not None:
        yield repr(error) + repr(error.args) + repr(vars(error))
        error = error.__cause__ or error.__context__


def test_netrc_does_not_replace_it(v2: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library would replace an Authorization header with the login in .netrc."""
    netrc = tmp_path / ".netrc"
    netrc.write_text("default login other password wrong\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    assert v2.acquire().id == "pod0001"


def test_no_process_gets_it_in_its_arguments(both: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[object] = []
    popen = subprocess.Popen.__init__

    def noted(self: Any, *args: Any, **kwargs: Any) -> None:
        started.append(args[:1])
        popen(self, *args, **kwargs)

    monkeypatch.setattr(subprocess.Popen, "__init__", noted)
    both.provider().release(both.acquire())
    assert KEY not in repr(started)


def test_nothing_of_runpod_is_loaded_before_it_is_chosen() -> None:
    script = (
        "import sys, deploy.commands.train, deploy.providers; "
        "found = {'requests', 'runpod', 'tomli', 'deploy.providers.runpod'} & set(sys.modules); "
        "sys.exit(f'loaded: {found}' if found else 0)"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=PROJECT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

"""Targets: where their values come from, and the errors for wrong ones."""

from __future__ import annotations

import dataclasses
import inspect
from pathlib import Path

import pytest

from deploy.errors import WrongUse
from deploy.providers import PROVIDERS
from deploy.specs.options import load_class
from deploy.specs.provider import Provider
from deploy.specs.settings import CHOICES, OPTIONS, RunPod, Ssh, Target, load, parse


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "conf" / "deploy").mkdir(parents=True)
    (tmp_path / "conf" / "deploy" / "local.yaml").write_text("provider: local\nroot: here\nprocesses: auto\n")
    return tmp_path


def test_the_file_gives_the_values(folder: Path) -> None:
    """A key that the file leaves out has its default."""
    settings = load(folder, "local", {})
    assert settings.target == Target("local", "local", "here")
    assert settings.root == folder / "here"
    assert settings.tmux_socket == "sniperface"


def test_the_environment_wins_over_the_file(folder: Path) -> None:
    """Each of these keys has a variable."""
    environment = {
        "SNIPERFACE_ROOT": "/there",
        "SNIPERFACE_DATA": "d/images.npy",
        "SNIPERFACE_STAGE_TO": "/dev/shm",
        "SNIPERFACE_PROCESSES": "3",
        "SNIPERFACE_TMUX_SOCKET": "mine",
    }
    settings = load(folder, "local", environment)
    assert settings.target == Target("local", "local", "/there", "d/images.npy", "/dev/shm", 3)
    assert settings.tmux_socket == "mine"


def test_each_provider_has_keys_of_its_own(folder: Path) -> None:
    """Lists come from the file or, separated by commas, from the environment. Paths stay as written."""
    (folder / "conf" / "deploy" / "box.yaml").write_text(
        "provider: ssh\nroot: ~/faces\nhost: box\nport: 2222\nkey: C:\\Users\\me\\id\n"
    )
    target = load(folder, "box", {"SNIPERFACE_USER": "me"}).target
    assert target.options == Ssh(host="box", port=2222, user="me", key="C:\\Users\\me\\id")
    (folder / "conf" / "deploy" / "pod.yaml").write_text("provider: runpod\nroot: /w\nimage: me/x\ngpus: [a b]\n")
    settings = load(
        folder, "pod", {"SNIPERFACE_DATA_CENTERS": "EU-RO-1, US-KS-2", "SNIPERFACE_MAX_USD_PER_HOUR": "0.5"}
    )
    expected = RunPod(gpus=("a b",), image="me/x", data_centers=("EU-RO-1", "US-KS-2"), max_usd_per_hour=0.5)
    assert settings.target.options == expected
    assert str(settings.root) == "/w"


@pytest.mark.parametrize(
    ("target", "text", "words"),
    [
        ("locl", None, ["locl", "did you mean 'local'", "local"]),
        ("cloud", None, ["cloud", "local"]),
        ("local", "provider: local\nroot: x\nstageto: y\n", ["stageto", "did you mean 'stage_to'", "provider"]),
        ("local", "root: x\n", ["provider"]),
        ("local", "provider: local\nroot: x\nprocesses: many\n", ["processes", "auto", "2"]),
        ("local", "provider: local\nroot: x\nprocesses: 0\n", ["processes", "auto", "2"]),
        ("local", "provider: [\n", ["conf/deploy/local.yaml"]),
        ("local", "- a\n", ["conf/deploy/local.yaml"]),
        ("local", "provider: lokal\nroot: x\n", ["lokal", "did you mean 'local'", "runpod"]),
        ("local", "provider: local\nroot: x\nhost: y\n", ["host", "stage_to"]),
        ("local", "provider: ssh\nroot: ~/x\n", ["'host'", "host: gpu-box"]),
        ("local", "provider: ssh\nroot: x\nhost: y\n", ["root", "/workspace/sniperface"]),
        ("local", "provider: ssh\nroot: ~/x\nhost: y\nport: 22x\n", ["port", "22"]),
        ("local", "provider: ssh\nroot: ~/x\nhost: y\nport: true\n", ["port", "22"]),
        ("local", "provider: docker\nroot: /x\nshm_gib: 0\n", ["shm_gib", "1.5"]),
        ("local", "provider: runpod\nroot: /x\nimage: me/x\n", ["'gpus'", "A4500"]),
        ("local", "provider: runpod\nroot: /x\nimage: me/x\ngpus: [a]\napi: v3\n", ["v3", "v2", "sdk"]),
    ],
)
def test_a_wrong_name_or_value_is_answered_with_right_ones(
    folder: Path, target: str, text: str | None, words: list[str]
) -> None:
    """The error is one sentence, with exit code 2."""
    if text is not None:
        (folder / "conf" / "deploy" / "local.yaml").write_text(text)
    with pytest.raises(WrongUse) as caught:
        load(folder, target, {})
    assert [word for word in words if word not in caught.value.message] == []
    assert "\n" not in caught.value.message
    assert caught.value.exit_code == 2


def test_each_provider_keeps_the_whole_contract() -> None:
    """No type check sees it: providers are loaded by name."""
    methods = {name: method for name, method in vars(Provider).items() if inspect.isfunction(method) and name[0] != "_"}
    assert Provider.__abstractmethods__ == {"acquire", "find", "list", "price", "release"}, "what costs has no default"
    for kind in OPTIONS.values():
        provider = load_class(kind.provider)
        assert not inspect.isabstract(provider)
        for name, method in methods.items():
            own = inspect.signature(getattr(provider, name)).parameters
            needed = [each for each, about in own.items() if about.default is about.empty]
            assert needed == list(inspect.signature(method).parameters), f"{kind.provider}.{name}"


def test_each_provider_has_settings_and_each_settings_a_provider() -> None:
    assert set(OPTIONS) == set(PROVIDERS)
    for key, values in CHOICES.items():
        for kind in (Target, *OPTIONS.values()):
            default = next((each.default for each in dataclasses.fields(kind) if each.name == key), values[0])
            assert default == values[0], key


@pytest.mark.parametrize(("text", "value"), [("true", True), ("False", False), ("maybe", None), ("1", None)])
def test_a_key_may_be_true_or_false(tmp_path: Path, text: str, value: bool | None) -> None:
    told = {"provider": "runpod", "root": "/r", "gpus": ["NVIDIA A40"], "spot": text}
    if value is None:
        with pytest.raises(WrongUse, match=f"spot in there must be true or false, not {text}"):
            parse(tmp_path, "far", told, "there", {})
        return
    assert parse(tmp_path, "far", told, "there", {}).target.options.is_preemptible is value


@pytest.mark.parametrize("name", ["runpod", "lambda"])
def test_what_a_command_says_about_renting_is_what_the_keys_would_say(name: str) -> None:
    """--gpus and --spot give the same target as the variables of the keys that they stand for."""
    project = Path(__file__).parents[3]
    options = load(project, name, {}).target.options
    said = {"gpus": ("NVIDIA A40", "NVIDIA L4"), "gpu_count": 2, "spot": True}
    said = {word: value for word, value in said.items() if word in options.renting}
    words = {"gpus": "NVIDIA A40,NVIDIA L4", "gpu_count": "2", "spot": "true"}
    variables = {f"SNIPERFACE_{key.upper()}": words[word] for word, key in options.renting.items()}
    renting = options.renting_as(said)
    assert renting == load(project, name, variables).target.options
    assert renting != options
    assert renting.rents == (("NVIDIA A40", "NVIDIA L4"), 2)
    assert options.renting_as({}) == options


@pytest.mark.parametrize(
    ("image", "is_name"),
    [
        ("me/sniperface", True),
        ("runpod/pytorch:1.0.2-cu1281-torch280-ubuntu2404", True),
        ("ghcr.io/a-b/c_d.e__f:1", True),
        ("host:5000/a/b:1", True),
        ("localhost/a", True),
        (f"quay.io/a/b@sha256:{'a1' * 32}", True),
        (f"a/b:tag@sha256:{'a1' * 32}", True),
        ('me/sniper"face', False),
        ("me/sniper\nface", False),
        ("me/sniperface\n", False),
        ("me/$X", False),
        ("Me/Face", False),
        ("me//x", False),
        ("me/x:bad tag", False),
        ("me/x:", False),
        ("a b", False),
        ("-x", False),
        ("/x", False),
        ("https://ghcr.io/a/b", False),
        ("me/größe", False),
        ("a/b@sha256:1", False),
    ],
)
def test_a_pods_image_has_a_name_that_a_registry_can_have(tmp_path: Path, image: str, is_name: bool) -> None:
    """A pod with another one would be paid for until its host had tried to pull it."""
    told = {"provider": "runpod", "root": "/r", "gpus": ["NVIDIA A40"], "image": image}
    if is_name:
        parse(tmp_path, "far", told, "there", {})
        return
    with pytest.raises(WrongUse, match="is not an image name: give one such as me/sniperface:1") as caught:
        parse(tmp_path, "far", told, "there", {})
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("gpus", "two", "gpus: two must be auto, none, all or a number, such as gpus: 2"),
        ("image", "a b", "image: 'a b' is not an image name: give one such as me/sniperface:1"),
    ],
)
def test_a_container_that_no_engine_can_make_is_refused_at_once(
    tmp_path: Path, key: str, value: str, sentence: str
) -> None:
    with pytest.raises(WrongUse) as refused:
        parse(tmp_path, "box", {"provider": "docker", "root": "/r", key: value}, "conf/deploy/box.yaml", {})
    assert refused.value.message == f"conf/deploy/box.yaml: {sentence}"


def test_a_host_that_cannot_be_one_is_refused_with_its_file(tmp_path: Path) -> None:
    told = {"provider": "ssh", "root": "/r", "host": "gpu box"}
    provider = PROVIDERS["ssh"](parse(tmp_path, "box", told, "conf/deploy/box.yaml", {}))
    with pytest.raises(WrongUse, match=r"^conf/deploy/box\.yaml: host 'gpu box' has .*: give one such as gpu-1"):
        provider.find("sniperface-x")


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("processes", "x", "processes in the environment variable SNIPERFACE_PROCESSES must be auto or a whole number"),
        ("provider", "lokal", "unknown provider in the environment variable SNIPERFACE_PROVIDER 'lokal'"),
        ("device", "gpu", "unknown device in the environment variable SNIPERFACE_DEVICE 'gpu': did you mean 'cpu'?"),
        ("pack", "png", "pack: in the environment variable SNIPERFACE_PACK: png is not a packing format"),
        ("notify", "ftp://x", "notify in the environment variable SNIPERFACE_NOTIFY is not a webhook"),
        ("notify_pct", "101", "notify_pct in the environment variable SNIPERFACE_NOTIFY_PCT must be a percentage"),
        ("port", "65536", "port in the environment variable SNIPERFACE_PORT must be a port up to 65535, such as 22"),
        ("root", "there", "root in the environment variable SNIPERFACE_ROOT must be an absolute path"),
    ],
)
def test_a_wrong_value_of_the_environment_names_its_variable(folder: Path, name: str, value: str, told: str) -> None:
    """The same value in the target's file names the file."""
    (folder / "conf" / "deploy" / "box.yaml").write_text("provider: ssh\nroot: ~/faces\nhost: box\n")
    variable = f"SNIPERFACE_{name.upper()}"
    with pytest.raises(WrongUse) as refused:
        load(folder, "box", {variable: value})
    assert refused.value.message.startswith(told)
    assert "box.yaml" not in refused.value.message
    values = {"provider": "ssh", "root": "~/faces", "host": "box", name: value}
    with pytest.raises(WrongUse, match=r"in box\.yaml") as refused:
        parse(folder, "box", values, "box.yaml", {})
    assert variable not in refused.value.message


def test_a_wrong_pair_of_values_names_the_file_and_the_variables(folder: Path) -> None:
    values = {"provider": "runpod", "root": "/w", "gpus": ["a"], "image": "me/x"}
    with pytest.raises(WrongUse, match=r"^pod\.yaml, changed by the environment's SNIPERFACE_IMAGE: image: ':'"):
        parse(folder, "pod", values, "pod.yaml", {"SNIPERFACE_IMAGE": ":"})

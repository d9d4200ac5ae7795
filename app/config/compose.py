"""Compose Hydra overrides into a checked Config.

Only Hydra's compose API is used, so no process of a distributed run creates Hydra's folders or logs.
"""

from __future__ import annotations

import codecs
import hashlib
import json
import os
import pickle
from collections.abc import Mapping, Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.config.checks import faults, nearest
from app.config.peers import in_our_words, refuse_habits
from app.config.schema import Config, defaults
from app.errors import WrongUse
from app.files import write_text

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

SAVED_BYTES = 128 << 10  # of a config.yaml
SAVED_VALUES = 5000  # in it; ours have some hundred, and OmegaConf takes minutes for hundreds of thousands
# What a key means that the config.yaml of an older version lacks, where this is not its default.
BEFORE = {"train": {"eval": {"validation": "none"}}}
HARMLESS = ("backbone.gradient_checkpointing",)  # changes time and memory, not the network's output
CONF = Path(__file__).parents[2] / "conf"
# Without hidden files: locks of an editor, and the ._NAME.yaml of macOS on a disk without extended attributes.
OURS = "[!.]*.yaml"
MARKS = (codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def groups() -> dict[str, list[str]]:
    """Config groups and their choices: backbone -> iresnet18, …  conf/deploy is left out; the laptop half reads it."""
    folders = sorted(path for path in CONF.iterdir() if path.is_dir() and path.name != "deploy")
    return {folder.name: sorted(path.stem for path in folder.glob(OURS)) for folder in folders}


def load(overrides: Sequence[str], *, base: Path | None = None) -> Config:
    """Compose conf/config.yaml and Hydra overrides into a checked Config. Raises WrongUse with one sentence.

    With `base`, a run's saved config.yaml, the overrides apply to that file instead. Groups and keys of the network
    cannot change then, except those in HARMLESS.
    """
    # Imported here so that processes that need only the dataclasses do not load Hydra.
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    overrides = [in_our_words(word) for word in overrides]
    known = groups()
    try:
        parsed = _known_overrides(overrides, known)
        composed = _composed([] if base else parsed, known)
        if base is not None:
            composed = OmegaConf.merge(OmegaConf.structured(Config), OmegaConf.create(BEFORE), _saved(base))
            for override in parsed:
                of_network = override.key_or_group.startswith("backbone.")
                if override.key_or_group in known or (of_network and override.key_or_group not in HARMLESS):
                    raise WrongUse(f"{override.input_line} cannot change what was trained; leave it out")
                OmegaConf.update(composed, override.key_or_group, override.value())
        config = OmegaConf.to_object(composed)
    except (HydraException, OmegaConfBaseException, YAMLError, UnicodeDecodeError) as error:
        raise WrongUse(_unreadable_file(error) or _one_sentence(error, overrides)) from error
    assert isinstance(config, Config)
    for fault in faults(config):
        is_saved = base is not None and not any(fault.startswith(word.partition("=")[0]) for word in overrides)
        raise WrongUse(f"{base}: {fault}" if is_saved else fault)
    return config


def _composed(overrides: Sequence[Override], known: Mapping[str, Any]) -> Any:
    """Compose conf/config.yaml and the overrides. `known` are the groups.

    Hydra reads and merges the files of the chosen groups once per process. The values are then set one after the
    other, as Hydra sets them. Words with `+`, `~` or a package are rare: Hydra composes everything for them.
    """
    from hydra.core.override_parser.types import OverrideType
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    plain = all(each.type is OverrideType.CHANGE and each.package is None for each in overrides)
    values = [each for each in overrides if plain and each.key_or_group not in known]
    words = tuple(each.input_line or "" for each in overrides if each not in values)
    composed = pickle.loads(_pickled(words, _fingerprint()))  # noqa: S301 - made by this process
    for each in values:
        try:
            OmegaConf.update(composed, each.key_or_group, each.value(), merge=True)
        except OmegaConfBaseException as error:  # names this word, not another one of the same key
            raise WrongUse(_one_sentence(error, [each.input_line or ""])) from error
    return composed


@lru_cache(maxsize=64)
def _pickled(words: Sequence[str], files: str) -> bytes:
    """Let Hydra compose the words. `files` is what conf/ contains now: an edited file is composed again."""
    from hydra import compose, initialize_config_dir

    del files
    _store_schema()
    with initialize_config_dir(str(CONF), version_base="1.3", job_name="sniperface"):
        return pickle.dumps(compose("config", list(words)))


def _fingerprint() -> str:
    """Hash the names and contents of all files that Hydra may read.

    On some systems two edits may leave the same time and size, so these are not enough.
    """
    found = hashlib.sha256()
    for path in sorted(CONF.rglob(OURS)):
        try:
            data = path.read_bytes()
        except OSError:  # such as an editor's lock, a link to no file; Hydra complains about those that it needs
            data = b""
        found.update(os.fsencode(path) + b"\0%d\0" % len(data) + data)
    return found.hexdigest()


def _unreadable_file(error: Exception) -> str:
    """Name a configuration file that an editor or PowerShell saved in a way that Hydra cannot read; "" without one.

    A byte order mark hides the first line, `# @package _global_`, so only a failed composition looks for it.
    """
    for path in sorted(CONF.rglob(OURS)):
        name, data = path.relative_to(CONF.parent).as_posix(), path.read_bytes()
        try:
            is_text = not data.startswith(MARKS) and "\0" not in data.decode("utf-8")
        except UnicodeDecodeError:
            is_text = False
        if not is_text and path.parent.name != "deploy":
            return f"{name} is not UTF-8 without a byte order mark: save it as such, in an editor or with PowerShell 7"
    mark = getattr(error, "problem_mark", None)
    where = f"{mark.name}, line {mark.line + 1}" if mark else ""
    return f"{where} is not valid YAML: {getattr(error, 'problem', '')}" if where else ""


@cache
def _store_schema() -> None:
    """Register the schema with Hydra, once: a sweep and the tests compose many configurations in one process."""
    from hydra.core.config_store import ConfigStore

    ConfigStore.instance().store(name="schema", node=Config)


def _saved(path: Path) -> Any:
    """Read a run's config.yaml as plain values. The file is untrusted: it may come from another machine.

    Raises WrongUse if it is damaged, too large, or contains aliases or interpolations, which we never write.
    """
    from omegaconf import OmegaConf

    try:
        with path.open("rb") as file:
            text = file.read(SAVED_BYTES + 1)
        values = plain_yaml(text) if len(text) <= SAVED_BYTES else None
    except Exception as error:  # the YAML reader's errors have no common base class
        raise WrongUse(f"{path} is not the configuration of a run; copy it again from the original run") from error
    if not isinstance(values, dict):
        raise WrongUse(f"{path} is not the configuration of a run; copy it again from the original run")
    if not _is_small(values):
        raise WrongUse(f"{path} has more values, or larger numbers, than the configuration of a run")
    if (found := _interpolation(values)) is not None:
        raise WrongUse(f"{path} holds the interpolation {found[:80]!r}; put the value itself there")
    return OmegaConf.create(values)


def plain_yaml(text: bytes) -> Any:
    """Parse YAML and refuse aliases: a few bytes of them can expand to billions of values."""
    import yaml

    class Plain(yaml.SafeLoader):
        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.events.AliasEvent):
                raise yaml.YAMLError("an alias")
            return super().compose_node(parent, index)

    return yaml.load(text, Loader=Plain)  # noqa: S506 - a safe loader


def _interpolation(value: Any) -> str | None:
    """Return the first string that OmegaConf would resolve from elsewhere, such as the environment; else None."""
    if isinstance(value, str):
        return value if "${" in value else None
    if isinstance(value, dict):
        value = [*value.keys(), *value.values()]
    inner = value if isinstance(value, list) else []
    return next((found for each in inner if (found := _interpolation(each)) is not None), None)


def _is_small(value: Any) -> bool:
    """Return whether there are at most SAVED_VALUES values, and no integer of more than 64 bits."""
    waiting, seen = [value], 0
    while waiting and seen <= SAVED_VALUES:
        seen += 1
        each = waiting.pop()
        if isinstance(each, int) and abs(each) >= 1 << 64:
            return False
        waiting += [*each.keys(), *each.values()] if isinstance(each, dict) else each if isinstance(each, list) else []
    return seen <= SAVED_VALUES


def save_resolved(config: Config, path: Path) -> None:
    """Write the resolved configuration as YAML that Hydra can read."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, as_yaml(config))


def as_yaml(config: Config, package: str | None = None) -> str:
    """Format the configuration, or its part under the key `package`, as YAML. Raises WrongUse for an unknown part."""
    from omegaconf import OmegaConf

    whole = OmegaConf.create(config.as_dict())
    part = OmegaConf.select(whole, package) if package else whole
    if part is None:
        raise WrongUse(f"--package {package} is not part of the configuration; give one such as train.optimizer")
    return OmegaConf.to_yaml(part) if OmegaConf.is_config(part) else f"{part}\n"


def sweep(overrides: Sequence[str]) -> list[list[str]]:
    """Expand a sweep into one override list per job: all combinations of `a,b`, `range(…)`, `choice(…)`, `glob(…)`."""
    from itertools import product

    from hydra.core.override_parser.types import Glob

    choices: list[list[str]] = []
    known = groups()
    for override in _known_overrides([in_our_words(word) for word in overrides], known, several=True):
        if not override.is_sweep_override():
            choices.append([override.input_line or ""])
            continue
        key, values = override.get_key_element(), override.value()
        if isinstance(values, Glob):
            found = values.filter(list(known.get(override.key_or_group, [])))
            choices.append([f"{key}={name}" for name in found])
        else:
            choices.append([f"{key}={value}" for value in override.sweep_string_iterator()])
    return [list(job) for job in product(*choices)]


def _known_overrides(
    overrides: Sequence[str], known: Mapping[str, Sequence[str]], *, several: bool = False
) -> list[Override]:
    """Parse overrides. Raise WrongUse for an unknown key or group and suggest the closest one, which Hydra does not.

    `known` are the groups.
    """
    from hydra.errors import HydraException

    keys, found = defaults(), []
    for word in overrides:
        refuse_habits(word, known["experiment"])
        try:
            override = _parsed(word)
        except HydraException as error:
            raise WrongUse(f"{word or repr(word)} is not of the form key=value, such as train.epochs=10") from error
        found.append(override)
        name = override.key_or_group
        if override.is_sweep_override():
            if not several:
                how = "add --multirun, or give them to invoke train by --sweep"
                raise WrongUse(f"{word} names several values; to run them one after the other, {how}")
            if name in keys or name in known:
                continue
        value = None if override.is_sweep_override() else override.value()
        if name in known:
            if value is not None and value not in known[name]:
                raise WrongUse(f"{name}={value} is not known; {nearest(str(value), known[name])}")
        elif name not in keys:
            raise WrongUse(f"there is no option {name}; {nearest(name, sorted({*keys, *known}))}")
    return found


@lru_cache(maxsize=1024)
def _parsed(word: str) -> Override:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    return OverridesParser.create().parse_override(word)


def _one_sentence(error: Exception, overrides: Sequence[str]) -> str:
    """Reduce a chain of Hydra and OmegaConf errors to one sentence, with the default as a value that works."""
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    lines = str(cause).splitlines() or [type(cause).__name__]
    key = next((line.removeprefix("    full_key: ") for line in lines if line.startswith("    full_key: ")), "")
    key, complaint = key.split("[")[0], lines[0].rstrip(".")
    given = next((word for word in overrides if word.lstrip("+~").startswith(f"{key}=")), key)
    default = f", such as {key}={json.dumps(defaults()[key])}" if key in defaults() else ""
    return f"{given or 'the configuration'} does not fit: {complaint}; give a value of its kind{default}"

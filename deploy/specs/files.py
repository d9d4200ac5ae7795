"""PURE: keys of the configuration that name files. The job runs in a copy of the code, which changes relative paths."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePath

from deploy.specs.request import hydra_override, unquoted
from deploy.specs.sweep import split

LIST = "train.eval.sets"
EXAMPLES = {
    LIST: "lfw.bin",
    "train.warm_start": "runs/RUN/checkpoints/epoch_014.pt",
    "recipe.distill.teacher": "runs/RUN/checkpoints/epoch_014.pt",
}


def named(override: str) -> tuple[str, list[str]]:
    """The key of an override and the paths that it names. There are none for other keys, and for null and `${…}`."""
    key, _, value = override.partition("=")
    key, value = key.lstrip("+"), value.strip()
    if key not in EXAMPLES or value in ("", "null", "[]") or "${" in value:
        return key, []
    is_list = value.startswith("[") and value.endswith("]")
    parts = split(value[1:-1] if is_list else value)
    if not parts or "" in parts or ((len(parts) > 1 or is_list) and key != LIST):
        return key, []  # the app says what is wrong with it
    return key, [unquoted(part) for part in parts]


def absolute(overrides: Sequence[str], folder: PurePath) -> tuple[str, ...]:
    """The overrides with paths below `folder` in place of relative ones."""
    return tuple(_absolute(each, folder) for each in overrides)


def _absolute(override: str, folder: PurePath) -> str:
    key, paths = named(override)
    if all(PurePath(path).is_absolute() for path in paths):
        return override
    typed = override.partition("=")[0]
    told = [hydra_override("", str(folder / path)).removeprefix("=") for path in paths]
    return f"{typed}=[{','.join(told)}]" if key == LIST else f"{typed}={told[0]}"

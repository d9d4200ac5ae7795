"""The resume contract: what may differ between a checkpoint and the run that resumes it, and what happens then.

`RULES` is the contract. docs/resume.md documents it; tests/app/runtime/test_resume.py compares the two.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from app.config.schema import Config
from app.errors import WrongUse
from app.output import plural

Facts = Mapping[str, Any]  # name of a rule -> value; a missing fact is unknown


class Answer(Enum):
    EXACT = "continues exactly"
    SAID = "continues, and says so"
    REFUSED = "refused"


EXACT, SAID, REFUSED = Answer


@dataclass(frozen=True)
class Rule:
    """What happens if one fact differs: in the middle of an epoch, and between two epochs."""

    name: str
    key: str  # the option that sets the fact
    mid: Answer
    between: Answer

    def answer(self, mid_epoch: bool) -> Answer:
        return self.mid if mid_epoch else self.between


RULES = (
    Rule("recipe", "recipe.name", REFUSED, REFUSED),
    Rule("backbone", "backbone", REFUSED, REFUSED),
    Rule("projection", "recipe.moco.projection_hidden and projection_dim", REFUSED, REFUSED),
    Rule("queue_size", "recipe.moco.queue_size", REFUSED, REFUSED),
    Rule("with_head", "recipe.distill.head_weight above 0", REFUSED, REFUSED),
    Rule("matrix", "recipe.distill.projection", REFUSED, REFUSED),
    Rule("teacher", "the file of recipe.distill.teacher", REFUSED, REFUSED),
    Rule("head", "recipe.head.name", REFUSED, REFUSED),
    Rule("ema", "recipe.ema above 0", REFUSED, REFUSED),
    Rule("classes", "the set of labels", REFUSED, REFUSED),
    Rule("optimizer", "train.optimizer.name", REFUSED, REFUSED),
    Rule("decay_all", "train.optimizer.decay_all", REFUSED, REFUSED),
    Rule("data", "the data set", REFUSED, SAID),
    Rule("fraction", "data.data_fraction", REFUSED, SAID),
    Rule("labels", "which image has which label", REFUSED, SAID),
    Rule("rows", "the number of training images", REFUSED, SAID),
    Rule("shards", "data.shards and the number of shards", REFUSED, SAID),
    Rule("seed", "train.seed", REFUSED, SAID),
    Rule("batch", "train.batch.size", SAID, SAID),
    Rule("accumulate", "train.batch.grad_accum_steps", SAID, SAID),
    Rule("ranks", "the number of processes", SAID, SAID),
    Rule("precision", "train.precision", SAID, SAID),
    Rule("regularisation", "backbone.dropout, drop_path, mask_ratio and attention_precision", SAID, SAID),
    Rule("validation", "train.eval.validation", SAID, SAID),
    Rule("epochs", "train.epochs", SAID, SAID),
    Rule("gradient_checkpointing", "backbone.gradient_checkpointing", EXACT, EXACT),
)

# Known only on the run's machine.
UNFORESEEN = ("images", "rows", "shards", "classes", "labels", "ranks", "teacher", "validation")

# What an older version did: each machine read all images, and no people were set apart to choose the checkpoint.
OLDER = {"shards": 1, "validation": "none"}

# These backbone options change neither tensor shapes nor, up to rounding, the output in evaluation.
REGULARISATION = ("dropout", "drop_path", "mask_ratio", "parity_mask_ratio", "attention_precision")
WITHOUT_EFFECT = ("gradient_checkpointing",)


@dataclass(frozen=True)
class Verdict:
    """A checkpoint may be resumed. `notes` are printed; with `other_data` its state per image is useless."""

    notes: tuple[str, ...] = ()
    other_data: bool = False


def facts_of(config: Config, **known: Any) -> dict[str, Any]:
    """The facts that a checkpoint records, for comparison with a later run: of its configuration, and those `known`.

    `data` names the data set, `images` counts the rows of its file (None if no state is stored per row), `rows` counts
    the training images. `shards` is the number of machines that divide them, 1 if each reads all. `classes` is a digest
    of the set of labels, `labels` a digest of the label of each image; both are None if no labels are learnt. `teacher`
    holds the name and the sha256 of the file of recipe distill. `validation` is `none` unless held-out people choose
    the checkpoint, else the setting.
    """
    settings, model = config.train, config.model()
    return {
        **OLDER,
        "recipe": config.recipe.name,
        **_parts_of(model["backbone"]),
        "projection": model.get("projection"),
        "queue_size": model.get("queue_size"),
        "head": model.get("head"),
        "ema": model.get("ema"),
        "with_head": model.get("with_head"),
        "matrix": model.get("matrix"),
        "teacher": None,
        "fraction": config.data.data_fraction,
        "seed": settings.seed,
        "batch": settings.batch.size,
        "accumulate": settings.batch.grad_accum_steps,
        "precision": settings.precision,
        "optimizer": settings.optimizer.name,
        "decay_all": settings.optimizer.decay_all,
        "epochs": settings.epochs,
        **known,
    }


def foreseen(config: Config, data: str | None, machines: int | None = None) -> dict[str, Any]:
    """The facts of a run before it starts, without those that only its machine knows.

    `data` is the data set's id, `machines` their number; None if it is unknown.
    """
    shards = 1 if config.data.shards == "whole" else machines
    facts = facts_of(config, data=data, shards=shards)
    later = {*UNFORESEEN, *(["data"] if data is None else []), *(["precision"] if facts["precision"] == "auto" else [])}
    later -= {"shards"} if shards else set()
    return {name: value for name, value in facts.items() if name not in later}


def recorded(content: Mapping[str, Any], note: Mapping[str, Any]) -> dict[str, Any]:
    """The facts stored in a checkpoint or, from an older version, derived from its content and JSON."""
    groups = content["optimizer"]["param_groups"]
    told: dict[str, Any] = {"optimizer": "adamw" if "betas" in groups[0] else "sgd", "decay_all": len(groups) == 1}
    facts = content["facts"] if isinstance(content.get("facts"), dict) else told_by({**note, "facts": None})
    return {**OLDER, **facts, **told}


def told_by(note: Mapping[str, Any]) -> dict[str, Any]:
    """The facts in the JSON beside a checkpoint; older versions store some of them under other names."""
    if isinstance(note.get("facts"), dict):
        return {**OLDER, **note["facts"]}
    model = note.get("model") if isinstance(note.get("model"), dict) else {}
    assert model is not None
    told = {name: model[name] for name in ("recipe", "projection", "queue_size", "head", "ema") if name in model}
    if isinstance(model.get("backbone"), dict):
        told |= _parts_of(model["backbone"])
    names = {"data": "dataset_id", "fraction": "fraction", "ranks": "world_size"}
    return OLDER | told | {name: note[key] for name, key in names.items() if note.get(key) is not None}


def same_kind(saved: Facts, here: Facts) -> dict[str, Any]:
    """The saved facts whose types match those of `here`: the JSON is untrusted and may hold anything."""
    return {name: value for name, value in saved.items() if name in here and _is_like(value, here[name])}


def _is_like(one: Any, other: Any) -> bool:
    if isinstance(one, int | float) and isinstance(other, int | float):
        return isinstance(one, bool) == isinstance(other, bool)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_is_like, one, other))
    return type(one) is type(other)


def judge(file: str, saved: Facts, here: Facts, *, epoch: int, seen: int, own: bool) -> Verdict:
    """Check whether a run with the facts `here` may resume the checkpoint `file`, which is `seen` images into `epoch`.

    `own`: the checkpoint is the newest in the run's own folder, found with `auto`. Raises WrongUse if it may not.
    """
    mid_epoch = seen > 0
    differing = list(differences(saved, here))
    for rule in differing:
        if rule.between is REFUSED:
            raise WrongUse(_misfit(file, rule.name, saved[rule.name], here[rule.name]))
        if rule.answer(mid_epoch) is REFUSED:
            raise WrongUse(_too_early(file, rule, saved, here, epoch))
    notes = [_note(rule, saved, here) for rule in differing if rule.answer(mid_epoch) is SAID]
    if here["epochs"] <= epoch:
        # A supervisor may restart a run that ended right after its last checkpoint.
        finished = own and not mid_epoch and saved.get("epochs", epoch) == here["epochs"] == epoch
        if not finished:
            raise WrongUse(
                f"{file}: {plural(epoch, 'epoch is', 'epochs are')} done already; give train.epochs={epoch + 1} or more"
            )
        notes.append(f"all {epoch} epochs are done already; train.epochs={epoch + 1} or more continues the run")
    unknown = [rule.key for rule in RULES if here.get(rule.name) is not None and rule.name not in saved]
    if unknown:
        notes.append(f"{file} does not record {', '.join(unknown)}: taken as unchanged")
    return Verdict(tuple(notes), other_data=any(rule.name == "data" for rule in differing))


def differences(saved: Facts, here: Facts) -> Iterator[Rule]:
    """The rules whose facts are known on both sides and differ, in the order of `RULES`."""
    explained = False  # skip a different number of images that another difference explains
    for rule in RULES:
        if rule.name not in saved or rule.name not in here or (rule.name == "rows" and explained):
            continue
        same = saved[rule.name] == here[rule.name]
        if rule.name == "teacher":  # under any name
            same = _sha256_of(saved["teacher"]) == _sha256_of(here["teacher"])
        elif isinstance(here[rule.name], dict):  # older versions lack some keys
            same = not _changed(saved[rule.name], here[rule.name])
        if rule.name == "data":  # if the number of rows differs, row numbers that the recipe stores mean other images
            counts = saved.get("images"), here.get("images")
            same = same and (None in counts or counts[0] == counts[1])
        if not same:
            explained = explained or rule.name in ("data", "fraction", "labels")
            yield rule


def _parts_of(backbone: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The options of a backbone, grouped by the rule for them."""
    apart = {"regularisation": REGULARISATION, "gradient_checkpointing": WITHOUT_EFFECT}
    parts = {name: {key: backbone[key] for key in keys if key in backbone} for name, keys in apart.items()}
    rest = {key: value for key, value in backbone.items() if key not in (*REGULARISATION, *WITHOUT_EFFECT)}
    return {"backbone": rest, **parts}


def _changed(saved: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    return [key for key in here if key in saved and saved[key] != here[key]]


def _sha256_of(teacher: Any) -> Any:
    return teacher.get("sha256") if isinstance(teacher, dict) else teacher


def _teacher(told: Any) -> str:
    if not isinstance(told, dict):
        return "no teacher"
    return f"the teacher {told.get('file')} (sha256 {str(told.get('sha256'))[:12]})"


def _misfit(file: str, name: str, old: Any, new: Any) -> str:
    """The message for a difference that always refuses."""
    afresh = "or give its path as train.warm_start, not train.resume, to use its backbone alone"
    if name == "classes":
        return f"{file} was trained with other labels; give those labels, {afresh}"
    if name == "backbone":
        key = _changed(old, new)[0]
        given, now = f"backbone.{key}={_word(old[key])}", _word(new[key])
    elif name == "projection":
        given = f"recipe.moco.projection_hidden={old[0]} recipe.moco.projection_dim={old[1]}"
        now = f"{new[0]} and {new[1]}"
    elif name == "with_head":
        given, now = ("recipe.distill.head_weight=1", "0") if old else ("recipe.distill.head_weight=0", "above 0")
    elif name == "teacher":
        given, now = _teacher(old), _teacher(new)
    elif name == "ema":
        given, now = ("recipe.ema=0.999", "0") if old else ("recipe.ema=0", "a mean of its weights")
    else:
        rule = next(rule for rule in RULES if rule.name == name)
        given, now = f"{rule.key}={_word(old)}", _word(new)
    return f"{file} does not fit this configuration: it was made with {given}, here it is {now}; give {given}, {afresh}"


def _too_early(file: str, rule: Rule, saved: Facts, here: Facts, epoch: int) -> str:
    """The message for a difference that is allowed only between two epochs."""
    needed, now = _named(rule, saved, here)
    return (
        f"{file} is in the middle of epoch {epoch}, which needs {needed}, and this run has {now}; "
        f"give {needed}, or a checkpoint of a whole epoch"
    )


def _named(rule: Rule, saved: Facts, here: Facts) -> tuple[str, str]:
    """The old and the new value of a fact, as phrases."""
    old, new = saved[rule.name], here[rule.name]
    if rule.name == "data":
        if old != new:
            return f"data set {old}", f"data set {new}"
        return f"a file of {saved['images']} images", f"one of {here['images']}"
    if rule.name == "labels":
        return "the labels it was trained with", "others"
    if rule.name == "shards":
        return _shards(old), _shards(new)
    if rule.name == "rows":
        return f"its {old} training images", f"{new}"
    return f"{rule.key}={_word(old)}", _word(new)


def _note(rule: Rule, saved: Facts, here: Facts) -> str:
    """The note for a difference that does not stop a run."""
    old, new = saved[rule.name], here[rule.name]
    if rule.name == "regularisation":
        return ", ".join(f"backbone.{key} {_word(new[key])}, was {_word(old[key])}" for key in _changed(old, new))
    if rule.name == "data":
        anew = "; pseudo-IDs and queue restart" if here.get("images") is not None else ""
        was, now = _named(rule, saved, here)
        return f"continues with other data ({now}, was {was}){anew}"
    if rule.name == "labels":
        return "continues with other labels"
    if rule.name == "shards":
        return f"{_shards(new)}, was {_shards(old)}"
    return f"{rule.key} {_word(new)}, was {_word(old)}"


def _shards(count: Any) -> str:
    return "data.shards=whole" if count == 1 else f"data.shards=by_node with {count} machines"


def _word(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)

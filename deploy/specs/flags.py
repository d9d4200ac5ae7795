"""The commands' flags: the name, help, value and default of each, declared once. Request declares those of `train`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

# Headings of flags in the help.
WHERE, WHAT, HOW, OUTPUT = "Where", "What runs", "How it starts", "Output"
PHOTOGRAPHS, PARQUET, RECORDS, DRAWN = "Of folder and pairs", "Of parquet", "Of rec", "Of synthetic"

WORDS, REST = "words", "rest"  # kinds of words without a flag
FLAG, PARSED_BY = "flag", "parsed_by"  # in the metadata of a dataclass's field


@dataclass(frozen=True)
class Flag:
    """A flag of a command.

    `value`: what follows the flag, as the help names it; None: the flag is a switch. `default`: the text that is used
    if the flag is not given. `group`: its heading in the help. `parameter`: the parameter that gets it (default: the
    name with underscores). `words`: not a flag but the words of the command line that belong to none: all of them
    (WORDS), or those after `--` (REST).
    """

    name: str
    help: str
    value: str | None = None
    default: str | None = None
    repeats: bool = False
    group: str = "Flags"
    parameter: str = ""
    words: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "parameter", self.parameter or self.name.replace("-", "_"))

    @property
    def typed(self) -> str:
        return self.name if self.words else f"--{self.name}"


def flagged(default: Any, flag: Flag, parsed_by: Any = None) -> Any:
    """A field of a dataclass that a flag sets. `parsed_by` turns the flag's text into the field's value."""
    return field(default=default, metadata={FLAG: flag, PARSED_BY: parsed_by})


def flags_of(request: type) -> tuple[Flag, ...]:
    """The flags that the fields of a dataclass declare. Each sets the parameter with the field's name."""
    declared: Mapping[str, Flag] = {each.name: each.metadata[FLAG] for each in fields(request) if FLAG in each.metadata}
    return tuple(replace(flag, parameter=name) for name, flag in declared.items())


def on(help: str, default: str = "local") -> Flag:
    return Flag("on", help, "TARGET", default, group=WHERE, parameter="target")


def run(help: str) -> Flag:
    return Flag("run", help, "RUN", group=WHERE, parameter="run_id")


def overrides(help: str, group: str = Flag.group) -> Flag:
    return Flag("set", help, "KEY=VALUE", repeats=True, group=group, parameter="overrides")


def out(help: str) -> Flag:
    return Flag("out", help, "PATH")


ON = on("target: a file in conf/deploy, or of your own; `target list` names all (default: local)")
RUN = run("run id, or the beginning of it (default: the newest run of the target)")
JSON = Flag("json", "print one JSON document on stdout; messages go to stderr", group=OUTPUT)
PACK = Flag(
    "pack",
    "how to send images of this computer: none (default), lossless, or jpeg50 to jpeg100, which is lossy",
    "KIND",
    group=WHAT,
)
NODES = Flag("nodes", "machines for one run (default: the target's nodes, else 1)", "N", group=WHERE)
GPUS = Flag(
    "gpus",
    "the GPUs to rent, such as A100:2, by names or words of names in `offers`; several names, with commas or repeated, "
    "are tried in order (default: the target's)",
    "NAME[:COUNT]",
    repeats=True,
    group=WHERE,
)
SPOT = Flag(
    "spot", "rent a spot machine: cheaper, but the provider may stop it (default: the target's spot)", group=WHERE
)
NO_SPOT = Flag("no-spot", "rent no spot machine, although the target or the continued run says so", group=WHERE)
WHICH = Flag("which", "latest (default), best, or a number: the epoch", "WHICH", "latest")

YES = Flag("yes", "accept the cost without a question", group=HOW)

SWEEP = Flag(
    "sweep",
    "KEY=VALUE,VALUE…: a run for each value, one after the other; given twice, a run for each combination",
    "KEY=A,B",
    repeats=True,
    group=WHAT,
    parameter="sweeps",
)
TRAIN = (
    SWEEP,
    Flag("detach", "do not follow the job", group=HOW),
    YES,
    Flag("keep", "if it fails before the job runs, keep a machine that was created for it", group=HOW),
    Flag("dry-run", "print the plan and end; change nothing", group=HOW),
    JSON,
)
DEPLOY = (ON, GPUS, SPOT, NO_SPOT, NODES, PACK, JSON)
ATTACH = (ON, RUN, Flag("write", "send keyboard input to the job (default: read-only)"))
LOGS = (ON, RUN, Flag("follow", "follow the log until the job ends"))
STATUS = (ON, RUN, JSON, Flag("watch", "repeat every two seconds until the run is over"))
RUNS = (Flag("sort", "largest first: started (default), accuracy, cost, fraction or time", "BY"), JSON)
COMPARE = (
    Flag("RUN RUN...", "two runs or more: run ids, or the beginnings of them", words=WORDS, parameter="names"),
    JSON,
)
UI = (Flag("port", "port on this computer, 1024 to 65535 (default: a free one)", "PORT"),)
NOTE = (
    Flag(
        "RUN [TEXT]",
        'run id, or the beginning of it, then the note in quotes; "" removes the note, no text shows it',
        words=WORDS,
        parameter="words",
    ),
    JSON,
)
REMOVE = (
    Flag("RUN...", "runs that are over: run ids, or the beginnings of them", words=WORDS, parameter="names"),
    replace(YES, help="delete without a question", group=Flag.group),
    JSON,
)
WATCH = (
    ON,
    RUN,
    Flag(
        "max-usd",
        "stop the run at this cost in USD of all its machines and attempts (default: the target's max_usd)",
        "USD",
    ),
    JSON,
)
FETCH_CHECKPOINT = (
    ON,
    RUN,
    Flag(
        "which",
        "latest (default), best by validation people or else the held-out ones, best:SET, or an epoch",
        "WHICH",
        "latest",
    ),
    Flag("to", "file or folder to write (default: runs/<run>/checkpoints)", "PATH"),
    Flag("watch", "also download every newer one until the run is over"),
    JSON,
)
COST = (Flag("days", "how many days, today included (default: 30)", "N", "30"), JSON)
OFFERS = (
    on("target whose provider is asked (default: runpod)", "runpod"),
    replace(GPUS, help="only these GPUs, at any price, such as A100:2 (default: all)"),
    Flag(
        "data",
        "images.npy or images.jpegs to train on (default: the target's, else the ORL try-out)",
        "PATH",
        group=WHAT,
    ),
    Flag("recipe", "name of a file in conf/recipe (default: the configuration's)", "RECIPE", group=WHAT),
    overrides("key=value of the configuration, such as --set backbone=iresnet50; repeatable", WHAT),
    JSON,
)
EXEC = (
    ON,
    RUN,
    Flag("-- CMD...", "the command, and its own flags", words=REST, parameter="words"),
)
TARGET = (
    Flag(
        "add ssh|list|schema",
        "add ssh: test a host and write a target of your own; list: all targets (default); schema: for editors",
        words=WORDS,
        parameter="words",
    ),
    Flag("host", "with add: a name, an address, or an alias in your ssh configuration", "HOST"),
    Flag("name", "with add: the name of the target (default: the name of the host)", "NAME"),
    Flag("user", "with add: the login name (default: from your ssh configuration)", "USER"),
    Flag("port", "with add: the SSH port (default: from your ssh configuration, else 22)", "PORT"),
    Flag("key", "with add: file of a private key (default: agent, usual keys)", "FILE"),
    Flag("fingerprint", "with add: SHA256:…, pins the host's key (default: known_hosts, else you are asked)", "HASH"),
    Flag("root", "with add: folder there for code, environments and runs (default: ~/sniperface)", "PATH"),
    JSON,
)
PREPARE = (
    ON,
    Flag(
        "source",
        "orl, folder (one sub-folder a person), pairs (a .csv of img1,img2,label, or LFW's pairs.txt), array (an .npy "
        "that exists), parquet, rec or synthetic",
        "SOURCE",
        "orl",
    ),
    Flag(
        "path",
        "the folder, the list of pairs, the .npy file, the .parquet file or a folder of them, the .rec or its folder",
        "PATH",
    ),
    Flag("labels", "labels.npy of an array", "PATH"),
    Flag("encoded", "keep image files, not pixels: images.jpegs, a fifth of the size for JPEG files of 112 x 112"),
    out("output: a folder, or a path ending in .npy, with --encoded in .jpegs (default: data/<name>)"),
    Flag("image-column", "the column of image files (default: one with a usual name)", "NAME", group=PARQUET),
    Flag("label-column", "the column of identities (default: one with a usual name)", "NAME", group=PARQUET),
    Flag("split", "which split of a folder that holds several, such as train", "NAME", group=PARQUET),
    Flag("decoder", "cpu, or dali on a GPU (default: cpu)", "NAME", group=RECORDS),
    Flag("identities", "how many people (default: 2000)", "N", group=DRAWN),
    Flag("per-identity", "how many photographs of each (default: 20)", "N", group=DRAWN),
    Flag("seed", "which people: another number, other people (default: 0)", "N", group=DRAWN),
    Flag("variation-pct", "how much the faces of one person differ, 0 to 100 (default: 100)", "PERCENT", group=DRAWN),
    Flag(
        "held-out",
        "keep the last N images, in whole blocks, for measuring: other people "
        "(default: orl 100, synthetic a tenth, else 0)",
        "N",
    ),
    Flag(
        "align",
        "auto: find the best face in each photograph and align it by five points; "
        "all: 112x112 images too; none (default): animals and other subjects",
        "HOW",
        group=PHOTOGRAPHS,
    ),
    Flag(
        "landmarks",
        "a CSV file of five points for each photograph, such as the landmarks.csv of align",
        "PATH",
        group=PHOTOGRAPHS,
    ),
    Flag("fit", "how to scale without alignment: crop (default), squash or pad", "HOW", group=PHOTOGRAPHS),
    Flag(
        "min-face",
        "with --align, the smallest width of a face in pixels of the photograph (default: 40)",
        "PIXELS",
        group=PHOTOGRAPHS,
    ),
    Flag(
        "min-score-pct",
        "with --align, the lowest score of a face, 70 to 100 (default: 90)",
        "PERCENT",
        group=PHOTOGRAPHS,
    ),
    Flag("not-found", "with --align, photographs without a face: skip (default) or keep", "HOW", group=PHOTOGRAPHS),
    Flag("several", "with --align, photographs with several faces: best (default) or skip", "HOW", group=PHOTOGRAPHS),
    Flag("unreadable", "skip: leave out images that cannot be read, and list them in the manifest", "skip"),
    Flag("workers", "processes that make the images (default: one a core); the result is the same", "N"),
    JSON,
)
DATA = (
    Flag(
        "data",
        "images.npy or images.jpegs of a prepared data set, or its folder (default: data/orl of the project)",
        "PATH",
    ),
    Flag("verify", "also hash all images, and compare them with the manifest; image files are decoded, too"),
    JSON,
)
MINE = (
    ON,
    RUN,
    WHICH,
    out("folder for the results (default: runs/<run>/mining/<checkpoint>)"),
    overrides("key=value of the configuration, such as --set mining.method=parity; repeatable"),
)
EVALUATE = (
    ON,
    RUN,
    Flag("which", "latest, best, or a number: the epoch (default: every checkpoint of the run)", "WHICH"),
    Flag(
        "weights",
        "files of weights, such as runs/*/checkpoints/*.pt in quotes, instead of a run's checkpoints",
        "FILES",
    ),
    Flag(
        "sets",
        "verification sets, separated by commas: .bin, .csv, pairs.txt or images.npy (default: the held-out people)",
        "FILES",
    ),
    Flag("gallery", "identification: a sub-folder of aligned images per person, or a prepared folder", "DIR"),
    Flag("probes", "images to search in --gallery, made the same way (default: --gallery is split)", "DIR"),
    Flag("fit", "how to scale photographs of a list that are not square: crop (default), squash or pad", "HOW"),
    out("folder for the results (default: runs/<run>/evaluation)"),
    overrides("key=value of the configuration, such as --set backbone=iresnet50; repeatable"),
)
EXPORT = (
    ON,
    RUN,
    WHICH,
    out("the file (default: runs/<run>/<checkpoint>.onnx)"),
    overrides("option of the export, such as --set opset=17; repeatable"),
)
DOWN = (
    ON,
    run("the machine of this run"),
    Flag("all", "every machine of this project, of any target", parameter="every"),
    Flag("orphans", "every machine on which no run of this laptop is alive"),
    Flag("anyway", "release it within a minute, even if its results cannot be downloaded"),
    JSON,
)
BUILD_ARGUMENTS = (
    Flag("cpu", "for machines without a GPU; --pip-options should then name PyTorch's CPU packages"),
    Flag(
        "base", "image to build on, NAME:TAG or NAME@sha256:… (default: the Dockerfile's, NVIDIA's for CUDA)", "IMAGE"
    ),
    Flag(
        "pip-options",
        "options for pip inside the build, such as another index; they stay readable in the image",
        "OPTIONS",
    ),
)
BUILD = (on("target whose Docker engine builds: a file in conf/deploy (default: docker)", "docker"), *BUILD_ARGUMENTS)
PUSH = (
    on("target that will pull it, a file in conf/deploy (default: runpod)", "runpod"),
    Flag(
        "image", "name in the registry, such as me/sniperface (default: the target's)", "NAME", parameter="repository"
    ),
    *BUILD_ARGUMENTS,
)
DOCTOR = (
    ON,
    Flag(
        "rent",
        "rent the cheapest machine that fits for minutes, let it end itself, and report what the account allows",
        group=WHAT,
    ),
    YES,
    JSON,
)
BENCH = (Flag("quick", "smaller sizes, less certain numbers"),)

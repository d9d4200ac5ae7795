"""Record the events of a run: a line in metrics.jsonl, one on the console and, if configured, W&B or TensorBoard.

The only module that imports wandb. Only rank 0 records. The other ranks have a tracker that does nothing, except the
first rank on each further machine: it prints where rank 0 is, and how the run ends.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any, Protocol

from app.config import Config
from app.files import shown
from app.output import plural, say
from app.runtime.checkpoint import TrainState
from app.runtime.dist import World
from app.runtime.durations import clock
from app.runtime.folder import RunFolder
from app.runtime.tensorboard import TensorBoard, numbers

FINISH_S = 25.0  # to upload the last values, once the run has ended: a stopped job is killed a minute after its stop
FINISH_ARTIFACTS_S = (
    420.0  # with the last checkpoint too; the other ranks wait for that and the report, GROUP_TIMEOUT_S
)


class Sink(Protocol):
    def event(self, record: dict[str, Any]) -> None: ...
    def close(self) -> None: ...


class Tracker:
    """Sends each event, with its time, epoch and step, to all sinks."""

    def __init__(self, sinks: list[Sink]) -> None:
        self.sinks = sinks

    def event(self, name: str, state: TrainState, **values: Any) -> None:
        record = {"event": name, "time": time.time(), "epoch": state.epoch, "step": state.step, **values}
        for sink in self.sinks:
            sink.event(record)

    def close(self) -> None:
        for sink in self.sinks:
            sink.close()


def tracker(config: Config, folder: RunFolder, here: World) -> Tracker:
    if not here.is_main:
        return Tracker([Bystander(config.train.epochs, here)] if here.first_of_machine else [])
    sinks: list[Sink] = [JsonLines(folder), Console(config.train.epochs)]
    if config.track == "wandb":
        sinks.append(Wandb(config, folder))
    if config.track == "tensorboard":
        sinks.append(TensorBoard(folder))
    return Tracker(sinks)


class JsonLines:
    """Appends each event to metrics.jsonl as one unbuffered line, so that readers do not see half an event."""

    def __init__(self, folder: RunFolder) -> None:
        folder.path.mkdir(parents=True, exist_ok=True)
        end_last_line(folder)
        self.file = folder.metrics.open("ab", buffering=0)

    def event(self, record: dict[str, Any]) -> None:
        self.file.write(json.dumps(record).encode() + b"\n")

    def close(self) -> None:
        self.file.close()


def end_last_line(folder: RunFolder) -> None:
    """End the half line that a run killed while writing leaves, so that it does not swallow the next event."""
    if folder.metrics.is_file() and folder.metrics.stat().st_size:
        with folder.metrics.open("r+b") as file:
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")


class Console:
    """Prints one plain line per event, for train.log and attached terminals."""

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs

    def event(self, record: dict[str, Any]) -> None:
        text = getattr(self, f"_{record['event']}")(record)
        say(f"[{time.strftime('%H:%M:%S', time.localtime(record['time']))}] {text}")

    def close(self) -> None:
        pass

    def _start(self, r: dict[str, Any]) -> str:
        resumed = f", resumed from {r['resumed_from']}" if r["resumed_from"] else ""
        resumed += "".join(f"; {note}" for note in r["notes"])
        epochs, steps = plural(r["epochs"], "epoch"), plural(r["steps_per_epoch"], "step")
        processes = plural(r["world_size"], "process", "processes")
        return (
            f"{r['train_rows']} images, {epochs} of {steps}, {processes} x batch "
            f"{r['global_batch'] // r['world_size']} in {r['precision']} on {r['device']}{resumed}"
        )

    def _step(self, r: dict[str, Any]) -> str:
        return (
            f"epoch {r['epoch']} ({r['epoch'] + 1}/{self.epochs}) step {r['step']}  loss {loss(r)}  lr {r['lr']:.4g}  "
            f"{r['images_per_s']:.0f} img/s  {clock(r['seconds_left'])} left"
        )

    def _skipped(self, r: dict[str, Any]) -> str:
        return f"step {r['step']} skipped: its loss or gradient was not finite ({r['in_a_row']} in a row)"

    def _embedding(self, r: dict[str, Any]) -> str:
        return f"embedding for new pseudo-IDs: {r['done']} of {r['total']} images"

    def _epoch(self, r: dict[str, Any]) -> str:
        rank = "" if r["effective_rank"] is None else f", effective rank {r['effective_rank']:.1f}"
        warning = "; THE EMBEDDINGS COLLAPSE: try a lower train.optimizer.lr" if r["collapsed"] else ""
        which = f"epoch {r['epoch']} ({r['epoch'] + 1}/{self.epochs})"
        return f"{which} done in {clock(r['seconds'])}, mean loss {loss(r)}{rank}{warning}"

    def _mining(self, r: dict[str, Any]) -> str:
        purity = "" if r["purity"] is None else f", purity {r['purity']:.1%}"
        verdict = "taken" if r["accepted"] else f"rejected, the old ones remain in use: {r['why']}"
        large = r["cut"] + r["left_out"]
        cut = (
            f"; {large} images were in clusters above mining.max_cluster, which were split or dropped" if large else ""
        )
        offset = f"; an offset of all embeddings, removed: cosine {r['offset']:.2f}" if r["offset"] else ""
        shared = f"; directions of different people, removed: {r['shared']}" if r["shared"] else ""
        measured = f"coverage {r['coverage']:.1%}, separated {r['separated']:.1%}{purity}"
        found = f"{r['count']} pseudo-IDs, {measured}, {r['seconds']:.1f} s"
        return f"{found}: {verdict}{cut}{offset}{shared}"

    def _eval(self, r: dict[str, Any]) -> str:
        if "rank1" not in r:
            accuracy = "not measured" if r["accuracy"] is None else f"{r['accuracy']:.2%}"
            return f"{r['what'].removeprefix('sets/')}: {r['measure']} {accuracy}"
        validation = "" if "validation_accuracy" not in r else f", validation people {r['validation_accuracy']:.2%}"
        return f"held-out faces, {r['what']}: accuracy {r['accuracy']:.2%}, rank-1 {r['rank1']:.2%}{validation}"

    def _checkpoint(self, r: dict[str, Any]) -> str:
        return f"checkpoint {r['file']} ({r['bytes'] / 2**20:.1f} MiB)"

    def _end(self, r: dict[str, Any]) -> str:
        return f"{r['reason']} after {clock(r['seconds'])}" + (f": {r['message']}" if r["message"] else "")


class Bystander:
    """Log of a machine without rank 0: names the machine of rank 0, and prints how the run ends."""

    def __init__(self, epochs: int, here: World) -> None:
        self.console = Console(epochs)
        first, last, main = here.own_ranks()[0], here.own_ranks()[-1], here.machines[0]
        ranks = f"rank {first}" if first == last else f"ranks {first} to {last}"
        line = f"{here.machines[here.rank]} has {ranks} of {here.size}; rank 0 on {main} has the log and the run folder"
        say(f"[{time.strftime('%H:%M:%S')}] {line}")

    def event(self, record: dict[str, Any]) -> None:
        if record["event"] == "end":
            self.console.event(record)

    def close(self) -> None:
        pass


class Wandb:
    """Sends events to Weights & Biases, offline without a key. If it fails, logging stops and the run continues.

    The package itself tries for hours to reach a service that has stopped answering. A run that has ended waits only
    a short time, because its machine costs money; what was not uploaded stays in the run's folder.
    """

    def __init__(self, config: Config, folder: RunFolder) -> None:
        self.run: Any = None
        self.folder, self.keeps_artifacts, self.name = folder, config.wandb.artifacts, name_of(folder)
        try:
            import wandb

            has_key = bool(os.environ.get("WANDB_API_KEY")) or _netrc_has_key()
            self.run = wandb.init(
                project=config.wandb.project,
                entity=config.wandb.entity,
                name=self.name,
                id=self.name,
                resume="allow",
                dir=str(folder.path),
                config=config.as_dict(),
                mode=os.environ.get("WANDB_MODE") or ("online" if has_key else "offline"),
                settings=wandb.Settings(
                    console="off",
                    silent=True,
                    init_timeout=60,
                    finish_timeout=FINISH_ARTIFACTS_S if self.keeps_artifacts else FINISH_S,
                    finish_timeout_raises=True,
                ),
            )
            self.files = Path(self.run.sync_dir)
        except Exception as error:
            self._give_up(error)

    def event(self, record: dict[str, Any]) -> None:
        if self.run is None:
            return
        try:
            self.run.log(dict(numbers(record)), step=record["step"])
            if record["event"] == "checkpoint" and self.keeps_artifacts:
                self._keep(record)
        except Exception as error:
            self._give_up(error)

    def close(self) -> None:
        if self.run is not None:
            try:
                self.run.finish()
            except TimeoutError:
                say(f"W&B took too long for the last values; upload them with `wandb sync {shown(self.files)}`")
            except Exception as error:
                self._give_up(error)

    def _keep(self, record: dict[str, Any]) -> None:
        """Add a checkpoint as a version of the run's artifact. W&B copies the files, so they may be pruned."""
        import wandb

        path = self.folder.checkpoints / record["file"]
        about = {key: record[key] for key in ("epoch", "step", "sha256")}
        artifact = wandb.Artifact(f"{self.name}-checkpoint", type="model", metadata=about)
        for file in (path, path.with_suffix(".json")):
            artifact.add_file(str(file))
        self.run.log_artifact(artifact, aliases=["latest", path.stem])

    def _give_up(self, error: Exception) -> None:
        # No error of a tracker (network, quota, version) may cost hours of training.
        print(f"W&B stopped logging ({type(error).__name__}: {error}); metrics.jsonl continues", flush=True)
        self.run = None


def name_of(folder: RunFolder) -> str:
    """The name of a run in W&B, which is also its id. A run of a sweep, in the folder SWEEP/NUMBER, is SWEEP-NUMBER."""
    path = folder.path.absolute()
    return f"{path.parent.name}-{path.name}" if path.name.isdigit() else path.name


def _netrc_has_key() -> bool:
    import netrc

    try:
        return netrc.netrc().authenticators("api.wandb.ai") is not None
    except (OSError, netrc.NetrcParseError):
        return False


def loss(record: dict[str, Any]) -> str:
    """An event's mean loss as text; "none" if every step was skipped."""
    return "none" if record["loss"] is None else f"{record['loss']:.3f}"

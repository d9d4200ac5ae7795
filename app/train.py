"""Train: torchrun … -m app.train key=value …   (or `python -m app.train …` for one process).

The order of work: configuration, data, recipe, optimizer, resume or warm start, then one loop. app/config/schema.py
documents the options; app/runtime/folder.py lists the files of a run.
"""

from __future__ import annotations

import dataclasses
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from app.config import Config, read_command_line
from app.data.dataset import Dataset
from app.data.divide import divide
from app.data.same_data import refuse_others
from app.errors import EXIT_WRONG_USE, WrongUse
from app.evaluation.validation import held_out_people
from app.evaluation.while_training import SetNumbers
from app.files import make_folder
from app.mining.knn import SearchInexact
from app.mining.refresh import Interlude
from app.output import say
from app.recipes import RECIPES, Batch
from app.recipes.update import batches, update
from app.report.leave import LIMIT_AFTER_STOP_S, LIMIT_S, leave
from app.runtime import checkpoint, dist, precision
from app.runtime.checkpoint import TrainState
from app.runtime.devices import refuse_missing_gpus
from app.runtime.dist import World
from app.runtime.finite import NotFinite, noticed_together
from app.runtime.folder import RunFolder
from app.runtime.out_of_memory import OutOfMemory, step_fits
from app.runtime.pace import Pace, seconds_left
from app.runtime.schedule import learning_rate
from app.runtime.start import refuse_unfit_files
from app.runtime.stop import Interrupted, Stop
from app.runtime.track import Tracker, tracker
from app.set_up import Training, begin, set_up


def main(argv: list[str]) -> int:
    stop = Stop().listen()
    try:
        refuse_missing_gpus()  # before the ranks connect: all must use CPUs or all GPUs
    except WrongUse as error:
        if os.environ.get("LOCAL_RANK", "0") == "0":
            print(error, file=sys.stderr)
        return EXIT_WRONG_USE
    with dist.world() as here:  # first: if one machine lacks something, all must end
        try:
            with stop.at_once(here):
                text, runs = what_is_asked(argv, here)
        except Interrupted:
            return 0
        except WrongUse as error:
            if here.first_of_machine:  # every rank raises it; print it once per machine
                print(error, file=sys.stderr)
            return EXIT_WRONG_USE
        if text is not None:
            say(text if here.is_main else "", end="")
            return 0
        for number, (config, data) in enumerate(runs):
            exit_code = run(config, data, here, stop, number=number if len(runs) > 1 else None)
            if exit_code or dist.any_rank(stop.asked.is_set(), here):
                return exit_code
    return 0


def what_is_asked(argv: list[str], here: World) -> tuple[str | None, list[tuple[Config, Dataset]]]:
    """A text to print, or the runs with their data, equal on all machines. Raises WrongUse on all ranks."""
    with dist.together(here):
        asked = read_command_line(argv, __doc__ or "")
        runs = [(config, RECIPES[config.recipe.name].training_data(config)) for config in asked.jobs]
        for config in asked.jobs:
            refuse_unfit_files(config, here)
        for config, data in runs:
            held_out_people(data, config.train.eval)  # refuses a share that does not fit
    refuse_others([data for _, data in runs], here)
    runs = [(config, divide(data, config.data, here)) for config, data in runs]
    with dist.together(here):  # nothing is written before the checks: make the folder, on each disk
        for config in asked.jobs if here.first_of_machine else ():
            if config.run.dir is not None:
                make_folder(Path(config.run.dir), "run.dir")
    return asked.text, runs


def run(config: Config, data: Dataset, here: World, stop: Stop, *, number: int | None) -> int:
    """Train one run in its own folder, record how it ends, return the exit code. `number` is its place in a sweep."""
    config.train.precision = precision.settle(config.train.precision, here)  # before the configuration is recorded
    by_hand = f"runs/{'by-hand' if number is None else 'sweep'}-{time.strftime('%Y%m%d-%H%M%S')}"
    place = Path(config.run.dir or dist.from_main(by_hand, here))
    folder = RunFolder(place if number is None else place / str(number))
    track = tracker(config, folder, here)
    try:
        train(config, data, folder, here, track, stop)
    except WrongUse as error:
        track.event("end", TrainState(), reason="wrong_use", message=str(error), seconds=0.0)
        return EXIT_WRONG_USE
    except OutOfMemory as error:
        track.event("end", TrainState(), reason="failed", message=str(error), seconds=0.0)
        if not here.first_of_machine:
            print(error, file=sys.stderr)
        if here.size > 1:  # the others wait in a collective; torchrun ends them, without a report
            track.close()
            dist.leave(1)
        return 1
    except (NotFinite, SearchInexact) as error:
        last_good = dist.from_main(checkpoint.newest(folder) if here.is_main else None, here)
        good = f"the last good checkpoint is {last_good.name}" if last_good else "there is no checkpoint yet"
        message = f"{error}; {good}"
        track.event("end", TrainState(), reason="failed", message=message, seconds=0.0)
        return 1
    finally:
        if config.run.report and here.is_main:
            say(leave(folder, limit_s=LIMIT_AFTER_STOP_S if stop.asked.is_set() else LIMIT_S))
        track.close()  # last: W&B may upload until a stopped job is killed
    return 0


def train(config: Config, data: Dataset, folder: RunFolder, here: World, track: Tracker, stop: Stop) -> None:
    """Train a whole run. `config.train.precision` must be settled.

    Raises WrongUse for a checkpoint that does not fit or a disk without room.
    """
    try:
        with stop.at_once(here):
            t = set_up(config, data, folder, here, track, stop)
            begin(t)
    except Interrupted:
        track.event("end", TrainState(), reason="stopped", message="nothing was trained", seconds=0.0)
        return
    state, settings, recipe, stopped = t.state, config.train, t.recipe, False
    while state.epoch < settings.epochs and not stopped:
        epoch_started, pace = time.monotonic(), Pace()
        stopped = not begin_epoch(t) or t.stopping()
        micro_batches = batches(config, recipe, data, state, here)
        with step_fits(config, here.device):
            while state.seen < t.rows and not (stopped := stopped or t.stopping_soon()):
                step(t, micro_batches, pace)
                if t.sets.due(t.state.step):
                    settle(t, pace)  # the weights are of the update that is launched already
                    measure_sets(t)
            settle(t, pace)
            recipe.catch_up()
        measured = None
        epoch_complete = state.seen >= t.rows
        if epoch_complete:
            measured = end_epoch(t, pace, time.monotonic() - epoch_started)
        stopped = stopped or t.stopping()  # checked in each round, so that no loop runs for ever
        due = checkpoint.is_due(settings.checkpoint.every_epochs, state.epoch, settings.epochs)
        # For a stop between two epochs the checkpoint may be written already. Before the first step there is none.
        if (stopped or (epoch_complete and due)) and state.step and (state.epoch, state.seen) != t.saved:
            save(t, measured)
    reason = "done" if state.epoch == settings.epochs else "stopped"
    track.event("end", state, reason=reason, message="", seconds=time.monotonic() - t.started)


def begin_epoch(t: Training) -> bool:
    """Run the recipe's work between epochs, such as mining; False if a stop interrupted it."""
    # A resumed epoch keeps the pseudo-IDs it began with: they are in the checkpoint.
    between = Interlude(t.folder.mining, t.stop.asked.is_set, embedding_progress(t.track, t.state))
    try:
        with t.stop.at_once(t.here):
            found = t.recipe.begin_epoch(t.state.epoch, between if t.state.seen == 0 else None)
    except Interrupted:
        return False
    if found:
        t.track.event("mining", t.state, **found)
    return True


def step(t: Training, micro_batches: Iterator[Batch], pace: Pace) -> None:
    """Launch one update and settle the one before it. Raises NotFinite after too many skipped updates in a row."""
    settings, state = t.config.train, t.state
    # The schedule counts images of updates that were taken. The last update always counts as taken, because its verdict
    # may not be read yet. A resumed run knows the verdict, and does the same to get the same rate.
    skipped = state.skipped + (state.skipped_last if t.pending else 0)
    progress = state.epoch + (state.seen - skipped) / t.rows  # in epochs
    lr = learning_rate(settings.optimizer.lr, settings.lr_schedule, max(progress, 0.0), settings.epochs)
    launched = update(t.config, t.recipe, t.optimizer, t.scaler, micro_batches, lr, t.here, stop=t.stop.asked.is_set())
    settle(t, pace)
    images = min(t.update_size, t.rows - state.seen)
    state.seen += images
    t.pending = dataclasses.replace(launched, images=images)
    if (state.step + 1) % settings.log_every_steps and state.seen < t.rows:
        return
    taken = settle(t, pace)  # reporting its metrics makes the host wait anyway
    if taken or state.seen == t.rows:
        done = state.epoch * t.rows + state.seen
        left = seconds_left(time.monotonic() - t.started, done - t.first_image, settings.epochs * t.rows - done)
        t.track.event("step", state, lr=lr, **pace.report(t.here), seconds_left=left)


def settle(t: Training, pace: Pace) -> bool:
    """Read the verdict of the pending update; True if it was taken. Raises NotFinite as `step` does."""
    if t.pending is None:
        return False
    (launched, t.pending), settings, state = (t.pending, None), t.config.train, t.state
    verdict = launched.verdict()
    pace.count(t.update_size, launched.metrics if verdict.taken else None)
    t.taken_this_epoch += verdict.taken
    t.stop_heard = t.stop_heard or verdict.stop
    state.step += verdict.taken
    state.skipped, state.skipped_last = state.skipped + state.skipped_last, 0 if verdict.taken else launched.images
    # fp16 finds its scale by overflowing: an overflow is a fault only once the scale is down to 1.
    t.skipped_in_a_row = t.skipped_in_a_row + 1 if not verdict.taken and verdict.scale <= 1 else 0
    if not verdict.taken:
        t.track.event("skipped", state, in_a_row=t.skipped_in_a_row)
    if t.skipped_in_a_row == settings.max_nonfinite_steps:
        raise NotFinite(
            f"the loss was not finite {t.skipped_in_a_row} times in a row: "
            f"continue with a lower train.optimizer.lr than {settings.optimizer.lr:g}"
        )
    return verdict.taken


def end_epoch(t: Training, pace: Pace, seconds: float) -> dict[str, Any] | None:
    """Record the epoch, evaluate if due, and move the state to the next epoch. Returns what was measured, or None."""
    settings, state = t.config.train, t.state
    refuse_idle_epoch(t)
    with diverging(t):
        health = t.recipe.health()
    t.track.event("epoch", state, loss=pace.epoch_loss(t.here), seconds=seconds, **health)
    done = state.epoch + 1
    due = done % settings.eval.every_epochs == 0 or done == settings.epochs
    with diverging(t):
        measured = measure(t) if due else None
    if measured:
        t.track.event("eval", state, what="trained", **measured)
        t.meter.keep(t.folder.verification, epoch=state.epoch, step=state.step)
    of_sets = measure_sets(t) if due else {}
    state.epoch, state.seen, t.taken_this_epoch = done, 0, 0
    return {**(measured or {}), **({"sets": of_sets} if of_sets else {})} or None


def measure_sets(t: Training) -> SetNumbers:
    """Measure on the sets and record the numbers; {} if a stop interrupted it. Raises NotFinite."""
    try:
        with diverging(t), t.stop.at_once(t.here):
            found = t.sets.measure(t.state.step, t.stop)
    except Interrupted:
        return {}
    for name, numbers in found.items():
        t.track.event("eval", t.state, what=f"sets/{name}", **numbers)
    return found


def measure(t: Training) -> dict[str, float] | None:
    """Measure on the held-out people. None without any, or if a stop interrupted it: the checkpoint comes first."""
    try:
        with t.stop.at_once(t.here):
            return t.meter.measure()
    except Interrupted:
        return None


@contextmanager
def diverging(t: Training) -> Iterator[None]:
    """If one rank raises NotFinite inside, raise it on all ranks, with advice."""
    try:
        with noticed_together(t.here):
            yield
    except NotFinite as error:
        lr = t.config.train.optimizer.lr
        raise NotFinite(f"{error}: continue with a lower train.optimizer.lr than {lr:g}") from error


def refuse_idle_epoch(t: Training) -> None:
    """Raise NotFinite if no step of the epoch was taken: the epoch trained nothing.

    An epoch of few updates may end while fp16 still searches its scale; then the next epoch goes on with the search.
    """
    settings = t.config.train
    searches = t.scaler.get_scale() > 1 and t.state.epoch + 1 < settings.epochs
    if t.taken_this_epoch or searches:
        return
    other = "train.precision=fp32, or a lower " if settings.precision == "fp16" else "a lower "
    raise NotFinite(
        f"no step of epoch {t.state.epoch} was taken, as no loss or gradient was finite: continue with "
        f"{other}train.optimizer.lr than {settings.optimizer.lr:g}"
    )


def save(t: Training, measured: dict[str, Any] | None) -> None:
    """Write a checkpoint on rank 0; the others send their shards. Raises WrongUse and NotFinite."""
    tables, saved = t.recipe.tables(), {}
    t.saved = t.state.epoch, t.state.seen
    with dist.together(t.here), diverging(t):  # a full disk or a value that is not finite ends all ranks
        if t.here.is_main:
            saved = checkpoint.save(
                t.folder,
                t.state,
                t.recipe.modules,
                tables,
                t.optimizer,
                t.scaler,
                keep=t.config.train.checkpoint.keep,
                facts={**described(t), "eval": measured},
            )
    if t.here.is_main:
        t.track.event(
            "checkpoint", t.state, **{key: saved[key] for key in ("epoch", "step", "file", "sha256", "bytes")}
        )


def embedding_progress(track: Tracker, state: TrainState) -> Callable[[int, int], None]:
    """Return a callback that records progress of an embedding pass every ten seconds; none for a short one."""
    told = time.monotonic()

    def tell(done: int, total: int) -> None:
        nonlocal told
        if time.monotonic() - told >= 10:
            told = time.monotonic()
            track.event("embedding", state, done=done, total=total)

    return tell


def described(t: Training) -> dict[str, Any]:
    """The fields of a checkpoint's JSON besides its training state."""
    return {
        "commit": t.config.run.commit,
        "dataset_id": t.data.dataset_id,
        "fraction": t.data.fraction,
        "world_size": t.here.size,
        "recipe": t.config.recipe.name,
        "model": t.config.model(),
        "facts": t.facts,
    }


if __name__ == "__main__":
    dist.leave(main(sys.argv[1:]))

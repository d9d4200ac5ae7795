"""Stub of app.train: writes metrics, checkpoints and the end event. At the end of stdin it saves and exits."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
import zipfile
from importlib.util import find_spec
from pathlib import Path

from app.config import load

RANK = int(os.environ["RANK"])
STOP = threading.Event()


def main() -> int:
    values = load(sys.argv[1:])
    folder = Path(values["run.dir"])
    manner = values["train.manner"]
    if manner == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    else:
        signal.signal(signal.SIGTERM, lambda *_: STOP.set())
        if os.environ.get("SNIPERFACE_SUPERVISED"):
            threading.Thread(target=wait_for_end_of_input, daemon=True).start()
    print(f"rank {RANK} reads {values['data.binary_cache_path']}: grüße", flush=True)
    if not Path(values["data.binary_cache_path"]).is_file():
        return 5
    if manner == "wrong_use":
        if RANK:
            STOP.wait(30)  # the first exit ends all ranks: let rank 0 record the end first
        tell(folder, "end", 0, 0, reason="wrong_use", message="the value does not work; give another")
        report(folder, b"The run failed: the value does not work; give another.")
        return 1
    if manner.startswith("leaks"):
        leak()
    epoch, step = resume(folder, values)
    if RANK == 0:
        settings = "".join(f"{key}: {json.dumps(value)}\n" for key, value in values.items())
        (folder / "config.yaml").write_text(f"resolved: true\n{settings}", encoding="utf-8")
    tell(
        folder, "start", epoch, step,
        world_size=int(os.environ["WORLD_SIZE"]), epochs=values["train.epochs"], steps_per_epoch=values["train.steps"],
        global_batch=8, train_rows=30, dataset_id="x", fraction=values["data.data_fraction"],
        resumed_from=f"epoch {epoch} step {step}" if step else None,
    )  # fmt: skip
    for what, accuracy in (("pixels", 0.85), ("untrained", 0.8)):
        tell(folder, "eval", epoch, step, what=what, accuracy=accuracy, accuracy_std=0.01, rank1=0.98)
    while epoch < values["train.epochs"]:
        while step < (epoch + 1) * values["train.steps"]:
            if STOP.is_set():
                save(folder, values, f"epoch_{epoch:03}_step_{step:08}", epoch, step, whole=False)
                tell(folder, "end", epoch, step, reason="stopped", message="stopped on request", seconds=1.0)
                return 0
            time.sleep(values["train.step_s"])
            step += 1
            tell(folder, "step", epoch, step, loss=1 / step, lr=0.1, images_per_s=100.0, seconds_left=1.0)
            print(f"rank {RANK} step {step}", flush=True)
            if manner.endswith("fails") and step == 4 and RANK:
                STOP.wait(30)  # the first exit ends all ranks: let rank 0 fail before it is told to stop
            if manner == "fails" and step == 4:
                raise RuntimeError("the loss is not a number")
            if manner == "leaks_and_fails" and step == 4:
                raise RuntimeError(f"refused: {os.environ['WANDB_API_KEY']}")
        tell(folder, "mining", epoch, step, count=7, coverage=0.5, purity=0.9, accepted=True, seconds=0.1)
        tell(folder, "epoch", epoch, step, loss=1 / step, seconds=0.1)
        save(folder, values, f"epoch_{epoch:03}", epoch, step, whole=True)
        epoch += 1
    accuracy = 0.9 - abs(0.1 - values["train.optimizer.lr"])
    tell(folder, "eval", epoch - 1, step, what="trained", accuracy=accuracy, accuracy_std=0.01, rank1=0.99)
    tell(folder, "end", epoch - 1, step, reason="done", message="", seconds=1.0)
    report(folder, b"88.5% of &#34;people&#34; &amp; no more.")
    return 0


def report(folder: Path, verdict: bytes) -> None:
    if RANK == 0:
        if find_spec("deploy") is None:  # started in this folder, and not in a project's
            sys.path.append(str(Path(__file__).resolve().parents[5]))
        from deploy.border import REPORT_BEGINS

        about = b'<meta name="description" content="' + verdict + b'">\n<title>report</title>'
        (folder / "report.html").write_bytes(REPORT_BEGINS + about)


def leak() -> None:
    """Print all secrets as a careless program might: whole, in two halves, and through a child process."""
    for name in ("WANDB_API_KEY", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "REGISTRY_PASSWORD"):
        secret = os.environ[name]
        print(f"using {name}={secret}", flush=True)
        for part in ("and again ", secret[:7], secret[7:], "\n"):
            sys.stdout.write(part)
            sys.stdout.flush()
            time.sleep(0.02)
    subprocess.run(["env"], check=True)


def wait_for_end_of_input() -> None:
    while os.read(0, 1024):
        pass
    STOP.set()


def tell(folder: Path, event: str, epoch: int, step: int, **more: object) -> None:
    if RANK == 0:
        with open(folder / "metrics.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps({"event": event, "time": time.time(), "epoch": epoch, "step": step, **more}) + "\n")


def save(folder: Path, values: dict, stem: str, epoch: int, step: int, *, whole: bool) -> None:
    if RANK:
        return
    path = folder / "checkpoints" / f"{stem}.pt"
    path.parent.mkdir(exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    with zipfile.ZipFile(part, "w") as archive:
        # The run's name makes the files of two runs differ; without a date of 2 s steps, that never depends on time.
        archive.writestr(zipfile.ZipInfo("weights"), f"{folder.name} {epoch} {step}")
    os.replace(part, path)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    about = {
        "file": path.name, "sha256": sha256, "bytes": path.stat().st_size, "epoch": epoch, "step": step,
        "epoch_complete": whole, "commit": values["run.commit"], "dataset_id": "x",
        "fraction": values["data.data_fraction"], "world_size": 2, "recipe": "self_supervised",
        "model": {"backbone": values["backbone.name"], "width": values["backbone.width"]},
        "facts": {"epochs": values["train.epochs"]},
        "eval": {"accuracy": 0.9 - epoch / 100}, "created": time.time(),
    }  # fmt: skip
    for name, text in ((f"{stem}.json", json.dumps(about)), ("latest", path.name)):
        part = path.with_name(f".{name}.part")
        part.write_text(text, encoding="utf-8")
        os.replace(part, path.with_name(name))
    tell(folder, "checkpoint", epoch, step, name=path.name, sha256=sha256, bytes=path.stat().st_size)


def resume(folder: Path, values: dict) -> tuple[int, int]:
    wanted = values["train.resume"]
    if wanted == "auto":
        latest = folder / "checkpoints" / "latest"
        wanted = str(latest.parent / latest.read_text()) if latest.exists() else "none"
    if wanted == "none":
        return 0, 0
    about = json.loads(Path(wanted).with_suffix(".json").read_text())
    return about["epoch"] + bool(about["epoch_complete"]), about["step"]


if __name__ == "__main__":
    sys.exit(main())

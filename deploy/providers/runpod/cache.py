"""Local notes on pods: a cache and a safety net. Only RunPod's list is authoritative.

intents/<name>.json  written before a pod is requested, so that its name is known after a crash
pods/<id>.json       its identity from its log, so that not every command reads the log; valid for one start only
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from deploy.pod.base.folder import read_json, remove, write_json
from deploy.providers.runpod.api import Cluster, Pod
from deploy.providers.runpod.identity import Identity

KEEP_S = 3600


class Notes:
    def __init__(self, folder: Path) -> None:
        self.intents = folder / "intents"
        self.pods = folder / "pods"

    def intend(self, name: str, **what: Any) -> None:
        write_json(self.intents / f"{name}.json", {"name": name, **what})

    def intended(self, name: str) -> dict[str, Any]:
        """Return what was noted at a request of that name. A pod may have any name, so it makes no path."""
        return next((read_json(path) for path in self.intents.glob("*.json") if path.stem == name), {})

    def name_of(self, one: Pod | Cluster) -> str:
        """Return the name with which this computer requested a pod or a cluster, else its present name."""
        notes = map(read_json, self.intents.glob("*.json"))
        names = (note.get("name") for note in notes if one.id and one.id in (note.get("pod"), note.get("cluster")))
        return next((str(name) for name in names if name), one.name)

    def handed_out(self) -> dict[str, str]:
        """Return name -> id of the single pods that commands of this computer requested and have received."""
        notes = {path.stem: read_json(path) for path in self.intents.glob("*.json")}
        return {name: str(note["pod"]) for name, note in notes.items() if note.get("pod") and note.get("handed_out")}

    def tidy(self, there: set[str], now: float, kind: str = "pod") -> None:
        """Delete intents of one kind without a listed pod. Recent ones stay (KEEP_S): their pod may still appear."""
        for path in self.intents.glob("*.json"):
            what = read_json(path)
            age = now - (what.get("made") or what.get("asked") or 0)
            if what.get("kind", "pod") == kind and path.stem not in there and age > KEEP_S:
                remove(path)

    def done_with(self, name: str) -> None:
        for path in self.intents.glob("*.json"):
            if path.stem == name:
                remove(path)

    def identity(self, pod: Pod) -> Identity:
        """Return the identity noted for this start and address, else an empty one. A restart makes new keys."""
        known = read_json(self.pods / f"{pod.id}.json")
        if known.get("boot") != _boot(pod):
            return Identity()
        return Identity(tuple(known.get("host_keys") or ()), known.get("gpus"), known.get("memory_gib"))

    def remember(self, pod: Pod, identity: Identity) -> None:
        write_json(
            self.pods / f"{pod.id}.json",
            {"name": pod.name, "cluster": pod.cluster, "boot": _boot(pod), **asdict(identity)},
        )

    def forget(self, pod_id: str) -> None:
        remove(self.pods / f"{pod_id}.json")

    def forget_cluster(self, cluster_id: str) -> None:
        for path in self.pods.glob("*.json"):
            if read_json(path).get("cluster") == cluster_id:
                remove(path)


def _boot(pod: Pod) -> list[Any]:
    return [pod.started, pod.host, pod.port]

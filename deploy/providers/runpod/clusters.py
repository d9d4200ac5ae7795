"""Several machines at once: the pods of one Instant Cluster, which RunPod creates and ends together.

RunPod cannot delete or stop one pod of a cluster alone, so releasing any machine of it releases all of them. The names
of the pods are ignored: the machine of rank k in cluster NAME is NAME-node<k>, and the first one is NAME.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from deploy.errors import NoMachine, WrongUse, command
from deploy.providers.rented import refuse_unreadable
from deploy.providers.runpod.api import SHOWS_S, ApiError, Cluster, Gone, Pod
from deploy.providers.runpod.create import Making
from deploy.providers.runpod.identity import Identity
from deploy.providers.runpod.messages import could_not_give_back
from deploy.providers.runpod.pod_request import Wanted
from deploy.providers.runpod.readiness import Boot, Unfit
from deploy.providers.runpod.retry import Asking, of_family
from deploy.specs.machine import Machine, MachineSpec, node_name, node_of
from deploy.specs.settings import RunPod, Settings

if TYPE_CHECKING:
    from deploy.providers.runpod.rest import RestApi

MOST_NODES = 250


@dataclass
class Clusters:
    api: RestApi
    asking: Asking
    boot: Boot
    making: Making
    machine: Callable[[Pod, Identity, str], Machine]  # from a pod, its identity in the log, and the machine's name
    fit: Callable[[Machine], Machine]  # returns a machine that can train; raises Unfit for one that cannot
    chosen = ""  # id of the cluster whose node 0 was returned last; other nodes come from it
    word = "cluster"
    product = "CLUSTER"

    def acquire(self, spec: MachineSpec) -> Machine:
        """Return a node of a cluster of `spec.nodes` machines. Raises NoMachine without a usable one.

        Node 0 is requested first. It comes from an existing or new cluster, once all machines of that cluster answer
        and can train. The other nodes come from the same cluster, without a second training check.
        """
        found = self.all()
        refuse_unreadable(found, spec.family, self.making.settings.target.name)
        if spec.node:
            return self._other_node(spec, found)
        self.asking.notes.tidy({each.name for each in found}, self.asking.clock.time(), self.word)
        for cluster in of_family(found, spec.family):
            if not _fits(cluster, spec):
                self.asking.say(f"leaving {cluster}, {cluster.name}, unchanged: the run needs {spec.nodes} machines")
                continue
            self.asking.say(f"found existing {cluster}, named {cluster.name}")
            try:
                machine = self._whole(cluster, lambda _: None, is_unused=self.making.is_unused(self, cluster))
            except Unfit as unfit:
                self._give_back_or_refuse(cluster, unfit)
            else:
                self.chosen = cluster.id
                return machine
        machine = self.making.new(self, spec)
        self.chosen = machine.group or ""
        return machine

    def find(self, name: str, pods: Sequence[Pod]) -> Pod | None:
        """Find the living pod of the machine `name` among `pods`, all pods of the account."""
        if not any(pod.cluster for pod in pods):
            return None
        ids = {each.name: each.id for each in self._clusters_of(pods)}
        for plain, node in ((name, 0), (plain_name(name), node_of(name))):
            if plain in ids:
                mine = (pod for pod in pods if (pod.cluster, pod.rank) == (ids[plain], node))
                return next((pod for pod in mine if pod.is_alive), None)
        return None

    def named(self, begin: tuple[str, ...], pods: Sequence[Pod]) -> list[tuple[Pod, str]]:
        """List the pods of clusters whose name starts with one of `begin`, each with its machine name.

        A cluster without pods is listed as one placeholder pod.
        """
        clusters = self._clusters_of(pods)
        found = []
        for cluster in clusters:
            if cluster.name.startswith(begin):
                mine = [pod for pod in pods if pod.cluster == cluster.id] or [_nothing_yet(cluster)]
                mine = [replace(pod, fault=pod.fault or cluster.fault) for pod in mine]
                found += [(pod, node_name(cluster.name, rank)) for rank, pod in _ranked(mine)]
        # A pod whose cluster is gone is listed under its own name.
        known = {each.id for each in clusters}
        unknown = [pod for pod in pods if pod.cluster and pod.cluster not in known and pod.name.startswith(begin)]
        return [*found, *((pod, pod.name) for pod in unknown)]

    def _clusters_of(self, pods: Sequence[Pod]) -> list[Cluster]:
        """List all clusters, also those that only the pods name, because the list of clusters may lag behind.

        A machine without its cluster's name would count as an orphan.
        """
        look_s = self.asking.limits.look_s
        clusters = self.all(look_s)
        for cluster_id in sorted({pod.cluster for pod in pods if pod.cluster} - {each.id for each in clusters}):
            with contextlib.suppress(Gone):
                found = self.asking.ask(functools.partial(self.api.cluster, cluster_id), look_s)
                clusters.append(self.asking.as_named(found))
        return clusters

    # Called by `Making`

    def create(self, wanted: Wanted) -> Cluster:
        return self.api.create_cluster(wanted)

    def all(self, patience_s: float | None = None, *, bills: bool = False) -> list[Cluster]:
        found = self.asking.told(self.asking.ask(self.api.clusters, patience_s, bills=bills))
        return [self.asking.as_named(each) for each in found]

    def ready(self, made: Cluster) -> Machine:
        return self._whole(made, self.making.refuse_other, is_unused=True)

    def end(self, made: Cluster) -> None:
        self.end_by_id(made.id, f"{made}, {made.name},")

    def end_by_id(self, cluster_id: str, what: str) -> None:
        """End a cluster; one that is gone counts as ended. Raises StepFailed on failure."""
        if not cluster_id:
            raise could_not_give_back(what, ApiError("RunPod's list has no id of it"), "clusters")
        try:
            self.asking.ended(cluster_id, lambda: self.api.end_cluster(cluster_id))
        except Gone:
            pass
        except ApiError as error:
            raise could_not_give_back(what, error, "cluster") from error
        self.asking.notes.forget_cluster(cluster_id)

    # An existing cluster

    def _whole(self, cluster: Cluster, refuse: Callable[[Pod], None], *, is_unused: bool) -> Machine:
        """Wait until every machine answers by SSH and matches the request. Returns the first one."""
        first: Machine | None = None
        for rank, pod in enumerate(self._members(cluster, SHOWS_S if is_unused else 0.0)):
            ready, identity = self.boot.ready(pod, refuse, is_unused=is_unused)
            machine = self.fit(self.machine(ready, identity, node_name(cluster.name, rank)))
            first = first or machine
        assert first is not None  # `_members` returns `cluster.nodes` pods
        return first

    def _members(self, cluster: Cluster, shows_s: float = 0.0) -> list[Pod]:
        """Return all pods by rank. Waits for them: pods and ranks appear some time after the cluster.

        `shows_s`: seconds in which the API may not know a new cluster yet.
        Raises Unfit when the cluster vanished or a pod ended, NoMachine after wait_min.
        """
        ranks = ""
        for waited_s in self.asking.clock.polls(self.boot.wait_min * 60):
            try:
                pods = self.asking.ask(lambda: self.api.members(cluster.id), bills=True)
            except Gone as error:
                if waited_s >= shows_s:
                    raise Unfit("it vanished") from error
                pods = []
            if ended := [pod for pod in pods if not pod.is_alive]:
                lines = self.asking.last_lines(ended[0])
                raise Unfit(f"its machine {ended[0].rank}, {ended[0].id}, has ended ({ended[0].status})", lines)
            in_order = sorted(pods, key=lambda pod: -1 if pod.rank is None else pod.rank)
            if [pod.rank for pod in in_order] == list(range(cluster.nodes)):
                return in_order
            self.asking.say(f"{cluster}: waiting for its pods, {waited_s:.0f} s")
            ranks = ", ".join("none" if pod.rank is None else str(pod.rank) for pod in in_order)
        raise NoMachine(
            f"{cluster}, {cluster.name}, did not have its {cluster.nodes} pods within "
            f"wait_min: {self.boot.wait_min:g} (ranks: {ranks or 'no pods'})"
        )

    def _give_back_or_refuse(self, cluster: Cluster, unfit: Unfit) -> None:
        """Release a cluster that was never in use; raise NoMachine for one that was.

        No second cluster is created beside one that bills: the user or its guard must end that one first.
        """
        if cluster.id not in {each.id for each in self.all()}:
            self.asking.say(f"{cluster} is gone")
        elif not self.making.give_back_unused(self, cluster, unfit):
            following = command(f"down --on {self.making.settings.target.name}")
            raise NoMachine(
                f"{cluster}, {cluster.name}, is no longer usable and still bills: {unfit.why}",
                evidence=unfit.evidence,
                next_command=f"{following}   (downloads the results first)",
            )

    def _other_node(self, spec: MachineSpec, found: Sequence[Cluster]) -> Machine:
        mine = [each for each in of_family(found, spec.family) if _fits(each, spec)]
        best = sorted(mine, key=lambda each: (each.id != self.chosen, each.name != plain_name(spec.name)))
        if not best:
            raise NoMachine(f"found no cluster for {spec.name}: request node 0 first")
        name = node_name(best[0].name, spec.node)
        try:
            pod, identity = self.boot.ready(self._members(best[0])[spec.node])
        except Unfit as unfit:
            raise NoMachine(f"{name} of {best[0]} is not usable: {unfit.why}", evidence=unfit.evidence) from unfit
        return self.machine(pod, identity, name)


def refuse(settings: Settings, options: RunPod, nodes: int) -> None:
    """Raise WrongUse for options that clusters do not support, before any request is sent."""
    where, alone = settings.where, "a run on several machines uses an Instant Cluster"
    wrong = {
        "which api: sdk does not support: set api: v2": options.api != "v2",
        "which has at most 250 machines: set nodes: 250 or fewer": nodes > MOST_NODES,
        "which gets no registry credentials: make the image public, and remove registry": bool(options.registry),
        "which does not exist in the COMMUNITY cloud: set cloud: SECURE": options.cloud != "SECURE",
        "which cannot be requested by CUDA version: remove min_cuda": bool(options.min_cuda),
        "which cannot be a spot request: set spot: false": options.spot,
        "which cannot be stopped, only terminated: set on_end: keep, or terminate": settings.target.on_end == "stop",
    }
    for words, is_so in wrong.items():
        if is_so:
            raise WrongUse(f"{alone}, {words} in {where}")


def plain_name(name: str) -> str:
    """Return the name of a machine's cluster, which is also the name of the cluster's first machine."""
    return name.removesuffix(f"-node{node_of(name)}")


def _fits(cluster: Cluster, spec: MachineSpec) -> bool:
    return cluster.nodes == spec.nodes and cluster.type == "TRAINING"


def _ranked(pods: Sequence[Pod]) -> list[tuple[int, Pod]]:
    """Sort pods by rank. Those without a rank yet get free ranks, so that each has a unique name."""
    taken = {pod.rank for pod in pods}
    free = (rank for rank in range(len(pods) * 2) if rank not in taken)
    ranked = [(next(free) if pod.rank is None else pod.rank, pod) for pod in pods]
    return sorted(ranked, key=lambda each: each[0])


def _nothing_yet(cluster: Cluster) -> Pod:
    return Pod(
        id="",
        name=cluster.name,
        status="PROVISIONING",
        gpu=cluster.gpu,
        data_center=cluster.data_center,
        created=cluster.created,
        cluster=cluster.id,
    )

"""GraphQL API of the emulator: the queries of the runpod package 1.12, parsed, checked and executed by graphql-core."""

from __future__ import annotations

import json
from typing import Any

from graphql import GraphQLError, build_schema, graphql_sync

from tests.support.emulators.runpod_state import NO_ROOM, Account, Pod, Refusal

SCHEMA = build_schema(
    """
    scalar Void
    enum CloudTypeEnum { ALL COMMUNITY SECURE }
    type Query {
      myself: User
      pod(input: PodFilter): Pod
      gpuTypes(input: GpuTypeFilter): [GpuType]
    }
    type Mutation {
      podFindAndDeployOnDemand(input: PodFindAndDeployOnDemandInput): Pod
      podRentInterruptable(input: PodRentInterruptableInput!): Pod
      podTerminate(input: PodTerminateInput!): Void
    }
    input PodFilter { podId: String! }
    input PodTerminateInput { podId: String! }
    input GpuTypeFilter { id: String }
    input GpuLowestPriceInput {
      countryCode: String dataCenterId: String gpuCount: Int includeAiApi: Boolean minDisk: Int minDownload: Int
      minMemoryInGb: Int minUpload: Int minVcpuCount: Int secureCloud: Boolean supportPublicIp: Boolean totalDisk: Int
      cudaVersion: String allowedCudaVersions: [String]
    }
    input EnvironmentVariableInput { key: String! value: String! }
    input PodFindAndDeployOnDemandInput {
      name: String imageName: String cloudType: CloudTypeEnum startSsh: Boolean gpuTypeId: String
      supportPublicIp: Boolean gpuCount: Int volumeInGb: Int minVcpuCount: Int minMemoryInGb: Int
      allowedCudaVersions: [String] dataCenterId: String dockerArgs: String containerDiskInGb: Int ports: String
      volumeMountPath: String env: [EnvironmentVariableInput] networkVolumeId: String
    }
    input PodRentInterruptableInput {
      bidPerGpu: Float cloudType: CloudTypeEnum containerDiskInGb: Int countryCode: String dockerArgs: String
      env: [EnvironmentVariableInput] gpuCount: Int gpuTypeId: String imageName: String minDisk: Int minDownload: Int
      minMemoryInGb: Int minUpload: Int minVcpuCount: Int name: String networkVolumeId: String port: Int ports: String
      startJupyter: Boolean startSsh: Boolean stopAfter: String supportPublicIp: Boolean templateId: String
      terminateAfter: String volumeInGb: Int volumeKey: String volumeMountPath: String dataCenterId: String
      cudaVersion: String allowedCudaVersions: [String]
    }
    type User { clientBalance: Float currentSpendPerHr: Float spendLimit: Int
      id: String pubKey: String networkVolumes: [NetworkVolume] pods: [Pod] }
    type NetworkVolume { id: String name: String size: Int dataCenterId: String }
    type Pod {
      id: String containerDiskInGb: Int costPerHr: Float desiredStatus: String dockerArgs: String dockerId: String
      env: [String] gpuCount: Int imageName: String lastStatusChange: String machineId: String memoryInGb: Float
      name: String podType: String port: Int ports: String uptimeSeconds: Int vcpuCount: Float volumeInGb: Float
      volumeMountPath: String runtime: PodRuntime machine: PodMachineInfo
    }
    type PodRuntime { ports: [PodRuntimePorts] }
    type PodRuntimePorts { ip: String isIpPublic: Boolean privatePort: Int publicPort: Int type: String }
    type PodMachineInfo { gpuDisplayName: String podHostId: String }
    type GpuType {
      maxGpuCount: Int id: String displayName: String manufacturer: String memoryInGb: Int cudaCores: Int
      secureCloud: Boolean communityCloud: Boolean securePrice: Float communityPrice: Float oneMonthPrice: Float
      threeMonthPrice: Float oneWeekPrice: Float communitySpotPrice: Float secureSpotPrice: Float
      lowestPrice(input: GpuLowestPriceInput): LowestPrice
    }
    type LowestPrice { minimumBidPrice: Float uninterruptablePrice: Float }
    """
)


def answer(account: Account, body: bytes) -> tuple[int, Any]:
    told = json.loads(body)
    result = graphql_sync(SCHEMA, told["query"], Root(account), variable_values=told.get("variables"))
    is_malformed = result.data is None and any(error.path is None for error in result.errors or [])
    return 400 if is_malformed else 200, result.formatted


class Root:
    """Resolvers: one method per field. Each returns a dict with the nested fields as keys."""

    def __init__(self, account: Account) -> None:
        self.account = account

    def myself(self, _info: Any) -> dict[str, Any]:
        volumes = [
            {"id": id, "name": each["name"], "size": each["size"], "dataCenterId": each["dataCenter"]}
            for id, each in self.account.volumes.items()
        ]
        pods = [self._as_fields(pod) for pod in self.account.all()]
        money = {
            "clientBalance": self.account.balance_usd,
            "currentSpendPerHr": sum(pod.usd_per_hour for pod in self.account.all() if not pod.stopped),
            "spendLimit": self.account.spend_limit_usd_per_hour,
        }
        return {**money, "id": "user", "pubKey": "", "networkVolumes": volumes, "pods": pods}

    def pod(self, _info: Any, input: dict[str, Any]) -> dict[str, Any] | None:
        try:
            return self._as_fields(self.account.find(input["podId"]))
        except Refusal:
            return None

    def gpuTypes(self, _info: Any, input: dict[str, Any] | None = None) -> list[dict[str, Any]]:  # noqa: N802
        wanted = (input or {}).get("id")
        return [
            {
                "id": gpu.id, "displayName": gpu.id, "manufacturer": "Nvidia", "memoryInGb": gpu.memory_gib,
                "maxGpuCount": gpu.max_count, "secureCloud": True, "communityCloud": False,
                "securePrice": gpu.usd_per_hour, "communityPrice": 0,
                "secureSpotPrice": gpu.spot_usd_per_hour, "communitySpotPrice": None,
                "lowestPrice": {
                    "uninterruptablePrice": gpu.usd_per_hour if gpu.stock else None,
                    "minimumBidPrice": gpu.spot_usd_per_hour if gpu.stock else None,
                },
            }
            for gpu in self.account.gpus.values()
            if wanted in (None, gpu.id)
        ]  # fmt: skip

    def podRentInterruptable(self, info: Any, input: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        kind = self.account.gpus.get(input["gpuTypeId"])
        if kind and input["bidPerGpu"] < (kind.spot_usd_per_hour or float("inf")):
            raise GraphQLError(NO_ROOM)
        made = self.podFindAndDeployOnDemand(info, input)
        pod = self.account.find(made["id"])
        pod.spot, pod.usd_per_hour = True, input["bidPerGpu"] * input["gpuCount"]
        return self._as_fields(pod)

    def podFindAndDeployOnDemand(self, _info: Any, input: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        try:
            pod = self.account.create(
                name=input["name"],
                image=input["imageName"],
                gpu=input["gpuTypeId"],
                gpu_count=input["gpuCount"],
                cloud=input["cloudType"],
                data_centers=[input["dataCenterId"]] if input.get("dataCenterId") else [],
                disk=input["containerDiskInGb"],
                ports=input["ports"].split(","),
                env={each["key"]: each["value"] for each in input.get("env", [])},
                args=input.get("dockerArgs") or "",
                volume=input.get("networkVolumeId"),
                volume_path=input.get("volumeMountPath", ""),
                takes=lambda cuda: cuda in (input.get("allowedCudaVersions") or [cuda]),
            )
        except Refusal as refusal:
            raise GraphQLError(refusal.detail) from refusal
        return self._as_fields(pod)

    def podTerminate(self, _info: Any, input: dict[str, Any]) -> None:  # noqa: N802
        try:
            self.account.terminate(input["podId"])
        except Refusal as refusal:
            raise GraphQLError("pod not found to terminate" if refusal.status == 404 else refusal.detail) from refusal

    def _as_fields(self, pod: Pod) -> dict[str, Any]:
        now = self.account.clock.time()
        is_public = pod.publishes == "address"
        where = pod.machine.address() if pod.machine and pod.has_runtime(now) and pod.publishes != "nothing" else None
        ssh = (
            {"ip": where[0], "isIpPublic": is_public, "privatePort": 22, "publicPort": where[1], "type": "tcp"}
            if where
            else {}
        )
        status = pod.status(now)
        return {
            "id": pod.id, "name": pod.name, "imageName": pod.image, "costPerHr": pod.usd_per_hour,
            "desiredStatus": "RUNNING" if status in ("PROVISIONING", "STARTING") else status,
            "gpuCount": 0 if pod.zero_gpus else pod.gpu_count, "memoryInGb": pod.memory_gib,
            "podType": "INTERRUPTABLE" if pod.spot else "RESERVED",
            "env": [f"{key}={value}" for key, value in pod.env.items()], "machineId": "machine",
            "containerDiskInGb": pod.disk, "volumeInGb": pod.mounts.get("persistent", {}).get("size", 0),
            "ports": ",".join(pod.ports), "volumeMountPath": "",
            "uptimeSeconds": max(int(now - pod.started), 0), "machine": {"gpuDisplayName": pod.gpu, "podHostId": "h"},
            "runtime": {"ports": [ssh] if ssh else []} if pod.has_runtime(now) else None,
        }  # fmt: skip

"""RunPod: pods with GPUs, through its REST API v2 or the GraphQL functions of its own package."""

from deploy.providers.runpod.provider import RunPodProvider

__all__ = ["RunPodProvider"]

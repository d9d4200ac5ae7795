"""RunPod: pods with GPUs, by its REST API v2 or by the GraphQL functions of its own package."""

from deploy.providers.runpod.provider import RunPodProvider

__all__ = ["RunPodProvider"]

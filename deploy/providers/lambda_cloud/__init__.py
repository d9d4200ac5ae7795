"""Lambda Cloud: virtual machines with GPUs, through its REST API. See api.py for the facts that the code rests on."""

from deploy.providers.lambda_cloud.options import LambdaCloud
from deploy.providers.lambda_cloud.provider import LambdaProvider

__all__ = ["LambdaCloud", "LambdaProvider"]

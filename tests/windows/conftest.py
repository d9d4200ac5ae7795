"""The project of tests/deploy, for the steps of a newcomer."""

from tests.deploy.conftest import project, template

__all__ = ["project", "template"]

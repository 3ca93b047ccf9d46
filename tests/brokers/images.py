"""The images of tools/build-broker-images, and the daemon that runs them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import docker
import docker.errors
import pytest


@pytest.fixture
def client() -> Iterator[docker.DockerClient]:
    """Of a daemon that answers; one that does not fails these tests in CI, and skips them elsewhere."""
    try:
        if not os.environ.get("DOCKER_HOST") and not Path("/var/run/docker.sock").exists():
            raise FileNotFoundError("no /var/run/docker.sock")  # docker-py would leave a socket open
        client = docker.from_env(timeout=30)
        client.ping()
    except (docker.errors.DockerException, OSError) as exc:
        _absent(f"docker does not answer ({exc}); `make brokers` starts it")
    yield client
    client.close()


def image_of(client: docker.DockerClient, kind: str) -> str:
    """The name of the image of `rabbitmq:4` and the like."""
    name = f"mqkit-test/{kind}"
    try:
        client.images.get(name)
    except docker.errors.ImageNotFound:
        _absent(f"the image {name} is not here; `make brokers` builds it")
    return name


def _absent(reason: str) -> NoReturn:
    if os.environ.get("CI") and os.environ.get("MQKIT_TEST_CONTAINERS") != "no":
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)

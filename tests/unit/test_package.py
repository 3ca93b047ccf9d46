"""The package as it is installed: what an import costs, what it ships."""

import subprocess
import sys
from importlib.resources import files

import pytest

OPTIONAL = ["boto3", "kafka", "pika", "pydantic", "pytest", "redis", "rich", "sqlalchemy", "typer"]


@pytest.fixture(scope="module")
def loaded() -> set[str]:
    """Top-level modules in a fresh interpreter after `import mqkit`."""
    code = "import sys, mqkit; print(*{name.partition('.')[0] for name in sys.modules})"
    return set(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split())


@pytest.mark.parametrize("name", OPTIONAL)
def test_importing_mqkit_leaves_optional_packages_alone(loaded: set[str], name: str) -> None:
    assert "mqkit" in loaded
    assert name not in loaded


def test_the_package_says_that_it_is_typed() -> None:
    assert files("mqkit").joinpath("py.typed").is_file()

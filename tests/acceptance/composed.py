"""docker-compose.yml as tests use it: its variables, Compose, and the services once they are up."""

import os
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from plimsoll.settings import PREFIX
from tests.acceptance.containers import docker

ROOT = Path(__file__).parents[2]
COMPOSE_FILE = ROOT / "docker-compose.yml"
ENV_EXAMPLE = ROOT / ".env.example"


def example_values() -> dict[str, str]:
    """Variable → value, as the example has them behind a "#"."""
    text = ENV_EXAMPLE.read_text(encoding="utf-8")
    return dict(re.findall(r"^#(\w+)=(.*)$", text, flags=re.MULTILINE))


def compose_executable() -> str:
    """Compose as a program of its own; skips where there is none."""
    name = os.environ.get("COMPOSE")
    if not name:
        pytest.skip("no COMPOSE names docker-compose; scripts/image finds it and runs this")
    return name


def outside_environment() -> dict[str, str]:
    """This process's environment without what would set a variable of the compose file."""
    own = example_values()
    return {
        name: text
        for name, text in os.environ.items()
        if name not in own and not name.startswith(PREFIX)
    }


def run(command: list[str], environment: Mapping[str, str]) -> str:
    """What a command prints; one that fails, fails the test."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


@dataclass(frozen=True)
class Stack:
    """The composed services, as `command` with `environment` runs them."""

    command: list[str]
    environment: dict[str, str]

    @property
    def url(self) -> str:
        """Of the server."""
        return f"http://127.0.0.1:{self.environment['PLIMSOLL_PORT']}"

    def compose(self, *arguments: str) -> str:
        """What a command of Compose prints."""
        return run([*self.command, *arguments], self.environment)

    def up(self) -> None:
        """Start what can be had here, and wait until it is healthy."""
        options = ("--detach", "--wait", "--no-build", "--pull", "never")
        self.compose("up", *options, "plimsoll", "prometheus")

    def container(self, service: str) -> str:
        """The id of a service's container."""
        return self.compose("ps", "--all", "--quiet", service)

    def inside(self, *command: str) -> str:
        """What a command prints in the server's container."""
        return docker("exec", self.container("plimsoll"), *command)

    def scraped(self, query: str, **parameters: str) -> list[str]:
        """Values that Prometheus has."""
        url = f"http://127.0.0.1:{self.environment['PROMETHEUS_PORT']}/api/v1/query"
        answer = httpx.get(url, params={"query": query} | parameters).json()
        return [series["value"][1] for series in answer["data"]["result"]]

"""Containers as these tests see them: Docker's commands, and waiting for what Docker tells."""

import os
import re
import socket
import subprocess
import time

import pytest

DOCKER = os.environ.get("DOCKER", "docker")
USER_ID = 10001
HEALTH_DEADLINE_S = 60
# As control groups of version 2 and 1 have it.
MEMORY_EVENTS = "/sys/fs/cgroup/memory.events /sys/fs/cgroup/memory/memory.oom_control"


def docker(*arguments: str) -> str:
    """What a command prints; one that fails, fails the test."""
    done = subprocess.run([DOCKER, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def inspected(container: str, template: str) -> str:
    """A property of a container, as a Go template names it."""
    return docker("inspect", "--format", template, container)


def wait_for_health(container: str, state: str, *, since: float) -> None:
    """Read Docker's own events until the container has turned `state`."""
    command = [DOCKER, "events", "--since", f"{since:.6f}"]
    command += ["--until", f"{time.time() + HEALTH_DEADLINE_S:.0f}", "--format", "{{.Status}}"]
    command += ["--filter", f"container={container}", "--filter", "event=health_status"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as events:
        if not any(line.strip() == f"health_status: {state}" for line in events.stdout or ()):
            pytest.fail(f"not {state} in time:\n{docker('logs', container)}")
        events.kill()


def oom_kills(container: str) -> int:
    """Processes of the container that the kernel has killed for want of memory."""
    events = docker("exec", container, "sh", "-c", f"cat {MEMORY_EVENTS} 2>/dev/null || :")
    found = re.search(r"^oom_kill (\d+)$", events, flags=re.MULTILINE)
    assert found, events
    return int(found[1])


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])

"""`docker compose up`: what the services do once they are up, over the override compose.ci.yml.

Runs where `scripts/image` has built an image and found Compose; a plain test run leaves it out.
Grafana is not run: where these tests run, its image cannot be had.
"""

import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import httpx
import pytest

from plimsoll.server.folders import MARK_NAME
from tests.acceptance.composed import (
    COMPOSE_FILE,
    ENV_EXAMPLE,
    ROOT,
    Stack,
    compose_executable,
    example_values,
    outside_environment,
)
from tests.acceptance.containers import (
    USER_ID,
    docker,
    free_port,
    inspected,
    oom_kills,
    wait_for_health,
)
from tests.acceptance.prometheus import quick_config, until

OVERRIDE = ROOT / "tests/acceptance/compose.ci.yml"
LIMIT_FILES = "/sys/fs/cgroup/memory.max /sys/fs/cgroup/memory/memory.limit_in_bytes"
LOAD = ("--clients", "16", "--seconds", "20", "--mix", "short=60,long=10,list=6")
SILENCE_S = 60


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    if "IMAGE_UNDER_TEST" not in os.environ:
        pytest.skip("there is no image to test; scripts/image builds one and runs this")
    port, config = free_port(), tmp_path_factory.mktemp("prometheus") / "prometheus.yml"
    config.write_text(quick_config(f"127.0.0.1:{port}"), encoding="utf-8")
    command = [compose_executable(), "--project-name", f"plimsoll-under-test-{os.getpid()}"]
    command += ["--project-directory", str(ROOT), "--env-file", str(ENV_EXAMPLE)]
    command += ["--profile", "monitoring"]
    command += ["--file", str(COMPOSE_FILE), "--file", str(OVERRIDE)]
    stack = Stack(
        command,
        outside_environment()
        | {"PLIMSOLL_PORT": str(port), "PROMETHEUS_PORT": str(free_port())}
        | {"PROMETHEUS_CONFIG": str(config)},
    )
    try:
        stack.up()
        yield stack
    finally:
        print(stack.compose("logs", "--no-color", "--tail", "50"))  # shown where a test failed
        stack.compose("down", "--volumes")


def test_a_healthy_stack_embeds(stack):
    """`up --wait` is what the README tells people to type."""
    reply = httpx.post(f"{stack.url}/embed", json={"input": "A mark on a hull"}, timeout=30)
    assert (reply.status_code, reply.json()["kind"]) == (200, "dense")


def test_prometheus_scrapes_the_server(stack):
    """With the project's own configuration, only faster, and its rules, which it has loaded."""
    assert until(lambda: stack.scraped('up{job="plimsoll"}') == ["1"])
    assert stack.scraped("plimsoll_memory_budget_bytes") == [str(limit_bytes())]
    url = f"http://127.0.0.1:{stack.environment['PROMETHEUS_PORT']}/api/v1/rules"
    assert httpx.get(url).json()["data"]["groups"]


def limit_bytes() -> int:
    mebibytes = re.fullmatch(r"(\d+)m", example_values()["MEMORY_LIMIT"])
    assert mebibytes
    return int(mebibytes[1]) << 20


def test_the_kernel_holds_the_server_to_the_limit_and_the_server_knows_it(stack):
    """A limit that Compose drops on the way leaves the server with the whole machine's memory."""
    told = stack.inside("sh", "-c", f"cat {LIMIT_FILES} 2>/dev/null || :")
    assert told == str(limit_bytes())
    memory = httpx.get(f"{stack.url}/health").json()["memory"]
    assert memory["budget_bytes"] == limit_bytes()


def test_what_passes_the_limit_is_killed(stack):
    """Control: without it, surviving the load below would prove nothing."""
    take = ["--entrypoint", "python", "plimsoll", "-c", f"bytearray({limit_bytes()} + (200 << 20))"]
    command = [*stack.command, "run", "--rm", "--no-deps", "--no-TTY", *take]
    done = subprocess.run(command, capture_output=True, check=False, env=stack.environment)
    assert done.returncode == 137


def test_the_kernel_grants_the_server_no_rights(stack):
    """As the kernel sees it, not as the file says it."""
    status = dict(
        line.split(":\t", 1) for line in stack.inside("cat", "/proc/1/status").splitlines()
    )
    assert status["Uid"].split() == [str(USER_ID)] * 4
    assert int(status["CapBnd"], 16) == 0
    assert status["NoNewPrivs"] == "1"


def test_a_load_fails_nothing_and_kills_nothing(stack):
    """Short and long texts and lists, from sixteen clients at once."""
    command = [sys.executable, "-m", "plimsoll", "bench", "--url", stack.url, *LOAD]
    done = subprocess.run(
        [*command, "--max-failed", "0.01"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert oom_kills(stack.container("plimsoll")) == 0


def test_a_killed_server_is_started_again(stack):
    """Killed from outside, as the kernel does it: `docker kill` would count as stopping it."""
    container, since = stack.container("plimsoll"), time.time()
    code = f"import os; os.kill({inspected(container, '{{.State.Pid}}')}, 9)"
    outside = ["--pid", "host", "--network", "none", "--entrypoint", "python"]
    docker("run", "--rm", *outside, os.environ["IMAGE_UNDER_TEST"], "-c", code)

    wait_for_health(container, "healthy", since=since)

    assert inspected(container, "{{.RestartCount}}") == "1"
    assert until(lambda: stack.scraped('up{job="plimsoll"}') == ["1"])
    test_a_healthy_stack_embeds(stack)


def test_until_its_model_has_arrived_the_server_answers_by_words(stack):
    """A first start may fetch for minutes: neither Compose nor clients may take it for dead."""
    with socket.create_server(("127.0.0.1", 0)) as silent_hub:
        url, since = f"http://127.0.0.1:{free_port()}", time.time()
        variables = {
            "HF_ENDPOINT": f"http://127.0.0.1:{silent_hub.getsockname()[1]}",
            "HF_HUB_ETAG_TIMEOUT": str(SILENCE_S),
            "PLIMSOLL_LOAD_WAIT_S": "0",
            "PLIMSOLL_MODEL": example_values()["PLIMSOLL_MODEL"],
            "PLIMSOLL_PORT": url.rpartition(":")[2],
        }
        options = [f"--env={name}={text}" for name, text in variables.items()]
        container = stack.compose("run", "--detach", "--no-deps", *options, "plimsoll")
        try:
            wait_for_health(container, "healthy", since=since)
            reply = httpx.post(f"{url}/embed", json={"input": "A mark on a hull"}).json()
        finally:
            docker("rm", "--force", container)
    assert (reply["kind"], reply["degraded"]["reason"]) == ("sparse", "model_loading")


def test_models_and_measurements_outlive_the_containers(stack):
    """Taking everything down and up again, as for an upgrade, fetches and converts nothing anew."""
    # All but the mark of the server that runs.
    find = ("find", "/var/cache/plimsoll", "-type", "f", "!", "-name", MARK_NAME)
    find += ("-printf", "%p %s %T@\\n")
    before, seen = stack.inside(*find).splitlines(), time.time()
    assert any("/sidecars/" in line for line in before)

    stack.compose("down")
    stack.up()

    test_a_healthy_stack_embeds(stack)
    assert set(before) <= set(stack.inside(*find).splitlines())
    assert stack.scraped('up{job="plimsoll"}', time=f"{seen:.3f}") == ["1"]

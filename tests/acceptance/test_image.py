"""The Docker image: what goes into it, and what a container of it does.

The containers run where `scripts/image` has built an image; a plain test run leaves them out.
"""

import json
import os
import re
import socket
import subprocess
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.acceptance.containers import (
    DOCKER,
    USER_ID,
    docker,
    free_port,
    inspected,
    oom_kills,
    wait_for_health,
)

ROOT = Path(__file__).parents[2]
CACHE = "/var/cache/plimsoll"
# As an operator who trusts nobody would run it.
CONFINED = ["--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL"]
CONFINED += ["--memory", "512m", "--memory-swap", "512m"]
LONG_TEXTS = ["How deep may a ship be loaded? " * 40] * 32
STOP_GRACE_S = 60


def pins(file_name: str) -> dict[str, str]:
    """Package → version, from lines such as `numpy==2.4.6`."""
    text = (ROOT / file_name).read_text(encoding="utf-8")
    found = re.findall(r"^([\w.-]+)==([^\s;]+)", text, flags=re.MULTILINE)
    return {canonicalize_name(name): version for name, version in found}


def dependencies(*extras: str) -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = list(project["dependencies"])
    for extra in extras:
        lines += project["optional-dependencies"][extra]
    return [Requirement(line) for line in lines]


LOCK = "requirements.lock"
EXTRAS = ("parquet", "postgres", "qdrant", "tracing")  # that a build may ask for


def lock_of(extra: str) -> str:
    """What an extra brings beside LOCK."""
    return f"locks/{extra}.lock"


def usual_extras() -> list[str]:
    """Those that are in the image where the build says nothing."""
    [written] = re.findall(r'^ARG EXTRAS="(.*)"$', (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    return written.split()


@pytest.mark.parametrize(
    ("files", "extras"),
    [
        (["requirements.txt"], ["dev", "oracles", *EXTRAS]),
        ([LOCK], []),
        *(([LOCK, lock_of(extra)], [extra]) for extra in EXTRAS),
    ],
    ids=lambda given: "+".join(given),
)
def test_every_dependency_of_the_project_is_pinned_to_a_version_it_allows(files, extras):
    """A dependency that is added or raised without a pin would differ from day to day."""
    pinned = {name: version for file in files for name, version in pins(file).items()}
    missing = [
        str(wanted)
        for wanted in dependencies(*extras)
        if not wanted.specifier.contains(pinned.get(canonicalize_name(wanted.name), "0"))
    ]
    assert not missing, f"renew {files[-1]} as its first lines say"


@pytest.mark.parametrize("file", [LOCK, *map(lock_of, EXTRAS)])
def test_the_image_gets_the_versions_that_the_tests_ran_with(file):
    """Otherwise what is shipped is not what was tested."""
    assert pins(file).items() <= pins("requirements.txt").items()
    assert file == LOCK or not pins(file).keys() & pins(LOCK).keys()


@pytest.mark.parametrize("file", [LOCK, *map(lock_of, EXTRAS)])
def test_every_package_of_the_image_has_hashes_and_no_address(file):
    """A pin without a hash trusts the registry; an address takes the choice of one away."""
    text = (ROOT / file).read_text(encoding="utf-8")
    packages = re.split(r"^(?=[a-z])", text, flags=re.MULTILINE)[1:]
    assert len(packages) == len(pins(file))
    assert all("--hash=sha256:" in package for package in packages)
    assert "://" not in text


def test_an_image_can_link_collections_to_databases_unless_its_build_says_otherwise():
    """An operator finds that out when the server does not start."""
    assert {"postgres", "qdrant"} <= {*usual_extras()} <= {*EXTRAS}
    assert sorted(file.name for file in (ROOT / "locks").glob("*.lock")) == [
        f"{extra}.lock" for extra in EXTRAS
    ]


@pytest.fixture(scope="module")
def image() -> str:
    name = os.environ.get("IMAGE_UNDER_TEST")
    if not name:
        pytest.skip("there is no image to test; scripts/image builds one and runs this")
    return name


@pytest.fixture(scope="module")
def server(image) -> Iterator["Server"]:
    with serving(image) as running:
        yield running


class Server:
    """A container that serves on a port of this machine."""

    def __init__(self, container: str, port: int) -> None:
        self.container = container
        self.address = ("127.0.0.1", port)
        self.url = f"http://127.0.0.1:{port}"

    def connected(self) -> socket.socket:
        return socket.create_connection(self.address, timeout=STOP_GRACE_S)

    def accepts(self) -> bool:
        try:
            self.connected().close()
        except ConnectionError:  # refused, or reset where the listener closed just now
            return False
        return True

    def inside(self, *command: str) -> str:
        return docker("exec", self.container, *command)

    def inspected(self, template: str) -> str:
        return inspected(self.container, template)


@contextmanager
def serving(image: str) -> Iterator[Server]:
    port = free_port()
    options = ["--network", "host", "--env", f"PLIMSOLL_PORT={port}"]
    options += ["--health-interval", "1s", "--health-retries", "2"]
    started = time.time()
    container = docker("run", "--detach", *CONFINED, *options, image)
    try:
        wait_for_health(container, "healthy", since=started)
        yield Server(container, port)
    finally:
        docker("rm", "--force", "--volumes", container)


def test_without_a_network_the_image_reproduces_published_vectors(image):
    """The model is in the image, whole: nothing is fetched when a container starts."""
    printed = docker("run", "--rm", "--network", "none", *CONFINED, image, "verify")
    assert "threshold" in printed


def test_a_container_that_reports_healthy_embeds(server):
    reply = httpx.post(f"{server.url}/embed", json={"input": ["A mark on a hull"]}, timeout=30)
    assert reply.status_code == 200
    (vector,) = reply.json()["embeddings"]
    assert len(vector) == 384
    assert sum(value * value for value in vector) == pytest.approx(1, abs=1e-5)


def test_the_server_is_the_first_process_and_not_root(server):
    """Signals reach it, and what breaks out of it owns nothing."""
    status = server.inside("cat", "/proc/1/status")
    assert re.search(rf"^Uid:(\s+{USER_ID}){{4}}$", status, flags=re.MULTILINE)
    assert "plimsoll\0serve" in server.inside("cat", "/proc/1/cmdline")


def test_the_bill_of_materials_lists_what_is_installed(server):
    """A package that it leaves out is not looked up when a weakness becomes known."""
    bill = json.loads(server.inside("cat", "/opt/plimsoll/share/plimsoll/sbom.cdx.json"))
    listed = {
        canonicalize_name(one["name"]): one["version"]
        for one in bill["components"]
        if one["type"] == "library"
    }
    in_image = {LOCK, *map(lock_of, usual_extras())}
    installed = {name: version for file in in_image for name, version in pins(file).items()}
    del installed["setuptools"]  # which has built the project, and has gone
    assert listed.items() >= installed.items()
    assert bill["metadata"]["component"]["name"] == "plimsoll"
    assert all(one.get("licenses") for one in bill["components"])
    [model] = [one for one in bill["components"] if one["type"] == "machine-learning-model"]
    assert (model["name"], model["licenses"][0]["license"]["id"]) == (
        "all-MiniLM-L6-v2",
        "Apache-2.0",
    )


def test_only_the_servers_user_can_enter_the_cache(server):
    """The server refuses a cache that others could change, and all else is read-only."""
    assert server.inside("stat", "--format", "%u %g %a", CACHE) == f"{USER_ID} {USER_ID} 700"
    assert server.inside("find", CACHE, "!", "-uid", str(USER_ID)) == ""


def test_the_packages_in_the_image_are_those_of_the_lock(server):
    """And they agree with each other, on the image's own Python."""
    assert server.inside("python", "-m", "pip", "check") == "No broken requirements found."
    listed = json.loads(server.inside("python", "-m", "pip", "list", "--format", "json"))
    installed = {canonicalize_name(package["name"]): package["version"] for package in listed}
    del installed["pip"], installed["plimsoll"]
    files = [LOCK, *map(lock_of, usual_extras())]
    locked = {name: version for file in files for name, version in pins(file).items()}
    del locked["setuptools"]  # built the project, and was left behind
    assert installed == locked


def test_the_image_has_what_links_to_databases_need(server):
    """Their libraries load on the image's own system, whose own libpq is none."""
    loaded = "import pgvector.psycopg, psycopg, qdrant_client; print(psycopg.pq.__impl__)"
    assert server.inside("python", "-c", loaded) == "binary"


def test_serving_leaves_nothing_of_a_usage_report_behind(server):
    """ONNX Runtime reports to its makers unless told not to, under an identifier that it keeps."""
    assert httpx.post(f"{server.url}/embed", json={"input": "text"}, timeout=30).is_success
    assert server.inside("find", CACHE, "-name", "*onnxruntime*") == ""


def test_build_secrets_are_not_in_the_image(image, server):
    """Whoever has the image must not get at the mirror's password."""
    assert server.inside("sh", "-c", "cat /etc/pip.conf /run/secrets/* 2>/dev/null || :") == ""
    assert "PIP_" not in docker("image", "inspect", "--format", "{{.Config.Env}}", image)


def test_a_server_that_hangs_turns_unhealthy_and_back(server):
    """A health check that cannot fail would keep a dead server in service."""
    since = time.time()
    docker("kill", "--signal", "STOP", server.container)
    try:
        wait_for_health(server.container, "unhealthy", since=since)
    finally:
        docker("kill", "--signal", "CONT", server.container)
    wait_for_health(server.container, "healthy", since=since)


def test_a_batch_of_long_texts_kills_nothing_inside_the_limit(server):
    """See the control below."""
    reply = httpx.post(f"{server.url}/embed", json={"input": LONG_TEXTS}, timeout=STOP_GRACE_S)
    assert reply.status_code == 200
    assert oom_kills(server.container) == 0
    assert server.inspected("{{.State.OOMKilled}}") == "false"


def test_docker_stop_lets_a_request_finish(image):
    """Exit code 0, not 137: an upgrade loses no answer."""
    body = json.dumps({"input": "text"}).encode()
    head = f"POST /embed HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
    head += "Content-Type: application/json\r\nConnection: close\r\nExpect: 100-continue\r\n\r\n"
    with serving(image) as server, server.connected() as request:
        request.sendall(head.encode())
        assert request.recv(1024).startswith(b"HTTP/1.1 100 ")  # now it waits for the body
        stop = [DOCKER, "stop", "--time", str(STOP_GRACE_S), server.container]
        with subprocess.Popen(stop, stdout=subprocess.DEVNULL):
            while server.accepts():
                pass
            request.sendall(body)
            answer = request.makefile("rb").read()
        ended = server.inspected("{{.State.ExitCode}}")
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert ended == "0"


def test_the_memory_limit_of_these_tests_is_real(image):
    """Control: what takes more than it may is killed, or surviving would prove nothing."""
    take = ["--entrypoint", "python", image, "-c", "bytearray(800 << 20)"]
    options = ["--rm", "--network", "none", *CONFINED]
    done = subprocess.run([DOCKER, "run", *options, *take], capture_output=True, check=False)
    assert done.returncode == 137

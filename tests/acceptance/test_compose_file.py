"""What docker-compose.yml and .env.example promise, read as they stand and as Compose reads them.

What needs Compose runs where `scripts/image` has found it; a plain test run leaves it out.
"""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from plimsoll.settings import PREFIX, Settings
from plimsoll.settings_sources import ENV_FILE, load_settings
from tests.acceptance.balancer import out_after_s
from tests.acceptance.composed import (
    COMPOSE_FILE,
    ENV_EXAMPLE,
    ROOT,
    compose_executable,
    example_values,
    outside_environment,
    run,
)
from tests.grafana_files import CONFIG as PROMETHEUS_CONFIG
from tests.grafana_files import load_yaml

# What libraries of the server read themselves.
FOR_OTHERS = {"HF_ENDPOINT", "HF_HUB_OFFLINE", "HF_TOKEN", "HTTPS_PROXY", "NO_PROXY"}


def test_every_variable_of_the_compose_file_stands_in_the_example_with_its_default():
    """A variable that is nowhere explained is never set, and a copied example changes nothing."""
    text = COMPOSE_FILE.read_text(encoding="utf-8")
    used = re.findall(r"\$\{(\w+):-([^}]*)\}", text)
    assert text.count("${") == len(used)
    assert dict(used) == example_values()


def test_a_copied_example_changes_nothing_for_the_server(tmp_path):
    """`./scripts/serve` reads the same .env, and would serve Compose's model with it."""
    (tmp_path / ENV_FILE).write_bytes(ENV_EXAMPLE.read_bytes())
    assert load_settings(environ={}, directory=tmp_path).settings == Settings()


def test_the_server_takes_every_name_of_the_example(tmp_path):
    """It refuses to start over a setting that it does not know."""
    written = "".join(f"{name}={value}\n" for name, value in example_values().items())
    (tmp_path / ENV_FILE).write_text(written, encoding="utf-8")
    loaded = load_settings(environ={}, directory=tmp_path)
    assert loaded.settings.model == example_values()["PLIMSOLL_MODEL"]


def test_every_setting_reaches_the_container_and_nothing_of_others_does():
    """A setting that Compose drops is one that does not work; .env may hold others' secrets."""
    server = COMPOSE_FILE.read_text(encoding="utf-8").split("  plimsoll:")[1].split("    ports:")[0]
    passed = set(re.findall(r"^      (\w+):", server, flags=re.MULTILINE)) - {"context", "args"}
    settings = {PREFIX + name.upper() for name in Settings.model_fields if name != "config"}
    assert "env_file" not in server
    assert passed - settings == FOR_OTHERS
    assert settings - passed == set(), "give each of them a line in docker-compose.yml"


# --- what Compose makes of the file ---------------------------------------------------------


@pytest.fixture
def services() -> dict[str, Any]:
    return resolved(ROOT, "--env-file", str(ENV_EXAMPLE))


def resolved(folder: Path, *options: str) -> dict[str, Any]:
    """The services, every variable filled in and every default written out."""
    command = [compose_executable(), "--file", str(COMPOSE_FILE)]
    command += ["--project-directory", str(folder), "--profile", "monitoring"]
    command += ["--profile", "replicas"]
    printed = run([*command, *options, "config", "--format", "json"], outside_environment())
    return json.loads(printed)["services"]


def test_a_port_a_service_is_published_and_on_this_machine_only(services):
    """None of them asks who is there, and the servers are told that this is meant."""
    for name in ("plimsoll", "replica"):
        told = services[name]["environment"]
        assert told["PLIMSOLL_ALLOW_ANONYMOUS"] == told["PLIMSOLL_METRICS_OPEN"] == "true"
    published = {
        name: [(port["host_ip"], port["target"]) for port in service["ports"]]
        for name, service in services.items()
        if "ports" in service
    }
    assert published == {
        "plimsoll": [("127.0.0.1", 8080)],
        "haproxy": [("127.0.0.1", 8080)],
        "prometheus": [("127.0.0.1", 9090)],
        "grafana": [("127.0.0.1", 3000)],
    }


def test_every_service_is_confined_and_comes_back(services):
    """What breaks out of one finds nothing to write and no right to use; a crash is not the end."""
    for service in services.values():
        assert service["read_only"]
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert service["restart"] == "unless-stopped"
        assert "privileged" not in service


def test_every_service_has_a_limit_without_swap(services):
    """What watches a server must not take the memory that it watches."""
    for service in services.values():
        limit = service["deploy"]["resources"]["limits"]["memory"]
        assert int(limit) > 0
        assert service["memswap_limit"] == limit


def test_all_but_the_server_is_left_out_without_its_profile(services):
    """`docker compose up` is the server alone."""
    profiles = {name: service.get("profiles", []) for name, service in services.items()}
    assert profiles == {
        "plimsoll": [],
        "replica": ["replicas"],
        "haproxy": ["replicas"],
        "prometheus": ["monitoring"],
        "grafana": ["monitoring"],
    }


def test_images_of_others_are_pinned_to_a_release(services):
    """Another day must not bring another dashboard."""
    for name in ("prometheus", "grafana", "haproxy"):
        assert re.search(r":v?\d+\.\d+\.\d+(-alpine)?$", services[name]["image"])


def test_every_file_that_is_mounted_is_in_the_project(services):
    """Docker makes an empty folder of a path that is not there, and says nothing."""
    sources = [
        Path(volume["source"])
        for service in services.values()
        for volume in service["volumes"]
        if volume["type"] == "bind"
    ]
    assert sources
    assert [source for source in sources if not source.exists()] == []


def test_a_replica_is_the_server_without_collections(services):
    """What is set for one is set for all. HAProxy leaves one that ends out before it stops."""
    server, replica = services["plimsoll"]["environment"], services["replica"]["environment"]
    differing = {name for name in replica if replica[name] != server[name]}
    assert differing == {
        "PLIMSOLL_ALLOWED_HOSTS",
        "PLIMSOLL_DATA_DIR",
        "PLIMSOLL_DRAIN_DELAY_S",
        "PLIMSOLL_PROXIES",
    }
    assert server.keys() == replica.keys()
    [volume] = services["replica"]["volumes"]
    assert not replica["PLIMSOLL_DATA_DIR"].startswith(volume["target"])
    assert "ports" not in services["replica"]  # it believes whom it is told the client is
    assert int(replica["PLIMSOLL_DRAIN_DELAY_S"]) > out_after_s()


def test_haproxy_is_told_the_services_and_prometheus_too(services):
    """Names in other files, which Compose does not look into."""
    told = services["haproxy"]["environment"]
    assert (told["REPLICAS"], told["OWNER"]) == ("replica:8080", "plimsoll:8080")
    server, balancer = load_yaml(PROMETHEUS_CONFIG)["scrape_configs"]
    assert server["static_configs"] == [{"targets": ["plimsoll:8080"]}]
    found = [
        (one["names"], one["port"]) for job in (server, balancer) for one in job["dns_sd_configs"]
    ]
    assert found == [(["replica"], 8080), (["haproxy"], int(told["OPERATIONS_BIND"].strip(":")))]


def test_settings_in_env_reach_the_server_but_do_not_move_it(tmp_path):
    """One file for all; PLIMSOLL_PORT there means the port of this machine, not the container's."""
    written = "PLIMSOLL_LOG_LEVEL=debug\nPLIMSOLL_PORT=9000\nPLIMSOLL_HOST=127.0.0.1\nKEY=secret\n"
    (tmp_path / ENV_FILE).write_text(written, encoding="utf-8")
    service = resolved(tmp_path)["plimsoll"]
    assert service["environment"]["PLIMSOLL_LOG_LEVEL"] == "debug"
    assert service["environment"]["PLIMSOLL_HOST"] == "0.0.0.0"
    assert "KEY" not in service["environment"]
    assert service["environment"]["PLIMSOLL_PORT"] == "8080"
    assert [(port["published"], port["target"]) for port in service["ports"]] == [("9000", 8080)]

"""The units and the proxies' files of docs/, read by the programs that they are for."""

import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic, sleep

import httpx
import pytest

from plimsoll.settings import Settings
from tests.running_server import DEADLINE_S, ROOT, RunningServer

UNITS = ROOT / "docs/systemd"
DEPLOY = ROOT / "docs/deploy.md"
EXECUTABLE = "/opt/plimsoll/bin/plimsoll"
NGINX, CADDY = shutil.which("nginx"), shutil.which("caddy")
ANALYZE = shutil.which("systemd-analyze")
# nginx's own file around a site's.
AROUND = """
daemon off; master_process off; pid nginx.pid; error_log stderr;
events {}
http {
    access_log off;
    client_body_temp_path body; proxy_temp_path proxy;
    fastcgi_temp_path fastcgi; uwsgi_temp_path uwsgi; scgi_temp_path scgi;
    include site.conf;
}
"""


def block(language: str) -> str:
    """The block of the page in this language."""
    [found] = re.findall(rf"```{language}\n(.*?)```", DEPLOY.read_text("utf-8"), re.DOTALL)
    return str(found)


def seconds(name: str, site: str) -> int:
    """The time that a proxy's file gives to an option."""
    [found] = re.findall(rf"\b{name} (\d+)s", site)
    return int(found)


@pytest.mark.skipif(ANALYZE is None, reason="there is no systemd-analyze")
def test_systemd_takes_the_units(tmp_path: Path):
    """An unknown key would be ignored there, with what it was to protect."""
    units = [tmp_path / unit.name for unit in sorted(UNITS.iterdir())]
    for unit in units:
        text = (UNITS / unit.name).read_text("utf-8")
        unit.write_text(text.replace(EXECUTABLE, sys.executable), "utf-8")

    done = subprocess.run([str(ANALYZE), "verify", *units], capture_output=True, text=True)

    assert (done.returncode, done.stderr) == (0, "")
    assert {unit.suffix for unit in units} == {".service", ".socket"}


def test_the_unit_waits_for_the_end_as_long_as_the_server_may_take():
    """Killed in the middle of its drain it would lose what it has promised to finish."""
    unit = (UNITS / "plimsoll.service").read_text("utf-8")
    [stop_s] = re.findall(r"^TimeoutStopSec=(\d+)$", unit, re.MULTILINE)
    [n_files] = re.findall(r"^LimitNOFILE=(\d+)$", unit, re.MULTILINE)
    settings = Settings()

    assert int(stop_s) > settings.drain_delay_s + settings.drain_s
    assert int(n_files) > 2 * settings.connections


@contextmanager
def nginx(folder: Path, server: RunningServer) -> Iterator[str]:
    """nginx with the file of the page before a server; its port alone is another one."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    certificate, key = folder / "site.pem", folder / "site.key"
    subject = ("-subj", "/CN=embeddings.example.org", "-days", "2", "-newkey", "rsa:2048")
    paths = ("-keyout", str(key), "-out", str(certificate))
    command = ["openssl", "req", "-x509", "-nodes", *subject, *paths]
    subprocess.run(command, check=True, capture_output=True)
    site = block("nginx")
    for written, meant in (
        ("listen 443", f"listen 127.0.0.1:{port}"),
        ("/etc/ssl/embeddings.pem", str(certificate)),
        ("/etc/ssl/embeddings.key", str(key)),
        ("127.0.0.1:8080", server.url.removeprefix("http://")),
    ):
        assert written in site
        site = site.replace(written, meant)
    (folder / "site.conf").write_text(site, "utf-8")
    (folder / "nginx.conf").write_text(AROUND, "utf-8")
    command = [str(NGINX), "-p", f"{folder}/", "-c", "nginx.conf"]
    checked = subprocess.run([*command, "-t"], capture_output=True, text=True)
    assert "test is successful" in checked.stderr, checked.stderr
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        deadline_s = monotonic() + DEADLINE_S
        while not _listens(port):
            assert monotonic() < deadline_s
            sleep(0.05)
        yield f"https://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(DEADLINE_S)


def _listens(port: int) -> bool:
    with socket.socket() as trying:
        return trying.connect_ex(("127.0.0.1", port)) == 0


def test_the_proxies_limits_are_those_of_the_server():
    """A proxy ends idle connections first: else it sends a request into one that has just ended."""
    settings, nginx, caddy = Settings(), block("nginx"), block("caddy")

    assert seconds("keepalive_timeout", nginx) < settings.keep_alive_s
    assert seconds("keepalive", caddy) < settings.keep_alive_s
    assert seconds("client_header_timeout", nginx) == settings.header_timeout_s
    assert seconds("client_body_timeout", nginx) == settings.body_timeout_s


@pytest.mark.skipif(NGINX is None, reason="there is no nginx")
def test_requests_pass_nginx_as_the_page_has_it(tmp_path: Path, options: list[str]):
    """Over connections that it keeps open, by the name that clients use."""
    hosts = {"PLIMSOLL_ALLOWED_HOSTS": "embeddings.example.org"}
    with (
        RunningServer(tmp_path, *options, **hosts) as server,
        nginx(tmp_path, server) as url,
        httpx.Client(verify=False, timeout=DEADLINE_S, trust_env=False) as client,
    ):
        headers = {"Host": "embeddings.example.org"}
        answers = [
            client.post(f"{url}/embed", json={"input": "a ship"}, headers=headers) for _ in range(5)
        ]
        stranger = client.post(
            f"{url}/embed", json={"input": "a ship"}, headers={"Host": "evil.example"}
        )

    assert [answer.status_code for answer in answers] == [200] * 5
    assert stranger.status_code == 421


@pytest.mark.skipif(CADDY is None, reason="there is no caddy")
def test_caddy_takes_the_file_of_the_page(tmp_path: Path):
    """A typing error ends it at its start."""
    (tmp_path / "Caddyfile").write_text(block("caddy"), "utf-8")
    command = [str(CADDY), "validate", "--config", "Caddyfile", "--adapter", "caddyfile"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)

    assert done.returncode == 0, done.stderr

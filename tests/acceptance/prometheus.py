"""A real Prometheus over the project's own configuration, only faster, and what it tells."""

import math
import re
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.acceptance.patient import DEADLINE_S
from tests.grafana_files import CONFIG, RULES
from tests.running_server import ROOT

WINDOW = "10s"  # ten scrapes
POLL_S = 0.25


def prometheus_tools() -> Path:
    """The folder with prometheus and promtool; skips where there is none."""
    found = subprocess.run(
        [ROOT / "scripts/prometheus_tools"], capture_output=True, text=True, check=False
    )
    if found.returncode:
        pytest.skip(f"no Prometheus: {found.stderr.strip() or 'prometheus_tools failed'}")
    return Path(found.stdout.strip())


def quick_config(target: str) -> str:
    """The project's configuration with a scrape and an evaluation every second."""
    config, n_intervals = re.subn(r"_interval: \w+", "_interval: 1s", CONFIG.read_text())
    assert n_intervals == 2
    assert "plimsoll:8080" in config
    return config.replace("plimsoll:8080", target)


def quick_rules() -> str:
    """The project's rules in quick motion.

    Windows of ten scrapes, alerts that wait for a second, and an objective for latency that a list
    of hundreds of texts misses.
    """
    rules = re.sub(r"\[\d+m\]", f"[{WINDOW}]", RULES.read_text())
    rules, n_objectives = re.subn(r"p99_rate10m > 10$", "p99_rate10m > 0.5", rules, flags=re.M)
    assert n_objectives == 1
    return re.sub(r"\bfor: \w+", "for: 1s", rules)


class RunningPrometheus:
    """Owns the process, its folder and a client."""

    def __init__(self, tools: Path, folder: Path, target: str, port: int) -> None:
        """Write configuration and rules for `target` (host:port) into `folder` and start."""
        folder.mkdir()
        (folder / CONFIG.name).write_text(quick_config(target))
        (folder / RULES.name).write_text(quick_rules())
        self._log = folder / "prometheus.log"
        self._log_file = self._log.open("wb")
        self._process = subprocess.Popen(
            [
                tools / "prometheus",
                f"--config.file={folder / CONFIG.name}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}",
                "--log.level=warn",
            ],
            stderr=self._log_file,
        )
        self._client = httpx.Client(
            base_url=f"http://127.0.0.1:{port}", timeout=DEADLINE_S, trust_env=False
        )
        self.started_s = time.time()

    def series(self, expression: str) -> list[dict[str, Any]]:
        """Every series with its labels and values, a point a second since the start."""
        answer = self._client.post(
            "/api/v1/query_range",
            data={"query": expression, "start": self.started_s, "end": time.time(), "step": 1},
        ).json()
        assert answer["status"] == "success", answer
        result: list[dict[str, Any]] = answer["data"]["result"]
        return result

    def values(self, expression: str) -> list[float]:
        """Every finite value of every series."""
        lines = self.series(expression)
        found = (float(value) for line in lines for _, value in line["values"])
        return [value for value in found if math.isfinite(value)]

    def firing(self) -> dict[str, dict[str, str]]:
        """Alerts that fire now, by name, with their annotations as people would read them."""
        alerts = self._client.get("/api/v1/alerts").json()["data"]["alerts"]
        return {
            alert["labels"]["alertname"]: alert["annotations"]
            for alert in alerts
            if alert["state"] == "firing"
        }

    def is_up(self) -> bool:
        """Whether it runs and has scraped the server's page."""
        assert self._process.poll() is None, self._log.read_text()
        try:
            is_ready = self._client.get("/-/ready").is_success
        except httpx.TransportError:  # it does not listen yet
            return False
        return is_ready and 1.0 in self.values("up")

    def __enter__(self) -> "RunningPrometheus":
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()
        self._process.terminate()
        self._process.wait(DEADLINE_S)
        self._log_file.close()


class AlertWatch:
    """Owns a thread that asks for alerts, and what it has seen."""

    def __init__(self, prometheus: RunningPrometheus) -> None:
        self.seen: dict[str, dict[str, str]] = {}  # annotations of every alert that has fired
        self._prometheus = prometheus
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def __enter__(self) -> "AlertWatch":
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopped.wait(POLL_S):
            self.seen |= self._prometheus.firing()


def until(
    reached: Callable[[], bool],
    between: Callable[[], object] = lambda: None,
    *,
    within_s: float = DEADLINE_S,
) -> bool:
    """Ask again and again, doing something between; False when it takes too long."""
    deadline_s = time.monotonic() + within_s
    pause = threading.Event()
    while not reached():
        if time.monotonic() > deadline_s:
            return False
        between()
        pause.wait(POLL_S)
    return True

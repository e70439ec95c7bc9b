"""`plimsoll capacity` as people run it."""

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import orjson
import pytest
from click.testing import CliRunner, Result

from plimsoll.cli.commands import main
from tests.bench.capacity.figures import FIGURES
from tests.running_server import RunningServer


def capacity(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["capacity", *arguments])


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("figures") / "figures.json"
    path.write_bytes(orjson.dumps(FIGURES.as_dict()))
    return path


def test_a_server_is_measured_and_its_figures_answer_a_load(server: RunningServer, tmp_path: Path):
    path = tmp_path / "measured.json"
    done = capacity("measure", "--url", server.url, "--seconds", "1", "--json", str(path))
    assert done.exit_code == 0, done.output
    assert "all-MiniLM-L6-v2, float32" in done.stdout
    figures = json.loads(path.read_bytes())
    assert 5 < figures["short_tokens"] < 40
    assert 50 * 10 < figures["list_tokens"] < 50 * 40
    done = capacity("plan", str(path), "--requests-per-s", "5", "--p99", "2", "--json")
    assert done.exit_code == 0, done.output
    (plan,) = json.loads(done.stdout)
    assert plan["load"]["n_servers"] >= 1


def test_tables_say_how_many_servers_and_how_long_corpora_take(file: Path):
    done = capacity(
        "plan", str(file), str(file), "--requests-per-s", "1000", "--tokens", "30", "--p99", "0.1",
        "--document-tokens", "100", "--core-hour-price", "0.05",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "1,000 requests a second of 1 × 30 tokens, 99 of 100 within 100 ms" in done.stdout
    million = next(line for line in done.stdout.splitlines() if "1,000,000 " in line)
    assert million.split() == ["1,000,000", "2.8", "hours", "1", "6", "3.1", "0.28"]
    assert "10,000,000,000" in done.stdout
    assert done.stdout.count("what comes to its limit") == 2


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--tokens", "9000"], "cuts texts at"),
        (["--requests-per-s", "0"], "requests-per-s"),
        (["--p99", "0"], "p99"),
        (["--model", "no-such-model"], "no-such-model"),
    ],
)
def test_what_cannot_be_answered_is_refused(file: Path, options: list[str], told: str):
    done = capacity("plan", str(file), *options)
    assert done.exit_code == 2
    assert told in done.stderr


def test_a_server_that_is_not_there_is_told(tmp_path: Path):
    done = capacity("measure", "--url", "http://127.0.0.1:9", "--json", str(tmp_path / "x.json"))
    assert done.exit_code == 1
    assert "does not answer GET /health" in done.stderr
    assert not (tmp_path / "x.json").exists()


def test_another_machine_is_measured_only_where_it_is_meant(tmp_path: Path):
    remote = ("measure", "--url", "http://192.0.2.1:80", "--json", str(tmp_path / "x.json"))
    done = capacity(*remote)
    assert done.exit_code == 1
    assert "--allow-remote if it is meant" in done.stderr


def test_another_program_is_no_server_of_ours(tmp_path: Path):
    """One that answers GET /health, and not as Plimsoll does."""

    class Other(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'{"status": "ok"}')

        def log_message(self, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Other) as other:
        threading.Thread(target=other.handle_request, daemon=True).start()
        url = f"http://127.0.0.1:{other.server_port}"
        done = capacity("measure", "--url", url, "--json", str(tmp_path / "x.json"))
    assert done.exit_code == 1
    assert "does not answer GET /health as Plimsoll" in done.stderr

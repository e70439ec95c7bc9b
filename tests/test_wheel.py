"""The wheel: what it holds, and that it runs where no checkout is.

It is built from a source distribution, as a release is, and installed into an environment that
finds its dependencies in ours, but not our own installation of Plimsoll.
"""

import os
import site
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from plimsoll import __version__
from tests.running_server import ROOT, RunningServer
from tests.synthetic import TINY_SHAPE, write_synthetic

GRAFANA = "share/plimsoll/grafana"
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet")
BUILD_SDIST = "import sys, setuptools.build_meta as m; m.build_sdist(sys.argv[1])"


@dataclass(frozen=True)
class Installed:
    """An environment with the wheel in it, and a folder that is another project's."""

    environment: Path
    project: Path

    def program(self, name: str) -> str:
        return str(self.environment / "bin" / name)

    def run(self, *command: str) -> str:
        """Standard output of a command that is started in the other project."""
        # The folder is on the path, as where that project's own tests run.
        variables = os.environ | {"PYTHONPATH": str(self.project)}
        return _run(*command, cwd=self.project, env=variables)


def _run(*command: str | Path, **options: object) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    _run(sys.executable, "-c", BUILD_SDIST, folder, cwd=ROOT)
    [source] = folder.glob("*.tar.gz")
    options = ("--no-deps", "--no-index", "--no-build-isolation", "--wheel-dir", folder)
    _run(*PIP, "wheel", *options, source, cwd=folder)
    [built] = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    environment = tmp_path_factory.mktemp("installed") / "environment"
    _run(sys.executable, "-m", "venv", "--without-pip", environment)
    python = environment / "bin" / "python"
    _run(*PIP, "--python", python, "install", "--no-deps", "--no-index", wheel)
    # Only after the installation: pip would find our own Plimsoll there, and remove it. Python
    # reads no .pth files in these folders, so that our editable installation stays out of sight.
    [packages] = environment.glob("lib/python*/site-packages")
    (packages / "dependencies.pth").write_text("\n".join(site.getsitepackages()) + "\n")
    project = tmp_path_factory.mktemp("project")
    (project / "app").mkdir()
    (project / "app" / "__init__.py").write_text("")
    return Installed(environment, project)


@pytest.fixture(scope="module")
def server(
    installed: Installed, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("model")
    model = write_synthetic(folder / "tiny.gguf", shape=TINY_SHAPE)
    command = (installed.program("plimsoll"), "serve", "--port", "0")
    options = ("--model", str(model), "--cache-dir", str(folder / "cache"))
    path = str(installed.project)
    with RunningServer(installed.project, *options, command=command, PYTHONPATH=path) as server:
        yield server


def test_the_wheel_brings_the_package_and_what_watches_it_and_nothing_else(wheel):
    """A second top-level name would hide another project's; a missing file is missed late."""
    names = zipfile.ZipFile(wheel).namelist()
    own = f"plimsoll-{__version__}"
    assert {name.split("/")[0] for name in names} == {"plimsoll", f"{own}.dist-info", f"{own}.data"}
    assert {name for name in names if name.startswith(f"{own}.data/")} == {
        f"{own}.data/data/{GRAFANA}/plimsoll.json",
        f"{own}.data/data/{GRAFANA}/rules.yml",
    }
    pages = {"status.html", "docs/docs.html", "docs/swagger-ui-bundle.js", "docs/swagger-ui.css"}
    assert {"plimsoll/py.typed", *(f"plimsoll/api/pages/{page}" for page in pages)} <= set(names)


def test_the_package_is_complete(wheel):
    """A folder without __init__.py is not found by the build, and its modules stay behind."""
    names = set(zipfile.ZipFile(wheel).namelist())
    source = ROOT / "app"
    modules = {str(path.relative_to(source)) for path in source.glob("plimsoll/**/*.py")}
    assert modules == {name for name in names if name.endswith(".py")}


def test_the_dashboard_and_the_rules_are_where_readme_says(installed):
    """An operator who watches a server has no checkout."""
    for name, source in (("plimsoll.json", "dashboards/plimsoll.json"), ("rules.yml", "rules.yml")):
        copy = installed.environment / GRAFANA / name
        assert copy.read_bytes() == (ROOT / "grafana" / source).read_bytes()


@pytest.mark.parametrize("command", [("plimsoll",), ("python", "-m", "plimsoll")])
def test_the_command_runs_inside_a_project_that_has_its_own_app(installed, command):
    """Many web services call their package `app`, and once Plimsoll's had that name too."""
    program, *arguments = command
    found = installed.run(installed.program(program), *arguments, "--version")
    assert __version__ in found


def test_what_runs_is_what_was_installed(installed):
    """Else these tests would be about the checkout."""
    found = installed.run(
        installed.program("python"), "-c", "import plimsoll; print(plimsoll.__file__)"
    )
    assert Path(found.strip()).is_relative_to(installed.environment)


def test_an_installed_server_embeds(server):
    """The page's files, the catalogue and the encoder are all there."""
    reply = httpx.post(f"{server.url}/embed", json={"input": "a line on the hull"}, timeout=60)
    assert reply.status_code == 200, server.log
    assert reply.json()["kind"] == "dense"
    assert httpx.get(server.url, timeout=60).status_code == 200


def test_the_load_test_comes_along(installed, server):
    """A server is measured where it runs."""
    options = ("--clients", "2", "--requests", "20", "--max-failed", "0", "--min-dense", "1")
    found = installed.run(installed.program("plimsoll"), "bench", "--url", server.url, *options)
    assert "total" in found

"""What is written about the program, held against the program."""

import inspect
import re

import pytest

from app import cli, errors
from app.main import create_app
from app.settings import PREFIX, Settings
from app.settings_sources import load_settings
from app.telemetry import Telemetry
from scripts.readme_tables import README, TABLES, split_at_table

# Variables that README may name and that are no settings: they belong to the tests.
TEST_VARIABLES = {"PLIMSOLL_FUZZ_FILES"}

VARIABLES = {PREFIX + name.upper() for name in Settings.model_fields}


@pytest.fixture(scope="module")
def readme() -> str:
    if not README.is_file():
        pytest.fail(f"{README} is missing; it documents every setting")
    return README.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def table(readme: str) -> str:
    try:
        return split_at_table(readme, "settings")[1]
    except ValueError:
        pytest.fail("README.md has no <!-- settings --> … <!-- /settings --> block")


@pytest.mark.parametrize("name", TABLES)
def test_the_readmes_tables_are_those_made_from_the_code(readme, name):
    """One source: whoever changes a setting or metric runs the script, never edits a table."""
    written = split_at_table(readme, name)[1]
    assert written == TABLES[name](), "run: python -m scripts.readme_tables --write"


def test_every_metric_is_named_as_a_scrape_names_it():
    """A dashboard built from the table must find its series."""
    telemetry = Telemetry("0")
    scraped = telemetry.render().decode()
    for metric in telemetry.metrics():
        assert re.search(rf"^# TYPE {metric.name} {metric.type}$", scraped, flags=re.MULTILINE)


def test_every_route_stands_in_the_readme_and_no_other(readme, tmp_path):
    """A route that nobody can find is not there; one that is gone must not be promised."""
    app = create_app(Settings(cache_dir=tmp_path))
    served = {
        f"{method.upper()} {path}"
        for path, methods in app.openapi()["paths"].items()
        for method in methods
    } | {"GET /docs"}
    section = readme.split("## Routes")[1].split("`POST /embed` takes")[0]
    named = re.findall(r"^\| `(\w+ /[^`]*)` \|", section, flags=re.MULTILINE)
    assert sorted(named) == sorted(served)


def test_every_command_stands_in_the_readme_and_no_other(readme):
    """The table is the map of the command line."""
    section = readme.split("## Command line")[1].split("\n## ")[0]
    named = set(re.findall(r"^\| `plimsoll (\w+)", section, flags=re.MULTILINE))
    assert named == set(cli.main.commands)


def test_every_setting_and_its_default_stand_in_the_readmes_table(table, tmp_path):
    """Writing out every documented default must change nothing, or the table misleads."""
    rows = re.findall(r"^\| `(\w+)` \| (?:`([^`]*)`|unset) \|", table, flags=re.MULTILINE)
    assert sorted(name for name, _ in rows) == sorted(VARIABLES)
    written_out = load_settings(environ=dict(rows), directory=tmp_path)
    assert written_out.settings == Settings()


def test_the_readme_names_no_variable_that_does_not_exist(readme):
    """A reader who copies a stale name gets a server that refuses to start."""
    named = set(re.findall(PREFIX + r"[A-Z][A-Z0-9_]*", readme))
    assert named - TEST_VARIABLES <= VARIABLES


def test_the_tree_drawn_in_errors_is_the_tree_of_classes():
    """The drawing is where a reader learns what can go wrong and what to catch."""
    tree = inspect.getdoc(errors) or ""
    path: list[str] = []
    drawn: dict[str, str] = {}  # class → parent
    for branch, name in re.findall(r"^([│ ]*[├└]── )(\w+)", tree, flags=re.MULTILINE):
        depth = len(branch) // 4  # 1 below the root
        path[depth - 1 :] = [name]
        drawn[name] = path[depth - 2] if depth > 1 else "PlimsollError"
    assert re.search(r"^PlimsollError$", tree, flags=re.MULTILINE)
    assert drawn == {
        name: error.__base__.__name__
        for name, error in inspect.getmembers(errors, inspect.isclass)
        if error.__module__ == errors.__name__ and error is not errors.PlimsollError
    }

"""What is written about the program, held against the program."""

import importlib
import inspect
import pkgutil
import re
import tomllib
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from xml.etree import ElementTree

import pytest

import plimsoll
from plimsoll import errors
from plimsoll.api.edge.errors import STATUS
from plimsoll.bench.peers.catalog import IN_INT8, PEERS, PLIMSOLL
from plimsoll.bench.peers.results import targets_of
from plimsoll.bench.peers.table import RATIO_HEADS, TARGET_HEADS
from plimsoll.cli import commands as cli
from plimsoll.composition.application import create_app
from plimsoll.settings import PREFIX, Settings
from plimsoll.settings_sources import load_settings
from plimsoll.telemetry.metrics import Telemetry
from scripts.doc_tables import DOCS, TABLES, split_at_table

# Variables that README may name and that are no settings: they belong to the tests.
TEST_VARIABLES = {"PLIMSOLL_FUZZ_FILES"}

PROJECT = DOCS.parent
README = PROJECT / "README.md"
CHANGELOG = PROJECT / "CHANGELOG.md"
PACKAGE = Path(plimsoll.__file__).parent
DESIGN = DOCS / "design.md"
PAGES = [*sorted(PROJECT.glob("*.md")), *sorted(DOCS.glob("*.md"))]

VARIABLES = {PREFIX + name.upper() for name in Settings.model_fields}


@pytest.mark.parametrize("name", TABLES)
def test_generated_tables_are_those_made_from_the_code(name: str):
    """One source: whoever changes a setting or metric runs the script, never edits a table."""
    written = split_at_table(name)[1]
    assert written == TABLES[name](), "run: python -m scripts.doc_tables --write"


def test_the_readme_can_be_read_in_one_go():
    """It is a door; what people look up stands in the pages behind it."""
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 150


def test_every_page_can_be_reached_from_the_readme():
    """A page that nothing links to is not found."""
    linked = set(re.findall(r"\]\(docs/([\w-]+\.md)", README.read_text(encoding="utf-8")))
    assert linked == {page.name for page in DOCS.glob("*.md")}


def test_every_metric_is_named_as_a_scrape_names_it():
    """A dashboard built from the table must find its series."""
    telemetry = Telemetry("0")
    scraped = telemetry.render().decode()
    for metric in telemetry.metrics():
        assert re.search(rf"^# TYPE {metric.name} {metric.type}$", scraped, flags=re.MULTILINE)


def test_every_route_stands_in_the_documentation_and_no_other(tmp_path):
    """A route that nobody can find is not there; one that is gone must not be promised."""
    served_app = create_app(Settings(cache_dir=tmp_path))
    served = {
        f"{method.upper()} {path}"
        for path, methods in served_app.openapi()["paths"].items()
        for method in methods
    } | {"GET /docs"}
    section = (DOCS / "api.md").read_text(encoding="utf-8").split("`POST /embed` takes")[0]
    named = re.findall(r"^\| `(\w+ /[^`]*)` \|", section, flags=re.MULTILINE)
    assert sorted(named) == sorted(served)


def test_every_error_code_stands_in_the_documentation_with_its_status_and_no_other():
    """Clients decide by the code what to do; one that never comes would be waited for."""
    page = (DOCS / "api.md").read_text(encoding="utf-8")
    section = page.split("| status | code |")[1].split("\n\n")[0]
    written = {
        (int(status), code)
        for status, codes in re.findall(r"^\| (\d{3}) \| ([^|]+) \|", section, flags=re.MULTILINE)
        for code in re.findall(r"`(\w+)`", codes)
        if not code.startswith("http_")  # of routes, not of the table
    }
    # An OverloadError is always one of its kinds.
    kinds = STATUS.keys() - {errors.OverloadError}
    assert written == {(STATUS[kind], kind.code) for kind in kinds}


def test_every_command_stands_in_the_documentation_and_no_other():
    """The table is the map of the command line."""
    page = (DOCS / "cli.md").read_text(encoding="utf-8")
    named = set(re.findall(r"^\| `plimsoll (\w+)", page, flags=re.MULTILINE))
    assert named == set(cli.main.commands)


def test_every_setting_and_its_default_stand_in_the_table(tmp_path):
    """Writing out every documented default must change nothing, or the table misleads."""
    table = split_at_table("settings")[1]
    rows = re.findall(r"^\| `(\w+)` \| (?:`([^`]*)`|unset) \|", table, flags=re.MULTILINE)
    assert sorted(name for name, _ in rows) == sorted(VARIABLES)
    written_out = load_settings(environ=dict(rows), directory=tmp_path)
    assert written_out.settings == Settings()


# What has changed is told with the names that were.
@pytest.mark.parametrize("page", sorted({*PAGES} - {CHANGELOG}), ids=lambda page: page.name)
def test_no_page_names_a_variable_that_does_not_exist(page: Path):
    """A reader who copies a stale name gets a server that refuses to start."""
    named = set(re.findall(PREFIX + r"[A-Z][A-Z0-9_]*", page.read_text(encoding="utf-8")))
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


def test_no_error_stands_outside_the_tree():
    """An error that another module defines is in no drawing, and no test gives it a status."""
    for module in pkgutil.walk_packages(plimsoll.__path__, "plimsoll."):
        if module.name not in ("plimsoll.__main__", "plimsoll.telemetry.tracing"):
            importlib.import_module(module.name)
    found = [errors.PlimsollError]
    for error in found:
        found += error.__subclasses__()
    strangers = {error for error in found if error.__module__.startswith("plimsoll.")}
    assert {error.__module__ for error in strangers} == {errors.__name__}


def prose(page: Path) -> str:
    """A Markdown page without its blocks of code, where "#" begins no heading."""
    return re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)


def paths_in(markdown: str) -> set[str]:
    """What stands in backticks and is a path: it has a slash inside, or ends as a file does."""
    spans = {span.split()[0].removeprefix("./") for span in re.findall(r"`([^`]+)`", markdown)}
    path = re.compile(r"\w[\w.-]*(/[\w.-]+)*(/|\.(py|md|toml|svg))|\w[\w.-]*(/[\w.-]+)+")
    return {span for span in spans if path.fullmatch(span)}


def exists(path: str) -> bool:
    """Whether a path that a developer is told of is there, below the package or the project."""
    homes = (PACKAGE / path, PROJECT / path)
    return any(home.is_dir() if path.endswith("/") else home.exists() for home in homes)


def anchors(page: Path) -> set[str]:
    """What links may name after "#", as GitHub makes it of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", prose(page), flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def texts_of(drawing: str, kind: str) -> Iterator[tuple[float, str]]:
    """The texts of one class in a drawing, each with how far down it stands."""
    tree = ElementTree.parse(DESIGN.with_name(drawing))
    for text in tree.iter("{http://www.w3.org/2000/svg}text"):
        if text.get("class") == kind:
            yield float(text.attrib["y"]), text.text or ""


def test_the_design_names_every_package_and_no_other():
    """A package that the page leaves out is one that a new developer does not find."""
    house = prose(DESIGN).split("## The house")[1].split("\n## ")[0]
    packages = {f"{init.parent.relative_to(PACKAGE)}/" for init in PACKAGE.rglob("__init__.py")}
    modules = {module.name for module in PACKAGE.glob("*.py")}
    named = {path for path in paths_in(house) if path.endswith("/") or "/" not in path}
    assert named == packages - {"./"} | modules - {"__init__.py"}


def test_every_path_in_the_design_exists():
    """A page that sends its reader to a file that has moved is not believed in the rest."""
    named = paths_in(prose(DESIGN)) | {file for _, file in texts_of("request.svg", "file")}
    assert len(named) > 50  # or the pattern finds nothing
    assert sorted(path for path in named if not exists(path)) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_module_that_a_page_names_exists(page: Path):
    """The other pages too: what a module was called before leads nowhere."""
    named = {path for path in paths_in(prose(page)) if path.endswith(".py") and "/" in path}
    assert sorted(path for path in named if not exists(path)) == []


def test_the_floors_of_the_drawn_house_are_the_layers_that_are_held():
    """The drawing is believed at a glance; import-linter holds the contract, not the drawing."""
    contracts = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))
    layers = contracts["tool"]["importlinter"]["contracts"][0]["layers"]
    by_height = groupby(sorted(texts_of("house.svg", "name")), key=lambda room: room[0])
    floors = [{name for _, name in rooms} for _, rooms in by_height]
    assert floors == [set(layer.split(" | ")) for layer in layers]


def test_the_drawn_way_of_a_request_refuses_as_the_server_does():
    """A status that the drawing invents would be looked for in vain."""
    known = {f"{status} {kind.code}" for kind, status in STATUS.items()}
    drawn = {refusal.removesuffix(" *") for _, refusal in texts_of("request.svg", "code")}
    assert drawn
    assert drawn <= known


def test_every_table_of_the_benchmarks_stands_below_its_command():
    """A figure without a command cannot be measured again; two tables were of no command at all."""
    page = (DOCS / "benchmarks.md").read_text(encoding="utf-8")
    sections = page.split("\n## ")[1:]
    *measured, trials = sections
    assert trials.startswith("Trials\n")  # says itself that they are not measured again
    for section in measured:
        assert "\n### " not in section  # whose table would have a command above it by chance
        before_table, _, _ = section.partition("\n|")
        commands = re.findall(r"^```sh\n(.*?)^```$", before_table, flags=re.MULTILINE | re.DOTALL)
        files = re.findall(r"\S+/\S+\.py", "".join(commands))
        assert commands, section.splitlines()[0]
        assert sorted(file for file in files if not exists(file)) == []


@pytest.mark.parametrize(
    "title", ["Beside other programs", "Beside other programs, in Nomic's size"]
)
def test_the_tables_of_peers_are_those_that_the_command_prints(title: str):
    """A run's table is pasted as it is; columns of another shape would say something else."""
    page = (DOCS / "benchmarks.md").read_text(encoding="utf-8")
    section = page.split(f"## {title}\n")[1].split("\n## ")[0]
    lines = re.findall(r"^\|(.*)\|$", section, flags=re.MULTILINE)
    rows = [tuple(cell.strip() for cell in line.split("|")) for line in lines]
    targets = rows.index(TARGET_HEADS)
    assert rows[0][:3] == ("figure", PLIMSOLL, IN_INT8)
    assert set(rows[0][3:]) <= {one.name for one in PEERS}
    assert RATIO_HEADS in rows
    assert [row[0] for row in rows[targets + 2 :]] == [target.title for target in targets_of(2)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_to_our_own_pages_leads_somewhere(page: Path):
    """Files are moved and headings reworded; what points to them has to follow."""
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"[a-z]+:", link):
            continue
        file, _, anchor = link.partition("#")
        target = page.parent / file if file else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []

"""What others wrote and we install: bounded, locked, and named with its licence."""

import json
import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from plimsoll.encoder.known_models import BUILTIN
from scripts import notice, sbom
from tests.running_server import ROOT

LOCKS = ROOT / "locks"
RUN_TIME_EXTRAS = ("parquet", "postgres", "qdrant", "tracing")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def wanted() -> list[Requirement]:
    """What an installation of Plimsoll brings."""
    extras = PROJECT["optional-dependencies"]
    lines = PROJECT["dependencies"] + [line for extra in RUN_TIME_EXTRAS for line in extras[extra]]
    return [Requirement(line) for line in lines]


def lock_files() -> list[Path]:
    return sorted([ROOT / "requirements.lock", *LOCKS.rglob("*.lock"), *LOCKS.rglob("*-lock.json")])


@pytest.mark.parametrize("requirement", wanted(), ids=lambda one: one.name)
def test_every_dependency_has_a_lower_and_an_upper_bound(requirement: Requirement):
    """A major version that changes what we call would break what is installed already."""
    operators = {bound.operator for bound in requirement.specifier}
    assert operators == {">=", "<"}


@pytest.mark.parametrize("file", lock_files(), ids=lambda file: str(file.relative_to(ROOT)))
def test_a_lock_names_hashes_and_no_registry(file: Path):
    """A hash holds wherever the package comes from; an address takes that choice away."""
    text = file.read_text(encoding="utf-8")
    assert "sha256:" in text or '"integrity": "sha512-' in text
    assert '"resolved"' not in text
    of_packages = re.sub(r'"url": "[^"]*"', "", text)  # where their authors ask for money
    assert not re.search(r"^--|://", of_packages, re.MULTILINE)


def test_notice_names_every_package_of_the_image_with_its_licence():
    """An operator who passes an image on has to know them."""
    written = notice.NOTICE.read_text(encoding="utf-8")
    assert written == notice.notice(), "run: python -m scripts.notice --write"
    assert len(notice.locked()) > 50


def test_notice_and_bill_of_materials_agree_on_the_model():
    """It is in the image, and no package that pip could list."""
    written = " ".join(notice.NOTICE.read_text(encoding="utf-8").split())
    name = sbom.MODEL_LICENCE.replace("-", " License ")
    assert f"{BUILTIN.name} (sentence-transformers, {name})" in written
    assert BUILTIN.source.package in written


def test_the_page_of_clients_says_the_versions_that_are_tried():
    """A reader who has another one looks there first."""
    page = (ROOT / "docs" / "clients.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| \[`([^`]+)`\]\S* \((PyPI|npm)\) \| (\S+) \|", page, re.MULTILINE)
    lock = (LOCKS / "clients/requirements.lock").read_text(encoding="utf-8")
    of_npm = json.loads((LOCKS / "clients/package-lock.json").read_text(encoding="utf-8"))
    tried = {("PyPI", name): version for name, version in re.findall(r"^(\S+)==(\S+)", lock, re.M)}
    tried |= {
        ("npm", path.removeprefix("node_modules/")): package["version"]
        for path, package in of_npm["packages"].items()
        if path
    }
    assert len(rows) > 10
    assert {(name, of): version for name, of, version in rows} == {
        (name, of): tried[of, name] for name, of, _ in rows
    }

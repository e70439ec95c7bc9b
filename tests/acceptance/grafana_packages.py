"""Grafana's own packages, where npm can fetch them."""

import subprocess
from pathlib import Path
from typing import Literal

import pytest

from tests.running_server import ROOT


def grafana_packages(kind: Literal["schema", "ui"]) -> Path:
    """The folder that scripts/grafana_packages prints; where there is none, skip the test."""
    found = subprocess.run(
        [ROOT / "scripts/grafana_packages", kind], capture_output=True, text=True, check=False
    )
    if found.returncode:
        pytest.skip(f"no packages of Grafana's: {found.stderr.strip() or 'npm failed'}")
    return Path(found.stdout.strip())

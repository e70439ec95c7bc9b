"""The examples of docs/clients.md, and the environments of the clients that they run in."""

import json
import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from tests.running_server import ROOT

PAGE = ROOT / "docs" / "clients.md"
ADDRESS = "http://127.0.0.1:8080"
RUNNER = Path(__file__).with_name("run_example.py")
CALLERS = Path(__file__).with_name("callers.py")
TIMEOUT_S = 300
FENCE = r"^```(python|js)\n(.*?)^```$"
# Nothing is told to others, and no list of prices is fetched.
OFFLINE = {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HAYSTACK_TELEMETRY_ENABLED": "False",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "ANONYMIZED_TELEMETRY": "False",
    "NO_PROXY": "127.0.0.1",
}
# What scripts/locked_packages ends with where the machine lacks a program that it needs.
LACKS_PROGRAM = 3


@dataclass(frozen=True)
class Example:
    """Code of the page. name: its heading, and which of several below it."""

    name: str
    language: Literal["python", "js"]
    code: str

    def paths(self) -> set[str]:
        """What stands behind Plimsoll's address in it, with a slash before."""
        found = re.findall(re.escape(ADDRESS) + r"(/[\w/]*)?", self.code)
        return {path.rstrip("/") for path in found}


def examples() -> list[Example]:
    """Those of the page, in its order."""
    found = []
    for section in re.split(r"^## ", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]:
        heading, _, rest = section.partition("\n")
        blocks = re.findall(FENCE, rest, flags=re.MULTILINE | re.DOTALL)
        for number, (language, code) in enumerate(blocks, 1):
            name = heading if len(blocks) == 1 else f"{heading} {number}"
            found.append(Example(name, language, code))
    return found


def packages(kind: Literal["clients", "npm"]) -> Path:
    """The folder that scripts/locked_packages prints; skips the test where there is no npm."""
    made = subprocess.run(
        [ROOT / "scripts/locked_packages", kind], capture_output=True, text=True, check=False
    )
    if made.returncode == LACKS_PROGRAM:
        pytest.skip(f"no {kind}: {made.stderr.strip()}")
    assert made.returncode == 0, made.stderr
    return Path(made.stdout.strip())


def run(code: str, language: Literal["python", "js"], url: str, texts: list[str]) -> dict:
    """What code of a client comes to against the server at `url`: its `vectors`, or an `error`."""
    code = code.replace(ADDRESS, url)
    if language == "python":
        given = json.dumps({"code": code, "texts": texts})
        return _run([packages("clients") / "bin/python", RUNNER], given, ROOT)
    folder = packages("npm")
    script = f"const texts = {json.dumps(texts)};\n{code}\n"
    script += "console.log(JSON.stringify({ vectors: vectors.map((row) => [...row]) }));\n"
    # From the folder in which Node looks for what is imported.
    return _run(["node", "--input-type=module", "-"], script, folder)


def run_callers(kind: str, url: str, texts: list[str], n_callers: int) -> dict:
    """What became of lists that callers of one kind send at once; see callers.py."""
    given = {"kind": kind, "url": url, "texts": texts, "n_callers": n_callers}
    return _run([packages("clients") / "bin/python", CALLERS], json.dumps(given), ROOT)


def _run(command: list[str | Path], given: str, folder: Path) -> dict:
    inherited = {n: v for n, v in os.environ.items() if not n.startswith(("PLIMSOLL_", "PYTHON"))}
    done = subprocess.run(
        command,
        input=given,
        cwd=folder,
        env=inherited | OFFLINE | {"PYTHONPATH": str(ROOT / "app")},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])

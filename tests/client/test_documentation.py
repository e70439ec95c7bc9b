"""docs/python.md: its code about a server prints what stands beside it."""

import re
from pathlib import Path

import pytest

from tests.running_server import ROOT, RunningServer

PAGE = ROOT / "docs" / "python.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.M | re.S)


@pytest.mark.parametrize("code", [code for code in BLOCKS if "Client" in code])
def test_the_code_of_the_page_prints_what_the_page_says(
    code: str, server: RunningServer, capsys: pytest.CaptureFixture[str]
):
    """A reader copies it first and reads about it afterwards."""
    promised = re.findall(r"print\(.*\)  # (.*)$", code, re.M)

    exec(compile(code.replace("http://127.0.0.1:8080", server.url), str(Path(PAGE)), "exec"), {})

    printed = capsys.readouterr().out.splitlines()
    assert promised
    for said, line in zip(promised, printed, strict=True):
        assert line.startswith(said.rstrip("…").strip())

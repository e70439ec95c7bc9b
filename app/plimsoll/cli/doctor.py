"""`plimsoll doctor`: whether the server can start here, what it may use, and what to do next."""

import json
import sys
from dataclasses import asdict
from typing import Any

import click

from plimsoll.cli.help import Command
from plimsoll.cli.options import load, setting_options
from plimsoll.cli.tables import print_table

STYLES = {"ok": "green", "warn": "yellow", "fail": "bold red"}


@click.command(cls=Command)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@setting_options(
    "model",
    "host",
    "port",
    "threads",
    "memory_budget",
    "cache_dir",
    "cache_on_tmpfs",
    "data_dir",
    "links",
    "hooks",
)
def doctor(as_json: bool, **overrides: Any) -> None:
    """Check this machine and these settings; exit code 1 where something fails."""
    from plimsoll.cli.checks import run_checks
    from plimsoll.cli.findings import State

    findings = list(run_checks(load(overrides).settings))
    if as_json:
        click.echo(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        rows = [
            (
                (finding.state.value, STYLES[finding.state]),
                finding.check,
                f"{finding.found}. Next: {finding.remedy}" if finding.remedy else finding.found,
            )
            for finding in findings
        ]
        print_table(("", "check", "found"), rows)
    sys.exit(1 if any(finding.state is State.FAIL for finding in findings) else 0)

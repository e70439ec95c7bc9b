"""A page on which Grafana's own components draw the dashboard, from what a Prometheus answers.

Only numbers and lines, and of the rows that are not folded: the other kinds of panels are part of
Grafana's program, not of its packages.
"""

import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any

from tests.acceptance.prometheus import RunningPrometheus
from tests.acceptance.trouble import asked
from tests.grafana_files import dashboard, targets

SOURCE = Path(__file__).with_name("grafana_panels.jsx")
BUNDLED = (
    "--bundle", "--minify", "--format=iife", "--jsx=automatic", "--define:global=window",
    '--define:process.env.NODE_ENV="production"',
    *(f"--loader:.{kind}=dataurl" for kind in ("svg", "ttf", "woff", "woff2")),
)  # fmt: skip
PAGE = """<!doctype html>
<meta charset="utf-8">
<link rel="stylesheet" href="panels.css">
<body style="margin: 0"><div id="root"></div>
<script>window.drawing = %s</script>
<script src="panels.js"></script>
"""


def drawable() -> list[dict[str, Any]]:
    """The panels that the components can draw."""
    return [one for one in dashboard()["panels"] if one["type"] in ("stat", "timeseries")]


def write_page(folder: Path, packages: Path, prometheus: RunningPrometheus) -> Path:
    """Write the page, its script and what Prometheus answers into `folder`."""
    to_s = time.time()
    drawing = {
        "panels": drawable(),
        "answers": {
            target["expr"]: prometheus.series(asked(target["expr"]))
            for panel in drawable()
            for target in targets(panel)
        },
        "from_s": prometheus.started_s,
        "to_s": to_s,
    }
    modules = packages / "node_modules"
    subprocess.run(
        [modules / ".bin/esbuild", SOURCE, *BUNDLED, f"--outfile={folder / 'panels.js'}"],
        env=os.environ | {"NODE_PATH": str(modules)}, capture_output=True, check=True,
    )  # fmt: skip
    page = folder / "panels.html"
    page.write_text(PAGE % json.dumps(drawing).replace("<", "\\u003c"), encoding="utf-8")
    return page

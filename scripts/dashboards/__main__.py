"""Print the dashboard's JSON, or (`--write`) put it where Grafana and the tests read it."""

import sys

from .document import DASHBOARD, dashboard_json

if "--write" in sys.argv[1:]:
    DASHBOARD.write_text(dashboard_json(), encoding="utf-8")
else:
    sys.stdout.write(dashboard_json())

"""The Grafana dashboard as code: expressions, how panels look, what is shown, the whole of it.

`python -m scripts.dashboards --write` puts it into grafana/dashboards/.
"""

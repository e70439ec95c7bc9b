"""The registry of every metric, and the page that Prometheus scrapes.

Base units, conventional names, few labels; never a text or a user. Nothing is registered at
import: `Telemetry` owns a registry of its own. Each family of metrics stands in a module beside
this one; Prometheus is known in telemetry/ alone.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass

from prometheus_client import CONTENT_TYPE_LATEST as CONTENT_TYPE
from prometheus_client import (
    CollectorRegistry,
    Info,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.metrics import MetricWrapperBase

from plimsoll.telemetry.bottleneck import BottleneckMetrics
from plimsoll.telemetry.connections import ConnectionMetrics
from plimsoll.telemetry.corpora import CorpusMetrics
from plimsoll.telemetry.engine import EngineMetrics
from plimsoll.telemetry.links import LinkMetrics
from plimsoll.telemetry.machine import MachineMetrics
from plimsoll.telemetry.migrations import MigrationMetrics
from plimsoll.telemetry.models import ModelMetrics, WeightMetrics
from plimsoll.telemetry.pressure import PressureMetrics
from plimsoll.telemetry.requests import RequestMetrics

__all__ = ["MetricDescription", "Telemetry", "media_type"]

CONTENT_TYPE_0_0_4 = "text/plain; version=0.0.4; charset=utf-8"


@dataclass(frozen=True)
class MetricDescription:
    """A metric as documentation and dashboards name it."""

    name: str
    type: str
    labels: tuple[str, ...]
    meaning: str


class Telemetry:
    """Owns the registry and the families of metrics in it, in the order of docs/metrics.md."""

    def __init__(self, version: str) -> None:
        # A second series per counter that no dashboard reads.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry(auto_describe=True)
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self.requests = RequestMetrics(self.registry)
        self.connections = ConnectionMetrics(self.registry)
        self.engine = EngineMetrics(self.registry)
        self.pressure = PressureMetrics(self.registry)
        self.corpora = CorpusMetrics(self.registry)
        self.links = LinkMetrics(self.registry, time.time)
        self.migrations = MigrationMetrics(self.registry)
        self.models = ModelMetrics(self.registry)
        self.machine = MachineMetrics(self.registry)
        self.weights = WeightMetrics(self.registry)
        self.bottleneck = BottleneckMetrics(self.registry)
        self._build = Info("plimsoll_build", "Version of Plimsoll", registry=self.registry)
        self._build.info({"version": version})

    def metrics(self) -> list[MetricDescription]:
        """Every metric of Plimsoll's own, in the order of definition."""
        return [_description(metric) for metric in self._metrics()]

    def render(self) -> bytes:
        """The page that Prometheus scrapes, in its text format; `media_type` says its type."""
        return generate_latest(self.registry)

    def _metrics(self) -> Iterator[MetricWrapperBase]:
        families = (
            self.requests,
            self.connections,
            self.engine,
            self.pressure,
            self.corpora,
            self.links,
            self.migrations,
            self.models,
            self.machine,
            self.weights,
            self.bottleneck,
            self,
        )
        for family in families:
            for value in vars(family).values():
                if isinstance(value, MetricWrapperBase):
                    yield value


def media_type(accept: str) -> str:
    """The type of the page for a scrape whose header Accept says `accept`.

    Every version of the text format writes our names alike, but some readers know 0.0.4 alone and
    ask for it. prometheus_client's choose_encoder is not asked: it fails on versions that are none.
    """
    texts = [kind for kind in accept.split(",") if kind.strip().startswith("text/plain")]
    options = {option.strip() for kind in texts for option in kind.split(";")}
    knows_old_alone = "version=0.0.4" in options and "version=1.0.0" not in options
    return CONTENT_TYPE_0_0_4 if knows_old_alone else CONTENT_TYPE


def _description(metric: MetricWrapperBase) -> MetricDescription:
    (family,) = metric.describe()
    suffix = {"counter": "_total", "info": "_info"}.get(family.type, "")
    kind = "gauge" if family.type == "info" else family.type
    labels = tuple(metric._labelnames)
    return MetricDescription(family.name + suffix, kind, labels, family.documentation)

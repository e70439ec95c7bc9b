"""Metrics of the machine: memory as measured and as predicted, and the processors."""

from prometheus_client import CollectorRegistry, Gauge


class MachineMetrics:
    """Owns the gauges of memory and processors. They are set at each scrape."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._used = Gauge(
            "plimsoll_memory_used_bytes",
            "Memory that the kernel cannot take back at once",
            registry=registry,
        )
        self._resident = Gauge(
            "plimsoll_memory_resident_bytes",
            "Used memory and mapped file pages",
            registry=registry,
        )
        self._budget = Gauge(
            "plimsoll_memory_budget_bytes",
            "Smallest of control-group limit, setting and host memory",
            registry=registry,
        )
        self._utilization = Gauge(
            "plimsoll_memory_utilization_ratio", "Used over budget", registry=registry
        )
        self._predicted = Gauge(
            "plimsoll_memory_predicted_bytes",
            "Memory in use and promised to admitted requests, at its peak",
            registry=registry,
        )
        self._pressure = Gauge(
            "plimsoll_memory_pressure_ratio",
            "Share of the last 10 s in which some task waited for memory (PSI)",
            registry=registry,
        )
        self._refaults = Gauge(
            "plimsoll_memory_refaults_per_second",
            "File pages read again soon after the kernel took them",
            registry=registry,
        )
        self._oom_kills = Gauge(
            "plimsoll_memory_oom_kills",
            "Processes that the kernel has killed in this control group",
            registry=registry,
        )
        self._cpu_others = Gauge(
            "plimsoll_cpu_others_ratio",
            "Share of the allowed CPU that other processes took",
            registry=registry,
        )
        self._cpu_throttled = Gauge(
            "plimsoll_cpu_throttled_ratio",
            "Share of time in which the CPU quota held this process back",
            registry=registry,
        )

    def show(
        self,
        *,
        used_bytes: int,
        resident_bytes: int,
        budget_bytes: int,
        predicted_bytes: int,
        pressure_ratio: float,
        refaults_per_s: float,
        oom_kills: int,
        cpu_others_ratio: float,
        cpu_throttled_ratio: float,
    ) -> None:
        """Set what was found."""
        self._used.set(used_bytes)
        self._resident.set(resident_bytes)
        self._budget.set(budget_bytes)
        self._utilization.set(used_bytes / budget_bytes)
        self._predicted.set(predicted_bytes)
        self._pressure.set(pressure_ratio)
        self._refaults.set(refaults_per_s)
        self._oom_kills.set(oom_kills)
        self._cpu_others.set(cpu_others_ratio)
        self._cpu_throttled.set(cpu_throttled_ratio)

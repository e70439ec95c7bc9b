"""The machine at one moment, as the governor looks at it once a second."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What was measured of the machine at one moment; as in Observation."""

    used_bytes: int
    budget_bytes: int
    cores: float
    others_ratio: float = 0.0
    throttled_ratio: float = 0.0
    working_set_bytes: int = 0
    pressure_ratio: float = 0.0
    refaults_per_s: float = 0.0
    io_pressure_ratio: float = 0.0
    is_hard: bool = False

    @property
    def used_ratio(self) -> float:
        """Used memory over budget."""
        return self.used_bytes / self.budget_bytes

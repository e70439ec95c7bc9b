"""What the tuning asks of the governor."""

from dataclasses import dataclass

from plimsoll.policy.scheduler import Cap


@dataclass(frozen=True, slots=True)
class Asked:
    """What remedies against a bottleneck ask for while they are applied.

    caps: on the parallelism.
    kept_bytes: layers that fit so many bytes are to stay in memory; see RunLimits.
    most_threads: of the engine, None: as many as the parallelism says.
    run_ratio: while requests wait for the engine, no other one is let in that would leave its runs
        less than this share of the room.
    """

    caps: tuple[Cap, ...] = ()
    kept_bytes: int | None = None
    most_threads: int | None = None
    run_ratio: float = 0.0

    def with_also(self, other: "Asked") -> "Asked":
        """Return both; of two amounts the one that allows less."""
        return Asked(
            caps=self.caps + other.caps,
            kept_bytes=_least(self.kept_bytes, other.kept_bytes),
            most_threads=_least(self.most_threads, other.most_threads),
            run_ratio=max(self.run_ratio, other.run_ratio),
        )


def _least(*amounts: int | None) -> int | None:
    return min((amount for amount in amounts if amount is not None), default=None)


NOTHING_ASKED = Asked()

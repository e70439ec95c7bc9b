"""What a simulation writes down as it goes: the most memory in use, and every second's state."""

from plimsoll.policy.governor import Governor
from plimsoll.simulation.report import Second


class Recording:
    """Owns it. peak_bytes: the most memory that was in use."""

    def __init__(self) -> None:
        self.peak_bytes = 0
        self.seconds: list[Second] = []
        self._second_bytes = 0

    def note_used(self, n_bytes: int) -> None:
        """So much is in use."""
        self.peak_bytes = max(self.peak_bytes, n_bytes)
        self._second_bytes = max(self._second_bytes, n_bytes)

    def note_second(self, now_s: float, governor: Governor, used_bytes: int) -> None:
        """A second is over. used_bytes: now, at the beginning of the next one."""
        self.seconds.append(
            Second(
                at_s=now_s,
                used_bytes=self._second_bytes,
                parallelism=governor.plan.parallelism,
                step=governor.step,
                breaker=governor.breaker.state,
                queue_tokens=governor.admission.backlog.queue_tokens,
                n_waiting=len(governor.waiting),
            )
        )
        self._second_bytes = used_bytes

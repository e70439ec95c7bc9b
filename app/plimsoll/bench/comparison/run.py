"""What every stage of one run shares: options, progress, the report, the measured lists."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

from plimsoll.bench.comparison.models import ModelCase
from plimsoll.bench.comparison.report import Figure, Report
from plimsoll.bench.comparison.texts import mixed_lengths


@dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    rounds: int
    mixed_texts: int
    memory_rounds: int
    settle_s: float


FULL = Sizes(rounds=3, mixed_texts=64, memory_rounds=3, settle_s=3.0)
QUICK = Sizes(rounds=2, mixed_texts=32, memory_rounds=1, settle_s=3.0)


class Run:
    """One run of the benchmark; owns its report and its clock."""

    def __init__(
        self, sizes: Sizes, report: Report, torch_python: str, load_file: Path | None
    ) -> None:
        """load_file: texts with their lengths, for the mixed list; None: lengths are drawn."""
        self.sizes = sizes
        self.report = report
        self.torch_python = torch_python
        self._load_file = load_file
        self._started = monotonic()

    def say(self, text: str) -> None:
        """Write a line of progress."""
        print(f"[{monotonic() - self._started:5.0f} s] {text}", file=sys.stderr, flush=True)

    def note(self, text: str) -> None:
        """Put a remark under the table, once."""
        if text not in self.report.notes:
            self.report.notes.append(text)
            self.say(text)

    def add(
        self,
        case: ModelCase,
        stage: str,
        name: str,
        unit: str,
        values: Sequence[float],
        **more: Any,
    ) -> None:
        """Report one figure; `more` are fields of Figure."""
        self.report.figures.append(Figure(case.title, stage, name, unit, list(values), **more))

    def mixed(self, case: ModelCase) -> list[int]:
        """Lengths of the mixed list for this model."""
        if self._load_file is None:
            self.note("lengths of the mixed list were drawn: the project's load file is not here")
        return mixed_lengths(self.sizes.mixed_texts, case.token_limit, self._load_file)

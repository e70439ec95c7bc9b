"""What every stage of one run shares: options, progress, the report, the measured lists."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plimsoll.bench.comparison.models import ModelCase
from plimsoll.bench.comparison.progress import Say
from plimsoll.bench.comparison.report import Figure, Report
from plimsoll.bench.comparison.texts import mixed_lengths


@dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    rounds: int
    mixed_texts: int
    memory_rounds: int


FULL = Sizes(rounds=3, mixed_texts=64, memory_rounds=3)
QUICK = Sizes(rounds=2, mixed_texts=32, memory_rounds=1)


class Run:
    """One run of the benchmark; owns its report."""

    def __init__(self, sizes: Sizes, report: Report, say: Say, load_file: Path | None) -> None:
        """say: writes a line of progress. load_file: texts with their lengths; None: drawn."""
        self.sizes = sizes
        self.report = report
        self.say = say
        self._load_file = load_file

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

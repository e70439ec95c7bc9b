"""What it takes to embed a whole corpus anew."""

from dataclasses import dataclass
from math import ceil

from plimsoll.bench.capacity.figures import Figures

SIZES = tuple(10**power for power in range(6, 11))
FLOAT32_BYTES = 4
HOUR_S, DAY_S = 3600.0, 86_400.0


@dataclass(frozen=True)
class CorpusAnswer:
    """One server's time for so many documents, and what many servers need for it.

    n_servers: to be done within the days that were given. core_hours: of processors, together.
    cost: in the currency of the price of a core-hour; None where no price was given.
    vector_bytes: of all vectors as float32, without an index.
    """

    n_documents: int
    seconds: float
    n_servers: int
    core_hours: float
    cost: float | None
    vector_bytes: int


def corpus_answer(
    figures: Figures, n_documents: int, *, tokens: int, days: float, core_hour_price: float | None
) -> CorpusAnswer:
    """For documents of so many tokens each, in lists as long as those that were measured."""
    lists = n_documents / figures.list_texts
    seconds = lists * figures.cost_s(tokens * figures.list_texts)
    core_hours = seconds * figures.cores / HOUR_S
    return CorpusAnswer(
        n_documents=n_documents,
        seconds=seconds,
        n_servers=max(1, ceil(seconds / (days * DAY_S))),
        core_hours=core_hours,
        cost=None if core_hour_price is None else core_hours * core_hour_price,
        vector_bytes=n_documents * int(figures.dimensions) * FLOAT32_BYTES,
    )

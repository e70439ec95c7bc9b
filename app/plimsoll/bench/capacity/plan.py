"""All that follows from the figures of one server."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from plimsoll.bench.capacity.bottlenecks import Bottleneck, bottlenecks, first_limit
from plimsoll.bench.capacity.corpora import SIZES, CorpusAnswer, corpus_answer
from plimsoll.bench.capacity.figures import Figures
from plimsoll.bench.capacity.loads import Answer, Load, servers_for
from plimsoll.encoder.architecture import Architecture


@dataclass(frozen=True)
class CapacityPlan:
    """What a load takes, where there is one, what corpora take, and where limits lie.

    first_limit: what the load meets first; None without a load.
    """

    figures: Figures
    answer: Answer | None
    first_limit: str | None
    corpora: Sequence[CorpusAnswer]
    bottlenecks: Sequence[Bottleneck]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "figures": self.figures.as_dict(),
            "load": None if self.answer is None else asdict(self.answer),
            "first_limit": self.first_limit,
            "corpora": [asdict(corpus) for corpus in self.corpora],
            "bottlenecks": [asdict(one) for one in self.bottlenecks],
        }


def plan_for(
    figures: Figures,
    architecture: Architecture,
    load: Load | None,
    *,
    document_tokens: int,
    days: float,
    core_hour_price: float | None,
) -> CapacityPlan:
    """Answer everything for servers like the one that was measured."""
    answer = None if load is None else servers_for(figures, architecture, load)
    return CapacityPlan(
        figures=figures,
        answer=answer,
        first_limit=None if answer is None else first_limit(figures, answer),
        corpora=[
            corpus_answer(
                figures, size, tokens=document_tokens, days=days, core_hour_price=core_hour_price
            )
            for size in SIZES
        ],
        bottlenecks=bottlenecks(figures, answer, document_tokens=document_tokens),
    )

"""What a run has found: rows of Plimsoll beside each peer, the peers' wins first."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

from plimsoll.bench.comparison.report import Figure, Floor
from plimsoll.bench.peers.catalog import ONE_CORE, PADDED, PLIMSOLL
from plimsoll.bench.peers.measure import PEAK, START, FigureName
from plimsoll.bench.peers.peer import PeerKind
from plimsoll.bench.peers.workloads import MIXED, P50, SHORT_TOKENS, TOKENS_PER_S

STAGE = "peers"


@dataclass
class Measured:
    """One configuration of a peer over one model: a dictionary of figures for each round."""

    kind: PeerKind
    rounds: dict[int, Mapping[str, float]] = field(default_factory=dict)
    worst_cosine: float | None = None
    problem: str = ""  # why it was not measured, or not to the end

    @property
    def absence(self) -> str:
        """Why the table has no row of it, or not of every round; empty where it has."""
        return self.problem or ("" if self.rounds else "the run ended before")

    def values(self, name: str) -> dict[int, float]:
        """One figure, by round."""
        return {number: one[name] for number, one in self.rounds.items() if name in one}


@dataclass(frozen=True)
class Row:
    """One figure of Plimsoll's and of a peer's best variant, from the rounds that both ran."""

    figure: Figure
    measured: Measured

    @property
    def ratio(self) -> float:
        """How many times better Plimsoll is, the median of the rounds; 0 where undefined."""
        return median(self.figure.ratios) if self.figure.ratios else 0.0

    @property
    def peer_wins(self) -> bool:
        """Whether the peer is better."""
        return self.ratio < 1


@dataclass(frozen=True)
class Target:
    """A line of the project's strategy: so many times better than a baseline."""

    title: str
    figure: str
    baseline: str
    floor: Floor


TARGETS = (
    Target("throughput 2.8-4.4×", f"{MIXED}, {TOKENS_PER_S}", PADDED, Floor("ratio", at_least=2.8)),
    Target("load time −60 %", START, PADDED, Floor("ratio", at_least=1 / 0.4)),
    Target("memory −40 %", PEAK, PADDED, Floor("ratio", at_least=1 / 0.6)),
    Target(
        "latency −50 %",
        f"one text of {SHORT_TOKENS} tokens, {P50}",
        PADDED,
        Floor("ratio", at_least=1 / 0.5),
    ),
    Target(
        "linear scaling, 2 cores against 1",
        f"{MIXED}, {TOKENS_PER_S}",
        ONE_CORE,
        Floor("ratio", at_least=1.8),
    ),
)


@dataclass(frozen=True)
class ModelResults:
    """All of one model."""

    model: str
    names: Sequence[FigureName]
    measured: Sequence[Measured]

    def rows(self) -> list[Row]:
        """Peers' wins first, the clearest at the top; then figure by figure, the closest first."""
        peers = dict.fromkeys(one.kind.name for one in self.measured)
        found = [
            row
            for name in self.names
            for peer in peers
            if peer not in (PLIMSOLL, ONE_CORE)
            if (row := self._row(name, peer)) is not None
        ]
        places = {name.name: place for place, name in enumerate(self.names)}

        def order(row: Row) -> tuple[bool, int, float]:
            place = 0 if row.peer_wins else places[row.figure.name]
            return (not row.peer_wins, place, row.ratio)

        return sorted(found, key=order)

    def targets(self) -> Iterator[Row]:
        """The strategy's own lines, held against what was measured; none without its baseline."""
        by_name = {name.name: name for name in self.names}
        for target in TARGETS:
            if target.figure in by_name:
                row = self._row(by_name[target.figure], target.baseline, target)
                if row is not None:
                    yield row

    def problems(self) -> dict[str, str]:
        """Why peers were not measured, or not to the end; variants of one cause once."""
        found: dict[str, str] = {}
        for name in dict.fromkeys(one.kind.name for one in self.measured):
            variants = [one for one in self.measured if one.kind.name == name]
            if len({one.absence for one in variants}) == 1:
                found[name] = variants[0].absence
            else:
                found |= {one.kind.title: one.absence for one in variants}
        return {peer: problem for peer, problem in found.items() if problem}

    def best(self, name: FigureName, peer: str) -> Measured | None:
        """The variant of a peer with the best median of a figure."""
        variants = [m for m in self.measured if m.kind.name == peer and m.values(name.name)]
        if not variants:
            return None

        def middle(one: Measured) -> float:
            return median(one.values(name.name).values())

        return min(variants, key=middle) if name.lower_is_better else max(variants, key=middle)

    def _row(self, name: FigureName, peer: str, target: Target | None = None) -> Row | None:
        ours, theirs = self.best(name, PLIMSOLL), self.best(name, peer)
        if ours is None or theirs is None:
            return None
        our_values, their_values = ours.values(name.name), theirs.values(name.name)
        both = sorted(our_values.keys() & their_values.keys())
        if not both:
            return None
        figure = Figure(
            self.model,
            STAGE,
            target.title if target else name.name,
            name.unit,
            [our_values[number] for number in both],
            peer=theirs.kind.title,
            peer_values=[their_values[number] for number in both],
            lower_is_better=name.lower_is_better,
            floor=target.floor if target else None,
        )
        return Row(figure, theirs)

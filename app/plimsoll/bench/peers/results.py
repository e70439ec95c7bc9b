"""What a run has found: rows of Plimsoll beside each peer, the peers' wins first."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import inf
from statistics import median

from plimsoll.bench.comparison.report import Figure, Floor
from plimsoll.bench.peers.catalog import IN_INT8, ONE_CORE, PADDED, PLIMSOLL
from plimsoll.bench.peers.measure import PEAK, START, WORST_COSINE, FigureName
from plimsoll.bench.peers.peer import PeerKind
from plimsoll.bench.peers.workloads import MIXED, P50, SHORT_TOKENS, TOKENS_PER_S

STAGE = "peers"
# Scaling is linear where each core after the first gives nearly as much again.
LINEAR_RATIO = 0.9


@dataclass
class Measured:
    """One configuration of a peer over one model: a dictionary of figures for each round."""

    kind: PeerKind
    rounds: dict[int, Mapping[str, float]] = field(default_factory=dict)
    problem: str = ""  # why it was not measured, or not to the end

    @property
    def absence(self) -> str:
        """Why the table has no row of it, or not of every round; empty where it has."""
        return self.problem or ("" if self.rounds else "the run ended before")

    @property
    def worst_cosine(self) -> float | None:
        """Of its vectors to float32 ones."""
        return min(self.values(WORST_COSINE).values(), default=None)

    def values(self, name: str) -> dict[int, float]:
        """One figure, by round."""
        return {number: one[name] for number, one in self.rounds.items() if name in one}


@dataclass(frozen=True)
class Row:
    """One figure of Plimsoll's and of a peer's best variant, from the rounds that both ran."""

    figure: Figure
    measured: Measured

    @property
    def peer_wins(self) -> bool:
        """Whether the peer is better; what has no ratio tells nothing."""
        return self.figure.ratio is not None and self.figure.ratio < 1


@dataclass(frozen=True)
class Target:
    """What Plimsoll is to reach: so many times better than a baseline."""

    title: str
    figure: str
    baseline: str
    at_least: float


def targets_of(n_cores: int) -> tuple[Target, ...]:
    """What is aimed at with so many cores."""
    mixed = f"{MIXED}, {TOKENS_PER_S}"
    short = f"one text of {SHORT_TOKENS} tokens, {P50}"
    if n_cores > 1:
        scaling = f"{LINEAR_RATIO:.0%} of {n_cores} times the rate of one core on {n_cores}"
    else:
        scaling = "rate on several cores against one: the run has one"
    return (
        Target("2.8 to 4.4 times the throughput of mixed lists", mixed, PADDED, 2.8),
        Target("60 % less time to the first vector", START, PADDED, 1 / 0.4),
        Target("40 % less anonymous memory at its peak", PEAK, PADDED, 1 / 0.6),
        Target("half the latency of one short text", short, PADDED, 2),
        Target(scaling, mixed, ONE_CORE, LINEAR_RATIO * n_cores),
    )


@dataclass(frozen=True)
class ModelResults:
    """All of one model."""

    model: str
    names: Sequence[FigureName]
    measured: Sequence[Measured]
    n_cores: int

    def rows(self, ours: str = PLIMSOLL) -> list[Row]:
        """Peers' wins first, the clearest at the top; then figure by figure, the closest first.

        ours: PLIMSOLL, or IN_INT8, which has PLIMSOLL among its peers.
        """
        own = {ONE_CORE, IN_INT8, ours}
        peers = dict.fromkeys(one.kind.name for one in self.measured if one.kind.name not in own)
        found = [
            row
            for name in self.names
            for peer in peers
            if (row := self._row(name, ours, peer)) is not None
        ]
        places = {name.name: place for place, name in enumerate(self.names)}

        def order(row: Row) -> tuple[bool, int, float]:
            place = 0 if row.peer_wins else places[row.figure.name]
            ratio = inf if row.figure.ratio is None else row.figure.ratio
            return (not row.peer_wins, place, ratio)

        return sorted(found, key=order)

    def targets(self) -> Iterator[Figure]:
        """Every target with its verdict, also where it or its baseline was not measured."""
        by_name = {name.name: name for name in self.names}
        for target in targets_of(self.n_cores):
            name = by_name.get(target.figure, FigureName(target.figure, ""))
            theirs = self.best(name, target.baseline)
            figure = self._figure(name, PLIMSOLL, theirs, target.baseline)
            floor = Floor("ratio", at_least=target.at_least)
            yield replace(figure, name=target.title, floor=floor)

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

    def _row(self, name: FigureName, ours: str, peer: str) -> Row | None:
        """None where no round has the figure of both."""
        theirs = self.best(name, peer)
        if theirs is None:
            return None
        figure = self._figure(name, ours, theirs, theirs.kind.title)
        return Row(figure, theirs) if figure.values else None

    def _figure(self, name: FigureName, own: str, theirs: Measured | None, peer: str) -> Figure:
        """From the rounds that have it of both; without values where there is none."""
        ours = self.best(name, own)
        our_values = ours.values(name.name) if ours else {}
        their_values = theirs.values(name.name) if theirs else {}
        both = sorted(our_values.keys() & their_values.keys())
        return Figure(
            self.model,
            STAGE,
            name.name,
            name.unit,
            [our_values[number] for number in both],
            peer=peer,
            peer_values=[their_values[number] for number in both],
            lower_is_better=name.lower_is_better,
        )

"""What the old version was worth before a run, and the new one beside it after."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from plimsoll.errors import HookError
from plimsoll.migration.hooks.occasion import Occasion
from plimsoll.migration.hooks.records import Answer
from plimsoll.migration.hooks.written import Options
from plimsoll.migration.quality import MOST_DROP
from plimsoll.migration.validation import MigrationJudge

# A check of the judge, its figure of the version that is judged, and the name that we give it.
FIGURES = {
    "ndcg_at_10": ("judged_queries", "new_ndcg_at_10"),
    "recall_at_10": ("judged_queries", "new_recall_at_10"),
    "query_median_ms": ("latency", "new_median_ms"),
}


class BenchmarkBaseline(Options):
    """metric: what is measured."""

    metric: Literal["embedding-accuracy"] = "embedding-accuracy"


class BenchmarkComparison(Options):
    """most_drop: of nDCG@10 and of the accuracy, absolute."""

    most_drop: Annotated[float, Field(ge=0, le=1)] = MOST_DROP


class Baseline:
    """Measures the old version by what the verdict will ask of the new one."""

    def __init__(self, judge: MigrationJudge, options: BenchmarkBaseline) -> None:
        self._judge = judge
        self._metric = options.metric

    async def __call__(self, occasion: Occasion) -> Answer:
        """Embed its sample again, and answer judged queries with it."""
        if occasion.status is None:  # which Hook.needs_migration keeps from happening
            raise HookError("it looks at a migration")
        migration = occasion.status.counts.migration
        checks = await self._judge.judge_old(migration)
        if not checks:
            reason = "no model here embeds into the old space: it has no baseline"
            return Answer(reason=reason, figures={"metric": self._metric})
        figures = measured({check.name: check.figures for check in checks})
        return Answer(reason=_told(figures), figures={"metric": self._metric, **figures})


class Comparison:
    """Sets the verdict's figures beside the baseline's."""

    def __init__(self, options: BenchmarkComparison) -> None:
        self._most_drop = options.most_drop

    async def __call__(self, occasion: Occasion) -> Answer:
        """Compare; a drop that is too deep stops the run."""
        verdict = None if occasion.status is None else occasion.status.counts.migration.verdict
        if verdict is None or occasion.baseline is None:
            raise HookError(
                "it compares a verdict with what benchmark-baseline measured before: name both"
            )
        after = measured({check["name"]: check["figures"] for check in verdict["checks"]})
        before = {name: occasion.baseline[name] for name in after if name in occasion.baseline}
        if not before:
            return Answer(reason="there is no baseline to compare with", figures={"after": after})
        figures = {
            name: {"before": before[name], "after": after[name], "change": after[name] - old}
            for name, old in before.items()
        }
        deep = [
            f"{name} fell from {before[name]:.4f} to {after[name]:.4f}, by more than "
            f"{self._most_drop:g}"
            for name in ("ndcg_at_10", "accuracy")
            if name in before and before[name] - after[name] > self._most_drop
        ]
        told = ", ".join(f"{name} {before[name]:.4g} → {after[name]:.4g}" for name in before)
        return Answer(bool(deep), "; ".join(deep) or told, figures)


def measured(checks: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """The figures of a version that is judged, by our names. checks: figures by check.

    accuracy: the least cosine of a document embedded again to what is stored.
    """
    found = {
        name: float(checks[check][figure])
        for name, (check, figure) in FIGURES.items()
        if figure in checks.get(check, {})
    }
    again = checks.get("embedded_again", {})
    if again.get("compared", again.get("sampled")):
        found["accuracy"] = 1 - float(again["greatest_distance"])
    return found


def _told(figures: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in figures.items())

"""Where each limit of one server lies, and what is done about it."""

from dataclasses import dataclass

from plimsoll.bench.capacity.corpora import DAY_S
from plimsoll.bench.capacity.figures import Figures
from plimsoll.bench.capacity.loads import Answer


@dataclass(frozen=True)
class Bottleneck:
    """What comes to its limit, where that is, and a remedy."""

    what: str
    limit: str
    remedy: str


def bottlenecks(
    figures: Figures, answer: Answer | None, *, document_tokens: int
) -> list[Bottleneck]:
    """Those of one server; with a load, also what that load meets first."""
    documents = DAY_S * figures.list_texts / figures.cost_s(document_tokens * figures.list_texts)
    found = [
        Bottleneck(
            "requests: routing, JSON, admission",
            f"{1 / figures.request_s:,.0f} a second of the shortest texts"
            if figures.request_s
            else "not seen: tokens are all that counts",
            "lists instead of single texts; more servers, each has one event loop",
        ),
        Bottleneck(
            "the engine",
            f"{1 / figures.token_s:,.0f} tokens a second",
            "int8, more processors for each server, more servers",
        ),
        Bottleneck(
            "the answer's time",
            f"{figures.alone_s(figures.short_tokens) * 1000:,.1f} ms of a short text alone",
            "int8, faster processors, a smaller model; more servers change nothing",
        ),
        Bottleneck(
            "one server's collections and migrations",
            f"{documents:,.0f} documents of {document_tokens} tokens a day",
            "int8; several processes that embed for one migration",
        ),
    ]
    if answer is not None:
        found.append(
            Bottleneck(
                "memory, for this load",
                f"a budget of {answer.budget_bytes >> 20:,} MiB a server",
                "shorter lists, less that waits (PLIMSOLL_QUEUE_S)",
            )
        )
    return found


def first_limit(figures: Figures, answer: Answer) -> str:
    """Which of them a load meets first, in a word or two."""
    load = answer.load
    if answer.alone_s > load.p99_s:
        return "the answer's time"
    is_short = figures.request_s > figures.token_s * load.n_tokens
    return "requests" if is_short else "the engine"

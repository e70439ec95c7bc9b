"""Rows about answers: how many, how fast, and what was not answered as asked."""

from collections.abc import Sequence

from app.memory.breaker import DEFAULT_LIMITS
from app.memory.scaling import HALVE_ABOVE_RATIO
from app.serving.admission import LINE_RATIO

from .expressions import (
    FAILED,
    QUEUE_FULL,
    REJECTED,
    WORK,
    growth,
    per_second,
    quantile,
    select,
    share,
)
from .panels import CLEAR, ORANGE, RED, WHOLE, YELLOW, Panel, Query, lines, number, states

PERCENTILES = (0.5, 0.9, 0.99)
ALERT = 'alertname=~"Plimsoll.+"'
PENDING, FIRING = 'alertstate="pending"', 'alertstate="firing"'


def glance() -> Sequence[Panel]:
    """The numbers to look at first."""
    duration = "plimsoll_request_duration_seconds"
    requests, errors = "plimsoll_requests_total", "plimsoll_errors_total"
    return (
        number(
            "Requests", "Requests for work a second: embedding and ranking.", "reqps",
            Query(f"sum({per_second(requests, WORK)})", "requests"),
        ),
        number(
            "Tokens", "Tokens embedded a second.", "suffix: tokens/s",
            Query(f"sum({per_second('plimsoll_tokens_total')})", "tokens"),
        ),
        number(
            "Memory used of the budget",
            "The fullest of the chosen instances. Admission defends the first line.",
            "percentunit",
            Query(f"max({select('plimsoll_memory_utilization_ratio')})", "used"),
            (LINE_RATIO, YELLOW), (HALVE_ABOVE_RATIO, ORANGE), (DEFAULT_LIMITS.open_ratio, RED),
        ),
        number(
            "Latency, p99", "99 of 100 requests for work took at most this long.", "s",
            Query(quantile(0.99, duration, WORK), "p99"), (10, RED),
        ),
        number(
            "Failed", "Requests for work that were answered with 5xx.", "percentunit",
            Query(share(per_second(errors, FAILED)), "failed"), (0.01, RED),
        ),
        number(
            "Degraded", "Requests for work that did not get the primary answer.", "percentunit",
            Query(share(per_second("plimsoll_degraded_total")), "degraded"), (0.05, ORANGE),
        ),
        states(
            "Alerts", "Those of grafana/rules.yml.",
            Query(
                f"2 * max by (alertname, instance) ({select('ALERTS', ALERT, FIRING)})"
                f" or max by (alertname, instance) ({select('ALERTS', ALERT, PENDING)})",
                "{{alertname}} {{instance}}",
            ),
            (("", CLEAR), ("pending", YELLOW), ("firing", RED)), span=WHOLE, if_empty="no alert",
        ),
    )  # fmt: skip


def requests() -> Sequence[Panel]:
    """What is asked and how fast it is answered."""
    duration, stage = "plimsoll_request_duration_seconds", "plimsoll_stage_duration_seconds"
    return (
        lines(
            "Tokens per second",
            "As the engine finishes them, and as their requests end.",
            "suffix: tokens/s",
            Query(select("plimsoll_throughput_tokens_per_second"), "{{instance}} engine"),
            Query(
                f"sum by (instance) ({per_second('plimsoll_tokens_total')})",
                "{{instance}} answered",
            ),
        ),
        lines(
            "Requests per second by kind of reply",
            "dense: vectors; sparse: BM25, asked for or in their place; none: refused or failed.",
            "reqps",
            Query(
                f"sum by (kind) ({per_second('plimsoll_requests_total', WORK)})", "{{kind}}"
            ),
            stacked=True,
        ),
        lines(
            "Requests per second by status", "499: the client hung up.", "reqps",
            Query(
                f"sum by (status) ({per_second('plimsoll_requests_total', WORK)})", "{{status}}"
            ),
            stacked=True,
        ),
        lines(
            "Latency of requests", "From a request's arrival to the end of its reply.", "s",
            *(
                Query(quantile(ratio, duration, WORK), f"p{ratio * 100:g}")
                for ratio in PERCENTILES
            ),
        ),
        lines(
            "Latency by route, p99", "Long lists take long by nature.", "s",
            Query(quantile(0.99, duration, WORK, by="route"), "{{route}}"),
        ),
        lines(
            "Texts per second", "Cut texts were longer than the model's token limit.", "cps",
            Query(f"sum({per_second('plimsoll_texts_total')})", "embedded"),
            Query(f"sum({per_second('plimsoll_truncated_total')})", "cut"),
        ),
        *(
            lines(
                f"Time by stage, p{ratio * 100:g}",
                "encode and pool are per wave of texts, queue is per text, the rest per request.",
                "s",
                Query(quantile(ratio, stage, by="stage"), "{{stage}}"),
            )
            for ratio in PERCENTILES
        ),
    )  # fmt: skip


def degradation() -> Sequence[Panel]:
    """What was not answered as asked, and why."""
    requests, errors = "plimsoll_requests_total", "plimsoll_errors_total"
    return (
        lines(
            "Degraded share by reason", "Of requests for work.", "percentunit",
            Query(share(per_second("plimsoll_degraded_total"), by="reason"), "{{reason}}"),
            stacked=True,
        ),
        lines(
            "Refused and failed share", "Of requests for work.", "percentunit",
            Query(share(per_second(errors, FAILED)), "failed (5xx)"),
            Query(share(per_second(errors, QUEUE_FULL)), "queue full (429)"),
            Query(share(per_second(requests, WORK, REJECTED)), "other 4xx"),
        ),
        lines(
            "Errors by code", "Of requests and of single texts.", "cps",
            Query(f"sum by (code) ({per_second('plimsoll_errors_total')})", "{{code}}"),
        ),
        lines(
            "Recoveries",
            "Failures for want of memory: level 1 smaller runs, 2 pages dropped, 3 fallback.",
            "short",
            Query(
                f"sum by (level, outcome) ({growth('plimsoll_recoveries_total')})",
                "level {{level}} {{outcome}}",
            ),
        ),
        lines(
            "Changes of the breaker's state", "By the state that followed.", "short",
            Query(
                f"sum by (state) ({growth('plimsoll_breaker_transitions_total')})", "{{state}}"
            ),
        ),
        lines(
            "Models",
            "Open, opened and evicted. idle: unused for long; lru: another one opened; "
            "pressure: memory ran high.",
            "short",
            Query(f"sum({select('plimsoll_model_open')})", "open"),
            Query(
                f"sum by (outcome) ({growth('plimsoll_model_loads_total')})", "load {{outcome}}"
            ),
            Query(
                f"sum by (reason) ({growth('plimsoll_model_evictions_total')})",
                "evicted {{reason}}",
            ),
        ),
    )  # fmt: skip

"""Rows about answers: how many, how fast, and what was not answered as asked.

Errors, degraded answers and texts are not counted by model: the variable leaves them whole.
"""

from collections.abc import Sequence

from plimsoll.policy.breaker import DEFAULT_LIMITS
from plimsoll.policy.lines import HALVE_ABOVE_RATIO, HIGH_RATIO

from .colours import (
    BLUE,
    BREAKER,
    CLEAR,
    GREEN,
    GREY,
    KIND,
    LATENCY,
    ORANGE,
    RED,
    REFUSAL,
    STATUS,
    YELLOW,
)
from .expressions import (
    FAILED,
    OBJECTIVE_RATIO,
    OF_MODEL,
    QUEUE_FULL,
    REJECTED,
    WORK,
    growth,
    per_second,
    quantile,
    select,
    share,
    within_objective,
)
from .panels import HALF, HEIGHT, SHARE, WHOLE, Panel, Query, heat, lines, number, states

PERCENTILES = (0.5, 0.9, 0.99)
ALERT = 'alertname=~"Plimsoll.+"'
LINK_STATES = ('state="following"', 'state="pulling"', 'state="waiting"')
PENDING, FIRING = 'alertstate="pending"', 'alertstate="firing"'


def glance() -> Sequence[Panel]:
    """The numbers to look at first."""
    duration = "plimsoll_request_duration_seconds"
    requests, errors = "plimsoll_requests_total", "plimsoll_errors_total"
    return (
        number(
            "Requests", "Requests for work a second: embedding and ranking.", "reqps",
            Query(f"sum({per_second(requests, WORK, OF_MODEL)})", "requests"),
        ),
        number(
            "Tokens", "Tokens embedded a second.", "suffix:tokens/s",
            Query(f"sum({per_second('plimsoll_tokens_total', OF_MODEL)})", "tokens"),
        ),
        number(
            "Memory used",
            "Of the budget, in the fullest of the chosen instances. Admission defends the first "
            "line.",
            SHARE,
            Query(f"max({select('plimsoll_memory_utilization_ratio')})", "used"),
            (HIGH_RATIO, YELLOW), (HALVE_ABOVE_RATIO, ORANGE), (DEFAULT_LIMITS.open_ratio, RED),
            if_empty="no server", alert="PlimsollMemoryHigh",
        ),
        number(
            "Latency, p99", "99 of 100 requests for work took at most this long.", "s",
            Query(quantile(0.99, duration, WORK, OF_MODEL), "p99"),
        ),
        number(
            "Within the objective",
            "Requests for work that took no longer than the objective for latency, $slo s.",
            SHARE,
            Query(within_objective(duration, WORK, OF_MODEL), "within"),
            (OBJECTIVE_RATIO, GREEN), below=RED, alert="PlimsollSlow",
        ),
        number(
            "Failed", "Requests for work that were answered with 5xx.", SHARE,
            Query(share(per_second(errors, FAILED)), "failed"), (0.01, RED),
            alert="PlimsollErrors",
        ),
        number(
            "Refused", "Requests for work that found the queue full (429).", SHARE,
            Query(share(per_second(errors, QUEUE_FULL)), "refused"), (0.001, YELLOW),
            alert="PlimsollQueueFull",
        ),
        number(
            "Degraded", "Requests for work that did not get the primary answer.", SHARE,
            Query(share(per_second("plimsoll_degraded_total")), "degraded"), (0.05, ORANGE),
            alert="PlimsollDegraded",
        ),
        states(
            "Alerts", "Those of grafana/rules.yml.",
            Query(
                f"2 * max by (alertname, instance) ({select('ALERTS', ALERT, FIRING)})"
                f" or max by (alertname, instance) ({select('ALERTS', ALERT, PENDING)})",
                "{{alertname}} {{instance}}",
            ),
            (("", CLEAR), ("pending", YELLOW), ("firing", RED)), span=WHOLE, height=4,
            if_empty="no alert", alert="all alerts",
        ),
    )  # fmt: skip


def requests() -> Sequence[Panel]:
    """What is asked and how fast it is answered."""
    duration = "plimsoll_request_duration_seconds"
    asked = per_second("plimsoll_requests_total", WORK, OF_MODEL)
    objective = Query("vector($slo)", "objective")
    return (
        lines(
            "Requests per second by status", "499: the client hung up.", "reqps",
            Query(f"sum by (status) ({asked})", "{{status}}"),
            stacked=True, overrides=STATUS,
        ),
        lines(
            "Requests per second by kind of reply",
            "dense: vectors; sparse: BM25, asked for or in their place; none: refused or failed.",
            "reqps",
            Query(f"sum by (kind) ({asked})", "{{kind}}"),
            stacked=True, overrides=KIND,
        ),
        lines(
            "Tokens per second",
            "As the engine finishes them, and as their requests end.",
            "short",
            Query(select("plimsoll_throughput_tokens_per_second"), "{{instance}} engine"),
            Query(
                f"sum by (instance) ({per_second('plimsoll_tokens_total', OF_MODEL)})",
                "{{instance}} answered",
            ),
        ),
        lines(
            "Latency of requests",
            "From a request's arrival to the end of its reply; dashed: the objective.", "s",
            *(
                Query(quantile(ratio, duration, WORK, OF_MODEL), f"p{ratio * 100:g}")
                for ratio in PERCENTILES
            ),
            objective,
            overrides=LATENCY, alert="PlimsollSlow",
        ),
        heat(
            "Latencies", "A colour is a number of requests; the scale has the buckets' bounds.",
            "s",
            Query(f"sum by (le) ({growth(duration + '_bucket', WORK, OF_MODEL)})", "{{le}}"),
        ),
        lines(
            "Latency by route, p99",
            "Long lists take long by nature; dashed: the objective.", "s",
            Query(quantile(0.99, duration, WORK, OF_MODEL, by="route"), "{{route}}"),
            objective,
            overrides=LATENCY,
        ),
    )  # fmt: skip


def collections() -> Sequence[Panel]:
    """What comes into collections, and how fast they are searched."""
    duration = "plimsoll_search_seconds"
    return (
        lines(
            "Documents per second", "unchanged: sent again, and skipped.", "short",
            Query(f"sum by (outcome) ({per_second('plimsoll_documents_total')})", "{{outcome}}"),
        ),
        lines(
            "Searches per second", "As they were answered: bm25 also where the model could not.",
            "reqps",
            Query(f"sum by (mode) ({per_second(duration + '_count')})", "{{mode}}"),
        ),
        lines(
            "Latency of searches, p99", "Embedding of the query included.", "s",
            Query(quantile(0.99, duration, by="mode"), "{{mode}}"),
        ),
    )  # fmt: skip


def links() -> Sequence[Panel]:
    """Whether collections keep in step with what they are linked to."""
    return (
        states(
            "Links", "waiting: `plimsoll links list` says for what.",
            Query(
                " + ".join(
                    f"{number} * max by (instance, link) ({select('plimsoll_link_state', state)})"
                    for number, state in enumerate(LINK_STATES, start=1)
                ),
                "{{link}} {{instance}}",
            ),
            (("at rest", GREY), ("following", GREEN), ("pulling", BLUE), ("waiting", RED)),
            height=HEIGHT, if_empty="no links", alert="PlimsollLinkWaits",
        ),
        lines(
            "Vectors to be brought out",
            "read: of the space that others read outside; other: of the one beside it.", "short",
            Query(
                f"sum by (link, space) ({select('plimsoll_link_vectors_waiting')})",
                "{{link}}, {{space}}",
            ),
            span=HALF,
        ),
        lines(
            "Since the last change was taken in", "Of links that had one since the start.", "s",
            Query(
                "time() - max by (link) "
                f"({select('plimsoll_link_last_change_timestamp_seconds')} > 0)",
                "{{link}}",
            ),
            span=HALF,
        ),
        lines(
            "Faults of links", "It does not answer, or is not as it should be.", "short",
            Query(f"sum by (link) ({growth('plimsoll_link_faults_total')})", "{{link}}"),
            span=HALF,
        ),
    )  # fmt: skip


def migrations() -> Sequence[Panel]:
    """How moves to another model go on."""
    return (
        lines(
            "Documents moved per second", "quarantined: no vector to be had.", "short",
            Query(
                f"sum by (outcome) ({per_second('plimsoll_migration_rows_total')})", "{{outcome}}"
            ),
        ),
        lines(
            "Tokens per second of migrations", "What live requests and memory leave.", "short",
            Query(f"sum({per_second('plimsoll_migration_tokens_total')})", "tokens"),
        ),
        lines(
            "Changes of state", "failed: the log and `plimsoll migrate status` have the reason.",
            "short",
            Query(
                f"sum by (state) ({growth('plimsoll_migration_changes_total')})", "to {{state}}"
            ),
            Query(f"sum({growth('plimsoll_migration_yields_total')})", "stood back"),
            alert="PlimsollMigrationFailed",
        ),
        lines(
            "Documents left", "That lack a new vector; bridged: that have one from a bridge.",
            "short",
            Query(f"sum({select('plimsoll_migration_documents_left')})", "left"),
            Query(f"sum({select('plimsoll_migration_documents_bridged')})", "bridged"),
        ),
        lines(
            "Time left", "At the speed of the last minutes; weeks where nothing is moved.", "s",
            Query(
                f"sum({select('plimsoll_migration_documents_left')}) "
                f"/ clamp_min(sum({per_second('plimsoll_migration_rows_total')}), 0.001)", "left"
            ),
        ),
        lines(
            "Memory beside migrations", "They yield from the first line on.", SHARE,
            Query(f"max({select('plimsoll_memory_utilization_ratio')})", "used"),
        ),
        lines(
            "Verdicts", "Of the new versions.", "short",
            Query(
                f"sum by (decision) ({growth('plimsoll_migration_verdicts_total')})",
                "{{decision}}",
            ),
        ),
        lines(
            "Answers of hooks", "stopped: said no; failed: gave no answer.", "short",
            Query(
                f"sum by (outcome) ({growth('plimsoll_migration_hooks_total')})", "{{outcome}}"
            ),
        ),
        lines(
            "Live searches compared",
            "failed: the new version gave no answer; dropped: clients needed the room.", "short",
            Query(
                f"sum by (outcome) ({growth('plimsoll_shadow_searches_total')})", "{{outcome}}"
            ),
        ),
        lines(
            "Progressive searches per second",
            "left_out: a model did not answer, and the other version stood in.", "reqps",
            Query(
                f"sum by (outcome) ({per_second('plimsoll_progressive_searches_total')})",
                "{{outcome}}",
            ),
        ),
    )  # fmt: skip


def models() -> Sequence[Panel]:
    """What each model is asked for, and when models open and close."""
    duration, load = "plimsoll_request_duration_seconds", "plimsoll_model_load_seconds"
    tensor = "plimsoll_tensor_load_seconds"
    return (
        lines(
            "Tokens per second by model", "Of texts with vectors.", "short",
            Query(
                f"sum by (model) ({per_second('plimsoll_tokens_total', OF_MODEL)})", "{{model}}"
            ),
            stacked=True,
        ),
        lines(
            "Latency by model, p99", "As requests ask for them; none: BM25, or refused before.",
            "s", Query(quantile(0.99, duration, WORK, OF_MODEL, by="model"), "{{model}}"),
        ),
        lines(
            "Texts per second",
            "Cut texts were longer than the model's token limit. From a run, from that of the same "
            "text in another request, or from the vector cache.",
            "cps",
            Query(f"sum({per_second('plimsoll_texts_total')})", "embedded"),
            Query(f"sum({per_second('plimsoll_truncated_total')})", "cut"),
            Query(f"sum by (source) ({per_second('plimsoll_vectors_total')})", "from {{source}}"),
        ),
        lines(
            "Models",
            "Open, opened and evicted. idle: unused for long; lru: another one opened; "
            "pressure: memory ran high.",
            "short",
            Query(f"sum({select('plimsoll_model_open')})", "open"),
            Query(
                f"sum by (outcome, model) ({growth('plimsoll_model_loads_total', OF_MODEL)})",
                "load {{outcome}} {{model}}",
            ),
            Query(
                f"sum by (reason) ({growth('plimsoll_model_evictions_total')})",
                "evicted {{reason}}",
            ),
        ),
        lines(
            "Opening a model",
            "Mean of all since the start; and of single tensors, while one is converted.", "s",
            Query(
                f"{select(load + '_sum', OF_MODEL)} / {select(load + '_count', OF_MODEL)}",
                "{{instance}} {{model}}",
            ),
            Query(quantile(0.5, tensor), "tensor p50"),
            Query(quantile(0.99, tensor), "tensor p99"),
        ),
    )  # fmt: skip


def stages() -> Sequence[Panel]:
    """Where the time of a request goes."""
    return tuple(
        lines(
            f"Time by stage, p{ratio * 100:g}",
            "encode and pool are per run of texts, queue is per text, the rest per request.",
            "s",
            Query(quantile(ratio, "plimsoll_stage_duration_seconds", by="stage"), "{{stage}}"),
        )
        for ratio in PERCENTILES
    )


def degradation() -> Sequence[Panel]:
    """What was not answered as asked, and why."""
    requests, errors = "plimsoll_requests_total", "plimsoll_errors_total"
    return (
        lines(
            "Degraded share by reason", "Of requests for work.", SHARE,
            Query(share(per_second("plimsoll_degraded_total"), by="reason"), "{{reason}}"),
            stacked=True, alert="PlimsollDegraded",
        ),
        lines(
            "Refused and failed share", "Of requests for work.", SHARE,
            Query(share(per_second(errors, FAILED)), "failed (5xx)"),
            Query(share(per_second(errors, QUEUE_FULL)), "queue full (429)"),
            Query(share(per_second(requests, WORK, REJECTED)), "other 4xx"),
            overrides=REFUSAL, alert="PlimsollErrors",
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
            overrides=BREAKER, alert="PlimsollBreakerOpen",
        ),
    )  # fmt: skip

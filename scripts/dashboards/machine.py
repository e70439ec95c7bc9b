"""Rows about memory, the engine and the process.

The lines of the memory ladder are those that the server acts on. What belongs to one budget is
shown for each instance.
"""

from collections.abc import Mapping, Sequence

from plimsoll.policy.breaker import DEFAULT_LIMITS
from plimsoll.policy.lines import HALVE_ABOVE_RATIO, HIGH_RATIO

from .colours import BLUE, CLEAR, GREEN, GREY, MEMORY, ORANGE, RED, YELLOW, limit
from .expressions import growth, per_second, select
from .panels import HEIGHT, SHARE, THIRD, WHOLE, Panel, Query, heat, lines, states

LADDER: Mapping[str, float] = {
    "breaker closes": DEFAULT_LIMITS.close_ratio,
    "admission": HIGH_RATIO,
    "pages dropped": HALVE_ABOVE_RATIO,
    "breaker opens": DEFAULT_LIMITS.open_ratio,
}
HALF_OPEN, OPEN = 'state="half_open"', 'state="open"'


def memory() -> Sequence[Panel]:
    """Memory against the budget, and what the server makes of it."""
    budget = select("plimsoll_memory_budget_bytes")
    return (
        lines(
            "Memory against the budget",
            "used: what the kernel cannot take back; predicted: used and promised, at its peak; "
            "resident: with mapped file pages. Dashed: where the server acts.",
            "bytes",
            *(
                Query(select(f"plimsoll_memory_{name}_bytes"), f"{{{{instance}}}} {name}")
                for name in ("used", "predicted", "resident", "budget")
            ),
            *(
                Query(f"{budget} * {ratio}", f"{{{{instance}}}} {ratio:.2f} {name}")
                for name, ratio in LADDER.items()
            ),
            span=WHOLE,
            overrides=MEMORY,
            alert="PlimsollMemoryHigh",
        ),
        states(
            "Breaker", "Open: BM25 or 503 only. Half open: one request tries.",
            Query(
                f"sum without (state) ({select('plimsoll_breaker_state', HALF_OPEN)})"
                f" + 2 * "
                f"sum without (state) ({select('plimsoll_breaker_state', OPEN)})",
                "{{instance}}",
            ),
            (("closed", GREEN), ("half open", YELLOW), ("open", RED)),
            alert="PlimsollBreakerOpen",
        ),
        states(
            "Step of the memory ladder", "What the server does to stay within its budget.",
            Query(select("plimsoll_ladder_step"), "{{instance}}"),
            (
                ("all is well", GREEN), ("saving", BLUE), ("dropping pages", YELLOW),
                ("holding back", ORANGE), ("breaker", RED),
            ),
        ),
        lines(
            "Waiting for memory (PSI)",
            "Share of the last 10 s in which some task waited for memory.", SHARE,
            Query(select("plimsoll_memory_pressure_ratio"), "{{instance}}"),
        ),
        lines(
            "Pages read again per second",
            "Refaults: file pages read again soon after the kernel took them. High: slow because "
            "weights are re-read, not because memory is used up.",
            "short",
            Query(select("plimsoll_memory_refaults_per_second"), "{{instance}}"),
        ),
        lines(
            "Killed for want of memory", "Processes that the kernel has killed in this group.",
            "short",
            Query(select("plimsoll_memory_oom_kills"), "{{instance}}"),
            alert="PlimsollOOMKilled",
        ),
    )  # fmt: skip


def engine() -> Sequence[Panel]:
    """What limits the engine, and what it is given."""
    return (
        states(
            "Bottleneck", "The kind that limits throughput.",
            Query(select("plimsoll_bottleneck", 'kind!="none"'), "{{instance}} {{kind}}"),
            (("", CLEAR), ("limits", ORANGE)), span=WHOLE - THIRD, height=HEIGHT,
        ),
        lines(
            "Steps against the bottleneck",
            "By action; kept: it helped, reverted: it did not, unclear: too little load to tell.",
            "short",
            Query(
                f"sum by (action, outcome) ({growth('plimsoll_bottleneck_actions_total')})",
                "{{action}} {{outcome}}",
            ),
        ),
        lines(
            "Tokens in the queue", "They wait for the engine.", "short",
            Query(select("plimsoll_queue_tokens"), "{{instance}}"),
            alert="PlimsollQueueFull",
        ),
        lines(
            "Parallelism", "Sequences at once, and threads that compute.", "short",
            Query(select("plimsoll_parallelism"), "{{instance}} sequences"),
            Query(select("plimsoll_engine_threads"), "{{instance}} threads"),
        ),
        heat(
            "Run sizes", "Tokens that the engine took at once; a colour is a number of runs.",
            "short",
            Query(f"sum by (le) ({growth('plimsoll_run_tokens_bucket')})", "{{le}}"),
        ),
        lines(
            "CPU taken from us", "By other processes, and by the quota.", SHARE,
            Query(select("plimsoll_cpu_others_ratio"), "{{instance}} others"),
            Query(select("plimsoll_cpu_throttled_ratio"), "{{instance}} throttled"),
        ),
        lines(
            "CPU of the process", "Cores' worth of work.", "short",
            Query(per_second("process_cpu_seconds_total"), "{{instance}}"),
        ),
    )  # fmt: skip


def process() -> Sequence[Panel]:
    """The process from outside."""
    return (
        lines(
            "Memory of the process", "Resident, weights that are mapped included.", "bytes",
            Query(select("process_resident_memory_bytes"), "{{instance}} resident"),
            Query(select("plimsoll_vector_cache_bytes"), "{{instance}} vector cache"),
        ),
        lines(
            "Open files", "Connections included; the limit dashed.", "short",
            Query(select("process_open_fds"), "{{instance}}"),
            Query(select("process_max_fds"), "{{instance}} limit"),
            overrides=(limit("limit$", GREY),),
        ),
        lines(
            "Connections", "Open ones of clients.", "short",
            Query(select("plimsoll_connections"), "{{instance}}"),
        ),
        lines(
            "Connections ended", "By the server, for what their client did.", "cps",
            Query(
                f"sum by (reason) ({per_second('plimsoll_connections_ended_total')})", "{{reason}}"
            ),
        ),
        lines(
            "Uptime", "By version; it falls where a process has started anew.", "s",
            Query(
                f"(time() - {select('process_start_time_seconds')}) * on (instance, job) "
                f"group_left (version) {select('plimsoll_build_info')}",
                "{{instance}} {{version}}",
            ),
        ),
    )  # fmt: skip

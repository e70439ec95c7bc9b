"""PromQL that panels are made of, over what the reader chose.

Variables: `$job` and `$instance` narrow every metric, `$model` those that have the label, and
`$slo` is the objective for latency in seconds, written as a bucket's `le`.
"""

from plimsoll.telemetry.requests import BUCKETS_S, SERVER_ERRORS

CHOSEN = 'job=~"$job",instance=~"$instance"'
OF_MODEL = 'model=~"$model"'
ALL = ".+"
OBJECTIVES = tuple(str(float(bucket_s)) for bucket_s in BUCKETS_S if bucket_s >= 0.1)
OBJECTIVE = "10.0"  # that of the alert PlimsollSlow
OBJECTIVE_RATIO = 0.99  # of the requests, likewise
# Requests that only look: pages, probes, scrapes, listings, and paths that are no route; lists of
# documents, which last as long as their clients send; and links and migrations, which are watched.
LOOKING = (
    "/|/collections|/collections/.name.|/collections/.name./documents.*|/collections/.name./doctor"
    "|/collections/.name./plan|/links.*|/migrations.*|/hooks.*|/health.*|/metrics|/status|/bottleneck|/pages/.*|/v1|/v1/models.*|/models"
    "|/api/tags|/api/version|/tei/info|/tei/health|/tei/ping|/tei/metrics|/docs.*|/openapi.json|other"
)
WORK = f'route!~"{LOOKING}"'
REJECTED = 'status=~"4..",status!="429"'
# By code, not by status: a rate does not see the first event of a series that begins with it, and
# these are there from the start.
QUEUE_FULL = 'code="queue_full"'
FAILURES = "|".join(sorted(set(SERVER_ERRORS) - {"queue_full"}))
FAILED = f'code=~"{FAILURES}"'


def select(metric: str, *matchers: str) -> str:
    """The metric's series of the chosen jobs and instances."""
    return f"{metric}{{{','.join((CHOSEN, *matchers))}}}"


def per_second(metric: str, *matchers: str) -> str:
    """How fast a counter grows."""
    return f"rate({select(metric, *matchers)}[$__rate_interval])"


def growth(metric: str, *matchers: str) -> str:
    """How much a counter grew within the interval that rates are taken over."""
    return f"increase({select(metric, *matchers)}[$__rate_interval])"


def quantile(ratio: float, metric: str, *matchers: str, by: str = "") -> str:
    """A percentile of a histogram, for each value of the label `by`."""
    labels = f"le, {by}" if by else "le"
    return (
        f"histogram_quantile({ratio}, "
        f"sum by ({labels}) ({per_second(metric + '_bucket', *matchers)}))"
    )


def within_objective(metric: str, *matchers: str) -> str:
    """The share of a histogram's events that took no longer than the objective."""
    quick = per_second(f"{metric}_bucket", 'le="$slo"', *matchers)
    return f"sum({quick}) / sum({per_second(f'{metric}_count', *matchers)})"


def share(part: str, *, by: str = "") -> str:
    """A rate over that of all requests for work, at most 1.

    What has not happened yet is 0. Above 1 it would be where the whole misses the first event of a
    series.
    """
    whole = f"sum({per_second('plimsoll_requests_total', WORK)})"
    if by:
        return f"clamp_max(sum by ({by}) ({part}) / on () group_left () {whole}, 1)"
    return f"clamp_max((sum({part}) or 0 * {whole}) / {whole}, 1)"


def as_asked(expression: str, window: str) -> str:
    """An expression as Grafana sends it with everything chosen, and rates over `window`."""
    values = {
        "$__rate_interval": window,
        "$job": ALL,
        "$instance": ALL,
        "$model": ALL,
        "$slo": OBJECTIVE,
    }
    for variable, value in values.items():
        expression = expression.replace(variable, value)
    return expression

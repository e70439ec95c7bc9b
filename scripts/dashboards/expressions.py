"""PromQL that panels are made of, over the instances that the reader chose."""

CHOSEN = 'instance=~"$instance"'
# Requests that only look: pages, probes, scrapes, listings, and paths that are no route.
LOOKING = "/|/health.*|/metrics|/status|/pages/.*|/v1/models.*|/docs.*|/openapi.json|other"
WORK = f'route!~"{LOOKING}"'
FAILED = 'status=~"5.."'
QUEUE_FULL = 'status="429"'
REJECTED = 'status=~"4..",status!="429"'


def select(metric: str, *matchers: str) -> str:
    """The metric's series of the chosen instances."""
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


def share(part: str, *, by: str = "") -> str:
    """A rate over that of all requests for work. One that has not happened yet is 0."""
    whole = f"sum({per_second('plimsoll_requests_total', WORK)})"
    if by:
        return f"sum by ({by}) ({part}) / on () group_left () {whole}"
    return f"(sum({part}) or 0 * {whole}) / {whole}"

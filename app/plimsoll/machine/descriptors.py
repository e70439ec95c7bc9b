"""How many files and sockets this process may have open: raised as far as the system allows."""

import resource


def allow_descriptors(wanted: int) -> int:
    """Raise the soft limit to `wanted` where it is lower and the hard one allows that.

    Returns how many may be open now.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return wanted
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if allowed > soft:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    return max(soft, allowed)

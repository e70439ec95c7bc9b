"""Runs that have ended, for those who are told of them."""

from plimsoll.policy.runs import RunEnded


def run_of(n_tokens: int, seconds: float) -> RunEnded:
    """A run of one text, of which only its tokens and its time count."""
    return RunEnded(
        n_texts=1,
        n_tokens=n_tokens,
        longest_tokens=n_tokens,
        n_threads=1,
        pack_tokens=256,
        predicted_bytes=0,
        grown_bytes=0,
        seconds=seconds,
        n_retries=0,
    )

"""What is said of a migration in words: in tables, on the page of its report, beside a bar."""

from collections.abc import Mapping
from typing import Any, TypeAlias

Answer: TypeAlias = Mapping[str, Any]


def searches_read(migration: Answer) -> str:
    """What searches of a migration that is progressive are answered by."""
    bridge = migration["bridge"]
    if bridge and bridge["state"] == "in_use":
        return "the new version, and bridged vectors of what is not embedded yet"
    return "both versions, each document by its newest vector"


def agreement_told(watch: Answer) -> str:
    """How far searches agree with the old version, behind how many had no answer."""
    if not watch["compared"]:
        return ""
    told = (
        f"; {watch['compared']} agree with the old version on {watch['agreement']:z.0%} of what "
        "they find, beyond chance"
    )
    if watch["least_agreement"]:
        told += f" (too little below {watch['least_agreement']:.0%})"
    return told


def bridge_told(migration: Answer) -> str:
    """What became of a migration's bridge, and what it is worth."""
    bridge = migration["bridge"]
    words = bridge["state"].replace("_", " ")
    if bridge["state"] == "in_use" and not migration["progressive"]:
        words = "there, and not read by searches"
    elif bridge["state"] == "building" and migration["state"] == "failed":
        words = "put aside until the migration goes on"
    if bridge["reason"]:
        words += f", forced: {bridge['reason']}" if bridge["forced"] else f": {bridge['reason']}"
    told = [words]
    if bridge["vectors"]:
        told.append(f"{bridge['vectors']} documents are found by a bridged vector")
    if bridge["figures"]:
        told.append(_retention(bridge["figures"]))
    return "; ".join(told)


def trial_told(trial: Answer) -> str:
    """What a bridge would be worth."""
    if trial["figures"] is None:
        return f"would be refused: {trial['reason']}"
    takes_s = trial["embed_s"] + trial["figures"]["fit_s"] + trial["apply_s"]
    advice = (
        "run with --bridge"
        if trial["reason"] is None
        else (f"would be refused: {trial['reason']}; --force-bridge has it all the same")
    )
    return (
        f"{_retention(trial['figures'])}; {trial['documents']} documents would have bridged "
        f"vectors after {duration(takes_s)}; {advice}"
    )


def _retention(figures: Answer) -> str:
    told = (
        f"retention {figures['retention']:.3f} ({figures['least']:.3f} to {figures['most']:.3f}) "
        f"by {figures['kind']} on {figures['documents']} documents"
    )
    if figures["queries"]:
        told += (
            f", nDCG@10 among them {figures['bridged_ndcg_at_10']:.4f} in place of "
            f"{figures['real_ndcg_at_10']:.4f}"
        )
    return told


def duration(seconds: float) -> str:
    """Such as 2 h 05 min, 3 min 20 s or 12 s."""
    minutes, left_s = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {left_s:02} s" if minutes else f"{left_s} s"


def speed(migration: Answer) -> str:
    """How fast a migration is and when it ends, or why it waits; "" where nothing is known."""
    asked = [hook["hook"] for hook in migration["hooks"] if hook["outcome"] == "under_way"]
    if asked:
        return f"asking the hook {asked[-1]}"
    if migration["yielding"]:
        return f"yielding: {migration['yielding']}"
    if migration["rows_per_s"] is None:
        return ""
    told = f"{migration['rows_per_s']:.0f}/s, {migration['tokens_per_s']:,.0f} tokens/s"
    if migration["eta_s"]:
        told += f", {duration(migration['eta_s'])} left"
    return told


def rollback_told(migration: Answer) -> str:
    """What going back would give."""
    if migration["rollback"] != "partial":
        return str(migration["rollback"])
    return (
        "partial: what is written now goes to the new version alone "
        f"({migration['without_old_vector']} documents have no old vector)"
    )


def space_name(space: Answer) -> str:
    """A vector space as people call it: its model, or its fingerprint where it is foreign."""
    return str(space["model"] or space["fingerprint"])

"""The checks of a verdict: figures in, an outcome and words out. Pure; the limits stand here."""

from collections.abc import Sequence

import numpy as np

from plimsoll.corpora.records import Space
from plimsoll.migration.bridges import Bridge
from plimsoll.migration.scans import VectorHealth
from plimsoll.migration.verdict import Check

# A text again on the same machine gives the same bits; on another one float32 rounds otherwise.
MOST_DISTANCE = 1e-6
SAME_MODEL_COSINE = 0.99
MOST_LOST_RATIO = 0.01
# Of the neighbours that both versions find, beyond chance. On Cranfield all-MiniLM-L6-v2 has 0.59
# with all-mpnet-base-v2, and random weights of its shape have 0.10 with either.
GO_OVERLAP = 0.3
NO_GO_OVERLAP = 0.15


def cosine(first: np.ndarray, second: np.ndarray) -> float:
    """Of two float32 vectors, in float64; 0 where one has no length."""
    first, second = first.astype(np.float64), second.astype(np.float64)
    lengths = float(np.linalg.norm(first) * np.linalg.norm(second))
    return float(first @ second) / lengths if lengths else 0.0


def complete(n_documents: int, n_lacking: int, n_vectors: int, n_quarantined: int) -> Check:
    """Every document has a new vector or is quarantined, and nothing else has one."""
    n_surplus = n_vectors - (n_documents - n_lacking - n_quarantined)
    return Check(
        "complete",
        "passed" if not n_lacking and not n_surplus else "failed",
        f"{n_vectors} of {n_documents} documents have a new vector, {n_quarantined} are "
        f"quarantined, {n_lacking} lack one",
        {
            "documents": n_documents,
            "vectors": n_vectors,
            "quarantined": n_quarantined,
            "lacking": n_lacking,
            "surplus": n_surplus,
        },
    )


def hashes(n_documents: int, n_changed: int) -> Check:
    """The texts are those that were embedded: a text that is put otherwise loses its vectors."""
    return Check(
        "hashes",
        "failed" if n_changed else "passed",
        f"{n_changed} of {n_documents} texts are not what their hash says",
        {"documents": n_documents, "changed": n_changed},
    )


def sound(health: VectorHealth) -> Check:
    """Every new vector is finite and of length 1."""
    n_wrong = health.n_not_finite + health.n_not_unit
    return Check(
        "sound",
        "failed" if n_wrong else "passed",
        f"{health.n_not_finite} of {health.n_vectors} vectors are not finite, "
        f"{health.n_not_unit} are not of length 1",
        health.figures(),
    )


def quarantine(n_documents: int, n_quarantined: int, n_lost: int) -> Check:
    """How much searches by meaning would no longer find."""
    ratio = n_lost / n_documents if n_documents else 0.0
    return Check(
        "quarantine",
        "failed" if ratio > MOST_LOST_RATIO else "passed",
        f"{n_quarantined} documents have no new vector, {n_lost} of them have an old one",
        {"quarantined": n_quarantined, "lost": n_lost, "ratio": ratio, "most": MOST_LOST_RATIO},
        warns=0 < ratio <= MOST_LOST_RATIO,
    )


def embedded_again(n_sampled: int, n_identical: int, distances: Sequence[float]) -> Check:
    """What is stored is what the texts give. distances: 1 - cosine of each that has a vector."""
    greatest = max(distances, default=0.0)
    has_all = len(distances) == n_sampled
    return Check(
        "embedded_again",
        "passed" if has_all and greatest <= MOST_DISTANCE else "failed",
        f"of {n_sampled} documents embedded again {n_identical} gave the same bits, and "
        f"1 - cosine is {greatest:.1e} at most",
        {
            "sampled": n_sampled,
            "compared": len(distances),
            "identical": n_identical,
            "greatest_distance": greatest,
        },
    )


def same_model(cosines: Sequence[float]) -> Check:
    """Both go by one model's name: where each vector stays where it was, they are that model.

    Where one does not, this decides nothing: a fine-tune may go by its base model's name.
    """
    if not cosines:
        return Check("same_model", "noted", "no document has vectors of both versions")
    least = min(cosines)
    return Check(
        "same_model",
        "passed" if least >= SAME_MODEL_COSINE else "noted",
        f"both versions go by one model's name; the least cosine of {len(cosines)} pairs "
        f"is {least:.4f}",
        {
            "pairs": len(cosines),
            "least_cosine": least,
            "mean_cosine": float(np.mean(cosines)),
            "least_allowed": SAME_MODEL_COSINE,
        },
        warns=least < SAME_MODEL_COSINE,
    )


def bridge(found: Bridge) -> Check:
    """What searches had until everything was embedded, by figures of documents held out."""
    if found.figures is None:
        return Check("bridge", "noted", f"there was no bridge: {found.reason}")
    told = (
        f"bridged vectors found {found.figures['retention']:.1%} of the new ones' 10 nearest, as "
        f"measured on {found.figures['documents']} documents"
    )
    if found.reason is not None:
        told += "; it was forced" if found.is_forced else "; it was refused"
    return Check("bridge", "noted", told, dict(found.figures))


def rollback(source: Space, *, can_embed: bool) -> Check:
    """Whether going back would lose what is written after cut-over."""
    if can_embed:
        message = "rollback is exact: what is written is embedded into both versions until purged"
    else:
        whose = source.fingerprint if source.model is None else repr(source.model)
        message = (
            f"rollback is partial: no model here embeds into {whose}, so documents that are "
            "written after cut-over would have no vector in the old version"
        )
    return Check("rollback", "noted", message, {"exact": can_embed}, warns=not can_embed)

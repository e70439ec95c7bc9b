"""Do vectors come out right: against published ones, or against another file of the model.

Published values are the first of each vector, as other projects' test suites state them;
each stands with its source. They are facts about the models, not copies of those suites.
"""

from dataclasses import dataclass

import numpy as np

from plimsoll.encoder.model import EmbeddingModel
from plimsoll.errors import InvalidRequestError

_TEI = "huggingface/text-embeddings-inference at 0d124dc, backends/candle/tests/snapshots"
_FASTEMBED = "qdrant/fastembed at c48247f, tests/test_text_onnx_embeddings.py"


@dataclass(frozen=True)
class PublishedVector:
    """The first values of one text's vector, to a common scale."""

    text: str
    first_values: tuple[float, ...]
    source: str


@dataclass(frozen=True)
class Comparison:
    """How near two vectors of one text are."""

    label: str
    cosine: float


PUBLISHED: dict[str, tuple[PublishedVector, ...]] = {
    "nomic-embed-text-v1.5": (
        PublishedVector(
            "What is Deep Learning?",
            (0.272856, 0.940364, -2.549178, -2.023452, 1.419973, 0.899254, 1.18623, -0.905342),
            _TEI,
        ),
        PublishedVector(
            "Deep Learning is...",
            (0.53356, 1.016938, -2.949642, -1.61807, 1.449508, 0.854313, 0.66938, -0.278763),
            _TEI,
        ),
        PublishedVector(
            "hello world", (-0.154078, -0.030532, -3.913803, 0.191036, 0.132247), _FASTEMBED
        ),
    ),
    "nomic-embed-text-v1": (
        PublishedVector("hello world", (0.3708, 0.2031, -0.3406, -0.2114, -0.323), _FASTEMBED),
    ),
    "all-MiniLM-L6-v2": (
        PublishedVector(
            "What is Deep Learning?",
            (-0.590448, -0.252182, 0.149596, 0.055055, -0.118265, -0.167041, -0.233184, -0.07049),
            _TEI,
        ),
        PublishedVector(
            "Deep Learning is...",
            (-0.119741, -0.584446, 0.346297, -0.249222, -0.332067, -0.204765, -0.14636, -0.214954),
            _TEI,
        ),
        PublishedVector(
            "hello world", (-0.034478, 0.03102, 0.00673, 0.02611, -0.039362), _FASTEMBED
        ),
    ),
}

# Short and long, plain and awkward: what quantization errors show up on.
TEXTS = (
    "hello world",
    "What is a Plimsoll line?",
    "A mark on a ship's hull that shows how deep it may safely be loaded.",
    "The quick brown fox jumps over the lazy dog",
    "THE BOX WAS MARKED: THIS SIDE UP!",
    "Der Höchststand der Elbe wurde um 4 Uhr 30 gemessen.",
    "La température de l'eau atteint 21 °C près de l'embouchure.",
    "東京は日本の首都です。",
    "Москва слезам не верит",
    "🚢⚓🌊",
    "def area(radius: float) -> float: return 3.14159 * radius ** 2",
    "SELECT name, tonnage FROM ships WHERE draught_m < 7.5 ORDER BY tonnage DESC;",
    "1876, 1890, 1930, 1966: years in which the load line rules were changed",
    "in",
    "Photosynthesis is the process by which green plants turn light into chemical energy. " * 8,
    "The court held that the defendant had not shown good cause for the delay. " * 12,
    "Patients were randomised to receive either the drug or a placebo for twelve weeks. " * 24,
    "weather " * 200,
)


def compare_published(model: EmbeddingModel) -> list[Comparison]:
    """Cosine over the published values of each text; empty where none are published."""
    known = PUBLISHED.get(model.traits.known.name, ())
    if not known:
        return []
    # The published texts went in without a prefix.
    ours = _vectors(model, [entry.text for entry in known])
    return [
        Comparison(
            f"{entry.text!r}, first {len(entry.first_values)} values, {entry.source}",
            _cosine(np.asarray(entry.first_values), vector[: len(entry.first_values)]),
        )
        for entry, vector in zip(known, ours, strict=True)
    ]


def compare_models(model: EmbeddingModel, other: EmbeddingModel) -> list[Comparison]:
    """Cosine of both models' vectors for each of TEXTS.

    Raises InvalidRequestError when their vectors have different sizes.
    """
    if model.traits.dimensions != other.traits.dimensions:
        raise InvalidRequestError(
            f"{model.traits.name} gives {model.traits.dimensions} values and {other.traits.name} "
            f"{other.traits.dimensions}: they are not the same model"
        )
    pairs = zip(TEXTS, _vectors(model, TEXTS), _vectors(other, TEXTS), strict=True)
    return [Comparison(repr(text[:60]), _cosine(mine, theirs)) for text, mine, theirs in pairs]


def _vectors(model: EmbeddingModel, texts: list[str] | tuple[str, ...]) -> np.ndarray:
    return model.encode([text.ids for text in model.tokenize(texts, None)])


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))

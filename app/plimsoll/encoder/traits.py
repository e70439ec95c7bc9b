"""What is known of an open model without running it: its name, its space, what it was trained for.

Pure. A space is named by its fingerprint, a hash of all that changes vectors.
"""

import hashlib
import json
from dataclasses import dataclass, field

import numpy as np

from plimsoll.encoder.architecture import Architecture
from plimsoll.encoder.known_models import KnownModel
from plimsoll.encoder.quantization.codes_file import CodesIndex
from plimsoll.errors import InvalidRequestError

FINGERPRINT_VERSION = "v1"
# What a fingerprint leaves unsaid: the numbers that Nomic's models and the built-in one share.
# A model with another number says it, so that equal tensors read differently have two names.
UNSAID_HEADS = 12
UNSAID_EPS = np.float32(1e-12)
UNSAID_ROPE_BASE = 1000.0
UNSAID_TRAINED_TOKENS = 2048
# The two halves of a search share one space; every other task of a prefixed model has its own.
SEARCH_TASKS = ("search_query", "search_document")


@dataclass(frozen=True)
class Traits:
    """What a client may know about a model without running it."""

    name: str
    compute: str
    dimensions: int
    token_limit: int
    known: KnownModel
    architecture: Architecture
    content_sha256: str
    vocabulary_sha256: str
    notes: tuple[str, ...] = ()  # what the file leaves open, to be told with every use
    codes: CodesIndex | None = None  # of what is computed in int8
    compute_reason: str | None = None  # why it is computed so, where that was not the operator's
    # Every answer names its space; by dimensions and task.
    _named: dict[tuple[int, str | None], str] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def fingerprint(self, dimensions: int | None = None, input_type: str | None = None) -> str:
        """Name of the vector space: equal exactly where vectors may be compared."""
        space = (dimensions or self.dimensions, input_type)
        if space not in self._named:
            self._named[space] = self._name_of(*space)
        return self._named[space]

    def _name_of(self, size: int, input_type: str | None) -> str:
        """Name a space, once.

        A hash of source tensors, vocabulary, normaliser, rotation, pooling, Matryoshka rule,
        norm, dimensions and prefix scheme, and of codes where there are any; `#task` follows where
        a prefix puts the vectors into a space of their own.
        """
        named = {
            "tensors": self.content_sha256,
            "vocabulary": self.vocabulary_sha256,
            "pooling": self.architecture.pooling.name,
            "norm_before_cut": self.known.layer_norm_before_cut and size < self.dimensions,
            "normalisation": "l2",
            "dimensions": size,
            "prefix_scheme": self.known.prefix_scheme,
            **self._unusual_numbers(),
        }
        if self.codes is not None:
            named["int8"] = self.codes.sha256
        digest = hashlib.sha256(json.dumps(named, sort_keys=True).encode()).hexdigest()[:32]
        if self.known.prefix_scheme == "none" or input_type in SEARCH_TASKS:
            return f"{FINGERPRINT_VERSION}:{digest}"
        return f"{FINGERPRINT_VERSION}:{digest}#{input_type or 'plain'}"

    def _unusual_numbers(self) -> dict[str, float]:
        """Numbers of the file that change vectors, where they are not the unsaid ones."""
        shape = self.architecture
        numbers: list[tuple[str, float, float]] = [
            ("heads", shape.n_heads, UNSAID_HEADS),
            ("layer_norm_eps", float(np.float32(shape.layer_norm_eps)), float(UNSAID_EPS)),
            ("rope_base", shape.rope_base or UNSAID_ROPE_BASE, UNSAID_ROPE_BASE),
            ("rope_factor", shape.rope_factor, 1.0),
        ]
        if self.known.scales_rotation:
            numbers.append(("trained_tokens", shape.context_tokens, UNSAID_TRAINED_TOKENS))
        return {name: number for name, number, unsaid in numbers if number != unsaid}

    def prefix(self, input_type: str | None) -> str:
        """What stands before a text of this type."""
        return self.known.task_prefixes.get(input_type, "") if input_type else ""

    def check_dimensions(self, dimensions: int | None) -> int:
        """The number of values to return. Raises InvalidRequestError when out of range."""
        if dimensions is None:
            return self.dimensions
        if not 1 <= dimensions <= self.dimensions:
            raise InvalidRequestError(
                f"dimensions is {dimensions}; {self.name} gives 1 to {self.dimensions}",
                param="dimensions",
            )
        return dimensions

    def warnings(self, dimensions: int, input_type: str | None) -> list[str]:
        """What a client should be told about this use of the model."""
        said = list(self.notes)
        if input_type is None and self.known.recommends_input_type:
            types = ", ".join(self.known.task_prefixes)
            said.append(
                f"{self.name} was trained with task prefixes and got none: set input_type to "
                f"one of {types}, or expect worse retrieval"
            )
        if input_type and not self.known.has_rule(input_type):
            said.append(f"{self.name} has no prefix for {input_type}; the text went in as it is")
        if dimensions < self.dimensions and dimensions not in self.known.trained_dimensions:
            trained = ", ".join(map(str, self.known.trained_dimensions)) or "none"
            said.append(
                f"{self.name} was not trained for {dimensions} dimensions (trained sizes: "
                f"{trained}); similarity may suffer"
            )
        return said

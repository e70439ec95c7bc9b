"""What the header of a GGUF file says of its model: whether it runs, as what, and what is guessed.

Pure. Everything that a file can be refused for is found here, before a weight is read.
"""

from dataclasses import dataclass

from plimsoll.encoder.architecture import Architecture, Pooling, read_architecture
from plimsoll.encoder.catalog import describe
from plimsoll.encoder.known_models import KnownModel
from plimsoll.encoder.vocabulary import Vocabulary, read_vocabulary
from plimsoll.errors import ModelUnsupportedError
from plimsoll.gguf.reader import GGUFHeader


@dataclass(frozen=True)
class Description:
    """A model that Plimsoll runs; `warnings` say what the file leaves open."""

    known: KnownModel
    architecture: Architecture
    vocabulary: Vocabulary
    warnings: tuple[str, ...] = ()


def read_description(header: GGUFHeader) -> Description:
    """Describe the model in a file.

    Raises ModelUnsupportedError, naming the key or tensor, where it does not run.
    """
    known = describe(header.metadata)
    architecture = read_architecture(header, usual_pooling=known.pooling or Pooling.MEAN)
    vocabulary = read_vocabulary(header.metadata)
    n_words = len(vocabulary.words)
    if n_words > architecture.vocabulary:
        raise ModelUnsupportedError(
            f"the vocabulary has {n_words} words, the embedding table only "
            f"{architecture.vocabulary} rows"
        )
    warnings = []
    key = f"{architecture.name}.pooling_type"
    if known.pooling is None and key not in header.metadata:
        warnings.append(
            f"{known.name} does not say how its vectors are pooled ({key}): the mean over tokens "
            "is a guess; set the key if its authors use another"
        )
    return Description(known, architecture, vocabulary, tuple(warnings))

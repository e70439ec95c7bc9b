"""Models by name: from what a user writes, and from what a file calls itself.

Pure: names, numbers and metadata in, descriptions out; no files, no network. What is known of
each model stands in `known_models`.
"""

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

from plimsoll.encoder.architecture import Architecture, Pooling
from plimsoll.encoder.known_models import (
    ARCTIC,
    ARCTIC_M_V1_5,
    ARCTIC_V2,
    BGE_EN,
    BGE_EN_V1_5,
    BGE_ZH,
    BUILTIN,
    BUILTIN_QUANT,
    E5,
    GTE,
    MODELS,
    MXBAI_LARGE,
    NOMIC_V1,
    NOMIC_V1_5,
    BuiltinSource,
    HubFile,
    HubSource,
    KnownModel,
)
from plimsoll.errors import ModelNotFoundError


@dataclass(frozen=True)
class ModelSpec:
    """A resolved request: a known model and its quantization, a file's path, or one of the hub."""

    name: str  # shown to clients
    known: KnownModel | None
    quant: str | None
    path: Path | None
    hub: HubFile | None = None

    @property
    def source(self) -> BuiltinSource | HubFile:
        """Where its file is to be had. Raises ModelNotFoundError where that is not known."""
        if self.hub is not None:
            return self.hub
        match self.known.source if self.known else None:
            case BuiltinSource() as source:
                return source
            case HubSource() as source:
                file = source.files[self.quant or source.default_quant]
                return HubFile(source.repository, file, file, source.revision, source.endpoint)
            case None:
                raise ModelNotFoundError(f"{self.name} is neither a path nor has a source")

    @property
    def file_name(self) -> str:
        """Name of the GGUF file that is asked for, in our cache."""
        if self.path is not None:
            return self.path.name
        source = self.source
        return source.file_name if isinstance(source, BuiltinSource) else source.stored_as


_NOMIC_SHAPE = Architecture(
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
)
# What their files say, for plans about a model that is not there.
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
        NOMIC_V1_5.name: _NOMIC_SHAPE,
        NOMIC_V1.name: _NOMIC_SHAPE,
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
    _Signature(BGE_EN, "bert", re.compile(r"\bbge-(small|base|large)-en(?!-?v?\d)")),
    _Signature(BGE_ZH, "bert", re.compile(r"\bbge-(small|base|large)-zh(-v1[.-]5)?(?!-?\.?v?\d)")),
    _Signature(
        ARCTIC_M_V1_5,
        "bert",
        re.compile(r"\bsnowflake-arctic-embed-m-v1[.-]5(?!\.?\d)"),
        (12, 768),
    ),
    _Signature(ARCTIC_V2, "bert", re.compile(r"\bsnowflake-arctic-embed-[ml]-v2(?![.-]?[1-9])")),
    _Signature(ARCTIC, "bert", re.compile(r"\bsnowflake-arctic-embed-(xs|s|m|l)(?!-?v?\d|-long)")),
    _Signature(ARCTIC, "nomic-bert", re.compile(r"\bsnowflake-arctic-embed-m-long\b")),
    _Signature(MXBAI_LARGE, "bert", re.compile(r"\bmxbai-embed-large-v1(?!\.?\d)"), (24, 1024)),
    _Signature(GTE, "bert", re.compile(r"\bgte-(small|base|large)(?!-en|-zh|-?v?\d|-qwen)")),
)


# Parts begin with a letter or digit: none is "..", and none is taken for an option.
_HUB_FILE = re.compile(
    r"(?P<repository>\w[\w.-]*/\w[\w.-]*)(?:/(?P<file>(?:\w[\w.+-]*/)*\w[\w.+-]*\.gguf))?"
    r"(?:@(?P<revision>\w[\w./-]*))?",
    re.ASCII | re.IGNORECASE,
)
# Of several files in a repository: small and as good as the float32 vectors first.
_PREFERRED_QUANTS = ("Q8_0", "F16", "BF16", "F32", "Q6_K", "Q5_K_M", "Q4_K_M")


def resolve(model: str) -> ModelSpec:
    """Find what a name means, as a user may write it anywhere.

    `builtin` and other known names, alone or with `:QUANT`; `hf:owner/repo[/file.gguf][@revision]`;
    a path, which begins with "/", "~", "./" or "../" or ends in ".gguf". Names and quantizations
    are compared without regard to case.
    Raises ModelNotFoundError with the names and quantizations there are.
    """
    model = model.strip()
    if model.lower().startswith(("http://", "https://")):
        raise ModelNotFoundError(
            f"{model} is an address, and models are served from files: download it and give the "
            "file's path"
        )
    if model.lower().startswith("hf:"):
        return _resolve_hub(model[3:])
    if model.lower().endswith(".gguf") or model.startswith(("/", "~", "./", "../")):
        path = Path(model)
        name = path.stem if path.suffix.lower() == ".gguf" else path.name
        return ModelSpec(name=name, known=None, quant=None, path=path)
    by_name = {name.lower(): known for known in MODELS for name in (known.name, *known.aliases)}
    known, quant = by_name.get(model.lower()), ""
    if known is None:  # an alias may hold a colon itself, so the whole name goes first
        name, _, quant = model.partition(":")
        known = by_name.get(name.lower())
    if known is None:
        raise ModelNotFoundError(_unknown_name(model, list(by_name)))
    return ModelSpec(name=known.name, known=known, quant=_quant(known, quant), path=None)


def _resolve_hub(written: str) -> ModelSpec:
    """A model from the hub, which goes by what stands after `hf:`."""
    found = _HUB_FILE.fullmatch(written)
    if found is None:
        raise ModelNotFoundError(
            f"hf:{written} names no model of the hub; write hf:owner/repo or "
            "hf:owner/repo/file.gguf, with @revision where it is not main"
        )
    repository, file, revision = found.group("repository", "file", "revision")
    place = repository if revision is None else f"{repository}@{revision}"
    stored_as = "--".join(f"{place}/{file or ''}".split("/"))
    hub = HubFile(repository, file, stored_as, revision or "main")
    return ModelSpec(name=written, known=None, quant=None, path=None, hub=hub)


def written_of(stored_as: str) -> str | None:
    """How a user writes the model whose file has this name in our cache; None: by its path."""
    for model in MODELS:
        for quant in quants(model):
            if ModelSpec(model.name, model, quant, path=None).file_name == stored_as:
                return "builtin" if model is BUILTIN else f"{model.name}:{quant}"
    owner, _, rest = stored_as.partition("--")
    place, _, file = rest.partition("--")
    name, _, revision = place.partition("@")
    if not file:
        return None
    at = f"@{revision.replace('--', '/')}" if revision else ""
    return f"hf:{owner}/{name}/{file.replace('--', '/')}{at}"


def choose_file(names: Iterable[str]) -> str | None:
    """The one GGUF file of several that is taken where none is named; None where that is open."""
    files = [name for name in names if name.lower().endswith(".gguf")]
    if len(files) == 1:
        return files[0]
    for quant in _PREFERRED_QUANTS:
        fitting = [file for file in files if file.lower().endswith(f"{quant.lower()}.gguf")]
        if fitting:
            return fitting[0] if len(fitting) == 1 else None
    return None


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
        "quantization after a colon; any other model is a path, or hf:owner/repo for one of the "
        "hub"
    )

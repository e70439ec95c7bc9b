"""What a GGUF file holds, what serving it would cost here, and whether Plimsoll runs it.

Reads the header only, from a path or over HTTP ranges.
"""

from collections import Counter
from dataclasses import asdict, dataclass, replace
from math import prod
from pathlib import Path

from plimsoll.encoder.architecture import Architecture, layer_tensor_shapes
from plimsoll.encoder.catalog import describe
from plimsoll.encoder.description import Description, read_description
from plimsoll.encoder.quantization import codes_file
from plimsoll.encoder.quantization.gate import Int8Figures
from plimsoll.errors import CacheError, ModelNotFoundError, ModelUnsupportedError
from plimsoll.gguf.dequantize import SUPPORTED
from plimsoll.gguf.reader import GGUFHeader, read_header
from plimsoll.gguf.sources import FileSource
from plimsoll.machine.cpu import CPUMonitor
from plimsoll.machine.memory import MemoryMonitor
from plimsoll.sidecar.cache import SourceState, list_sidecars

MIB = 1 << 20
# Interpreter, libraries and web layer, without any model.
BASE_BYTES = 80 * MIB
CODES_REMEDY = "`plimsoll pull --compute int8` makes them again"


@dataclass(frozen=True)
class TypeTotal:
    """Tensors of one type."""

    type: str
    n_tensors: int
    n_bytes: int


@dataclass(frozen=True)
class MemoryLimit:
    """A control group's limit."""

    source: str
    limit_bytes: int


@dataclass(frozen=True)
class Machine:
    """What this process may use here; the same for every file."""

    budget_bytes: int
    budget_source: str
    limits: list[MemoryLimit]
    host_bytes: int | None
    quota_cores: float | None
    cores: float

    def rows(self) -> list[tuple[str, str]]:
        """Label and value, for people."""
        limits = [f"{_mib(limit.limit_bytes)} from {limit.source}" for limit in self.limits]
        host = "unknown" if self.host_bytes is None else _mib(self.host_bytes)
        quota = "none" if self.quota_cores is None else f"{self.quota_cores:g} cores"
        return [
            ("budget here", f"{_mib(self.budget_bytes)} from {self.budget_source}"),
            ("limits here", ", ".join(limits) or "none"),
            ("host memory", host),
            ("CPU quota", quota),
            ("cores to use", f"{self.cores:g}"),
        ]


@dataclass(frozen=True)
class Inspection:
    """The report of one file; sizes in bytes."""

    file: str
    version: int
    name: str
    architecture: str
    known_as: str | None
    n_parameters: int
    tensors: list[TypeTotal]
    file_bytes: int
    sidecar_bytes: int
    pages_kept_bytes: int | None
    pages_dropped_bytes: int | None
    details: dict[str, str]
    supported: bool
    reason: str | None
    warnings: tuple[str, ...]
    machine: Machine
    int8: Int8Figures | None = None  # of the codes in the cache, where there are any

    def as_dict(self) -> dict[str, object]:
        """Plain values for JSON."""
        return asdict(self)

    def as_text(self) -> str:
        """The report for people."""
        rows = [
            ("file", self.file),
            ("GGUF version", str(self.version)),
            ("name", self.name),
            ("architecture", self.architecture),
            ("known as", self.known_as or "no model that Plimsoll has rules for"),
            *self.details.items(),
            ("parameters", f"{self.n_parameters / 1e6:.1f} million"),
        ]
        rows += [
            (f"tensors {total.type}", f"{total.n_tensors}, {_mib(total.n_bytes)}")
            for total in self.tensors
        ]
        rows += [
            ("size of the file", _mib(self.file_bytes)),
            ("size of the float32 weights", _mib(self.sidecar_bytes)),
        ]
        if self.pages_kept_bytes is not None and self.pages_dropped_bytes is not None:
            rows += [
                ("memory, pages kept", f"about {_mib(self.pages_kept_bytes)}"),
                ("memory, pages dropped", f"about {_mib(self.pages_dropped_bytes)}"),
            ]
        rows.append(("supported", "yes" if self.supported else f"no: {self.reason}"))
        if self.int8 is not None:
            rows += _int8_rows(self.int8)
        rows += [("warning", warning) for warning in self.warnings]
        rows += self.machine.rows()
        width = max(len(label) for label, _ in rows)
        return "\n".join(f"{label:<{width}}  {value}" for label, value in rows)


def describe_machine(memory: MemoryMonitor, cpu: CPUMonitor) -> Machine:
    """Say what memory and processor time the process may use."""
    budget = memory.budget
    return Machine(
        budget_bytes=budget.budget_bytes,
        budget_source=budget.source,
        limits=[MemoryLimit(source, limit_bytes) for source, limit_bytes in memory.limits],
        host_bytes=memory.host_bytes,
        quota_cores=cpu.quota_cores,
        cores=cpu.sample().cores,
    )


def inspect_gguf(
    file: str, *, n_threads: int, machine: Machine, cache_dir: Path | None = None
) -> Inspection:
    """Read the header of a path or an http(s) URL and judge it.

    cache_dir: where to look for int8 codes that were made of the file.
    Raises GGUFError for a file that cannot be read, ModelNotFoundError for none.
    """
    if file.startswith(("http://", "https://")):
        from plimsoll.gguf.http_source import HTTPRangeSource

        with HTTPRangeSource(file) as remote:
            return _inspect(file, read_header(remote), n_threads, machine)
    try:
        with FileSource(Path(file)) as source:
            found = _inspect(file, read_header(source), n_threads, machine)
    except OSError as error:
        raise ModelNotFoundError(f"cannot open {file}: {error.strerror}") from error
    return _with_codes(found, Path(file), cache_dir) if cache_dir else found


def _int8_rows(figures: Int8Figures) -> list[tuple[str, str]]:
    return [
        ("int8 products", ", ".join(figures.linears)),
        ("int8 for texts of", f"{max(2, figures.float32_below_tokens)} tokens and more"),
        (
            "int8 against float32",
            f"cosine {figures.worst_cosine} at the worst of {figures.verified_texts} texts, "
            f"{figures.mean_cosine} on average",
        ),
    ]


def _with_codes(found: Inspection, file: Path, cache_dir: Path) -> Inspection:
    """The report with what is known of the file's codes in the cache."""
    for entry in list_sidecars(cache_dir):
        same = entry.source_path == file.resolve() and entry.source_state is SourceState.UNCHANGED
        if same and codes_file.has_codes(entry.folder):
            index = entry.folder / codes_file.INDEX_NAME
            try:
                return replace(found, int8=codes_file.read_index(index).choice.figures())
            except (OSError, CacheError) as error:
                warning = f"its int8 codes cannot be read: {error}; {CODES_REMEDY}"
                return replace(found, warnings=(*found.warnings, warning))
    return found


def _inspect(file: str, header: GGUFHeader, n_threads: int, machine: Machine) -> Inspection:
    counts: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    for tensor in header.tensors:
        counts[tensor.type.name] += 1
        sizes[tensor.type.name] += tensor.n_bytes
    n_parameters = sum(tensor.n_elements for tensor in header.tensors)
    described, reason = judge(header)
    known = describe(header.metadata)
    kept = dropped = None
    details: dict[str, str] = {}
    if described is not None:
        architecture = described.architecture
        kept, dropped = memory_bytes(architecture, n_parameters, n_threads)
        details = {
            "layers": f"{architecture.n_layers} of {architecture.hidden}, "
            f"feed-forward {architecture.ffn}, {architecture.n_heads} heads",
            "token limit": f"{known.token_limit or architecture.context_tokens}",
            "pooling": architecture.pooling.name.lower(),
        }
    return Inspection(
        file=file,
        version=header.version,
        name=str(header.metadata.get("general.name", "")),
        architecture=str(header.metadata.get("general.architecture", "")),
        known_as=known.name if known.prefix_scheme != "none" or known.source else None,
        n_parameters=n_parameters,
        tensors=[TypeTotal(name, counts[name], size) for name, size in sizes.most_common()],
        file_bytes=header.n_bytes,
        sidecar_bytes=4 * n_parameters,
        pages_kept_bytes=kept,
        pages_dropped_bytes=dropped,
        details=details,
        supported=reason is None,
        reason=reason,
        warnings=described.warnings if described else (),
        machine=machine,
    )


def memory_bytes(architecture: Architecture, n_parameters: int, n_threads: int) -> tuple[int, int]:
    """About what a server takes that keeps all pages of the weights, and one that drops them."""
    largest_layer = 4 * max(
        sum(prod(shape) for shape in layer_tensor_shapes(architecture, layer).values())
        for layer in range(architecture.n_layers)
    )
    return BASE_BYTES + 4 * n_parameters, BASE_BYTES + (n_threads + 1) * largest_layer


def judge(header: GGUFHeader) -> tuple[Description | None, str | None]:
    """What model a header describes, and why it is not run; None where it is."""
    try:
        described = read_description(header)
    except ModelUnsupportedError as error:
        return None, str(error)
    refused = sorted({t.type.name for t in header.tensors if t.type not in SUPPORTED})
    if refused:
        return described, f"tensor types {', '.join(refused)} are not expanded"
    return described, None


def _mib(n_bytes: int) -> str:
    return f"{n_bytes / MIB:,.1f} MiB"

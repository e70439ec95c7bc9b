"""What a GGUF file holds, what serving it would cost here, and whether Plimsoll runs it.

Reads the header only, from a path or over HTTP ranges.
"""

from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

from app.encoder.architecture import Architecture, layer_tensor_shapes, read_architecture
from app.encoder.catalog import describe
from app.encoder.tokenizer import WordPieceTokenizer
from app.errors import ModelNotFoundError, ModelUnsupportedError
from app.gguf.dequantize import SUPPORTED
from app.gguf.reader import GGUFHeader, read_header
from app.gguf.sources import FileSource
from app.memory.cpu import CPUMonitor
from app.memory.monitor import MemoryMonitor

MIB = 1 << 20
# Interpreter, libraries and web layer, without any model.
BASE_BYTES = 80 * MIB


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
    """What this process may use here, whatever the file."""

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
    machine: Machine

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


def inspect_gguf(file: str, *, n_threads: int, machine: Machine) -> Inspection:
    """Read the header of a path or an http(s) URL and judge it.

    Raises GGUFError for a file that cannot be read, ModelNotFoundError for none.
    """
    if file.startswith(("http://", "https://")):
        from app.gguf.http_source import HTTPRangeSource

        with HTTPRangeSource(file) as remote:
            return _inspect(file, read_header(remote), n_threads, machine)
    try:
        with FileSource(Path(file)) as source:
            return _inspect(file, read_header(source), n_threads, machine)
    except OSError as error:
        raise ModelNotFoundError(f"cannot open {file}: {error.strerror}") from error


def _inspect(file: str, header: GGUFHeader, n_threads: int, machine: Machine) -> Inspection:
    counts: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    for tensor in header.tensors:
        counts[tensor.type.name] += 1
        sizes[tensor.type.name] += tensor.n_bytes
    n_parameters = sum(tensor.n_elements for tensor in header.tensors)
    architecture, reason = _judge(header)
    known = describe(header.metadata)
    kept = dropped = None
    details: dict[str, str] = {}
    if architecture is not None:
        largest_layer = 4 * max(
            sum(_n_values(shape) for shape in layer_tensor_shapes(architecture, layer).values())
            for layer in range(architecture.n_layers)
        )
        kept = BASE_BYTES + 4 * n_parameters
        dropped = BASE_BYTES + (n_threads + 1) * largest_layer
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
        machine=machine,
    )


def _judge(header: GGUFHeader) -> tuple[Architecture | None, str | None]:
    try:
        architecture = read_architecture(header)
        WordPieceTokenizer(header.metadata)
    except ModelUnsupportedError as error:
        return None, str(error)
    refused = sorted({t.type.name for t in header.tensors if t.type not in SUPPORTED})
    if refused:
        return architecture, f"tensor types {', '.join(refused)} are not expanded"
    return architecture, None


def _n_values(shape: tuple[int, ...]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total


def _mib(n_bytes: int) -> str:
    return f"{n_bytes / MIB:,.1f} MiB"

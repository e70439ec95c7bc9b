"""Which instructions the processor has: libraries choose their kernels by them.

Source: proc_cpuinfo(5), `flags` on x86 and `Features` on ARM; elsewhere only the architecture.
"""

import platform
import re
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
# Words for instructions that multiply int8 and add into int32: VNNI, AMX, dot products.
INT8_WORDS = frozenset({"avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm"})
_VECTOR = re.compile(r"(sse4|avx|fma|f16c|amx|asimd|sve|sme(?!p)|i8mm|bf16|neon|vsx)\w*")


def instruction_set(cpuinfo: Path = CPUINFO) -> str:
    """Architecture and vector instructions, the same text on like processors."""
    return " ".join([platform.machine(), *sorted(filter(_VECTOR.fullmatch, _words(cpuinfo)))])


def has_int8_products(cpuinfo: Path = CPUINFO) -> bool:
    """Whether the processor multiplies int8 without saturation, and so faster than float32."""
    return not INT8_WORDS.isdisjoint(_words(cpuinfo))


def _words(cpuinfo: Path) -> list[str]:
    """What the processor can do; empty where the system does not tell."""
    try:
        text = cpuinfo.read_text(errors="replace")
    except OSError:
        return []
    found = re.search(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)
    return found[1].split() if found else []

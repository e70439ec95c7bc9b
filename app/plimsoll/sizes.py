"""Numbers of bytes as people write them: 512M, 1.5G, 64MiB or plain bytes.

Units are 1024-fold, as Docker reads them; case does not matter, nor i or B after the unit.
"""

import re
from typing import Any, Self

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
MOST_BYTES = 1 << 50

_SIZE = re.compile(r"(\d{1,15})(\.\d{1,6})? ?(?:([KMGT])I?B?|B)?", re.ASCII)


def rounded(n_bytes: int) -> str:
    """A size for people, in two or three digits: 87M, 1.4M, 236K, 12 bytes."""
    for unit in "GMK":
        if n_bytes >= UNITS[unit]:
            amount = n_bytes / UNITS[unit]
            return f"{amount:.1f}{unit}" if amount < 10 else f"{amount:,.0f}{unit}"
    return f"{n_bytes} bytes"


class Size(int):
    """A number of bytes that is read and written as 512M."""

    @classmethod
    def parse(cls, value: object) -> Self:
        """Read a size, as text or as a number of bytes. Raises ValueError."""
        if isinstance(value, int) and not isinstance(value, bool):
            return cls(value)
        match = _SIZE.fullmatch(value.strip().upper()) if isinstance(value, str) else None
        if match is None:
            raise ValueError("write a size such as 512M, 1.5G or plain bytes")
        whole, fraction, unit = match.groups(default="")
        n_bytes = round(float(whole + fraction) * UNITS[unit])
        if n_bytes > MOST_BYTES:
            raise ValueError(f"that is more than {cls(MOST_BYTES)}")
        return cls(n_bytes)

    def __str__(self) -> str:
        """In the largest unit that leaves a whole number: 20M, 1536M, 1000."""
        for unit, n_bytes in reversed(UNITS.items()):
            if self and not self % n_bytes:
                return f"{self // n_bytes}{unit}"
        return "0"

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Let settings of this type be checked by pydantic."""
        return core_schema.no_info_plain_validator_function(cls.parse)

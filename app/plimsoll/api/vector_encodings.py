"""A vector of a reply in each form that a client may ask for, the quantized ones by Cohere's rules.

Not storage: a collection keeps float32. A unit vector of d values has a typical value of 1/√d, so
the whole numbers divide the range from -SPAN/√d to SPAN/√d, the same for every vector of its size:
scalar products and distances between them keep their order, and `int8 · SPAN / (127 · √d)` is the
value again. What lies beyond is the end of the range. Bits are those of Cohere's embed API and of
vLLM's: 1 from 0 on, eight a byte, the first value in the highest bit; the last byte is filled up
with 0.
"""

from binascii import b2a_base64
from typing import Literal

import numpy as np
import orjson

VectorEncoding = Literal["float", "base64", "float16", "int8", "uint8", "binary", "ubinary"]

SPAN = 6.0  # deviations: the largest of 1,513 texts by MPNet is 5.6, of published Nomic vectors 5.0
MOST = 127
OFFSET = 128  # between signed and unsigned bytes
FLOAT16_DIGITS = 5


def vector_field(vector: np.ndarray, encoding: VectorEncoding) -> np.ndarray | orjson.Fragment:
    """A unit vector, float32 (dimensions,), as the JSON of a reply holds it.

    float, float16: numbers as short as their type allows. base64: of little-endian float32.
    int8, uint8: a whole number a value, from -127 to 127 or from 1 to 255.
    binary, ubinary: a signed or unsigned byte of eight values.
    """
    match encoding:
        case "float":
            return vector
        case "base64":
            # As JSON already: base64 has nothing to escape, and orjson would read it all to see.
            text = b2a_base64(vector.astype("<f4", copy=False).data, newline=False)
            return orjson.Fragment(b'"%b"' % text)
        case "float16":
            return _as_short(vector.astype(np.float16))
        case "int8":
            return _whole_numbers(vector).astype(np.int8)
        case "uint8":
            return (_whole_numbers(vector) + OFFSET).astype(np.uint8)
        case "binary":
            return (_bits(vector).astype(np.int16) - OFFSET).astype(np.int8)
        case "ubinary":
            return _bits(vector)


def _as_short(vector: np.ndarray) -> np.ndarray:
    """Values of float16 as float32 of so many digits that float16 reads them back.

    orjson writes a float16 with all the digits of its float32.
    """
    values = vector.astype(np.float64)
    tens = np.floor(np.log10(np.abs(values), where=values != 0, out=np.zeros_like(values)))
    scale = 10.0 ** (FLOAT16_DIGITS - 1 - tens)
    return (np.rint(values * scale) / scale).astype(np.float32)


def _whole_numbers(vector: np.ndarray) -> np.ndarray:
    """From -MOST to MOST, still as float32."""
    scale = np.float32(MOST * np.sqrt(len(vector)) / SPAN)
    return np.clip(np.rint(vector * scale), -MOST, MOST)


def _bits(vector: np.ndarray) -> np.ndarray:
    """uint8 (dimensions / 8,), rounded up."""
    return np.packbits(vector >= 0)

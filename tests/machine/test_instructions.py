"""The name of a processor's vector instructions, and whether products of int8 are among them."""

from pathlib import Path

import pytest

from plimsoll.machine.instructions import has_int8_products, instruction_set

X86 = """processor\t: 0
model name\t: One
flags\t\t: fpu sse4_1 avx avx2 smep fma ibrs

processor\t: 1
flags\t\t: fpu
"""
ARM = "processor\t: 0\nFeatures\t: fp asimd sha1 i8mm bf16 sve\n"


@pytest.mark.parametrize(
    ("text", "words"), [(X86, "avx avx2 fma sse4_1"), (ARM, "asimd bf16 i8mm sve")]
)
def test_vector_instructions_are_named_in_order(tmp_path: Path, text: str, words: str):
    """What a kernel update adds to the flags changes nothing that a library chooses by."""
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(text)
    architecture, _, found = instruction_set(cpuinfo).partition(" ")
    assert architecture
    assert found == words


def test_where_nothing_tells_the_architecture_alone_is_named(tmp_path: Path):
    """macOS has no such list."""
    assert " " not in instruction_set(tmp_path / "absent")


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("flags\t\t: fpu sse4_2 avx2 avx512f avx512_vnni", True),
        ("flags\t\t: fpu sse4_2 avx2 avx_vnni", True),
        ("flags\t\t: fpu sse4_2 avx2 fma", False),
        ("Features\t: fp asimd asimddp", True),
        ("Features\t: fp asimd", False),
        ("model name\t: avx512_vnni", False),
    ],
)
def test_products_of_int8_are_known_by_the_processors_flags(tmp_path: Path, line: str, found: bool):
    """Without them 8-bit products saturate, and vectors would be wrong in silence."""
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"processor\t: 0\n{line}\n\nprocessor\t: 1\n{line}\n")

    assert has_int8_products(cpuinfo) is found


def test_a_system_that_does_not_tell_has_no_products_of_int8(tmp_path: Path):
    assert not has_int8_products(tmp_path / "absent")

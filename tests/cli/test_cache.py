"""`plimsoll cache list`: what takes room, by the names that other commands take."""

from contextlib import closing
from pathlib import Path

import numpy as np

from plimsoll.encoder.quantization.codes_file import CODES_NAME, INDEX_NAME, CodesWriter
from plimsoll.encoder.quantization.gate import Choice, Verdict
from plimsoll.encoder.quantization.gptq import Codes
from plimsoll.sidecar.cache import list_sidecars
from plimsoll.sizes import rounded
from tests.cli.conftest import Commands
from tests.small_models import TINY
from tests.synthetic import write_synthetic


def rows(run: Commands) -> dict[str, list[str]]:
    """First word of each line → the others."""
    lines = run("cache", "list").stdout.splitlines()[2:]
    return {line.split()[0]: line.split()[1:] for line in lines}


def test_a_small_thing_has_a_size(run: Commands, stored: Path):
    """0M would say that a sidecar is empty."""
    run("pull", "hf:a/b/tiny.gguf")
    (entry,) = list_sidecars(run.cache)

    found = rows(run)

    assert found[entry.key][0] == rounded(entry.n_bytes)
    assert found["hf:a/b/tiny.gguf"][0] == f"{stored.stat().st_size / 1024:,.0f}K"


def test_verify_looks_at_codes_too(run: Commands, stored: Path):
    """They are a file of the cache like any other, and dear to make."""
    run("pull", "hf:a/b/tiny.gguf")
    (entry,) = list_sidecars(run.cache)
    codes = {"ffn_up": Codes(np.ones((4, 8), np.int8), np.ones(4, np.float32))}
    with closing(CodesWriter(entry.folder / CODES_NAME)) as writer:
        writer.add(codes)
        choice = Choice(("ffn_up",), 0, Verdict(1, 1.0, 1.0))
        writer.finish(entry.folder / INDEX_NAME, choice, "of some tensors")
    assert "whole" in run("cache", "verify").stdout
    with (entry.folder / CODES_NAME).open("r+b") as file:
        file.write(b"x")

    done = run("cache", "verify")

    assert done.exit_code == 1
    assert f"{entry.key}  damaged: {CODES_NAME} layer 0, bytes 0 to" in done.stdout


def test_a_model_stands_there_by_the_name_that_rm_takes(run: Commands, stored: Path):
    """The folder that Plimsoll has put its file into is no word of a user's."""
    built = run.cache / "built"
    built.mkdir(mode=0o700)
    file = write_synthetic(built / "all-MiniLM-L6-v2.F32.gguf", arch="bert", shape=TINY)
    by_hand = run.cache / "models" / "mine.gguf"
    by_hand.write_bytes(stored.read_bytes())

    assert set(rows(run)) == {"builtin", "hf:a/b/tiny.gguf", "mine.gguf"}
    run("rm", "--yes", "builtin")
    assert not file.exists()

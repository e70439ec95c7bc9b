"""`plimsoll models`: what can be served, what it needs, what is here."""

import json
from pathlib import Path

import pytest

from plimsoll.encoder.architecture import read_architecture
from plimsoll.encoder.catalog import SHAPES
from plimsoll.encoder.known_models import BUILTIN
from plimsoll.gguf.reader import read_header
from plimsoll.gguf.sources import FileSource
from plimsoll.models.listing import n_parameters
from tests.cli.conftest import Commands
from tests.small_models import TINY


def test_the_verified_models_are_listed_with_what_they_need(run: Commands):
    """Before anything is fetched: whether it fits is the first question."""
    found = {model["name"]: model for model in json.loads(run("models", "--json").stdout)}

    assert list(found) == ["builtin", "nomic-embed-text-v1.5", "nomic-embed-text-v1"]
    nomic = found["nomic-embed-text-v1.5"]
    assert (nomic["dimensions"], nomic["token_limit"], nomic["presence"]) == (768, 8192, "absent")
    assert nomic["quantizations"][0] == "Q8_0"
    # The published file has 146 MB.
    assert nomic["file_bytes"] == pytest.approx(146e6, rel=0.01)
    assert nomic["weights_bytes"] == pytest.approx(547e6, rel=0.01)
    assert nomic["least_memory_bytes"] < nomic["all_memory_bytes"]


def test_a_shape_tells_the_number_of_weights_that_the_file_has(model_cache: Path):
    """The sizes of a model that is not here rest on it."""
    with FileSource(next(model_cache.glob("*/all-MiniLM-L6-v2.F32.gguf"))) as source:
        header = read_header(source)
    n_weights = sum(tensor.n_elements for tensor in header.tensors)
    assert n_parameters(read_architecture(header)) == n_weights
    assert n_parameters(SHAPES[BUILTIN.name]) == n_weights


def test_a_file_in_the_cache_is_listed_as_a_user_writes_it(run: Commands, stored: Path):
    """What stands there can be given to every other command."""
    (found,) = json.loads(run("models", "--json").stdout)[3:]
    assert (found["name"], found["verified"]) == ("hf:a/b/tiny.gguf", False)
    assert (found["dimensions"], found["presence"]) == (TINY.hidden, "fetched")

    assert run("pull", found["name"]).exit_code == 0
    (found,) = json.loads(run("models", "--json").stdout)[3:]
    assert found["presence"] == "ready"


def test_the_table_is_whole_lines_where_no_terminal_is(run: Commands, stored: Path):
    """grep and cut find a model on its line."""
    lines = run("models").stdout.splitlines()
    assert lines[0].split() == ["model", "file", "dims", "tokens", "memory", "here"]
    assert [line.split()[0] for line in lines[1:5]] == [
        "builtin",
        "nomic-embed-text-v1.5",
        "nomic-embed-text-v1",
        "hf:a/b/tiny.gguf",
    ]
    assert "\x1b" not in "".join(lines)


def test_a_model_is_inspected_by_the_name_it_is_served_by(run: Commands, stored: Path):
    """One way to name a model; what is not here is said, with the way to get it."""
    by_name = json.loads(run("inspect", "--json", "hf:a/b/tiny.gguf").stdout)
    by_path = json.loads(run("inspect", "--json", str(stored)).stdout)
    assert by_name == by_path
    absent = run("inspect", "nomic-embed-text-v1.5")
    assert absent.exit_code == 2
    assert "plimsoll pull" in absent.stderr

"""`plimsoll simulate` as people run it."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from plimsoll.cli.commands import main
from plimsoll.encoder.architecture import read_architecture
from plimsoll.encoder.catalog import SHAPES
from plimsoll.encoder.known_models import BUILTIN
from plimsoll.gguf.reader import read_header
from plimsoll.gguf.sources import FileSource
from tests.small_models import TINY
from tests.synthetic import write_synthetic

CALM = "".join(f'{{"at_s": {second}, "tokens": [32, 128]}}\n' for second in range(10))
TOO_LONG = '{"at_s": 2.5, "tokens": [8192]}\n'


def simulate(*arguments: str, trace: str = CALM) -> Result:
    return CliRunner().invoke(main, ["simulate", "--trace", "-", *arguments], input=trace)


def test_a_trace_becomes_a_table_and_a_chart():
    """What people look at: how requests ended, how near memory came, and when."""
    nomic = ("--limit", "250M", "--model", "nomic-embed-text-v1.5")
    done = simulate(*nomic, trace=CALM + TOO_LONG)

    assert done.exit_code == 0, done.output
    rows = [line.split() for line in done.stdout.splitlines()]
    for row in (
        ["requests", "11"],
        ["dense", "10"],
        ["too", "large", "(413)", "1"],
        ["parallelism", "8"],
        ["breaker", "closed"],
        ["parallelism", "8" * 10],
    ):
        assert row in rows
    assert "line 175 MiB, limit 250 MiB" in done.stdout
    assert "█" in done.stdout


def test_json_holds_every_request_and_every_second(tmp_path: Path):
    """For charts of one's own; a file works as well as standard input."""
    file = tmp_path / "trace.jsonl"
    file.write_text(CALM)
    done = CliRunner().invoke(
        main, ["simulate", "--limit", "0.25G", "--trace", str(file), "--floor", "1048576", "--json"]
    )

    report = json.loads(done.stdout)
    assert report["limit_bytes"] == 256 << 20
    assert 1 << 20 < report["peak_bytes"] < report["line_bytes"]
    assert report["counts"]["dense"] == 10
    assert [request["n_tokens"] for request in report["requests"]] == [160] * 10
    assert [second["breaker"] for second in report["seconds"]] == ["closed"] * 10


def test_the_header_of_a_file_gives_its_shape(tmp_path: Path):
    """A model that Plimsoll does not know by name; 512 tokens are all that it reads."""
    file = write_synthetic(tmp_path / "tiny.gguf", arch="bert", shape=TINY)
    done = simulate("--limit", "100M", "--model", str(file), "--json", trace=TOO_LONG)

    (request,) = json.loads(done.stdout)["requests"]
    assert (request["fate"], request["n_tokens"]) == ("dense", 512)


def test_the_built_in_models_shape_is_that_of_its_file(model_cache: Path):
    """The shape is written down so that nothing has to be fetched for a simulation."""
    with FileSource(next(model_cache.glob("*/all-MiniLM-L6-v2.F32.gguf"))) as source:
        found = read_architecture(read_header(source))

    shape = SHAPES[BUILTIN.name]
    assert found.layer_norm_eps == pytest.approx(shape.layer_norm_eps)
    assert replace(found, layer_norm_eps=shape.layer_norm_eps) == shape


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--limit", "400Q"), "'400Q': write a size such as 512M, 1.5G or plain bytes"),
        (("--limit", "1.5Z"), "'1.5Z': write a size"),
        (("--limit", "-1M"), "'-1M': write a size"),
        (("--limit", "1e9"), "'1e9': write a size"),
        (("--limit", "٤M"), "write a size"),
        (("--limit", "2000000G"), "more than 1024T"),
        (("--limit", "50M"), "--floor is not below --limit"),
        (("--limit", "400M", "--rate", "nan"), "NaN is not a number"),
        (("--limit", "400M", "--rate", "0"), "--rate"),
        (("--limit", "400M", "--model", "nomic-embed-txt"), "Did you mean"),
        (("--limit", "400M", "--model", "hf:a/b"), "the shape of hf:a/b is not known"),
        (("--limit", "400M", "--model", "absent.gguf"), "there is no model file"),
        ((), "Missing option '--limit'"),
    ],
)
def test_a_mistake_is_told_in_one_message(arguments: tuple[str, ...], told: str):
    """With exit code 2, as everywhere."""
    done = simulate(*arguments)

    assert done.exit_code == 2
    assert told in done.stderr
    assert done.stdout == ""


def test_a_bad_line_is_named_by_its_number():
    """In a trace of thousands one has to find it."""
    done = simulate("--limit", "400M", trace=CALM + '{"at_s": 11, "token": [1]}\n')

    assert done.exit_code == 2
    assert "line 11: beside at_s there is one of tokens" in done.stderr

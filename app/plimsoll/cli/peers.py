"""`plimsoll bench peers`: Plimsoll beside other embedding programs on the same weights."""

from functools import partial
from pathlib import Path

import click

from plimsoll.cli.help import Command
from plimsoll.cli.report_options import FILE, GIVEN, grouped, writable
from plimsoll.machine.cpu import available_cores

SECONDS = click.FloatRange(min=0, min_open=True)
COUNT = click.IntRange(min=1)
what, length, report = (partial(grouped, group) for group in ("What", "How long", "Report"))
file = partial(report, type=FILE, callback=writable, metavar="FILE")
count = partial(length, type=COUNT, metavar="NUMBER")

MODELS = "A model, or the path of a GGUF file; may be repeated."
PEERS = "Only peers with this in their title; may be repeated. [default: every peer]"
TEXTS = 'JSON lines with a "text" each for the mixed lists; else texts are made up.'
PREPARE = "First build llama-server and install infinity-emb into the cache, once."
BRIEF = "Show a line for each figure, with a column for each peer, in place of every pair."
THREADS = "Threads of every peer, and processors that all of them run on."


@click.command(cls=Command)
@what("--model", "models", multiple=True, default=("builtin",), metavar="NAME", help=MODELS)
@what("--peer", "names", multiple=True, metavar="WORD", help=PEERS)
@what("--texts", type=GIVEN, metavar="FILE", help=TEXTS)
@what("--prepare", is_flag=True, help=PREPARE)
@count("--rounds", default=3, help="Fresh processes of each peer.")
@length("--seconds", type=SECONDS, default=5.0, metavar="SECONDS", help="Of each workload.")
@count("--list-texts", default=2000, help="Texts of the one long list.")
@count("--threads", show_default="the cores there are", help=THREADS)
@report("--brief", is_flag=True, help=BRIEF)
@file("--json", "json_file", help="Write every figure there, round by round.")
@file("--svg", "svg_file", help="Write a chart there.")
def peers(
    models: tuple[str, ...],
    names: tuple[str, ...],
    texts: Path | None,
    rounds: int,
    seconds: float,
    list_texts: int,
    threads: int | None,
    brief: bool,
    json_file: Path | None,
    svg_file: Path | None,
    prepare: bool,
) -> None:
    """Measure Plimsoll beside other embedding programs on the same weights.

    Every peer is started for real, one after another, in a fresh process each round: Plimsoll,
    in float32 and in int8, padded ONNX Runtime, sentence-transformers, OpenVINO, infinity-emb,
    llama.cpp's llama-server and llama-cpp-python. Most come with the extra `bench`; --prepare
    gets the rest. One that cannot be had, or cannot load the model, stands below the table with
    the reason; so does int8 where its vectors fail PLIMSOLL_MIN_COSINE.

    A cell is the median of the rounds, and in brackets the lowest and the highest. *Better by*
    compares round by round; above 1 Plimsoll is better. Where a peer is better, its row stands
    first; the targets of the project follow, with *pass*, *MISS* or *not measured*. The worst
    cosine is that of the peer's vectors to float32 ones of ONNX Runtime. A server is called
    through REST; a library in its process, where calls run in turn. Programs of several variants,
    such as llama-server, count with the best for each figure.

    \b
      plimsoll bench peers --prepare --json peers.json --svg peers.svg
      plimsoll bench peers --peer openvino --rounds 1 --seconds 2 --list-texts 200
    """
    from plimsoll.bench.comparison.models import NoSyntheticModelError
    from plimsoll.bench.load.input_files import InputFileError, read_texts
    from plimsoll.bench.peers.command import PeerPlan, PeerPlanError, run_and_report

    try:
        plan = PeerPlan(
            models=models,
            peers=names,
            rounds=rounds,
            seconds=seconds,
            list_texts=list_texts,
            n_threads=threads or available_cores(),
            texts=read_texts(texts) if texts else (),
            prepare=prepare,
            brief=brief,
            json=json_file,
            svg=svg_file,
        )
        run_and_report(plan)
    except (PeerPlanError, InputFileError, NoSyntheticModelError) as error:
        raise click.UsageError(str(error)) from None

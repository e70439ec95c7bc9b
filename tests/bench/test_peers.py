"""Plimsoll beside other programs: a table that hides a loss, or a peer, would be worth nothing."""

import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from statistics import median
from xml.etree import ElementTree

import numpy as np
import pytest
from click.testing import CliRunner
from tokenizers import Tokenizer

from plimsoll.bench.comparison.models import ModelCase, make_ready
from plimsoll.bench.comparison.processes import MeasurementError, MemoryWatch
from plimsoll.bench.peers import library_peer, server_peer
from plimsoll.bench.peers.catalog import ONE_CORE, PADDED, PEERS, PLIMSOLL
from plimsoll.bench.peers.chart import chart
from plimsoll.bench.peers.command import chosen
from plimsoll.bench.peers.measure import (
    CPU,
    PEAK,
    FigureName,
    figure_names,
    measure,
    percentile,
    run_workload,
    worst_cosine,
)
from plimsoll.bench.peers.model_files import gguf_file, transformers_folder
from plimsoll.bench.peers.peer import PeerKind, PeerUnavailableError, RunningPeer
from plimsoll.bench.peers.results import Measured, ModelResults
from plimsoll.bench.peers.server_peer import ServerPeer
from plimsoll.bench.peers.table import as_dict, table
from plimsoll.bench.peers.workloads import (
    LIST_TEXTS,
    MIXED,
    TOKENS_PER_S,
    Texts,
    Workload,
    workloads_of,
)
from plimsoll.cli.commands import main
from plimsoll.encoder.tokenizer import WordPieceTokenizer
from plimsoll.encoder.vocabulary import read_vocabulary
from plimsoll.sidecar.sidecar import Sidecar
from tests.synthetic import TINY_SHAPE, write_synthetic

RATE = FigureName(f"{MIXED}, {TOKENS_PER_S}", TOKENS_PER_S, lower_is_better=False)
MEMORY = FigureName(PEAK, "MiB")


# Closes each connection after its reply without a word; answers in the wrong order.
CLOSING_SERVER = (
    sys.executable,
    "-c",
    """
import http.server, json, sys
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_POST(self):
        texts = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["input"]
        rows = [{"index": i, "embedding": [2 * i, 2 * (1 - i)]} for i in range(len(texts))]
        body = json.dumps({"data": rows[::-1]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        self.close_connection = True
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
""",
)


@contextmanager
def closing_peer(peer: ServerPeer) -> Iterator[ServerPeer]:
    try:
        yield peer
    finally:
        peer.stop()


def unavailable(case: ModelCase, n_threads: int) -> RunningPeer:
    raise PeerUnavailableError("not installed here")


def measured(
    name: str, rates: Sequence[float], memory: Sequence[float] = (), **more: str
) -> Measured:
    """A peer with so many rounds."""
    rounds: dict[int, Mapping[str, float]] = {
        number: {RATE.name: rate} for number, rate in enumerate(rates)
    }
    for number, value in enumerate(memory):
        rounds[number] = {**rounds[number], MEMORY.name: value}
    kind = PeerKind(name, "REST", unavailable, variant=more.get("variant", ""))
    return Measured(kind, rounds, worst_cosine=0.999, problem=more.get("problem", ""))


def results(*found: Measured) -> ModelResults:
    return ModelResults("a model", [RATE, MEMORY], found)


class FakePeer:
    """Remembers what it was asked; its process is this one."""

    def __init__(self) -> None:
        self.asked: list[Sequence[str]] = []
        self.stopped = False
        self.watch = MemoryWatch(os.getpid())

    def embed(self, texts: Sequence[str]) -> None:
        self.asked.append(texts)

    def vectors(self, texts: Sequence[str]) -> np.ndarray:
        return np.eye(len(texts), dtype=np.float32)

    def settle(self) -> None:
        pass

    def stop(self) -> None:
        self.watch.stop()
        self.stopped = True


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny model, with every cache in the test's own folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return write_synthetic(tmp_path / "tiny.gguf", arch="bert", shape=TINY_SHAPE)


@pytest.fixture
def case(tiny: Path) -> ModelCase:
    return make_ready(str(tiny), lambda text: None, None)


# --- rows --------------------------------------------------------------------------------------


def test_where_a_peer_wins_its_row_comes_first():
    """A reader must not have to look for what speaks against the project."""
    rows = results(
        measured(PLIMSOLL, [100, 100], [50, 50]),
        measured("slow", [20, 20], [500, 500]),
        measured("quick", [150, 150], [400, 400]),
        measured("small", [90, 90], [10, 10]),
    ).rows()

    assert [(row.figure.name, row.figure.peer) for row in rows] == [
        (MEMORY.name, "small"),
        (RATE.name, "quick"),
        (RATE.name, "small"),
        (RATE.name, "slow"),
        (MEMORY.name, "quick"),
        (MEMORY.name, "slow"),
    ]
    assert [row.peer_wins for row in rows] == [True, True, False, False, False, False]
    shown = table({}, [results(measured(PLIMSOLL, [100]), measured("quick", [150]))])
    assert "the peer is better" in shown


def test_the_brief_table_keeps_every_loss():
    """It is the one for the documentation."""
    found = results(
        measured(PLIMSOLL, [100], [50]),
        measured("quick", [150], [300]),
        measured("quicker", [170], [400]),
        measured("slow", [20], [500]),
    )
    shown = table({}, [found], brief=True)
    peers = [line.split("  ")[0] for line in shown.splitlines()[4:]]
    assert peers == [RATE.name, RATE.name, MEMORY.name]
    assert "slow" not in shown


def test_a_row_shows_medians_and_spread_of_the_rounds_that_both_ran():
    """One slow round on a shared machine is not the result, and is not hidden either."""
    found = results(measured(PLIMSOLL, [100, 10, 120]), measured("peer", [50, 40]))

    (row,) = found.rows()

    assert row.figure.values == [100, 10]
    assert row.ratio == median([100 / 50, 10 / 40])
    assert "55 (10-100) tokens/s" in table({}, [found])


def test_a_program_counts_with_its_best_variant_for_each_figure():
    """A user of llama-server chooses the faster flags, and so does the comparison."""
    found = results(
        measured(PLIMSOLL, [100], [50]),
        measured("server", [60], [30], variant="-np 1"),
        measured("server", [80], [70], variant="-np 4"),
    )
    peers = {row.figure.name: row.figure.peer for row in found.rows()}
    assert peers == {RATE.name: "server -np 4", MEMORY.name: "server -np 1"}


def test_a_peer_that_was_not_measured_is_named_with_the_reason():
    """A silent absence would read as a peer that was beaten."""
    found = results(
        measured(PLIMSOLL, [100]),
        measured("absent", [], problem="not installed"),
        measured("server", [], variant="-np 1", problem="not built"),
        measured("server", [], variant="-np 4", problem="not built"),
        measured("half", [50], variant="a"),
        measured("half", [], variant="b", problem="it died"),
        measured("last", []),
    )
    problems = {
        "absent": "not installed",
        "server": "not built",
        "half b": "it died",
        "last": "the run ended before",
    }
    assert found.problems() == problems
    shown = table({}, [found])
    assert all(f"not measured: {why}" in shown for why in problems.values())
    told = as_dict({}, {}, [found])["models"][0]["peers"]
    assert {one["peer"]: one["problem"] for one in told if one["problem"]}["absent"]


def test_targets_are_held_against_their_own_baselines():
    """The strategy's figures are rows with a verdict, also where they are missed."""
    found = results(
        measured(PLIMSOLL, [100], [50]),
        measured(ONE_CORE, [60], [50]),
        measured(PADDED, [25], [80]),
    )
    verdicts = {row.figure.name: row.figure.verdict for row in found.targets()}
    assert verdicts == {
        "throughput 2.8-4.4×": "pass",
        "memory −40 %": "MISS",
        "linear scaling, 2 cores against 1": "MISS",
    }
    assert ONE_CORE not in {row.figure.peer for row in found.rows()}


def test_the_chart_is_a_drawing_with_a_bar_for_every_peer():
    """It stands in the documentation, where a broken one shows nothing."""
    drawing = chart([results(measured(PLIMSOLL, [100]), measured("<peer> & co", [40]))])
    root = ElementTree.fromstring(drawing)
    names = [element.text for element in root.iter() if element.text]
    assert "<peer> & co" in names
    assert "40, cosine 0.99900" in names


# --- measuring ---------------------------------------------------------------------------------


def test_a_workload_of_one_pass_sends_every_request_once():
    """A list of 2,000 is measured whole, however short the time of the others."""
    peer = FakePeer()
    requests = [["a"], ["b"], ["c"]]
    workload = Workload("list", requests, [3, 4, 5], 2, (TOKENS_PER_S,), once=True)

    figures = run_workload(peer, workload, 0.0)
    peer.stop()

    assert sorted(peer.asked) == requests
    assert list(figures) == ["list, tokens/s"]


def test_a_peer_is_stopped_also_when_it_breaks_off():
    """A server left behind would slow down every peer after it."""
    peer = FakePeer()
    kind = PeerKind("broken", "REST", lambda case, n_threads: peer)
    peer.embed = lambda texts: (_ for _ in ()).throw(MeasurementError("it died"))  # type: ignore[method-assign]
    workload = Workload("one", [["a"]], [3], 1, (TOKENS_PER_S,))
    with pytest.raises(MeasurementError, match="it died"):
        measure(kind, None, [workload], n_threads=1, seconds=0.0, compared=())
    assert peer.stopped


def test_every_named_figure_is_measured():
    """A figure without a value would drop its row in silence."""
    peer = FakePeer()
    workloads = [Workload(MIXED, [["a", "b"]], [6], 1, (TOKENS_PER_S,))]
    kind = PeerKind("fake", "in process", lambda case, n_threads: peer)

    found = measure(kind, None, workloads, n_threads=1, seconds=0.0, compared=[["a", "b"]])

    assert sorted(found.figures) == sorted(name.name for name in figure_names(workloads))
    assert CPU in found.figures
    assert worst_cosine(found.vectors, np.eye(2)) == 1


def test_percentiles_lie_between_the_two_nearest():
    """And of a single request there is no quantile but itself."""
    assert percentile([4.0], 99) == 4
    assert percentile([1.0, 3.0], 50) == 2


def test_a_server_that_does_not_start_says_its_last_words():
    """The row of a peer that failed has to name the cause."""
    command = [sys.executable, "-c", "raise SystemExit('no such model')"]
    with pytest.raises(MeasurementError, match="the server ended: no such model"):
        ServerPeer(lambda port: command, {}, "m")


def test_a_server_may_close_a_connection_that_rested(monkeypatch: pytest.MonkeyPatch):
    """infinity closes one after five idle seconds; its next reply must not count as missing."""
    monkeypatch.setattr(server_peer, "KEEP_ALIVE_S", 0.0)
    with closing_peer(ServerPeer(lambda port: [*CLOSING_SERVER, str(port)], {}, "m")) as peer:
        for _ in range(3):
            peer.embed(["a"])
        assert peer.vectors(["a", "b"]).tolist() == [[0, 1], [1, 0]]


# --- texts and files ---------------------------------------------------------------------------


def test_texts_have_the_lengths_that_tokens_a_second_are_counted_by(case: ModelCase):
    """A text of another length would make every rate wrong by as much."""
    workloads, compared = workloads_of(case, None, 40)
    texts = Texts.of(case)
    for workload in workloads:
        counted = [sum(texts.count(request)) for request in workload.requests[:8]]
        assert counted == list(workload.n_tokens[:8])
        longest = max(max(texts.count(request)) for request in workload.requests)
        assert longest <= case.token_limit
    assert workloads[0].n_tokens[0] == 16
    assert len(workloads[3].requests[0]) == 40
    assert [len(request) for request in compared] == [64, LIST_TEXTS, LIST_TEXTS, *[1] * 6]


def test_a_text_too_long_is_cut_between_words(case: ModelCase):
    """llama.cpp refuses what does not fit, where others cut it."""
    texts = Texts.of(case)
    text = texts.made(100)
    cut = texts.within(text, 40)
    assert text.startswith(f"{cut} ")
    assert texts.count([cut])[0] <= 40


def test_peers_read_the_same_tokens_from_their_folder(case: ModelCase):
    """sentence-transformers and infinity tokenize by this file."""
    folder = transformers_folder(case)
    theirs = Tokenizer.from_file(str(folder / "tokenizer.json"))
    with closing(Sidecar(case.sidecar_folder)) as sidecar:
        ours = WordPieceTokenizer(read_vocabulary(sidecar.header.metadata))
    for text in ("Search the water model, 1999!", "naïve 水 x"):
        assert theirs.encode(text).ids == ours.tokenize([text], 512)[0].ids.tolist()
    assert json.loads((folder / "config.json").read_text())["model_type"] == "bert"
    assert transformers_folder(case) == folder


def test_weights_of_another_type_make_the_same_vectors_as_far_as_it_can(case: ModelCase):
    """llama.cpp gets the model in Q8_0 and F16, whatever type its file has."""
    other = make_ready(str(gguf_file(case, "F16")), lambda text: None, None)
    assert other.vocabulary == case.vocabulary
    assert gguf_file(other, "F16").samefile(gguf_file(case, "F16"))
    first, second = (np.fromfile(one.weights_path, np.float32) for one in (case, other))
    assert np.abs(first - second).max() < 0.01


# --- the command -------------------------------------------------------------------------------


def test_a_word_chooses_peers_beside_plimsoll():
    """And one that fits none is an error, not an empty table."""
    names = {kind.name for kind in chosen(["openvino F"])}
    assert names == {PLIMSOLL, ONE_CORE, "OpenVINO float32"}
    assert chosen([]) == list(PEERS)
    with pytest.raises(ValueError, match="no peer is called 'nothing'"):
        chosen(["nothing"])


def test_a_smoke_run_measures_a_tiny_model_beside_one_peer(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Every part once, with real processes."""
    for module in (server_peer, library_peer):
        monkeypatch.setattr(module, "SETTLE_S", 0.0)
    files = {name: tmp_path / f"peers.{name}" for name in ("json", "svg")}
    options = [f"--{name}={path}" for name, path in files.items()]
    short = ["--rounds=1", "--seconds=0.01", "--list-texts=4", "--threads=1"]

    done = CliRunner().invoke(
        main, ["bench", "peers", f"--model={tiny}", "--peer=padded", *short, *options]
    )

    assert done.exit_code == 0, done.output
    assert PADDED in done.stdout
    assert "linear scaling" in done.stdout
    (model,) = json.loads(files["json"].read_text())["models"]
    cosines = {one["peer"]: one["worst_cosine"] for one in model["peers"]}
    assert cosines.keys() == {PLIMSOLL, ONE_CORE, PADDED}
    assert min(cosines.values()) > 0.9999
    assert [one["problem"] for one in model["peers"]] == ["", "", ""]
    assert files["svg"].read_text().startswith("<svg")

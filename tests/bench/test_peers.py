"""Plimsoll beside other programs: a table that hides a loss, or a peer, would be worth nothing."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from pathlib import Path
from statistics import median
from xml.etree import ElementTree

import numpy as np
import pytest
from click.testing import CliRunner, Result
from tokenizers import Tokenizer

from plimsoll.bench.comparison.models import ModelCase, make_ready
from plimsoll.bench.comparison.processes import MeasurementError, MemoryWatch, on_processors
from plimsoll.bench.comparison.report import NOT_MEASURED
from plimsoll.bench.peers import infinity, llama_server, measure, plimsoll_server, server_peer
from plimsoll.bench.peers.catalog import IN_INT8, ONE_CORE, PADDED, PEERS, PLIMSOLL
from plimsoll.bench.peers.chart import chart
from plimsoll.bench.peers.command import PeerPlan, PeerPlanError
from plimsoll.bench.peers.gguf_file import gguf_file
from plimsoll.bench.peers.measure import (
    CPU,
    PEAK,
    START,
    WORST_COSINE,
    FigureName,
    figure_names,
    run_workload,
)
from plimsoll.bench.peers.peer import PeerKind, PeerUnavailableError, Start
from plimsoll.bench.peers.results import Measured, ModelResults
from plimsoll.bench.peers.server_peer import ServerPeer
from plimsoll.bench.peers.table import as_dict, table
from plimsoll.bench.peers.transformers_folder import transformers_folder
from plimsoll.bench.peers.workloads import (
    LIST_TEXTS,
    MIXED,
    MIXED_TEXTS,
    TOKENS_PER_S,
    Texts,
    Workload,
    workloads_of,
)
from plimsoll.cli.commands import main
from plimsoll.encoder.tokenizer import WordPieceTokenizer
from plimsoll.encoder.vocabulary import read_vocabulary
from plimsoll.sidecar.sidecar import Sidecar
from tests.running_server import DEADLINE_S, environment
from tests.synthetic import TINY_SHAPE, write_synthetic

RATE = FigureName(f"{MIXED}, {TOKENS_PER_S}", TOKENS_PER_S, lower_is_better=False)
MEMORY = FigureName(PEAK, "MiB")


# Closes each connection after its reply without a word; answers in the wrong order; "wait" never.
SERVER = (
    sys.executable,
    "-c",
    """
import http.server, json, sys, threading
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_POST(self):
        texts = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["input"]
        if texts == ["wait"]:
            threading.Event().wait()
        rows = [{"index": i, "embedding": [2 * i, 2 * (1 - i)]} for i in range(len(texts))]
        body = json.dumps({"data": rows[::-1]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        self.close_connection = True
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[2])), Handler).serve_forever()
""",
)


def unavailable(case: ModelCase, n_threads: int) -> Start:
    raise PeerUnavailableError("not installed here")


def measured(
    name: str, rates: Sequence[float], memory: Sequence[float] = (), **more: str
) -> Measured:
    """A peer with so many rounds."""
    rounds: dict[int, Mapping[str, float]] = {
        number: {RATE.name: rate, WORST_COSINE: 0.999} for number, rate in enumerate(rates)
    }
    for number, value in enumerate(memory):
        rounds[number] = {**rounds[number], MEMORY.name: value}
    kind = PeerKind(name, "REST", unavailable, variant=more.get("variant", ""))
    return Measured(kind, rounds, problem=more.get("problem", ""))


def results(*found: Measured) -> ModelResults:
    return ModelResults("a model", [RATE, MEMORY], found, n_cores=2)


def cells_of(shown: str, head: str) -> list[list[str]]:
    """The cells of a table with this first head, a list a row."""
    lines = iter(shown.splitlines())
    rows = next([line] for line in lines if line.startswith(f"| {head} "))
    for line in lines:
        if not line:
            break
        rows.append(line)
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows[2:]]


class FakePeer:
    """Remembers what it was asked; its process is this one."""

    def __init__(self) -> None:
        self.asked: list[Sequence[str]] = []
        self.closed = False
        self.watch = MemoryWatch(os.getpid())

    def embed(self, texts: Sequence[str]) -> None:
        self.asked.append(texts)

    def vectors(self, texts: Sequence[str]) -> np.ndarray:
        return np.eye(len(texts), dtype=np.float32)

    def close(self) -> None:
        self.watch.stop()
        self.closed = True


def kind_of(peer: FakePeer) -> PeerKind:
    return PeerKind("fake", "in process", lambda case, n_threads: lambda: peer)


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny model, with every cache in the test's own folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return write_synthetic(tmp_path / "tiny.gguf", arch="bert", shape=TINY_SHAPE)


@pytest.fixture
def unsettled(monkeypatch: pytest.MonkeyPatch) -> None:
    """No rest before memory is read."""
    monkeypatch.setattr(measure, "SETTLE_S", 0.0)


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


def test_the_brief_table_has_a_column_for_each_peer_and_losses_first():
    """It is the one for the documentation."""
    found = results(
        measured(PLIMSOLL, [100, 110], [50, 50]),
        measured("quick", [150, 170], [300, 300], variant="a"),
        measured("quick", [90, 90], [60, 60], variant="b"),
        measured("slow", [20, 20], [500, 500]),
    )
    shown = table({}, [found], brief=True)
    heads, _, *lines = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in shown.split("\n\n")[2].splitlines()
    ]
    assert heads == ["figure", PLIMSOLL, "quick", "slow"]
    assert lines[:2] == [
        [RATE.name, "105", "**160**", "20"],
        [f"{MEMORY.name}, MiB", "**50**", "60", "500"],
    ]


def test_a_row_shows_medians_and_spread_of_the_rounds_that_both_ran():
    """One slow round on a shared machine is not the result, and is not hidden either."""
    found = results(measured(PLIMSOLL, [100, 10, 120]), measured("peer", [50, 40]))

    (row,) = found.rows()

    assert row.figure.values == [100, 10]
    assert row.figure.ratio == median([100 / 50, 10 / 40])
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
    assert dict(cells_of(shown, "peer ")) == problems
    told = as_dict({}, {}, [found])["models"][0]["peers"]
    assert {one["peer"]: one["problem"] for one in told if one["problem"]}["absent"]


def test_what_has_no_ratio_is_no_loss():
    """A peer without a figure, or a figure of zero, was counted as a peer that is better."""
    found = results(measured(PLIMSOLL, [100], [0]), measured("peer", [50], [80]))
    shown = table({}, [found])
    (row,) = (row for row in found.rows() if row.figure.name == MEMORY.name)
    assert not row.peer_wins
    assert [cells[4] for cells in cells_of(shown, "figure")] == ["2 ×", NOT_MEASURED]
    told = as_dict({}, {}, [found])["models"][0]["rows"]
    assert [(one["ratio"], one["peer_wins"]) for one in told] == [(2, False), (None, False)]


def test_targets_are_held_against_their_own_baselines():
    """Each is a row with a verdict, also where it is missed or has no baseline."""
    found = results(
        measured(PLIMSOLL, [100], [50]),
        measured(ONE_CORE, [60], [50]),
        measured(PADDED, [25], [80]),
    )
    verdicts = {cells[0]: (cells[3], cells[6]) for cells in cells_of(table({}, [found]), "target")}
    assert verdicts == {
        "2.8 to 4.4 times the throughput of mixed lists": (PADDED, "pass"),
        "60 % less time to the first vector": (PADDED, NOT_MEASURED),
        "40 % less anonymous memory at its peak": (PADDED, "MISS"),
        "half the latency of one short text": (PADDED, NOT_MEASURED),
        "90% of 2 times the rate of one core on 2": (ONE_CORE, "MISS"),
    }
    assert [one["verdict"] for one in as_dict({}, {}, [found])["models"][0]["targets"]] == [
        verdict for _, verdict in verdicts.values()
    ]
    assert ONE_CORE not in {row.figure.peer for row in found.rows()}


def test_int8_has_rows_of_its_own_beside_float32_and_every_peer():
    """It is no peer of ours that we lose to, and no vector of float32's."""
    found = results(
        measured(PLIMSOLL, [100]),
        measured(IN_INT8, [150]),
        measured(ONE_CORE, [60]),
        measured("peer", [50]),
    )

    assert [row.figure.peer for row in found.rows()] == ["peer"]
    assert {row.figure.peer: row.figure.ratio for row in found.rows(IN_INT8)} == {
        PLIMSOLL: 1.5,
        "peer": 3,
    }
    shown = table({}, [found])
    assert "a model, in int8" in shown
    assert "in int8" not in table({}, [results(measured(PLIMSOLL, [100]), measured("peer", [50]))])
    told = as_dict({}, {}, [found])["models"][0]
    assert len(told["rows"]) == 1
    assert len(told["rows_in_int8"]) == 2


def test_the_ratios_of_several_rounds_tell_how_far_they_scatter():
    """Their standard deviation over their mean; one round says nothing of it."""
    (row,) = results(measured(PLIMSOLL, [100, 110]), measured("peer", [50, 50])).rows()
    (lone,) = results(measured(PLIMSOLL, [100]), measured("peer", [50])).rows()

    assert row.figure.as_dict()["variation"] == pytest.approx(0.0673, abs=1e-4)
    assert lone.figure.variation is None


def test_the_chart_is_a_drawing_with_a_bar_for_every_peer():
    """It stands in the documentation, where a broken one shows nothing."""
    drawing = chart([results(measured(PLIMSOLL, [100]), measured("<peer> & co", [40]))])
    root = ElementTree.fromstring(drawing)
    names = [element.text for element in root.iter() if element.text]
    assert "<peer> & co" in names
    assert "40, cosine 0.99900" in names
    assert len(root.findall("{http://www.w3.org/2000/svg}rect")) == 2


# --- measuring ---------------------------------------------------------------------------------


def test_a_workload_of_one_pass_sends_every_request_once():
    """A list of 2,000 is measured whole, however short the time of the others."""
    peer = FakePeer()
    requests = [["a"], ["b"], ["c"]]
    workload = Workload("list", requests, [3, 4, 5], 2, (TOKENS_PER_S,), once=True)

    figures = run_workload(peer, workload, 0.0)
    peer.close()

    assert sorted(peer.asked) == requests
    assert list(figures) == ["list, tokens/s"]


def test_a_peer_is_ended_also_when_it_breaks_off():
    """A server left behind would slow down every peer after it."""
    peer = FakePeer()
    peer.embed = lambda texts: (_ for _ in ()).throw(MeasurementError("it died"))  # type: ignore[method-assign]
    workload = Workload("one", [["a"]], [3], 1, (TOKENS_PER_S,))
    with pytest.raises(MeasurementError, match="it died"):
        measure_once(kind_of(peer), [workload])
    assert peer.closed


def measure_once(
    kind: PeerKind,
    workloads: Sequence[Workload],
    compared: Sequence[Sequence[str]] = (),
    reference: np.ndarray | None = None,
) -> dict[str, float]:
    """A round without a model, and no longer than it must be."""
    return measure.measure(
        kind, None, workloads, n_threads=1, seconds=0.0, compared=compared, reference=reference
    )


@pytest.mark.usefixtures("unsettled")
def test_a_peer_starts_when_its_files_are_there(monkeypatch: pytest.MonkeyPatch):
    """llama-server was charged with the seconds in which Plimsoll reads a GGUF file for it."""
    now_s = 0.0

    def ready(case: ModelCase, n_threads: int) -> Start:
        nonlocal now_s
        now_s += 100

        def start() -> FakePeer:
            nonlocal now_s
            now_s += 2
            return FakePeer()

        return start

    monkeypatch.setattr(measure, "perf_counter", lambda: now_s)
    assert measure_once(PeerKind("peer", "REST", ready), [])[START] == 2


@pytest.mark.usefixtures("unsettled")
def test_every_named_figure_is_measured():
    """A figure without a value would drop its row in silence."""
    peer = FakePeer()
    workloads = [Workload(MIXED, [["a", "b"]], [6], 1, (TOKENS_PER_S,))]
    reference = np.array([[1.0, 0.0], [0.6, 0.8]])

    found = measure_once(kind_of(peer), workloads, [["a", "b"]], reference)

    names = {name.name for name in figure_names(workloads)}
    assert found.keys() == names | {WORST_COSINE}
    assert CPU in found
    assert found[WORST_COSINE] == pytest.approx(0.8)


def test_a_server_that_does_not_start_says_its_last_words():
    """The row of a peer that failed has to name the cause."""
    command = [sys.executable, "-c", "raise SystemExit('no such model')"]
    with pytest.raises(MeasurementError, match="the server ended: no such model"):
        ServerPeer(command, {}, "m")


def test_a_server_may_close_a_connection_that_rested(monkeypatch: pytest.MonkeyPatch):
    """infinity closes one after five idle seconds; its next reply must not count as missing."""
    monkeypatch.setattr(server_peer, "KEEP_ALIVE_S", 0.0)
    with closing(ServerPeer(SERVER, {}, "m")) as peer:
        for _ in range(3):
            peer.embed(["a"])
        assert peer.vectors(["a", "b"]).tolist() == [[0, 1], [1, 0]]


# --- threads and processors --------------------------------------------------------------------


def test_padded_onnx_runtime_has_as_many_threads_as_every_peer(case: ModelCase):
    """It took all cores, whatever `--threads` said."""
    (padded,) = (kind for kind in PEERS if kind.name == PADDED)

    def n_threads_of(n_threads: int) -> int:
        with closing(padded.ready(case, n_threads)()) as peer:
            return len(list(Path(f"/proc/{peer.watch.pid}/task").iterdir()))

    assert n_threads_of(4) - n_threads_of(1) == 3


def test_processors_are_chosen_from_those_that_may_be_used(monkeypatch: pytest.MonkeyPatch):
    """Processor 0 need not be one of them, as in a container with a cpuset."""
    held: list[list[int]] = []
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {7, 5, 2})
    monkeypatch.setattr(os, "sched_setaffinity", lambda pid, cpus: held.append(sorted(cpus)))
    with on_processors(2) as chosen:
        assert chosen == [2, 5]
    assert held == [[2, 5], [2, 5, 7]]


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="there is one processor")
def test_one_core_of_the_run_is_what_scaling_is_measured_by(
    case: ModelCase, monkeypatch: pytest.MonkeyPatch
):
    """And the processors of the run are as they were after its start."""
    monkeypatch.setattr(plimsoll_server, "ServerPeer", lambda *given: os.sched_getaffinity(0))
    before = os.sched_getaffinity(0)
    assert plimsoll_server.ready_on_one_core(case, 2)() == {min(before)}
    assert os.sched_getaffinity(0) == before


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("import os; os.kill(os.getpid(), 9)", "`plimsoll pull` ended with -9"),
        ("import sys; sys.exit('half of it\\nno int8 here')", "no int8 here"),
    ],
)
def test_codes_that_cannot_be_made_are_the_problem_of_that_peer_alone(
    case: ModelCase, monkeypatch: pytest.MonkeyPatch, script: str, reason: str
):
    """A command that the kernel ends says nothing, and the others are measured all the same."""
    monkeypatch.setattr(plimsoll_server, "PLIMSOLL", (sys.executable, "-c", script))
    with pytest.raises(PeerUnavailableError, match=f"^{reason}$"):
        plimsoll_server.ready_in_int8(case, 2)


# --- the end of a run --------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_run_that_is_ended_leaves_no_process_behind(tmp_path: Path, number: signal.Signals):
    """A server that went on would slow down whatever is measured next."""
    script = tmp_path / "run.py"
    script.write_text(f"""
import os
from contextlib import closing
from plimsoll.bench.comparison.processes import ended_by_signals
from plimsoll.bench.peers.measure import run_workload
from plimsoll.bench.peers.server_peer import ServerPeer
from plimsoll.bench.peers.workloads import Workload
ask = ServerPeer.embed
def embed(peer, texts):
    if texts == ["wait"]:
        os.write(1, b"%d\\n" % peer.watch.pid)  # whole, though two threads write
    ask(peer, texts)
ServerPeer.embed = embed
with ended_by_signals(), closing(ServerPeer({SERVER!r}, {{}}, "m")) as peer:
    run_workload(peer, Workload("endless", [["wait"]] * 2, [4, 4], 2, (), once=True), 0.0)
""")
    run = subprocess.Popen(
        [sys.executable, script],
        stdout=subprocess.PIPE,
        text=True,
        env=environment(),
        # Tests that run under nohup ignore SIGHUP, and what they start would too.
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),
    )
    with run:
        assert run.stdout is not None
        pid = int(run.stdout.readline())
        run.send_signal(number)
        try:
            assert run.wait(DEADLINE_S) == 128 + number
            assert not Path(f"/proc/{pid}").exists()
        finally:
            run.kill()
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


# --- texts and files ---------------------------------------------------------------------------


def test_texts_have_the_lengths_that_tokens_a_second_are_counted_by(case: ModelCase):
    """A text of another length would make every rate wrong by as much."""
    theirs = Tokenizer.from_file(str(transformers_folder(case) / "tokenizer.json"))
    workloads, compared = workloads_of(case, (), 40)
    for workload in workloads:
        found = [[len(one.ids) for one in theirs.encode_batch(r)] for r in workload.requests]
        assert list(map(sum, found)) == workload.n_tokens
        assert max(map(max, found)) <= case.token_limit
    assert workloads[0].n_tokens[0] == 16
    assert len(workloads[3].requests[0]) == 40
    assert [len(request) for request in compared] == [64, LIST_TEXTS, LIST_TEXTS, *[1] * 6]


def test_a_text_too_long_is_cut_between_words(case: ModelCase):
    """llama.cpp refuses what does not fit, where others cut it."""
    texts = Texts.of(case)
    text = texts.made(100)
    cut = texts.within(text, 40)
    assert cut.split() == text.split()[:38]  # between [CLS] and [SEP]


def test_peers_read_the_same_tokens_from_their_folder(case: ModelCase):
    """sentence-transformers and infinity tokenize by this file."""
    folder = transformers_folder(case)
    theirs = Tokenizer.from_file(str(folder / "tokenizer.json"))
    with closing(Sidecar(case.sidecar_folder)) as sidecar:
        ours = WordPieceTokenizer(read_vocabulary(sidecar.header.metadata))
    for text in ("Search the water model, 1999!", "naïve 水 x"):
        assert theirs.encode(text).ids == ours.tokenize([text], 512)[0].ids.tolist()
    assert json.loads((folder / "config.json").read_text())["model_type"] == "bert"


def test_weights_of_another_type_make_the_same_vectors_as_far_as_it_can(case: ModelCase):
    """llama.cpp gets the model in Q8_0 and F16, whatever type its file has."""
    other = make_ready(str(gguf_file(case, "F16")), lambda text: None, None)
    assert other.vocabulary == case.vocabulary
    assert gguf_file(other, "F16").samefile(gguf_file(case, "F16"))
    first, second = (
        np.fromfile(one.sidecar_folder / "weights.f32", np.float32) for one in (case, other)
    )
    assert np.corrcoef(first, second)[0, 1] > 0.9999
    assert not np.array_equal(first, second)


@pytest.mark.parametrize(
    ("kind", "program", "made"),
    [
        (next(llama_server.kinds()), llama_server._program, ".Q8_0.gguf"),
        (infinity.kind(), infinity._program, ".transformers"),
    ],
)
def test_a_server_is_ready_when_its_files_are_made(case: ModelCase, kind, program, made):
    """Making them counted as its start."""
    program().parent.mkdir(parents=True)
    program().touch()
    kind.ready(case, 1)
    assert case.naive_path.with_suffix(made).exists()


def test_the_sources_of_llama_server_are_pinned(case: ModelCase, monkeypatch: pytest.MonkeyPatch):
    """Another version, or another archive under its name, would be built and run."""
    asked: list[str] = []

    def pip(*command: str | Path) -> None:
        asked.append(Path(command[-1]).read_text())

    monkeypatch.setattr(llama_server, "run_group", pip)
    archive = llama_server._archive()
    assert asked == [
        f"llama-cpp-python=={llama_server.VERSION} --hash=sha256:{llama_server.SHA256}\n"
    ]
    assert llama_server.VERSION in archive.name


# --- the command -------------------------------------------------------------------------------


def test_a_word_chooses_peers_beside_plimsoll():
    """And one that fits none is an error, not an empty table."""
    names = {kind.name for kind in PeerPlan(["builtin"], ["openvino F"]).kinds}
    assert names == {PLIMSOLL, ONE_CORE, "OpenVINO float32"}
    assert PeerPlan(["builtin"]).kinds == list(PEERS)
    with pytest.raises(PeerPlanError, match="no peer is called 'nothing'"):
        PeerPlan(["builtin"], ["nothing"])


def test_a_mistake_in_the_options_is_told_and_an_error_of_the_program_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Any ValueError on the way was told as a wrong option."""
    texts = tmp_path / "texts.jsonl"
    texts.write_text('{"text": "a ship"}\n')

    def broken(plan: PeerPlan) -> None:
        raise ValueError("a bug")

    def run(*options: str) -> Result:
        return CliRunner().invoke(main, ["bench", "peers", *options])

    few, unknown = run("--texts", str(texts)), run("--peer", "nothing")
    synthetic = run("--model", "synthetic")
    monkeypatch.setattr("plimsoll.bench.peers.command.run_and_report", broken)
    bug = run()
    assert {few.exit_code, unknown.exit_code, synthetic.exit_code} == {2}
    assert "measure another with --model" in synthetic.stderr
    assert f"1 texts are too few: it takes {MIXED_TEXTS}" in few.stderr
    assert "no peer is called 'nothing'" in unknown.stderr
    assert str(bug.exception) == "a bug"


@pytest.mark.usefixtures("unsettled")
def test_a_smoke_run_measures_a_tiny_model_beside_one_peer(tiny: Path, tmp_path: Path):
    """Every part once, with real processes; on one core there is no scaling to measure."""
    files = {name: tmp_path / f"peers.{name}" for name in ("json", "svg")}
    options = [f"--{name}={path}" for name, path in files.items()]
    short = ["--rounds=1", "--seconds=0.01", "--list-texts=4", "--threads=1"]

    done = CliRunner().invoke(
        main, ["bench", "peers", f"--model={tiny}", "--peer=padded", *short, *options]
    )

    assert done.exit_code == 0, done.output
    assert PADDED in {cells[3] for cells in cells_of(done.stdout, "figure")}
    assert [cells[0] for cells in cells_of(done.stdout, "peer ")] == [ONE_CORE]
    assert cells_of(done.stdout, "target")[-1][6] == NOT_MEASURED
    (model,) = json.loads(files["json"].read_text())["models"]
    cosines = {one["peer"]: one["worst_cosine"] for one in model["peers"]}
    assert cosines.pop(ONE_CORE) is None
    assert cosines.keys() == {PLIMSOLL, PADDED}
    assert min(cosines.values()) > 0.9999
    assert files["svg"].read_text().startswith("<svg")

"""The pipeline's stages, with sources and sinks in memory that fail as they are told."""

import errno
import hashlib
import os
import threading

import gguf
import numpy as np
import pytest
import xxhash
from gguf.quants import quantize

from plimsoll.errors import GGUFError, GGUFTruncatedError, ModelLoadError
from plimsoll.gguf.reader import TensorInfo
from plimsoll.gguf.types import GGMLType
from plimsoll.sidecar import pipeline, sinks
from plimsoll.sidecar.index import CHUNK_BYTES
from plimsoll.sidecar.pipeline import PIECE_BYTES, Pipeline, TensorJob
from plimsoll.sidecar.read_ahead import MIN_BYTES, ReadAhead
from plimsoll.sidecar.sinks import FileSink
from tests.gguf_weights import ends, random_tensors

TIMEOUT_S = 60.0


class Source:
    """Bytes in memory; `fault` is called with each offset before it is read."""

    def __init__(self, data, fault=lambda offset: None):
        self.data = data
        self.fault = fault
        self.n_reads = 0

    def readinto_at(self, offset, buffer):
        self.fault(offset)
        self.n_reads += 1
        buffer[:] = self.data[offset : offset + len(buffer)]


class Sink:
    """Keeps what is written; `fault` is called with each offset before."""

    def __init__(self, n_bytes, fault=lambda offset: None):
        self.data = bytearray(n_bytes)
        self.fault = fault
        self.n_writes = 0

    def write_at(self, offset, data):
        self.fault(offset)
        self.n_writes += 1
        self.data[offset : offset + len(data)] = data

    def flush(self):
        pass


class Plan:
    """Random tensors, quantized, one after another; and what they must become."""

    def __init__(self, quant="F32", seed=0):
        kind = gguf.GGMLQuantizationType[quant]
        self.source = b""
        self.expected = b""
        self.jobs = []
        for name, values in random_tensors(seed).items():
            encoded = quantize(values, kind)
            offset = len(self.source)
            info = TensorInfo(name, values.shape, GGMLType[quant], offset, encoded.nbytes)
            self.jobs.append(TensorJob(info, len(self.expected)))
            self.source += encoded.tobytes()
            self.expected += gguf.dequantize(encoded, kind).tobytes()

    def job(self, name):
        return next(job for job in self.jobs if job.tensor.name == name)

    def pipeline(self, source=None, sink=None, *, under_pressure=lambda: False, progress=None):
        self.sink = sink or Sink(len(self.expected))
        return Pipeline(
            source or Source(self.source),
            self.sink,
            n_workers=2,
            under_pressure=under_pressure,
            progress=progress or (lambda: None),
        )


@pytest.fixture(autouse=True)
def no_threads_stay():
    """A stage that outlives its load would hold memory and a file for ever."""
    yield
    assert [thread for thread in threading.enumerate() if thread.name.startswith("gguf-")] == []


def raising(error):
    def fault(*_):
        raise error

    return fault


def failing(error, times):
    """Raise `error` that many times, then work."""
    left = [times]

    def fault(*_):
        if left[0]:
            left[0] -= 1
            raise error

    return fault


class TestProduct:
    @pytest.mark.parametrize("quant", ["F32", "F16", "BF16", "Q8_0", "Q4_0"])
    @pytest.mark.parametrize("piece_bytes", [CHUNK_BYTES, PIECE_BYTES])
    def test_values_are_those_of_gguf_py(self, quant, piece_bytes):
        """Pieces of any size must come together without gap or overlap."""
        plan = Plan(quant)
        assert plan.pipeline().run(plan.jobs, piece_bytes) == {}
        assert plan.sink.data == plan.expected

    def test_every_chunk_has_the_checksum_of_what_was_written(self):
        """They are all that tells a damaged weight from a good one later."""
        plan = Plan("Q8_0")
        plan.pipeline().run(plan.jobs, PIECE_BYTES)
        for job in plan.jobs:
            data = plan.expected[job.target_offset : job.target_offset + job.target_bytes]
            sums = [
                xxhash.xxh3_64_digest(data[i : i + CHUNK_BYTES])
                for i in range(0, len(data), CHUNK_BYTES)
            ]
            assert bytes(job.checksums) == b"".join(sums)

    def test_every_tensor_has_the_hash_of_its_source(self):
        """It goes into the name of the vector space."""
        plan = Plan("Q8_0")
        plan.pipeline().run(plan.jobs, PIECE_BYTES)
        for job in plan.jobs:
            tensor = job.tensor
            data = plan.source[tensor.offset : tensor.offset + tensor.n_bytes]
            assert job.source_sha256 == hashlib.sha256(data).digest()

    def test_what_was_written_is_counted(self):
        """Progress is read from these counts, and a lost piece is found by them."""
        plan = Plan()
        told = []
        total = lambda: told.append(sum(job.written_bytes for job in plan.jobs))  # noqa: E731
        plan.pipeline(progress=total).run(plan.jobs, PIECE_BYTES)
        assert told == sorted(told)
        assert told[-1] == len(plan.expected)

    def test_queues_of_one_piece_do_not_hang(self, monkeypatch):
        """No stage may wait for one that waits for it."""
        monkeypatch.setattr(pipeline, "QUEUE_PIECES", 1)
        plan = Plan("Q8_0")
        assert ends(lambda: plan.pipeline().run(plan.jobs, CHUNK_BYTES)) == {}
        assert plan.sink.data == plan.expected


class TestRetry:
    def test_a_read_that_fails_costs_only_its_own_tensor(self):
        """One bad sector must not make the whole file be read again."""
        plan = Plan()
        broken = plan.job("blk.0.attn_qkv.weight")
        error = OSError(errno.EIO, "bad sector")
        once = failing(error, 1)
        source = Source(plan.source, lambda offset: offset == broken.tensor.offset and once(offset))
        line = plan.pipeline(source)
        assert line.run(plan.jobs, PIECE_BYTES) == {"blk.0.attn_qkv.weight": error}
        n_reads = source.n_reads
        assert line.run([broken], CHUNK_BYTES) == {}
        assert source.n_reads - n_reads == 3  # 768 KiB in chunks
        assert plan.sink.data == plan.expected

    def test_a_read_error_of_the_file_is_worth_a_retry(self):
        """FileSource wraps what the system says; the cause decides."""
        plan = Plan()
        error = GGUFError("cannot be read", offset=0)
        error.__cause__ = OSError(errno.EIO, "bad sector")
        source = Source(plan.source, raising(error))
        failed = plan.pipeline(source).run(plan.jobs, PIECE_BYTES)
        assert set(failed) == {job.tensor.name for job in plan.jobs}

    def test_a_tensor_that_is_tried_again_is_counted_anew(self):
        """What a first attempt wrote of it must not be counted twice."""
        plan = Plan()
        broken = plan.job("token_embd.weight")
        once = failing(OSError(errno.EIO, "bad sector"), 1)
        sink = Sink(
            len(plan.expected),
            lambda offset: offset == broken.target_offset + CHUNK_BYTES and once(),
        )
        line = plan.pipeline(sink=sink)
        assert list(line.run(plan.jobs, CHUNK_BYTES)) == ["token_embd.weight"]
        assert broken.written_bytes < broken.target_bytes  # pieces come in any order
        assert line.run([broken], CHUNK_BYTES) == {}
        assert broken.written_bytes == broken.target_bytes

    @pytest.mark.parametrize("stage", ["dequantize", "chunk_checksums"])
    def test_memory_that_ran_out_is_worth_a_retry(self, monkeypatch, stage):
        """A smaller piece may fit where a larger one did not."""
        plan = Plan("Q8_0")
        work = getattr(pipeline, stage)
        fault = failing(MemoryError(), 1)
        monkeypatch.setattr(pipeline, stage, lambda *a: (fault(), work(*a))[1])
        line = plan.pipeline()
        failed = line.run(plan.jobs, PIECE_BYTES)
        assert len(failed) == 1
        assert line.run([plan.job(name) for name in failed], CHUNK_BYTES) == {}
        assert plan.sink.data == plan.expected

    def test_what_failed_holds_no_memory(self):
        """Where memory is short, the record of it must not keep the pieces alive."""
        plan = Plan()
        sink = Sink(len(plan.expected), raising(OSError(errno.EIO, "bad sector")))
        failed = plan.pipeline(sink=sink).run(plan.jobs, PIECE_BYTES)
        assert [error.__traceback__ for error in failed.values()] == [None] * len(plan.jobs)


class TestRefusal:
    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    def test_a_value_that_is_not_finite_is_named(self, value):
        """One NaN in a weight makes every vector NaN; the user must learn that it is the file."""
        plan = Plan()
        offset = plan.job("blk.1.attn_qkv.weight").tensor.offset + 4 * 150_000
        damaged = plan.source[:offset] + np.float32(value).tobytes() + plan.source[offset + 4 :]
        with pytest.raises(ModelLoadError, match=r"blk\.1\.attn_qkv\.weight .* element 150000"):
            plan.pipeline(Source(damaged)).run(plan.jobs, PIECE_BYTES)

    def test_a_wrong_number_of_values_is_refused(self, monkeypatch):
        """A layout that is a little off must not shift the weights."""
        plan = Plan()
        expand = pipeline.dequantize
        monkeypatch.setattr(pipeline, "dequantize", lambda *a: expand(*a)[:-1])
        with pytest.raises(ModelLoadError, match="values, not"):
            plan.pipeline().run(plan.jobs, PIECE_BYTES)

    def test_a_file_that_is_too_short_is_not_tried_again(self):
        """It will not grow."""
        plan = Plan()
        error = GGUFTruncatedError("ends", offset=7)
        with pytest.raises(GGUFTruncatedError):
            plan.pipeline(Source(plan.source, raising(error))).run(plan.jobs, PIECE_BYTES)

    @pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
    def test_a_full_disk_is_not_tried_again(self, code):
        """It will not empty itself within our patience, and others need it too."""
        plan = Plan()
        sink = Sink(len(plan.expected), raising(OSError(code, "full")))
        with pytest.raises(OSError, match="full"):
            plan.pipeline(sink=sink).run(plan.jobs, PIECE_BYTES)

    def test_a_piece_that_is_lost_is_missed(self, monkeypatch):
        """A hole of zeros must never be taken for weights."""
        plan = Plan()
        write = Pipeline._write

        def forgetful(self, piece):
            if piece.start_element == 0:
                write(self, piece)

        monkeypatch.setattr(Pipeline, "_write", forgetful)
        with pytest.raises(ModelLoadError, match="bytes were written"):
            plan.pipeline().run(plan.jobs, PIECE_BYTES)


class TestEnd:
    """After any error in any stage, the run ends and so do its threads."""

    ERRORS = (OSError(errno.EIO, "io"), MemoryError(), RuntimeError("a bug"), KeyboardInterrupt())

    @pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
    @pytest.mark.parametrize("n_before", [0, 3])
    @pytest.mark.parametrize(
        "where", ["read", "expand", "validate", "write", "progress", "pressure"]
    )
    def test_an_error_ends_the_run(self, monkeypatch, where, n_before, error):
        """A load that hangs holds its lock, and with it every other process."""
        plan = Plan("Q8_0")
        left = [n_before]

        def fault(*_):
            if left[0] > 0:
                left[0] -= 1
            else:
                raise error

        asked = threading.Event()

        def pressure():
            asked.set()
            fault()
            return False

        if where in ("expand", "validate"):
            stage = {"expand": "dequantize", "validate": "chunk_checksums"}[where]
            work = getattr(pipeline, stage)
            monkeypatch.setattr(pipeline, stage, lambda *a: (fault(), work(*a))[1])
        if where == "pressure":
            left[0] = 0
        line = plan.pipeline(
            # Nothing is read before memory was looked at, or the run might end before.
            Source(plan.source, fault if where == "read" else lambda _: asked.wait(TIMEOUT_S)),
            Sink(len(plan.expected), fault if where == "write" else lambda _: None),
            under_pressure=pressure if where == "pressure" else lambda: asked.set() or False,
            progress=fault if where == "progress" else None,
        )
        retried = isinstance(error, OSError | MemoryError)
        if retried and where not in ("progress", "pressure"):
            assert ends(lambda: line.run(plan.jobs, CHUNK_BYTES))
        else:
            with pytest.raises(type(error)):
                ends(lambda: line.run(plan.jobs, CHUNK_BYTES))

    @pytest.mark.parametrize("n_started", range(5))
    def test_threads_that_cannot_be_started_end_the_run(self, monkeypatch, n_started):
        """A limit on processes may strike at any of them; those that run must be ended."""
        plan = Plan()
        start = threading.Thread.start
        left = [n_started]

        def limited(thread):
            if thread.name.startswith("gguf-"):
                if not left[0]:
                    raise RuntimeError("can't start new thread")
                left[0] -= 1
            start(thread)

        monkeypatch.setattr(threading.Thread, "start", limited)
        with pytest.raises(RuntimeError, match="can't start"):
            ends(lambda: plan.pipeline().run(plan.jobs, PIECE_BYTES))

    @pytest.mark.parametrize(
        ("queue_pieces", "room", "n_ahead"), [(1, ReadAhead, 6), (16, lambda: ReadAhead(1), 1)]
    )
    def test_an_error_between_two_stages_ends_the_run(
        self, monkeypatch, queue_pieces, room, n_ahead
    ):
        """Memory may run out where no tensor is at fault; the others must not wait for it.

        First the queues are full when it happens, then there is no room for another piece.
        """
        monkeypatch.setattr(pipeline, "QUEUE_PIECES", queue_pieces)
        monkeypatch.setattr(pipeline, "ReadAhead", room)
        monkeypatch.setattr(Pipeline, "_fail", raising(MemoryError()))
        plan = Plan()
        source, is_ahead = Source(plan.source), threading.Event()
        source.fault = lambda _: source.n_reads >= n_ahead - 1 and is_ahead.set()

        def fail_late(_):
            is_ahead.wait(TIMEOUT_S)
            raise OSError(errno.EIO, "io")

        line = plan.pipeline(source, Sink(len(plan.expected), fail_late))
        with pytest.raises(MemoryError):
            ends(lambda: line.run(plan.jobs, CHUNK_BYTES))


class TestMemory:
    def test_the_reader_runs_ahead_while_there_is_memory(self):
        """Stages that waited for each other would add up their times."""
        plan = Plan()
        source, far_ahead = Source(plan.source), threading.Event()
        source.fault = lambda _: source.n_reads > 6 and far_ahead.set()
        sink = Sink(len(plan.expected), lambda _: far_ahead.wait(TIMEOUT_S))
        assert ends(lambda: plan.pipeline(source, sink).run(plan.jobs, CHUNK_BYTES)) == {}
        assert far_ahead.is_set()

    def test_memory_pressure_slows_the_reader(self):
        """Above the line one piece at a time goes through: slow, and never stalled."""
        plan = Plan()
        looked = threading.Semaphore(0)
        ahead = []

        def fault(offset):
            if offset == 0:  # until the reader has been held back
                looked.acquire(timeout=TIMEOUT_S)
                looked.acquire(timeout=TIMEOUT_S)
            ahead.append(source.n_reads - sink.n_writes)

        source, sink = Source(plan.source, fault), Sink(len(plan.expected))

        def pressed():
            looked.release()
            return True

        line = plan.pipeline(source, sink, under_pressure=pressed)
        assert ends(lambda: line.run(plan.jobs, PIECE_BYTES)) == {}
        assert plan.sink.data == plan.expected
        # A piece is one mebibyte, read and expanded; small ones may go two at a time.
        assert max(ahead) <= 3

    def test_reading_waits_for_room(self):
        """The limit is on bytes in flight, not on hope."""
        room, seen = ReadAhead(10), []
        room.acquire(8)
        thread = threading.Thread(target=lambda: (room.acquire(4), seen.append(released)))
        released = False
        thread.start()
        released = True
        room.release(8)
        thread.join(TIMEOUT_S)
        assert seen == [True]
        assert room.in_flight_bytes == 4

    def test_a_piece_larger_than_the_limit_passes_alone(self):
        """A load that is slow is better than one that never ends."""
        room = ReadAhead(10)
        room.acquire(100)
        assert room.in_flight_bytes == 100

    def test_pressure_is_felt_at_once_and_forgotten_slowly(self):
        """Halving from the maximum would take seconds to reach what is really in flight."""
        room = ReadAhead(64 * MIN_BYTES)
        room.acquire(8 * MIN_BYTES)
        room.adapt(under_pressure=True)
        assert room.allowed_bytes == 4 * MIN_BYTES
        for _ in range(9):
            room.adapt(under_pressure=True)
        assert room.allowed_bytes == MIN_BYTES
        room.adapt(under_pressure=False)
        assert room.allowed_bytes == 2 * MIN_BYTES
        for _ in range(9):
            room.adapt(under_pressure=False)
        assert room.allowed_bytes == 64 * MIN_BYTES


class TestFileSink:
    @pytest.fixture
    def file(self, tmp_path):
        with (tmp_path / "weights").open("w+b") as file:
            yield file

    def test_it_flushes_as_it_goes(self, file, monkeypatch):
        """Pages that the disk does not have yet count as memory in use."""
        flushed = []
        monkeypatch.setattr(sinks, "FLUSH_BYTES", 8)
        monkeypatch.setattr(sinks, "_sync_data", flushed.append)
        sink = FileSink(file.fileno())
        for i in range(4):
            sink.write_at(4 * i, memoryview(b"data"))
        assert len(flushed) == 2
        assert os.pread(file.fileno(), 20, 0) == b"data" * 4

    def test_a_disk_that_fails_in_a_flush_ends_the_load(self, file, monkeypatch):
        """The kernel forgets which pages it lost: writing one tensor again would mend nothing."""
        monkeypatch.setattr(sinks, "_sync_data", raising(OSError(errno.EIO, "gone")))
        with pytest.raises(ModelLoadError, match="gone"):
            FileSink(file.fileno()).flush()

    def test_a_disk_that_fills_up_in_a_flush_is_told_as_such(self, file, monkeypatch):
        """File systems that allocate late find out here."""
        monkeypatch.setattr(sinks, "_sync_data", raising(OSError(errno.ENOSPC, "full")))
        with pytest.raises(OSError, match="full"):
            FileSink(file.fileno()).flush()

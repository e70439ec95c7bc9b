"""A hook that is a process: JSON on its standard input, an exit code or a line of JSON back.

No shell, and nothing of this server's environment, which may hold keys. The process begins a group
of its own, all of which is ended when it has answered, when its time is over, and when its caller
has gone. A server that is killed ends it not: it may then run beside the next attempt.
"""

import asyncio
import os
import shutil
import signal
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from tempfile import TemporaryFile
from typing import IO, Any

import orjson

from plimsoll.errors import HookError
from plimsoll.migration.hooks.occasion import Occasion
from plimsoll.migration.hooks.records import Answer

CLEAN_ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
                     "LANG": "C.UTF-8"}  # fmt: skip
# A hook that says more is not read on: it is one line, and the end of what it complains of.
MOST_ANSWER_BYTES = 8 << 10
# The audit is read by people.
MOST_REASON_CHARACTERS = 1000
# Between the polite signal and the other one, and for an output that outlives its process.
GRACE_S = 2.0
_FIELDS = {"ok", "reason", "figures"}


class CommandHook:
    """Asks one command. argv: the program and its arguments. environment: all that it inherits
    beside a search path and a language. no_answer: an exit code that is neither yes nor no.
    """

    def __init__(
        self,
        argv: Sequence[str],
        environment: Mapping[str, str],
        no_answer: int | None = None,
    ) -> None:
        self._argv = [*argv]
        self._no_answer = no_answer
        self._environment = {**CLEAN_ENVIRONMENT, **environment}

    async def __call__(self, occasion: Occasion) -> Answer:
        """Start it, wait for its end and read its answer. Raises HookError."""
        code, told, complaint = await self._run(orjson.dumps(occasion.as_json()) + b"\n")
        if code == self._no_answer:
            raise HookError(_last_words(complaint) or f"exit code {code}")
        return answer_of(code, told, complaint)

    async def _run(self, question: bytes) -> tuple[int, bytes, bytes]:
        async with AsyncExitStack() as stack:
            output, complaints = [await stack.enter_async_context(_pipe()) for _ in range(2)]
            process = await self._start(question, output.write_end, complaints.write_end)
            stack.push_async_callback(_end, process)
            for pipe in (output, complaints):
                pipe.write_end.close()
            read = asyncio.gather(_first(output.reader), _last(complaints.reader))
            stack.callback(read.cancel)
            code = await process.wait()
            _end_group(process.pid, signal.SIGKILL)  # what it left behind holds the pipes open
            # What made a session of its own may hold them still: what was told by then is all.
            _, unread = await asyncio.wait((read,), timeout=GRACE_S)
            if unread:
                for pipe in (output, complaints):
                    pipe.transport.close()
            return code, *await read

    async def _start(
        self, question: bytes, output: IO[bytes], complaints: IO[bytes]
    ) -> asyncio.subprocess.Process:
        program = shutil.which(self._argv[0], path=self._environment.get("PATH", ""))
        if program is None:
            raise HookError(f"{self._argv[0]!r} is no program that this server may run")
        # A file, and no pipe: a process that does not read holds nothing up.
        with TemporaryFile() as asked:
            asked.write(question)
            asked.seek(0)
            try:
                return await asyncio.create_subprocess_exec(
                    program,
                    *self._argv[1:],
                    stdin=asked,
                    stdout=output,
                    stderr=complaints,
                    env=self._environment,
                    cwd="/",
                    start_new_session=True,
                )
            except OSError as error:
                raise HookError(f"{self._argv[0]!r} does not start: {error.strerror}") from error


@dataclass(frozen=True)
class _Pipe:
    reader: asyncio.StreamReader
    transport: asyncio.ReadTransport
    write_end: IO[bytes]


@asynccontextmanager
async def _pipe() -> AsyncIterator[_Pipe]:
    """A pipe that asyncio's process knows nothing of: it would wait for its end, which comes late
    where something else holds it open.
    """
    read_fd, write_fd = os.pipe()
    reader = asyncio.StreamReader()
    with open(write_fd, "wb", 0) as write_end:  # noqa: PTH123 - a descriptor has no path
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader),
            open(read_fd, "rb", 0),  # noqa: PTH123, SIM115 - the transport closes it
        )
        try:
            yield _Pipe(reader, transport, write_end)
        finally:
            transport.close()


def answer_of(code: int, told: bytes, complaint: bytes) -> Answer:
    """What a process said by its exit code, and by the first line of its output if there is one.

    Raises HookError where it was ended by a signal, or the line is not such JSON.
    """
    if code < 0:
        raise HookError(f"it was ended by {_signal_name(-code)}")
    last_words = _last_words(complaint)
    line = told.strip().partition(b"\n")[0]
    if not line:
        reason = last_words or f"exit code {code}"
        return Answer(stops=code != 0, reason=reason[:MOST_REASON_CHARACTERS] if code else "")
    try:
        given: Any = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise HookError(f"its answer is no line of JSON: {line[:200]!r}") from error
    if not isinstance(given, dict) or not isinstance(given.get("ok"), bool):
        raise HookError(f'its answer is no object with "ok": true or false: {line[:200]!r}')
    if unknown := sorted(set(given) - _FIELDS):
        raise HookError(f"its answer has {unknown[0]!r}, which is none of ok, reason, figures")
    if not isinstance(given.get("figures", {}), dict):
        raise HookError("figures in its answer is no object")
    stops = code != 0 or not given["ok"]
    reason = _printable(str(given.get("reason", "")))[:MOST_REASON_CHARACTERS]
    if stops and not reason:
        reason = last_words or (f"exit code {code}" if code else "it gave no reason")
    return Answer(stops, reason, given.get("figures", {}))


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # those of real time have numbers alone
        return f"signal {number}"


def _last_words(complaint: bytes) -> str:
    return _printable(complaint.decode(errors="replace").strip().rpartition("\n")[2])


def _printable(told: str) -> str:
    """Without what a terminal obeys, or begins another line of the log: a hook repeats what others
    said.
    """
    return "".join(sign if sign.isprintable() else "\N{REPLACEMENT CHARACTER}" for sign in told)


async def _first(stream: asyncio.StreamReader) -> bytes:
    """The beginning of an output, the rest of which is read and forgotten. Raises HookError."""
    kept = b""
    while part := await stream.read(MOST_ANSWER_BYTES):
        kept += part[: MOST_ANSWER_BYTES + 1 - len(kept)]
    if len(kept) > MOST_ANSWER_BYTES:
        raise HookError(f"its answer is longer than {MOST_ANSWER_BYTES >> 10} KiB")
    return kept


async def _last(stream: asyncio.StreamReader) -> bytes:
    """The end of an output."""
    kept = b""
    while part := await stream.read(MOST_ANSWER_BYTES):
        kept = (kept + part)[-4 * MOST_REASON_CHARACTERS :]
    return kept


async def _end(process: asyncio.subprocess.Process) -> None:
    """End a process and all that it started: politely, then not. Nothing where it has ended."""
    if process.returncode is not None:
        return
    _end_group(process.pid, signal.SIGTERM)
    try:
        with suppress(TimeoutError):
            async with asyncio.timeout(GRACE_S):
                await process.wait()
    finally:
        _end_group(process.pid, signal.SIGKILL)
    await process.wait()


def _end_group(group: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)

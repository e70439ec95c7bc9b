"""What `plimsoll doctor` looks at. Each check reads and changes nothing.

A check that fails would keep the server from starting or from answering; one that warns makes it
slow, or will matter later. Both say what to do next.
"""

import errno
import os
import platform
import re
import socket
from collections.abc import Iterator
from functools import partial
from importlib.metadata import version
from pathlib import Path

from plimsoll import __version__, files
from plimsoll.cli import collection_checks, model_checks, operator_files
from plimsoll.cli.findings import Finding, State, finding_of, mib, nearest
from plimsoll.composition.application import make_access
from plimsoll.encoder.backends.onnx_runtime import runtime_version
from plimsoll.errors import CacheUnsafeError
from plimsoll.machine.cpu import CPUMonitor
from plimsoll.machine.groups import read_text
from plimsoll.server.listening import check_reach
from plimsoll.settings import Settings

LIBRARIES = ("numpy", "tokenizers", "huggingface_hub", "fastapi", "uvicorn")
# What speeds up which arithmetic; the words of /proc/cpuinfo on x86 and Arm.
CPU_FEATURES = {
    "avx512f": "AVX-512 (float32)",
    "avx512_vnni": "VNNI (int8)",
    "avx_vnni": "AVX-VNNI (int8)",
    "avx512_bf16": "bfloat16",
    "amx_int8": "AMX (int8)",
    "avx2": "AVX2 (float32)",
    "asimd": "NEON (float32)",
    "asimddp": "dot product (int8)",
    "i8mm": "I8MM (int8)",
    "bf16": "bfloat16",
}
FAST_ENOUGH = {"avx2", "asimd"}
HUB_TIMEOUT_S = 5.0


def run_checks(settings: Settings) -> Iterator[Finding]:
    """Look at everything, quick things first; what one check finds wrong ends no other."""
    to_cache = "let this user into it, or set PLIMSOLL_CACHE_DIR to another folder"
    yield _versions()
    yield _processor()
    yield _swap(Path("/proc"))
    yield finding_of("cache folder", to_cache, partial(_cache_folder, settings))
    yield finding_of(
        collection_checks.CHECK,
        collection_checks.REMEDY,
        partial(collection_checks.collections, settings.data_dir),
    )
    yield from operator_files.links(settings.links, settings.data_dir)
    yield finding_of(
        operator_files.HOOKS,
        operator_files.TO_HOOK,
        partial(operator_files.hooks, settings.hooks),
    )
    sought = model_checks.look_for_model(settings)
    yield from model_checks.memory(settings, sought.listed)
    yield finding_of(
        "disk space", to_cache, partial(model_checks.free_space, settings, sought.listed)
    )
    yield (model := model_checks.model(settings, sought))
    if sought.path is not None and model.state is not State.FAIL:
        yield finding_of(
            "disk speed", model_checks.TO_READ, partial(model_checks.disk_speed, sought.path)
        )
    yield model_checks.provider()
    yield model_checks.packing()
    yield _hub(is_needed=sought.needs_hub)
    yield finding_of("access", "set it, or PLIMSOLL_HOST=127.0.0.1", partial(_access, settings))
    yield _port(settings.host, settings.port)


def _versions() -> Finding:
    found = [f"Plimsoll {__version__}", f"Python {platform.python_version()}"]
    found.append(f"onnxruntime {runtime_version()}")  # of onnxruntime or onnxruntime-gpu
    found += [f"{name} {version(name)}" for name in LIBRARIES]
    return Finding("versions", State.OK, ", ".join(found))


def _processor() -> Finding:
    monitor = CPUMonitor()
    text = read_text(Path("/proc/cpuinfo"))
    line = re.search(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)
    flags = set(line[1].split()) if line else set()
    known = dict.fromkeys(name for flag, name in CPU_FEATURES.items() if flag in flags)
    quota = monitor.quota_cores
    found = f"{monitor.sample().cores:g} cores to use"
    found += f", quota {quota:g}" if quota is not None else ""
    found += f"; {', '.join(known)}" if known else ""
    if not flags or flags & FAST_ENOUGH:
        return Finding("processor", State.OK, found)
    return Finding(
        "processor", State.WARN, found, "without AVX2 or NEON the engine is several times slower"
    )


def _swap(proc_root: Path) -> Finding:
    fields = dict(
        re.findall(r"^(\w+):\s+(\d+) kB$", read_text(proc_root / "meminfo"), re.MULTILINE)
    )
    total_bytes = int(fields.get("SwapTotal", 0)) << 10
    if not total_bytes:
        return Finding("swap", State.OK, "none, as it should be")
    return Finding(
        "swap",
        State.WARN,
        f"{mib(total_bytes)} on this machine",
        "give the container none (Docker: --memory-swap equal to --memory): swapping is slow",
    )


def _cache_folder(settings: Settings) -> Finding:
    folder = settings.cache_dir
    there = nearest(folder)
    found = str(folder) if there == folder else f"{folder}, not made yet"
    if there == folder:
        try:
            files.private_folder(folder, allow_memory_backed=settings.cache_on_tmpfs)
        except CacheUnsafeError as error:
            return Finding("cache folder", State.FAIL, str(error))
    elif not settings.cache_on_tmpfs and (kind := files.memory_file_system(there)):
        return Finding(
            "cache folder", State.FAIL, f"{found}: on {kind}", "set PLIMSOLL_CACHE_DIR to a disk"
        )
    if not os.access(there, os.W_OK | os.X_OK):
        return Finding(
            "cache folder",
            State.FAIL,
            f"{found}: {there} cannot be written to",
            "set PLIMSOLL_CACHE_DIR, or mount a volume there",
        )
    return Finding("cache folder", State.OK, f"{found}, on {files.file_system(there) or 'a disk'}")


def _hub(*, is_needed: bool) -> Finding:
    import httpx
    from huggingface_hub import constants, get_token

    if constants.HF_HUB_OFFLINE and not is_needed:
        return Finding("hub", State.OK, "offline by HF_HUB_OFFLINE; the model needs no hub")
    if constants.HF_HUB_OFFLINE:
        remedy = "unset HF_HUB_OFFLINE, or put the file where `plimsoll pull` says"
        return Finding("hub", State.FAIL, "offline by HF_HUB_OFFLINE", remedy)
    token = "with" if get_token() else "without"
    try:
        httpx.head(constants.ENDPOINT, timeout=HUB_TIMEOUT_S)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        return Finding(
            "hub",
            State.FAIL if is_needed else State.WARN,
            f"{constants.ENDPOINT} cannot be reached: {type(error).__name__}",
            "set HF_ENDPOINT or a proxy, or put model files into the cache by hand",
        )
    return Finding("hub", State.OK, f"{constants.ENDPOINT} answers; {token} a token (HF_TOKEN)")


def _access(settings: Settings) -> Finding:
    check_reach(settings)
    rules = make_access(settings)
    who = "every client that reaches it" if rules.keys is None else "clients with a key"
    return Finding("access", State.OK, f"{who} at {settings.host}")


def _port(host: str, port: int) -> Finding:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        in_use = error.errno == errno.EADDRINUSE
        remedy = "stop what listens there, or set PLIMSOLL_PORT" if in_use else "set PLIMSOLL_HOST"
        if error.errno == errno.EACCES:
            remedy = "set PLIMSOLL_PORT to 1024 or more"
        return Finding("port", State.FAIL, f"{host}:{port}: {error.strerror or error}", remedy)
    return Finding("port", State.OK, f"{host}:{port} is free")

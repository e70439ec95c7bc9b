"""Does attention take memory with a text's length, or with its square?

ONNX Runtime's MultiHeadAttention goes over the scores block by block, unless the environment sets
ORT_DISABLE_FLASH_ATTENTION or, in older releases, the second-level cache has no known size: then
it holds the scores of every head at once (contrib_ops/cpu/bert/multihead_attention.cc). Nothing
tells which way it goes, so it is measured; where it is the second, `token_limit` cuts long texts.
"""

import logging
import re
from functools import cache
from pathlib import Path

import numpy as np

from plimsoll.encoder.architecture import Architecture, Pooling
from plimsoll.encoder.backends.onnx_runner import Runner
from plimsoll.encoder.backends.onnx_runtime import LayerSessions, build_graphs
from plimsoll.encoder.layout import attention_bytes
from plimsoll.machine import allocator

log = logging.getLogger(__name__)

# Narrow heads, many of them: 16 MiB of scores against less than 1 MiB of everything else.
PROBE_TOKENS = 512
PROBE_ARCHITECTURE = Architecture(
    name="bert",
    n_layers=1,
    hidden=128,
    ffn=128,
    n_heads=16,
    vocabulary=1,
    context_tokens=PROBE_TOKENS,
    layer_norm_eps=1e-12,
    pooling=Pooling.MEAN,
    rope_base=None,
)
TRIES = 3


@cache
def attention_is_linear() -> bool:
    """Whether attention's memory is linear in a text's length; measured once a process.

    Takes about 15 ms and 1 MiB, or 50 ms and 17 MiB where it is not linear.
    """
    return measure_attention(Path("/proc/self"))


def measure_attention(process: Path) -> bool:
    """Attend to a text and compare the process's peak with what either way takes.

    process: the process's own folder below /proc. Only Linux lets a process start its peak anew,
    so elsewhere attention is taken to be linear, which it is by default.
    """
    if not (process / "clear_refs").exists():
        return True
    least, most = (
        attention_bytes(PROBE_ARCHITECTURE, PROBE_TOKENS, linear=linear) for linear in (True, False)
    )
    runner = Runner(LayerSessions.with_layers(build_graphs(PROBE_ARCHITECTURE), 1), [], {})
    shape = (3, PROBE_TOKENS, PROBE_ARCHITECTURE.hidden)
    try:
        # Other threads add to the peak: one that stayed low tells more than a high one.
        return any(
            _peak_growth_bytes(runner, np.ones(shape, np.float32), process) < (least + most) // 2
            for _ in range(TRIES)
        )
    except OSError as error:
        log.info("attention is taken to be linear; its memory cannot be measured: %s", error)
        return True
    finally:
        runner.close()


def _peak_growth_bytes(runner: Runner, block: np.ndarray, process: Path) -> int:
    allocator.release()  # free memory that the process still holds would hide what a run takes
    (process / "clear_refs").write_text("5")  # the peak starts anew: proc(5)
    before = _peak_bytes(process)
    runner.attend(block[0], block[1], block[2])
    return _peak_bytes(process) - before


def _peak_bytes(process: Path) -> int:
    found = re.search(r"^VmHWM:\s+(\d+) kB$", (process / "status").read_text(), re.MULTILINE)
    if found is None:
        raise OSError(f"{process / 'status'} has no VmHWM")
    return int(found[1]) << 10

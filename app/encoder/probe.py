"""Does attention take memory with a text's length, or with its square?

ONNX Runtime's MultiHeadAttention goes over the scores block by block, unless the environment sets
ORT_DISABLE_FLASH_ATTENTION or, in older releases, the second-level cache has no known size: then
it holds the scores of every head at once (contrib_ops/cpu/bert/multihead_attention.cc). Nothing
tells which way it goes, so it is measured, and long texts are cut where it is the second.
"""

import logging
import re
from functools import cache
from math import isqrt
from pathlib import Path

import numpy as np

from app.encoder.architecture import Architecture, Pooling
from app.encoder.layout import ATTEND_TOKENS, FLOAT_BYTES, attention_bytes
from app.encoder.session import LayerSessions, Runner, build_graphs
from app.memory import allocator

log = logging.getLogger(__name__)

# What the scores of one text may take, where all of them are held; texts are cut to fit.
SCORES_BYTES = 128 << 20
# No limit is lowered further: a passage of this length is what people embed.
LEAST_TOKENS = 512
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
    runner = Runner(LayerSessions(build_graphs(PROBE_ARCHITECTURE), 1), [], {})
    shape = (3, PROBE_TOKENS, PROBE_ARCHITECTURE.hidden)
    try:
        # The peak is everybody's in this process: one that stayed low tells more than a high one.
        return any(
            _peak_growth_bytes(runner, np.ones(shape, np.float32), process) < (least + most) // 2
            for _ in range(TRIES)
        )
    except OSError as error:
        log.info("attention is taken to be linear; its memory cannot be measured: %s", error)
        return True
    finally:
        runner.close()


def lower_token_limit(limit: int, n_heads: int) -> int:
    """Lower the limit until a text's scores fit SCORES_BYTES, and say so in the log.

    Scores are float32 (heads, asking tokens, tokens), at most ATTEND_TOKENS asking at a time.
    """
    n_scores = SCORES_BYTES // (FLOAT_BYTES * n_heads)
    lowered = min(limit, max(LEAST_TOKENS, isqrt(n_scores), n_scores // ATTEND_TOKENS))
    if lowered < limit:
        log.warning(
            "attention takes memory with the square of a text's length here (is "
            "ORT_DISABLE_FLASH_ATTENTION set?): the limit is %d tokens a text instead of %d, "
            "which holds a text's scores to %d MiB",
            lowered,
            limit,
            SCORES_BYTES >> 20,
        )
    return lowered


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

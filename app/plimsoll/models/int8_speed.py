"""How fast int8 is beside float32 on this machine: measured shortly, once, and remembered."""

import json
import logging
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from pathlib import Path
from time import perf_counter

import numpy as np

from plimsoll import files
from plimsoll.encoder.backends.onnx_runtime import runtime_version
from plimsoll.encoder.model import EmbeddingModel
from plimsoll.encoder.quantization.codes_file import CodesFile
from plimsoll.encoder.roads import road_plan
from plimsoll.machine.instructions import instruction_set
from plimsoll.sidecar import packed
from plimsoll.sidecar.sidecar import Sidecar

log = logging.getLogger(__name__)

SPEED_NAME = "int8-speed.json"  # of this machine; the codes are the same on any
N_TEXTS, TEXT_TOKENS = 4, 128
N_ROUNDS = 5

OpenModel = Callable[[Sidecar, CodesFile | None], EmbeddingModel]


def speed_ratio(codes: CodesFile, open_model: OpenModel) -> float:
    """How many times as fast int8 is here as float32.

    codes: beside their sidecar. open_model: opens both as they are served; what it packs is removed
    where it turns out to be the slower.
    """
    folder = codes.path.parent
    measured = [runtime_version(), instruction_set(), codes.index.sha256]
    path = folder / SPEED_NAME
    with suppress(OSError, ValueError, KeyError, TypeError):
        found = json.loads(path.read_bytes())
        if found["measured"] == measured:
            return float(found["ratio"])
    ratio = _measure(folder, open_model)
    served = road_plan(codes if is_faster(ratio) else None)
    for compute in {"float32", "int8"} - {"int8" if own else "float32" for _, own in served}:
        packed.remove(folder, compute)  # half a gigabyte, for a model of 137 million parameters
    try:
        temporary = files.temporary_of(path)
        temporary.unlink(missing_ok=True)
        files.write_durably(temporary, json.dumps({"measured": measured, "ratio": ratio}).encode())
        files.publish(temporary, path)
    except OSError as error:
        log.warning("the speed of int8 is measured at every opening: %s", error)
    return ratio


def is_faster(ratio: float) -> bool:
    """Whether int8 is worth its name, by its speed ratio."""
    return ratio > 1


def _measure(folder: Path, open_model: OpenModel) -> float:
    """Seconds that float32 takes for some texts, over those that int8 takes."""
    random = np.random.default_rng(0)
    seconds = []
    for has_codes in (False, True):
        codes = CodesFile(folder) if has_codes else None
        with closing(open_model(Sidecar(folder), codes)) as model:
            vocabulary = model.traits.architecture.vocabulary
            n_tokens = min(TEXT_TOKENS, model.traits.token_limit)
            texts = [random.integers(0, vocabulary, n_tokens) for _ in range(N_TEXTS)]
            model.encode(texts)  # opens the layers
            seconds.append(min(_seconds(model, texts) for _ in range(N_ROUNDS)))
    return seconds[0] / seconds[1]


def _seconds(model: EmbeddingModel, texts: Sequence[np.ndarray]) -> float:
    start_s = perf_counter()
    model.encode(texts)
    return perf_counter() - start_s

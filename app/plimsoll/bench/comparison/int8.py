"""The engine in int8 beside itself in float32: start, speed, and under the hard limit.

Codes are made whatever their vectors come to: how near those are is a matter of real weights, of
which the gate judges, and `plimsoll bench peers`.
"""

from contextlib import nullcontext

from plimsoll.bench.comparison import hard_limit, speed, startup
from plimsoll.bench.comparison.engine import make_opener
from plimsoll.bench.comparison.models import ModelCase
from plimsoll.bench.comparison.report import Floor
from plimsoll.bench.comparison.run import Run
from plimsoll.bench.comparison.worker import Kind
from plimsoll.errors import QuantizationError
from plimsoll.machine.cpu import available_cores
from plimsoll.sidecar.loader import unreported

INT8: Kind = "engine in int8"
FLOAT32: Kind = "engine"
KINDS = (INT8, FLOAT32)
PEER = "in float32"
FIRST_VECTOR_S = 1.0
SPEED_FLOOR = 1.6
LIMITED_FLOOR = 0.85


def measure(run: Run, case: ModelCase) -> None:
    """All of it, where this processor computes in int8."""
    run.say(f"{case.title}: codes, which take minutes the first time")
    opener = make_opener(case.model, case.cache_dir, n_threads=available_cores(), compute="int8")
    try:
        opener.prepare(unreported).close()
    except QuantizationError as error:
        run.note(f"int8 was not measured: {error}")
        return
    startup.compare(run, case, KINDS, peer=PEER, at_most_s=FIRST_VECTOR_S)
    rates = speed.in_turn(run, case, KINDS, PEER, None, lambda *_: nullcontext())
    for name, ours in rates[INT8].items():
        held = case.full_size and name == speed.MIXED
        run.add(
            case,
            "speed",
            f"{name}, in int8",
            "tokens/s",
            ours,
            peer=PEER,
            peer_values=rates[FLOAT32][name],
            floor=Floor("ratio", at_least=SPEED_FLOOR) if held else None,
        )
    codes_mib = round(case.linear_parameters / hard_limit.MIB)
    hard_limit.survive(run, case, INT8, least_ratio=LIMITED_FLOOR, read_mib=codes_mib)

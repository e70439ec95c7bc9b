"""Which way attention goes in this process, and what a model makes of that."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from plimsoll.encoder.backends.onnx_probe import measure_attention
from plimsoll.encoder.token_limit import LEAST_TOKENS
from tests.synthetic import Shape, write_synthetic

ROOT = Path(__file__).parents[2]
LONG = Shape(n_layers=2, hidden=384, ffn=1536, heads=12, vocab=2048, context=8192)
LENGTH = 1500

MEASURE = """
import json, logging, sys
from pathlib import Path
import numpy as np
from plimsoll.encoder.backends.onnx_probe import attention_is_linear
from tests.small_models import opened, small_settings

def peak_bytes():
    lines = dict(line.split(":", 1) for line in open("/proc/self/status"))
    return int(lines["VmHWM"].split()[0]) << 10

logging.basicConfig()
file, length = Path(sys.argv[1]), int(sys.argv[2])
with opened(small_settings(file.parent, file, threads=1)) as model:
    model.encode([np.full(16, 200)] * 2)  # in company, which opens every layer
    model.release_memory()
    open("/proc/self/clear_refs", "w").write("5")
    before = peak_bytes()
    model.encode([np.full(length, 200)])
    taken = peak_bytes() - before
    found = [attention_is_linear(), model.traits.token_limit, model.run_bytes([length]), taken]
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def long_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("probe") / "model.gguf"
    return write_synthetic(path, arch="bert", shape=LONG)


def run_model(file: Path, *, flash: bool) -> tuple[list[int], str]:
    """Open and run a model in a process whose attention goes the one way or the other."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(file), str(LENGTH)],
        env=os.environ | {"ORT_DISABLE_FLASH_ATTENTION": "0" if flash else "1"},
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    return json.loads(done.stdout), done.stderr


linux_only = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self")


@linux_only
def test_linear_attention_keeps_the_models_limit_and_takes_what_is_predicted(long_model: Path):
    """The way that it goes wherever it has not been turned off."""
    (linear, limit, predicted, taken), log = run_model(long_model, flash=True)

    assert linear
    assert limit == LONG.context
    assert 0.85 * taken <= predicted <= 1.3 * taken
    assert "square" not in log


@linux_only
def test_attention_that_takes_the_square_is_found_predicted_and_bounded(long_model: Path):
    """8192 tokens would take 400 MB a slice beyond the prediction: the kernel would kill."""
    (linear, limit, predicted, taken), log = run_model(long_model, flash=False)

    assert not linear
    assert LEAST_TOKENS <= limit < LONG.context
    assert 0.85 * taken <= predicted <= 1.3 * taken
    assert f"limit is {limit} tokens a text instead of {LONG.context}" in log


def test_attention_is_taken_to_be_linear_where_a_process_cannot_measure_itself(tmp_path: Path):
    """There is no /proc on macOS, and some sandboxes have one that cannot be written."""
    assert measure_attention(tmp_path / "absent")
    (tmp_path / "clear_refs").mkdir()
    assert measure_attention(tmp_path)

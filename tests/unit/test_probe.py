"""Which way attention goes in this process, and what follows where it takes the square."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from app.encoder.layout import ATTEND_TOKENS, FLOAT_BYTES
from app.encoder.probe import (
    LEAST_TOKENS,
    SCORES_BYTES,
    lower_token_limit,
    measure_attention,
)
from tests.synthetic import Shape, write_synthetic

ROOT = Path(__file__).parents[2]
LONG = Shape(n_layers=2, hidden=384, ffn=1536, heads=12, vocab=2048, context=8192)
LENGTH = 1500

MEASURE = """
import json, logging, sys
from pathlib import Path
import numpy as np
from app.encoder.probe import attention_is_linear
from tests.small_models import opened, small_settings

def peak_bytes():
    lines = dict(line.split(":", 1) for line in open("/proc/self/status"))
    return int(lines["VmHWM"].split()[0]) << 10

logging.basicConfig()
file, length = Path(sys.argv[1]), int(sys.argv[2])
with opened(small_settings(file.parent, file, threads=1)) as model:
    model.encode([np.full(16, 200)])
    model.release_memory()
    open("/proc/self/clear_refs", "w").write("5")
    before = peak_bytes()
    model.encode([np.full(length, 200)])
    taken = peak_bytes() - before
    found = [attention_is_linear(), model.traits.token_limit, model.wave_bytes([length]), taken]
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
    """The way that it is on every machine where nobody has turned it off."""
    (linear, limit, predicted, taken), log = run_model(long_model, flash=True)

    assert linear
    assert limit == LONG.context
    assert 0.85 * taken <= predicted <= 1.3 * taken
    assert "square" not in log


@linux_only
def test_attention_that_takes_the_square_is_found_predicted_and_bounded(long_model: Path):
    """8192 tokens would take 400 MB a slice, which nobody has predicted: the kernel would kill."""
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


@pytest.mark.parametrize("n_heads", [1, 4, 12, 16, 48])
def test_the_lowered_limit_is_the_longest_text_whose_scores_fit(n_heads: int):
    """One token more would not."""

    def scores_bytes(n_tokens: int) -> int:
        return FLOAT_BYTES * n_heads * min(n_tokens, ATTEND_TOKENS) * n_tokens

    limit = lower_token_limit(1 << 20, n_heads)

    assert scores_bytes(limit) <= SCORES_BYTES < scores_bytes(limit + 1)


def test_no_limit_is_lowered_below_a_passage_or_raised(caplog: pytest.LogCaptureFixture):
    """A model of very many heads still has to be of use; a short limit stays, without a word."""
    caplog.set_level(logging.WARNING)

    assert lower_token_limit(256, 12) == 256
    assert caplog.messages == []
    assert lower_token_limit(2048, 4096) == LEAST_TOKENS
    (message,) = caplog.messages
    assert f"{LEAST_TOKENS} tokens a text instead of 2048" in message

"""Files of the model that change on disk while they are served: noticed, told, made again."""

import os
from collections.abc import Callable
from pathlib import Path
from time import monotonic, sleep

import httpx
import pytest

from plimsoll import files
from plimsoll.sidecar.packed import PACKED_NAME, packed_folders
from plimsoll.sidecar.sidecar import WEIGHTS_NAME
from tests.running_server import DEADLINE_S, RunningServer
from tests.small_models import NARROW
from tests.synthetic import write_synthetic

BODY = {"input": ["a ship"], "fallback": "none"}


def until(found: Callable[[], bool]) -> None:
    """Wait until this holds."""
    deadline_s = monotonic() + DEADLINE_S
    while not found():
        assert monotonic() < deadline_s, "it did not come"
        sleep(0.05)


@pytest.mark.parametrize("which", ["weights", "packed"])
def test_weights_that_are_cut_under_the_server_are_made_again_and_nothing_crashes(
    tmp_path: Path, which: str
):
    """Whoever cleans a disk by hand cuts what is mapped; reading there is SIGBUS."""
    file = write_synthetic(tmp_path / "narrow.gguf", quant="Q8_0", shape=NARROW)
    options = ("--model", str(file), "--cache-dir", str(tmp_path / "cache"))
    with (
        RunningServer(tmp_path, *options) as server,
        httpx.Client(base_url=server.url, timeout=DEADLINE_S) as client,
    ):
        before = client.post("/embed", json=BODY).json()["embeddings"]
        (sidecar,) = (tmp_path / "cache" / files.SIDECARS_FOLDER).iterdir()
        (packed,) = packed_folders(sidecar)
        os.truncate(packed / PACKED_NAME if which == "packed" else sidecar / WEIGHTS_NAME, 4096)
        statuses = []

        def is_whole() -> bool:
            answer = client.post("/embed", json=BODY)
            statuses.append(answer.status_code)
            return answer.status_code == 200 and answer.json()["embeddings"] == before

        until(is_whole)
        server.terminate()
        code = server.wait()

    assert code == 0
    assert set(statuses) <= {200, 503}
    assert "while it was served" in server.log


def test_a_model_file_that_is_replaced_under_the_server_is_told(tmp_path: Path):
    """Its weights were copied when it was first read, so nothing changes until a restart."""
    file = write_synthetic(tmp_path / "narrow.gguf", quant="Q8_0", shape=NARROW)
    options = ("--model", str(file), "--cache-dir", str(tmp_path / "cache"))
    with (
        RunningServer(tmp_path, *options) as server,
        httpx.Client(base_url=server.url, timeout=DEADLINE_S) as client,
    ):
        before = client.post("/embed", json=BODY).json()["embeddings"]
        other = write_synthetic(tmp_path / "other.gguf", quant="Q8_0", shape=NARROW, seed=1)
        other.rename(file)
        until(lambda: bool(client.get("/health").json()["model"]["notice"]))
        notice = client.get("/health").json()["model"]["notice"]
        after = client.post("/embed", json=BODY).json()["embeddings"]

    assert "has changed since the server read it" in notice
    assert notice in server.log
    assert after == before


def test_weights_in_place_that_are_cut_get_503_until_they_are_back(tmp_path: Path):
    """There the model file itself is mapped, and it is not ours to make again."""
    file = write_synthetic(tmp_path / "narrow.gguf", quant="F32", shape=NARROW)
    whole = file.read_bytes()
    options = ("--model", str(file), "--cache-dir", str(tmp_path / "cache"), "--weights-in-place")
    with (
        RunningServer(tmp_path, *options) as server,
        httpx.Client(base_url=server.url, timeout=DEADLINE_S) as client,
    ):
        before = client.post("/embed", json=BODY).json()["embeddings"]
        os.truncate(file, len(whole) // 2)
        until(lambda: client.get("/health/ready").json()["status"] == "unavailable")
        refused = client.post("/embed", json=BODY)
        said = client.get("/health").json()["model"]["error"]
        file.write_bytes(whole)
        until(lambda: client.get("/health/ready").status_code == 200)
        after = client.post("/embed", json=BODY).json()["embeddings"]

    assert refused.status_code == 503
    assert said in refused.json()["error"]["message"]
    assert after == before

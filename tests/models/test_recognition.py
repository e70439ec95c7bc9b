"""Names that a served model goes by: those that clients have built in, where it is that model."""

from pathlib import Path

import pytest

from plimsoll.composition.models import make_models
from plimsoll.encoder.catalog import resolve
from plimsoll.encoder.known_models import NOMIC_V1, NOMIC_V1_5
from plimsoll.machine.memory import MemoryMonitor
from plimsoll.models.recognition import recognised
from plimsoll.settings import Settings
from plimsoll.sidecar.load_times import LoadTimes
from plimsoll.telemetry.metrics import Telemetry
from tests.gguf_files import STRING, UINT32, gguf_file, key_value

OLLAMA_NAMES = {"nomic-embed-text", "nomic-embed-text:latest", "nomic-embed-text:v1.5"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files that say what they are, under names that do not."""
    folder = tmp_path_factory.mktemp("files")
    for stem, said in {
        "mine": "nomic-embed-text-v1.5",
        "copy": "nomic-embed-text-v1.5",
        "older": "nomic-embed-text-v1",
        "stranger": "some model",
    }.items():
        keys = [
            key_value("general.architecture", STRING, "nomic-bert"),
            key_value("general.name", STRING, said),
            key_value("nomic-bert.block_count", UINT32, 12),
            key_value("nomic-bert.embedding_length", UINT32, 768),
        ]
        (folder / f"{stem}.gguf").write_bytes(gguf_file(keys))
    (folder / "broken.gguf").write_bytes(b"GGUF")
    return folder


def names_of(folder: Path, *models: str, aliases: str | None = None) -> list[list[str]]:
    """The names of each model of a server, the default first."""
    settings = Settings(
        model=models[0],
        extra_models=",".join(models[1:]) or None,
        model_aliases=aliases,
        cache_dir=folder / "cache",
    )
    telemetry = Telemetry("test")
    times = LoadTimes(telemetry.weights.tensor_loaded)
    slots = make_models(settings, MemoryMonitor(), telemetry.models, times)
    return [list(slot.names) for slot in slots]


def test_a_file_of_nomics_goes_by_the_names_that_clients_have(folder: Path):
    """Whatever its file is called: Ollama's clients ask for nomic-embed-text and nothing else."""
    (names,) = names_of(folder, str(folder / "mine.gguf"))

    assert names[0] == "mine"
    assert {*names} > OLLAMA_NAMES | {"nomic-embed-text-v1.5"}


@pytest.mark.parametrize("file", ["older", "stranger", "broken"])
def test_no_other_model_goes_by_them(folder: Path, file: str):
    """Its vectors would be stored as Nomic's; what a file is not read for, opening tells."""
    (names,) = names_of(folder, str(folder / f"{file}.gguf"))

    assert not {*names} & OLLAMA_NAMES


def test_of_two_files_the_first_gets_them(folder: Path):
    """A server with two quantizations starts as it did before."""
    first, second = names_of(folder, str(folder / "copy.gguf"), str(folder / "mine.gguf"))

    assert {*first} > OLLAMA_NAMES
    assert second == ["mine", "mine-embed"]


def test_a_name_that_the_operator_gives_goes_first(folder: Path):
    """An alias may lead to another model on purpose."""
    first, second = names_of(
        folder,
        str(folder / "mine.gguf"),
        str(folder / "stranger.gguf"),
        aliases="nomic-embed-text=stranger",
    )

    assert "nomic-embed-text" not in first
    assert "nomic-embed-text" in second


@pytest.mark.parametrize(
    ("model", "added"), [("builtin", ["all-MiniLM-L6-v2-embed"]), ("nomic-embed-text", [])]
)
def test_every_model_has_a_name_with_embed_in_it(tmp_path: Path, model: str, added: list[str]):
    """n8n lists no other in its choice of models."""
    (names,) = names_of(tmp_path, model)

    assert [name for name in names if name.endswith("-embed")] == added
    assert any("embed" in name for name in names)


def test_a_model_of_the_hub_is_known_by_its_repository_before_it_is_fetched(tmp_path: Path):
    """Afterwards by its file."""
    repository = "hf:nomic-ai/nomic-embed-text-v1.5-GGUF"

    assert recognised(resolve(repository), tmp_path) is NOMIC_V1_5
    assert recognised(resolve("hf:nomic-ai/nomic-embed-text-v1-GGUF"), tmp_path) is NOMIC_V1
    assert recognised(resolve("hf:someone/nomic-embed-text-v1.5-GGUF"), tmp_path) is None

"""`plimsoll rm`: room is made, and nothing that is in use or not ours goes."""

import io
import shutil
from pathlib import Path

import pytest

from plimsoll.cli.commands import main
from plimsoll.sidecar.cache import list_sidecars
from plimsoll.sidecar.sidecar import Sidecar
from plimsoll.sizes import rounded
from tests.cli.conftest import Commands

MODEL = "hf:a/b/tiny.gguf"


def test_the_file_and_its_weights_go_and_the_room_is_told(run: Commands, stored: Path):
    """Two things were made for the model; one that stayed would fill the disk unseen."""
    run("pull", MODEL)
    n_bytes = stored.stat().st_size + sum(entry.n_bytes for entry in list_sidecars(run.cache))

    done = run("rm", "--yes", MODEL)

    assert done.exit_code == 0, done.stderr
    assert done.stdout == f"{rounded(n_bytes)} freed\n"
    assert str(stored) in done.stderr
    assert not stored.exists()
    assert list_sidecars(run.cache) == []


def test_without_a_terminal_nothing_goes_unasked(run: Commands, stored: Path):
    """A script says --yes; a slip does not cost a download."""
    done = run("rm", MODEL)

    assert done.exit_code == 2
    assert done.stderr.splitlines()[0] == str(stored)
    assert f"`plimsoll rm --yes {MODEL}`" in done.stderr
    assert rounded(stored.stat().st_size) in done.stderr
    assert "Usage:" not in done.stderr
    assert stored.exists()


class CtrlC(io.StringIO):
    """A terminal at which the answer to a question is Ctrl-C."""

    def isatty(self) -> bool:
        return True

    def readline(self, size: int | None = -1) -> str:
        raise KeyboardInterrupt


def test_ctrl_c_at_the_question_ends_with_130(
    run: Commands, stored: Path, monkeypatch: pytest.MonkeyPatch
):
    """A loop of the shell stops there, and nothing is removed."""
    monkeypatch.setattr("sys.stdin", CtrlC())
    with pytest.raises(SystemExit) as left:
        main(["rm", MODEL, "--cache-dir", str(run.cache)])

    assert left.value.code == 130
    assert stored.exists()


def test_an_alias_is_a_name_here_too(run: Commands, stored: Path):
    """What serves under a name is removed under it."""
    done = run("rm", "--yes", "small", PLIMSOLL_MODEL_ALIASES=f"small={MODEL}")
    assert done.exit_code == 0, done.stderr
    assert not stored.exists()


def test_a_model_in_use_stays_whole(run: Commands, stored: Path):
    """A server goes on; to take its file would make the next start fetch it again."""
    run("pull", MODEL)
    (entry,) = list_sidecars(run.cache)
    sidecar = Sidecar(entry.folder)
    try:
        done = run("rm", "--yes", MODEL)
    finally:
        sidecar.close()

    assert done.exit_code == 2
    assert "in use by a running process" in done.stderr
    assert stored.exists()
    assert entry.folder.exists()


def test_a_file_of_the_users_stays_and_its_weights_go(run: Commands, stored: Path, tmp_path: Path):
    """Only what Plimsoll has made is Plimsoll's to remove."""
    mine = Path(shutil.copy(stored, tmp_path / "mine.gguf"))
    run("pull", str(mine))

    done = run("rm", "--yes", str(mine))

    assert "mine.gguf stays" in done.stderr
    assert mine.exists()
    assert list_sidecars(run.cache) == []
    assert "nothing of" in run("rm", "--yes", str(mine)).stderr

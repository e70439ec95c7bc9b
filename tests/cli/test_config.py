"""`plimsoll config`: which values hold, where they come from, and no secret."""

import json
from pathlib import Path

import pytest
from pydantic import Field, SecretStr

from plimsoll.cli import config, options
from plimsoll.machine.cpu import available_cores
from plimsoll.machine.memory import MemoryMonitor
from plimsoll.settings import Settings
from plimsoll.sizes import Size
from tests.cli.conftest import Commands


def test_json_has_each_value_with_its_source_and_variable(run: Commands):
    """A deployment compares it with what it meant to set."""
    done = run("config", "--json", "--memory-budget", "512MiB", PLIMSOLL_PRELOAD="yes")
    found = json.loads(done.stdout)

    assert found["memory_budget"] == {
        "value": "512M",
        "effective": "512M",
        "source": "command line",
        "variable": "PLIMSOLL_MEMORY_BUDGET",
    }
    assert (found["preload"]["value"], found["preload"]["source"]) == (True, "environment")
    assert (found["port"]["value"], found["port"]["source"]) == (8080, "default")
    assert found["extra_models"]["value"] is None
    assert set(found) == set(Settings.model_fields)


def test_what_a_value_leaves_open_is_worked_out(run: Commands):
    """0 threads and no budget are no numbers to plan with; the server's own are."""
    options = ("--cache-dir", "weights", "--model", "small", "--model-aliases", "small=builtin")
    found = json.loads(run("config", "--json", *options).stdout)

    def told(name: str) -> tuple[object, object]:
        return found[name]["value"], found[name]["effective"]

    assert told("threads") == (0, available_cores())
    budget = MemoryMonitor().budget.budget_bytes
    assert told("memory_budget") == (None, str(Size(budget)))
    assert told("cache_dir") == ("weights", str(Path.cwd() / "weights"))
    assert told("model") == ("small", "builtin")
    assert told("config") == (None, None)
    assert told("port") == (8080, 8080)


@pytest.mark.parametrize("is_chosen", [True, False])
def test_the_settings_file_is_the_one_that_was_read(
    run: Commands, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_chosen: bool
):
    """Whether it was named, with a home folder's sign, or lay where the command was started."""
    monkeypatch.setenv("HOME", str(tmp_path.parent))
    name = "~/mine.toml" if is_chosen else None
    path = tmp_path.parent / "mine.toml" if is_chosen else tmp_path / "plimsoll.toml"
    path.write_text("port = 81\n", encoding="utf-8")
    found = json.loads(run("config", "--json", *(("--config", name) if name else ())).stdout)

    assert found["config"] == {
        "value": str(path) if name else None,
        "effective": str(path),
        "source": "command line" if name else "default",
        "variable": "PLIMSOLL_CONFIG",
    }
    assert found["port"]["effective"] == 81


def test_the_budget_is_what_counts_and_not_what_was_asked_for(run: Commands):
    """A budget above the machine's memory is not what the server keeps to."""
    found = json.loads(run("config", "--json", "--memory-budget", "8T").stdout)
    assert found["memory_budget"]["value"] == "8T"
    assert found["memory_budget"]["effective"] == str(Size(MemoryMonitor().budget.budget_bytes))


def test_the_vector_cache_is_what_the_server_would_keep(run: Commands):
    """An eighth of the budget, however much was asked for."""
    options = ("--memory-budget", "400M", "--vector-cache")
    for asked, used in (("1T", "50M"), ("8M", "8M")):
        found = json.loads(run("config", "--json", *options, asked).stdout)
        assert found["vector_cache"]["effective"] == used


def test_one_setting_that_is_wrong_does_not_hide_the_others(run: Commands):
    """This is the command that people call to find out which one it is."""
    done = run("config", "--json", PLIMSOLL_MODEL_ALIASES="x")
    found = json.loads(done.stdout)

    assert done.exit_code == 0
    assert found["model"]["effective"].startswith("unknown: ")
    assert found["threads"]["effective"] == available_cores()


def test_the_table_shows_what_is_used_where_it_differs(run: Commands):
    """Twice the same word in each line would hide the few that count."""
    lines = {line.split()[0]: line.split() for line in run("config").stdout.splitlines()}
    assert lines["threads"] == ["threads", "0", str(available_cores()), "default"]
    assert lines["port"] == ["port", "8080", "default"]


def test_the_settings_file_that_was_found_is_named(run: Commands):
    """A file that lies in the working folder by chance counts too."""
    Path("plimsoll.toml").write_text("port = 9000\n")
    found = json.loads(run("config", "--json").stdout)
    assert found["config"]["effective"] == str(Path.cwd() / "plimsoll.toml")
    assert found["port"]["source"] == "plimsoll.toml"


def test_a_secret_is_neither_shown_nor_an_option(run: Commands, monkeypatch: pytest.MonkeyPatch):
    """Reports of problems hold this output, and every user reads command lines."""

    class WithSecret(Settings):
        token: SecretStr | None = Field(None, description="A token.")

    monkeypatch.setattr(config, "Settings", WithSecret)
    monkeypatch.setattr(options, "Settings", WithSecret)
    assert config._shown("token", SecretStr("hunter2")) == "(hidden)"
    assert config._shown("token", None) is None

    command = options.setting_options("token")(lambda **_: None)
    assert getattr(command, "__click_params__", []) == []

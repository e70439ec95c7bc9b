"""Settings: where each value comes from, and what an operator is told about a wrong one."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from plimsoll.errors import SettingsError
from plimsoll.settings import Settings, allowed_values
from plimsoll.settings_sources import LoadedSettings, load_settings


@pytest.fixture
def load(tmp_path: Path):
    """Load with a given environment and files in an empty folder, away from the machine's own."""

    def load_from(
        overrides: dict[str, object] | None = None,
        environ: dict[str, str] | None = None,
        **files: str,
    ) -> LoadedSettings:
        names = {"env_file": ".env", "toml": "plimsoll.toml", "other_toml": "other.toml"}
        for kind, text in files.items():
            (tmp_path / names[kind]).write_text(text, encoding="utf-8")
        return load_settings(overrides, environ=environ or {}, directory=tmp_path)

    return load_from


def test_without_any_source_every_setting_has_its_default(load):
    """A server must start with nothing configured, and `plimsoll config` must say so."""
    loaded = load()
    assert loaded.settings == Settings()
    assert set(loaded.sources) == set(Settings.model_fields)
    assert set(loaded.sources.values()) == {"default"}


@pytest.mark.parametrize(
    ("layers", "port", "source"),
    [
        (("toml",), 4, "plimsoll.toml"),
        (("toml", "env_file"), 3, ".env"),
        (("toml", "env_file", "environ"), 2, "environment"),
        (("toml", "env_file", "environ", "overrides"), 1, "command line"),
    ],
)
def test_a_higher_layer_wins_and_is_named_as_the_source(load, layers, port, source):
    """An operator who sets a value in two places must be able to see which one counts."""
    everything = {
        "toml": "port = 4",
        "env_file": "PLIMSOLL_PORT=3",
        "environ": {"PLIMSOLL_PORT": "2"},
        "overrides": {"port": 1},
    }
    loaded = load(**{layer: everything[layer] for layer in layers})
    assert (loaded.settings.port, loaded.sources["port"]) == (port, source)


def test_a_mistake_is_named_by_what_its_maker_calls_it():
    """A function has arguments; what it was not given has another place."""
    with pytest.raises(SettingsError) as refused:
        load_settings({"port": -1}, given_by="argument", environ={"PLIMSOLL_THREADS": "many"})
    first, second = sorted(str(refused.value).splitlines())
    assert first.startswith("PLIMSOLL_THREADS (environment): ")
    assert second.startswith("port (argument): -1 ")


def test_layers_add_up_when_they_set_different_things(load):
    """Precedence is per value: a command-line flag must not hide the rest of a file."""
    loaded = load({"port": 0}, {"PLIMSOLL_EXACT": "true"}, toml="threads = 2", env_file="")
    assert (loaded.settings.port, loaded.settings.exact, loaded.settings.threads) == (0, True, 2)
    assert loaded.sources["host"] == "default"


def test_a_flag_that_was_not_given_leaves_the_lower_layers_alone(load):
    """Command-line parsers report an absent option as None."""
    loaded = load({"port": None}, {"PLIMSOLL_PORT": "9"})
    assert loaded.settings.port == 9


def test_an_empty_variable_counts_as_unset(load):
    """Compose files pass `${NAME:-}` on, so that an unset variable arrives as an empty one."""
    loaded = load(environ={"PLIMSOLL_MEMORY_BUDGET": " "}, env_file="PLIMSOLL_PORT=\n")
    assert loaded.settings.memory_budget is None
    assert loaded.sources["port"] == "default"


def test_the_toml_file_can_be_chosen_by_variable(load):
    """Its name is the source, so that two files cannot be mistaken for each other."""
    loaded = load(environ={"PLIMSOLL_CONFIG": "other.toml"}, other_toml="port = 5", toml="port = 6")
    assert (loaded.settings.port, loaded.sources["port"]) == (5, "other.toml")
    assert loaded.sources["config"] == "environment"


def test_a_chosen_toml_file_must_exist(load):
    """Starting with defaults because of a mistyped path would be a silent surprise."""
    with pytest.raises(SettingsError, match=r"missing\.toml cannot be read"):
        load({"config": "missing.toml"})


def test_a_toml_file_cannot_name_another(load):
    """One file, or the order between them would have to be explained."""
    with pytest.raises(SettingsError, match=r"config \(plimsoll\.toml\).*cannot name another"):
        load(toml='config = "other.toml"')


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ({"environ": {"PLIMSOLL_PROT": "1"}}, r"PLIMSOLL_PROT \(environment\).*PLIMSOLL_PORT\?"),
        ({"env_file": "PLIMSOLL_HOTS=x"}, r"PLIMSOLL_HOTS \(\.env\).*PLIMSOLL_HOST\?"),
        ({"toml": "thread = 1"}, r"thread \(plimsoll\.toml\).*did you mean threads\?"),
        ({"toml": 'PLIMSOLL_HOST = "x"'}, r"PLIMSOLL_HOST \(plimsoll\.toml\).*mean host\?"),
        ({"toml": "load-wait-s = 1"}, r"load-wait-s \(plimsoll\.toml\).*mean load_wait_s\?"),
        ({"overrides": {"modle": "x"}}, r"modle \(command line\).*did you mean model\?"),
        ({"environ": {"PLIMSOLL_XYZZY": "1"}}, r"PLIMSOLL_XYZZY.*no setting has a name like it"),
    ],
)
def test_an_unknown_name_is_an_error_with_a_suggestion(load, where, message):
    """A misspelt limit that is silently ignored is a limit that is not there."""
    with pytest.raises(SettingsError, match=message):
        load(**where)


def test_other_programs_names_are_left_alone(load):
    """The environment and .env are shared: docker compose keeps its own names there."""
    loaded = load(environ={"PATH": "/bin"}, env_file="GRAFANA_PORT=3000\nexport PLIMSOLL_PORT='7'")
    assert loaded.settings.port == 7


def test_kubernetes_service_links_are_not_taken_for_settings(load):
    """A Service named plimsoll puts these into every pod beside it; they must not stop it."""
    links = {
        "PLIMSOLL_PORT": "tcp://10.0.0.7:80",
        "PLIMSOLL_PORT_80_TCP": "tcp://10.0.0.7:80",
        "PLIMSOLL_PORT_80_TCP_ADDR": "10.0.0.7",
        "PLIMSOLL_SERVICE_HOST": "10.0.0.7",
        "PLIMSOLL_SERVICE_PORT_HTTP": "80",
        "PLIMSOLL_WEB_PORT": "tcp://10.0.0.8:80",
    }
    loaded = load(environ=links)
    assert loaded.settings.port == 8080
    assert loaded.ignored == tuple(sorted(links))


@pytest.mark.parametrize("text", ["http://0.0.0.0:80", "x_SERVICE_HOST=1"])
def test_a_wrong_port_is_not_taken_for_a_service_link(load, text):
    """Only what Kubernetes writes is ignored; an operator's own mistake must be an error."""
    with pytest.raises(SettingsError, match=r"^PLIMSOLL_PORT \(environment\): "):
        load(environ={"PLIMSOLL_PORT": text})


def test_every_mistake_is_reported_at_once_with_place_and_allowed_values(load):
    """Fixing one value per restart wastes an operator's time."""
    with pytest.raises(SettingsError) as caught:
        load(
            {"load_wait_s": 601},
            {"PLIMSOLL_PORT": "70000", "PLIMSOLL_THRAEDS": "2"},
            env_file="PLIMSOLL_PRELOAD=maybe",
            toml='compute = "int4"\nbody_limit = 1.5',
        )
    assert sorted(str(caught.value).splitlines()) == [
        "PLIMSOLL_PORT (environment): '70000' is not allowed; "
        "allowed: whole number from 0 to 65535",
        "PLIMSOLL_PRELOAD (.env): 'maybe' is not allowed; allowed: true or false",
        "PLIMSOLL_THRAEDS (environment) is not a setting; did you mean PLIMSOLL_THREADS?",
        "body_limit (plimsoll.toml): 1.5 is not allowed; "
        "write a size such as 512M, 1.5G or plain bytes",
        "compute (plimsoll.toml): 'int4' is not allowed; allowed: float32 or int8 or auto",
        "load_wait_s (command line): 601 is not allowed; allowed: number from 0 to 600",
    ]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("host", ""),
        ("host", "[]"),
        ("keep_alive_s", 0),
        ("client_concurrency", -1),
        ("client_tokens_per_s", "inf"),
        ("json_values", 99_999),  # what a body that is not scanned has room for, and more
        ("json_depth", 7),
        ("proxies", "10.0.0.0/8,nginx"),
        ("proxies", "10.0.0.1/8"),
        ("proxies", ""),
        ("port", -1),
        ("port", 65536),
        ("model", ""),
        ("threads", 257),
        ("idle_unload_s", "nan"),
        ("idle_unload_s", "inf"),
        ("memory_budget", "31M"),
        ("cache_dir", "${HOME}/cache"),
        ("cache_dir", "~nobody-has-this-name/cache"),
        ("load_wait_s", -0.1),
        ("log_level", "loud"),
        ("body_limit", "1025M"),
        ("body_limit", "20 apples"),
    ],
)
def test_a_value_out_of_bounds_is_refused(load, name, value):
    """Every field is bounded; a number past its bounds must not reach the code behind it."""
    with pytest.raises(SettingsError, match=rf"^{name} \(command line\): .* is not allowed"):
        load({name: value})


@pytest.mark.parametrize("value", ["none", "*", "10.0.0.7", "10.0.0.0/8, fd00::/8 ,::1"])
def test_proxies_are_addresses_networks_any_or_none(load, value: str):
    """A name would never match the address that a connection comes from, unnoticed."""
    assert load({"proxies": value}).settings.proxies == value


def test_an_address_in_brackets_is_the_address(load):
    """As it stands in a URL."""
    assert load({"host": "[::1]"}).settings.host == "::1"


def test_every_setting_is_described_and_says_what_it_allows(load):
    """The descriptions are the operator's manual: docs/settings.md is made of them."""
    for name, field in Settings.model_fields.items():
        assert field.description, name
        assert field.description.endswith("."), name
        assert allowed_values(field), name
    fields = Settings.model_fields
    assert allowed_values(fields["memory_budget"]) == "size such as 512M from 32M to 16T"
    assert allowed_values(fields["log_format"]) == "auto or text or json"
    assert allowed_values(fields["host"]) == "text of 1 to 253 characters"


def test_a_body_that_could_fill_the_budget_is_refused(load):
    """Each value alone is fine; the message must name both. One of them may be a default."""
    with pytest.raises(SettingsError) as caught:
        load({"memory_budget": "40M"}, {"PLIMSOLL_BODY_LIMIT": "40MiB"})
    assert str(caught.value) == ("body_limit (40M) must be smaller than memory_budget (40M)")
    assert load({"memory_budget": "32M"}, {"PLIMSOLL_BODY_LIMIT": "31M"})


def test_a_secret_never_appears_in_an_error(load):
    """Errors are logged, and logs are read by more people than secrets are for."""
    with pytest.raises(SettingsError) as caught:
        load({"api_keys": ["hunter2", "hunter3"]})
    assert "api_keys (command line): its value (hidden) is not allowed" in str(caught.value)
    assert "hunter" not in str(caught.value)
    assert caught.value.__context__ is None, "a traceback would print the context's values"


def test_keys_are_not_shown_with_the_settings(load):
    """Settings are printed and logged; the keys among them are not."""
    settings = load(environ={"PLIMSOLL_API_KEYS": "embed:hunter2"}).settings
    assert settings.api_keys.get_secret_value() == "embed:hunter2"
    assert "hunter" not in f"{settings} {settings!r} {settings.model_dump_json()}"


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"env_file": "\n\nPLIMSOLL_PORT=1\n\n=oops\n"}, r"\.env line 5: not of the form"),
        ({"toml": "port = x\n"}, r"plimsoll\.toml cannot be read: Invalid value \(at line 1"),
    ],
)
def test_a_file_that_cannot_be_parsed_is_an_error_with_its_line(load, files, message):
    """A line that is skipped with a warning is a setting that is not there."""
    with pytest.raises(SettingsError, match=message):
        load(**files)


@pytest.mark.parametrize(
    ("environ", "folder", "source"),
    [
        ({}, "/home/someone/.cache/plimsoll", "default"),
        ({"XDG_CACHE_HOME": "/fast"}, "/fast/plimsoll", "XDG_CACHE_HOME"),
        ({"XDG_CACHE_HOME": "relative"}, "/home/someone/.cache/plimsoll", "default"),
        ({"XDG_CACHE_HOME": "/fast", "PLIMSOLL_CACHE_DIR": "/big"}, "/big", "environment"),
        ({"PLIMSOLL_CACHE_DIR": "~/c"}, "/home/someone/c", "environment"),
    ],
)
def test_the_cache_folder_follows_xdg_unless_it_is_set(load, monkeypatch, environ, folder, source):
    """`plimsoll config` shows the folder in effect; files and compose do not expand a tilde."""
    monkeypatch.setenv("HOME", "/home/someone")
    loaded = load(environ=environ)
    assert (loaded.settings.cache_dir, loaded.sources["cache_dir"]) == (Path(folder), source)


@pytest.mark.parametrize(
    ("environ", "folder", "source"),
    [
        ({}, "/home/someone/.local/share/plimsoll", "default"),
        ({"XDG_DATA_HOME": "/safe", "XDG_CACHE_HOME": "/fast"}, "/safe/plimsoll", "XDG_DATA_HOME"),
        ({"XDG_DATA_HOME": "/safe", "PLIMSOLL_DATA_DIR": "~/d"}, "/home/someone/d", "environment"),
    ],
)
def test_the_data_folder_follows_xdg_unless_it_is_set(load, monkeypatch, environ, folder, source):
    """Documents must not lie among files that may be made anew at any time."""
    monkeypatch.setenv("HOME", "/home/someone")
    loaded = load(environ=environ)
    assert (loaded.settings.data_dir, loaded.sources["data_dir"]) == (Path(folder), source)


def test_log_words_may_be_upper_case(load):
    """INFO is how most programs write it."""
    loaded = load(environ={"PLIMSOLL_LOG_LEVEL": "INFO", "PLIMSOLL_LOG_FORMAT": "Json"})
    assert (loaded.settings.log_level, loaded.settings.log_format) == ("info", "json")


def test_settings_read_nothing_by_themselves_and_cannot_be_changed(monkeypatch):
    """Only load_settings knows the environment; a value must not change behind its reader."""
    monkeypatch.setenv("PLIMSOLL_PORT", "1")
    monkeypatch.setenv("PLIMSOLL_NONSENSE", "1")
    settings = Settings()
    assert settings.port == 8080
    with pytest.raises(ValidationError, match="frozen"):
        settings.port = 2


def test_the_real_environment_and_folder_are_the_default(tmp_path, monkeypatch):
    """The command line calls it without arguments."""
    (tmp_path / ".env").write_text("PLIMSOLL_THREADS=3", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PLIMSOLL_PORT", "1")
    loaded = load_settings()
    assert (loaded.settings.port, loaded.settings.threads) == (1, 3)

from __future__ import annotations

import pytest
from pydantic import ValidationError

from server.command_line import main
from server.settings import Settings, misspelt


def test_environment_sets_what_arguments_do_not(monkeypatch) -> None:
    monkeypatch.setenv("GEMS_PORT", "9000")
    monkeypatch.setenv("GEMS_MAX_LIMIT", "20")
    settings = Settings(port=9001)
    assert (settings.port, settings.max_limit) == (9001, 20)


@pytest.mark.parametrize(
    "values",
    [
        {"default_limit": 200},
        {"default_beam_width": 501},
        {"max_limit": 501, "default_limit": 10},
        {"queue_limit": 0},
        {"port": 70_000},
        {"max_history": 10**9},
        {"log_level": "loud"},
        {"engine": "warp"},
        {"unknown": 1},
    ],
    ids=str,
)
def test_settings_that_do_not_fit_are_refused(values: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Settings(**values)


@pytest.mark.parametrize(
    ("name", "value"),
    [("GEMS_PORT", "many"), ("GEMS_ENGINE", "warp"), ("GEMS_DEFAULT_LIMIT", "1000"), ("GEMS_API_KEYS", ",")],
)
def test_command_names_the_wrong_setting_in_one_line(monkeypatch, capsys, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    assert main(["nowhere"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: setting")
    assert "Value error" not in lines[0]  # words of pydantic
    assert name.removeprefix("GEMS_").lower() in lines[0]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("GEMS_API_KEYS", value) for value in (",", " ", ", ,", "\t")),
        *(("GEMS_CORS_ORIGINS", value) for value in (",", " ", ", ,", "\t")),
        *(("GEMS_ADMIN_KEY", value) for value in (" ", "\t")),
    ],
)
def test_a_security_setting_that_holds_nothing_is_refused_instead_of_ignored(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str, value: str
) -> None:
    """A value such as "$A,$B" with both variables unset must not open the server to everybody."""
    monkeypatch.setenv(name, value)
    assert main(["nowhere"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"setting {name.removeprefix('GEMS_').lower()}" in line
    assert name in line


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("GEMS_API_KEY", "GEMS_API_KEYS"), ("GEMS_APIKEYS", "GEMS_API_KEYS"), ("GEMS_ADMIN_KEYS", "GEMS_ADMIN_KEY"),
        ("GEMS_CORS_ORIGIN", "GEMS_CORS_ORIGINS"), ("GEMS_KEY", "GEMS_API_KEYS or GEMS_ADMIN_KEY"),
        ("GEMS_THREAD", "GEMS_THREADS"),
    ],
)  # fmt: skip
def test_a_misspelt_setting_is_refused_with_the_right_name(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str, meant: str
) -> None:
    monkeypatch.setenv(name, "secret")
    assert main(["nowhere"]) == 2
    assert capsys.readouterr().err == f"error: {name} is no setting; did you mean {meant}?\n"


def test_variables_of_others_are_left_alone() -> None:
    """A Kubernetes service named gems, and the variables of the training commands."""
    ports = (
        "GEMS_PORT_8000_TCP",
        "GEMS_PORT_8000_TCP_ADDR",
        "GEMS_PORT_8000_TCP_PORT",
        "GEMS_PORT_8000_TCP_PROTO",
    )
    others = ("GEMS_SERVICE_HOST", "GEMS_SERVICE_PORT", "GEMS_SERVICE_PORT_HTTP", "GEMS_CACHE", "GEMS_WHEELS")
    assert (
        misspelt([*ports, *others, "PATH", *(f"GEMS_{name.upper()}" for name in Settings.model_fields)])
        is None
    )


def test_an_empty_security_setting_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compose files pass "${GEMS_API_KEYS:-}" on, which is empty where nothing is set."""
    for name in ("GEMS_API_KEYS", "GEMS_ADMIN_KEY", "GEMS_CORS_ORIGINS"):
        monkeypatch.setenv(name, "")
    settings = Settings()
    assert settings.api_keys.get_secret_value() == settings.admin_key.get_secret_value() == ""
    assert settings.cors_origins == ""


FLOATS = [name for name, field in Settings.model_fields.items() if field.annotation is float]


@pytest.mark.parametrize("value", ["inf", "-inf", "nan"])
@pytest.mark.parametrize("name", FLOATS)
def test_no_time_is_infinite_or_no_number(name: str, value: str) -> None:
    with pytest.raises(ValidationError):
        Settings(**{name: value})


def test_more_threads_than_any_machine_has_are_refused() -> None:
    with pytest.raises(ValidationError, match="threads"):
        Settings(threads=100_000)


@pytest.mark.parametrize("value", ["*", "https://shop.example", "http://localhost:5173,https://shop.example"])
def test_origins_are_accepted(value: str) -> None:
    assert Settings(cors_origins=value).cors_origins == value


@pytest.mark.parametrize(
    "value",
    ["https://shop.example/", "shop.example", "https://a.example,*", "ftp://a.example", "https://a b"],
)
def test_what_no_browser_sends_as_an_origin_is_refused(value: str) -> None:
    with pytest.raises(ValidationError, match="GEMS_CORS_ORIGINS"):
        Settings(cors_origins=value)


@pytest.mark.parametrize(
    ("name", "value"), [("batch_window_ms", 1001), ("idle_seconds", 0.01), ("body_seconds", 0.01)]
)
def test_times_with_which_nothing_would_be_answered_are_refused(name: str, value: float) -> None:
    with pytest.raises(ValidationError, match=name):
        Settings(**{name: value})

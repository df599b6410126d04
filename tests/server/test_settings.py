from __future__ import annotations

import pytest
from pydantic import ValidationError

from server.__main__ import main
from server.settings import Settings


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
    ("name", "value"), [("GEMS_PORT", "many"), ("GEMS_ENGINE", "warp"), ("GEMS_DEFAULT_LIMIT", "1000")]
)
def test_command_names_the_wrong_setting_in_one_line(monkeypatch, capsys, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    assert main(["nowhere"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: setting")
    assert name.removeprefix("GEMS_").lower() in lines[0]

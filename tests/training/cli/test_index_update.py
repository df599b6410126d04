"""`gems index update`: files as people write them, and what it asks before it does harm."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from index.bundle.bundle import Bundle
from training.cli.commands.index import index_app
from training.errors import UserError


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))


def removed(bundle: Path, tmp_path: Path, text: str, *options: str) -> set[str]:
    """Remove the items of a text file. Return the ids of all removed items."""
    (tmp_path / "gone.txt").write_text(text)
    said = CliRunner().invoke(
        index_app, ["update", str(bundle), "--remove", str(tmp_path / "gone.txt"), *options]
    )
    if said.exception is not None and not isinstance(said.exception, SystemExit):
        raise said.exception
    index = Bundle.open(bundle).index
    return {index.catalogue[row].item_id for row in index.removed}


def test_ids_are_understood_as_people_write_them(bundle: Path, tmp_path: Path) -> None:
    ids = Bundle.open(bundle).index.catalogue.item_ids
    text = f"item_id\r\n {ids[0]}  \n\"{ids[1]}\"\n\n'{ids[2]}' \n"
    assert removed(bundle, tmp_path, text) == set(ids[:3])
    with pytest.raises(UserError, match=r"'gone'.*--missing-ok"):
        removed(bundle, tmp_path, f"gone\n{ids[3]}\n")
    assert removed(bundle, tmp_path, f"gone\n{ids[3]}\n", "--missing-ok") == set(ids[:4])


def test_more_than_half_of_the_items_go_only_if_that_is_confirmed(bundle: Path, tmp_path: Path) -> None:
    ids = Bundle.open(bundle).index.catalogue.item_ids
    text = "\n".join(ids[: len(ids) // 2 + 1])
    with pytest.raises(UserError, match=r"of \d+ items would be removed; look into .*--yes"):
        removed(bundle, tmp_path, text)
    assert not Bundle.open(bundle).index.removed
    assert len(removed(bundle, tmp_path, text, "--yes")) == len(ids) // 2 + 1


def test_bad_rows_of_new_items_are_skipped_if_asked(bundle: Path, tmp_path: Path) -> None:
    known = Bundle.open(bundle).index.catalogue[0]
    rows = [known.to_json() | {"colour": "red"}, {"item_id": "new"}, {"title": "no id"}]
    items = tmp_path / "items.jsonl"
    items.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["update", str(bundle), "--items", str(items)]
    refused = CliRunner().invoke(index_app, command)
    assert "--skip-bad" in str(refused.exception)
    done = CliRunner().invoke(index_app, [*command, "--skip-bad", "--bad-rows", str(tmp_path / "bad.txt")])
    assert done.exit_code == 0, done.output
    assert "2 bad row(s) skipped" in done.output
    assert "0 items added, 1 changed" in done.output
    assert len((tmp_path / "bad.txt").read_text().splitlines()) == 2

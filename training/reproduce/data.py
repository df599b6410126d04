"""The data set of a reproduction: one of the program's, or a folder."""

from __future__ import annotations

from pathlib import Path

from training.data.dataset import DataSet
from training.data.schema import is_data_set
from training.data.sources import amazon_beauty, movielens
from training.reproduce.run import LOCK
from training.reproduce.systems import ReproduceError
from training.run.locks import claim

BUILT_IN = {"movielens": movielens.NAME, "beauty": amazon_beauty.NAME}


def check_source(name: str, source: Path | None) -> None:
    """Raise `ReproduceError` if a source is given for a data set that has none.

    name, source: see `data_folder`.
    """
    if name != "beauty" and source is not None:
        raise ReproduceError(f"--source is for --data beauty, not for {name!r}")


def data_folder(name: str, source: Path | None, made: Path) -> Path:
    """Return the folder of a data set; one of the program's is made there if it is missing.

    name: one of `BUILT_IN`, or a folder.
    source: of 'beauty', the folder of its files.
    made: where one of the program's is kept.
    Raises `ReproduceError` if the source is missing, and `DataError`.
    """
    if name not in BUILT_IN:
        return Path(name)
    if name == "beauty" and source is None and not is_data_set(made):
        raise ReproduceError(
            "--data beauty needs --source, the folder of its items.jsonl and users.jsonl, which may not be "
            "distributed with the program"
        )
    with claim(made.parent / LOCK, wait=True):  # processes that share the folder make it once
        if is_data_set(made):
            found = DataSet.load(made).info.name
            if found != BUILT_IN[name]:
                raise ReproduceError(
                    f"{made} holds the data set {found!r}, not {name!r}; choose another --out"
                )
        elif source is not None:
            amazon_beauty.amazon_beauty(source).save(made)
        else:
            movielens.movielens().save(made)
    return made

"""Contents are told by first bytes and by marker files, whatever the name says."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import pickle
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import save
from support.data_sets import small_data_set

from index.contents import LOOKED_AT, contents_of

ROW = {"item_id": "a", "title": "café"}
LINES = (json.dumps(ROW, ensure_ascii=False) + "\n") * 3


def array_bytes() -> bytes:
    file = io.BytesIO()
    np.save(file, np.ones((2, 2)))
    return file.getvalue()


def archive_bytes() -> bytes:
    file = io.BytesIO()
    np.savez(file, a=np.ones(2))
    return file.getvalue()


def parquet_bytes() -> bytes:
    file = io.BytesIO()
    pl.DataFrame([ROW]).write_parquet(file)
    return file.getvalue()


FILES = {
    "JSON Lines": [LINES.encode(), b"\xef\xbb\xbf" + LINES.encode(), b"\n\n" + LINES.encode(), b"{}\n",
                   (LINES * 2000).encode(), LINES.encode() + b'{"item_id": "\xff"}\n', b'{"item_id": \n{}\n'],
    "a JSON array": [json.dumps([ROW]).encode(), json.dumps([ROW], indent=2).encode(), b"[]", b'["a", "b"]', b"[1]\n"],
    "a JSON object": [json.dumps({"items": [ROW]}, indent=2).encode()],
    "CSV": [b"item_id,title\na,A\n", b"item_id;title\r\na;A\r\n", b'"item_id"\t"title"\n', b"title,query\nx,y\n"],
    "UTF-16 text": [LINES.encode("utf-16"), LINES.encode("utf-16-le"), LINES.encode("utf-16-be"),
                    "name: value\n".encode("utf-16")],
    "UTF-32 text": [LINES.encode("utf-32")],
    "text in another encoding than UTF-8": ["été: 1".encode("latin-1")],
    "gzip data": [gzip.compress(LINES.encode(), mtime=0)],
    "bzip2 data": [bz2.compress(LINES.encode())],
    "xz data": [lzma.compress(LINES.encode())],
    "a zip archive": [archive_bytes()],
    "a Parquet file": [parquet_bytes()],
    "a NumPy array": [array_bytes()],
    "a pickle": [pickle.dumps(ROW)],
    "a safetensors file": [save({"a": torch.ones(2)})],
    "binary data": [bytes(range(0, 200, 7)).replace(b"\n", b"")],
    "HTML or XML": [b"<!doctype html>\n<p>", b"<?xml version='1.0'?>"],
    "text": [b"a\nb\n", b"query,abc\n", b"name: value\n", b"{3F2504E0-4F89}\n", "é".encode() * LOOKED_AT, b"[draft]\n"],
    "nothing (it is empty)": [b""],
}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "content"), [(kind, each) for kind, contents in FILES.items() for each in contents]
)
def test_files(kind: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(content)
    assert contents_of(tmp_path / "file") == kind


def test_folders(tmp_path: Path, tiny_bundle: Path) -> None:
    assert contents_of(tiny_bundle) == "a bundle"
    assert contents_of(tiny_bundle / "index") == "the index of a bundle"
    assert contents_of(tiny_bundle / "index" / "v1") == "an index version of a bundle"
    assert contents_of(tmp_path) == "an empty folder"
    assert contents_of(tmp_path / "none") == "nothing"
    small_data_set().save(tmp_path / "data")
    assert contents_of(tmp_path / "data") == "a data set"
    assert contents_of(tmp_path) == "a folder"
    (tmp_path / "config.json").write_text("{}")
    assert contents_of(tmp_path) == "a Hugging Face model"

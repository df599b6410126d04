"""Server process that lives as long as a `with` block, for the demo and the end-to-end tests."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any

from training.errors import UserError

SERVER = (
    "-P",
    "-m",
    "server",
)  # -P: a folder named like a package of ours, in the working directory, is not meant


class ServingError(UserError):
    """The server did not start; the message holds its output."""


class ServerProcess:
    """Child process `python -m server BUNDLE`.

    port: 0 for any free port; `url` holds the port in use.
    patience: seconds to wait for the start.
    admin_key: key of the administration endpoints; "" for the one of the environment, if any.
    """

    def __init__(self, bundle: Path, port: int = 0, patience: float = 120, admin_key: str = "") -> None:
        self.url = ""
        self._said: list[str] = []
        self._ready = threading.Event()
        self._patience = patience
        self._admin_key = admin_key
        command = [sys.executable, *SERVER, str(bundle), "--port", str(port)]
        environment = os.environ | ({"GEMS_ADMIN_KEY": admin_key} if admin_key else {})
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self._said = [*self._said[-20:], line]
            try:
                record = json.loads(line)
            except ValueError:
                continue
            if record.get("message") == "ready":
                self.url = record["url"]
                self._ready.set()
        self._ready.set()  # the process has ended

    def __enter__(self) -> ServerProcess:
        if not self._ready.wait(self._patience) or not self.url:
            self.process.kill()
            raise ServingError("the server did not start: " + "".join(self._said).strip())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.terminate()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """POST a JSON body and return the JSON answer. Raises `urllib.error.HTTPError` for a status from 400 on."""
        headers = {"Content-Type": "application/json"}
        if path.startswith("/admin"):
            headers["Authorization"] = f"Bearer {self._admin_key}"
        request = urllib.request.Request(self.url + path, json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request, timeout=60) as answer:
            record: dict[str, Any] = json.load(answer)
        return record

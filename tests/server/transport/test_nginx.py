"""The nginx configuration of docs/operations.md, run by nginx if it is installed."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from support.engines import hosted
from support.paths import ROOT
from support.servers import serving, wait_until

from index.bundle.bundle import Bundle
from server.app import create_app
from server.engine.torch_backend.engine import TorchEngine
from server.settings import Settings

NGINX = shutil.which("nginx")
pytestmark = pytest.mark.skipif(NGINX is None, reason="nginx is not installed")


@pytest.fixture(params=["http://gems;", "http://gems/;"], ids=["passed on", "stripped"])
def base(
    request: pytest.FixtureRequest, bundle: Bundle, engine: TorchEngine, tmp_path: Path
) -> Iterator[str]:
    """The address of nginx in front of a server with keys."""
    (example,) = re.findall(r"```nginx\n(.*?)```", (ROOT / "docs" / "operations.md").read_text("utf-8"), re.S)
    address = f"unix:{tmp_path}/nginx.sock"
    settings = Settings(root_path="/gems", api_keys="right", admin_key="admin")
    with serving(create_app(bundle, hosted(engine), settings)) as port:
        example = example.replace("listen 443 ssl;", f"listen {address};")
        example = example.replace("127.0.0.1:8000", f"127.0.0.1:{port}").replace(
            "http://gems;", request.param
        )
        config = tmp_path / "nginx.conf"
        temporary = "".join(
            f"{kind}_temp_path {tmp_path}/{kind};"
            for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        config.write_text(
            f"pid {tmp_path}/pid; error_log {tmp_path}/error.log; daemon off; events {{}}\n"
            f"http {{ access_log off; {temporary}\n{example}}}\n"
        )
        process = subprocess.Popen([str(NGINX), "-p", str(tmp_path), "-e", "stderr", "-c", str(config)])
        try:
            wait_until((tmp_path / "nginx.sock").exists)
            yield str(tmp_path / "nginx.sock")
        finally:
            process.terminate()
            process.wait(10)


def test_the_documented_proxy_serves_all_but_the_operators_paths(base: str) -> None:
    with httpx.Client(transport=httpx.HTTPTransport(uds=base), base_url="http://shop.example") as client:
        assert client.get("/gems").headers["location"].endswith("/gems/")
        for path in ("/gems/", "/gems/docs", "/gems/docs/start.js", "/gems/playground/app.js", "/gems/info"):
            assert client.get(path).status_code == 200, path
        assert client.get("/gems/openapi.json").json()["servers"] == [{"url": "/gems"}]
        assert client.post("/gems/v1/recommend", json={}).status_code == 401
        key = {"Authorization": "Bearer right"}
        answer = client.post("/gems/v1/recommend", json={}, headers=key)
        assert answer.status_code == 200
        assert len(answer.json()["request_id"]) == 32
        for path in ("/gems/metrics", "/gems/admin/index/refresh", "/gems/%61dmin/index/refresh"):
            assert client.post(path, headers={"Authorization": "Bearer admin"}).status_code == 404, path

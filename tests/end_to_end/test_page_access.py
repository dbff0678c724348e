"""The page of a running process is protected by its token, and streams end with the process."""

from __future__ import annotations

import base64
import http.client
import json
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from tests.end_to_end.processes import WITHIN
from tests.end_to_end.shop import NewShop
from tests.support.limits import LATE


def ask(page: str, path: str, headers: Mapping[str, str]) -> http.client.HTTPResponse:
    """The answer, whose body is not read yet."""
    connection = http.client.HTTPConnection(urlsplit(page).netloc, timeout=WITHIN)
    connection.request("GET", path, headers=dict(headers))
    return connection.getresponse()


def basic(password: str) -> dict[str, str]:
    """A password as a browser sends it."""
    return {"Authorization": "Basic " + base64.b64encode(f"anna:{password}".encode()).decode()}


def test_a_token_from_a_file_guards_all_but_the_probes(new_shop: NewShop, tmp_path: Path) -> None:
    """A new token in the file takes effect at once; neither token is ever logged. A stop ends open streams in time."""
    secret = tmp_path / "page-token"
    secret.write_text("5up3rs3cr3t-one\n")
    shop = new_shop(PINSTREAM_HTTP_TOKEN_FILE=str(secret))
    with shop.run() as process:
        page = process.page
        process.until(lambda: process.get("/readyz")[0] == 200, "readiness")
        assert process.get("/healthz") == (200, "ok\n")
        assert {process.get(path)[0] for path in ("/", "/status", "/events", "/history", "/metrics")} == {401}
        for path in ("/", "/status", "/history", "/metrics"):
            assert ask(page, path, basic("5up3rs3cr3t-one")).status == 200
            assert ask(page, path, {"Authorization": "Bearer 5up3rs3cr3t-one"}).status == 200
        secret.write_text("5up3rs3cr3t-the-second\n")
        assert ask(page, "/status", basic("5up3rs3cr3t-one")).status == 401
        stream = ask(page, "/events", basic("5up3rs3cr3t-the-second"))
        assert [stream.readline() for _ in range(3)] == [b"retry: 2000\n", b"\n", b"event: status\n"]
        code, seconds = process.stop()
        assert (code, seconds < LATE) == (0, True)
        stream.read()  # to a proper end: what breaks off raises
    assert "5up3rs3cr3t" not in process.stderr + process.stdout


def test_the_page_has_an_address_of_its_own(new_shop: NewShop) -> None:
    """The log names both addresses: the page's, and the one for machines; the same token protects both."""
    shop = new_shop(PINSTREAM_PAGE_ADDRESS="127.0.0.1:0", PINSTREAM_HTTP_TOKEN="5up3rs3cr3t")
    shop.write_orders(50)
    with shop.run() as process:
        urls = process.until_logged("starting")
        page, main = urls["page"], urls["health"]
        process.until(lambda: ask(main, "/readyz", {}).status == 200, "readiness")
        assert ask(main, "/healthz", {}).status == 200
        assert ask(main, "/metrics", {}).status == 401
        token = {"Authorization": "Bearer 5up3rs3cr3t"}
        assert ask(main, "/metrics", token).status == 200
        other = ask(main, "/status", token)
        assert other.status == 404
        assert b"PINSTREAM_PAGE_ADDRESS" in other.read()
        assert ask(page, "/status", {}).status == 401
        process.until(
            lambda: json.loads(ask(page, "/status", token).read())["ledger"]["read"] == 50, "all read"
        )

"""Who may ask the server, and what every response says."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from starlette.testclient import TestClient

from patchsae.explorer.answers import Answers
from patchsae.explorer.app import application
from patchsae.explorer.guard import Policy
from patchsae.explorer.library import Library
from patchsae.storage.store import Store

OWN = "http://127.0.0.1:8765"


def client(store: Store, policy: Policy, url: str = OWN) -> TestClient:
    answers = Answers(Library(store))
    return TestClient(application(answers.resource, answers.file, policy), base_url=url)


@pytest.fixture
def local(store: Store) -> TestClient:
    return client(store, Policy.of("127.0.0.1", 8765))


@pytest.fixture
def remote(store: Store) -> TestClient:
    return client(store, Policy.of("0.0.0.0", 8765), "http://192.168.1.5:8765")


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "127.0.0.1:8765"},
        {"host": "localhost:9000"},
        {"host": "[::1]:8765"},
        {"origin": OWN},
        {"sec-fetch-site": "same-origin"},
        {"sec-fetch-site": "none"},
    ],
    ids=str,
)
def test_the_own_pages_are_answered(local: TestClient, headers: Mapping[str, str]) -> None:
    assert local.get("/api/home", headers=headers).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "evil.example:8765"},
        {"host": "127.0.0.1.evil.example"},
        {"host": ""},
        {"host": "[::1"},
        {"origin": "http://evil.example"},
        {"origin": "http://127.0.0.1:9999"},
        {"origin": "null"},
        {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"},
        {"sec-fetch-site": "same-site", "sec-fetch-mode": "cors"},
        {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"},
    ],
    ids=str,
)
def test_pages_of_other_sites_are_refused(local: TestClient, headers: Mapping[str, str]) -> None:
    answered = local.get("/api/home", headers=headers)
    assert answered.status_code == 403 and answered.json()["error"].endswith((".", "name."))
    assert local.post("/api/upload/x", headers=headers, content=b"x").status_code == 403


def test_a_link_from_elsewhere_opens_the_first_page_only(local: TestClient) -> None:
    link = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}
    assert local.get("/", headers=link).status_code != 403
    assert local.get("/sql.csv?q=SELECT 1", headers=link).status_code == 403


@pytest.mark.parametrize("path", ["/", "/api/home", "/api/nothing", "/pages/nothing.js", "/nothing"])
def test_every_response_has_the_headers(local: TestClient, path: str) -> None:
    for answered in (local.get(path), local.get(path, headers={"host": "evil.example"})):
        policy = dict(
            part.strip().split(" ", 1) for part in answered.headers["content-security-policy"].split(";")
        )
        assert policy["default-src"] == "'none'" and policy["script-src"] == "'self'"
        assert policy["frame-ancestors"] == "'none'" and "unsafe" not in str(policy)
        assert answered.headers["x-content-type-options"] == "nosniff"
        assert answered.headers["referrer-policy"] == "no-referrer"
        assert "access-control-allow-origin" not in answered.headers


def test_methods_long_addresses_and_large_bodies_are_refused(local: TestClient) -> None:
    assert local.request("PUT", "/api/home").status_code == 405
    assert local.request("OPTIONS", "/api/home").status_code == 405
    assert local.get(f"/api/home?q={'x' * 40_000}").status_code == 414
    assert local.post("/api/upload/x", headers={"content-length": "64000001"}, content=b"").status_code == 413
    assert local.post("/api/upload/x", headers={"content-length": "-1"}, content=b"").status_code == 413


def test_a_body_is_read_up_to_the_limit_whatever_its_length_was_said_to_be(store: Store) -> None:
    policy = Policy(frozenset({"127.0.0.1"}), max_body=1000)

    def chunks() -> object:
        for _ in range(100):
            yield b"x" * 100

    answered = client(store, policy).post("/api/upload/x", content=chunks())  # type: ignore[arg-type]
    assert answered.status_code == 413


def test_a_loopback_address_needs_no_token_and_any_other_one_does() -> None:
    for host in ("127.0.0.1", "localhost", "::1", "127.0.0.2"):
        assert Policy.of(host, 1).token is None
    assert len({Policy.of(host, 1).token for host in ("0.0.0.0", "::", "192.168.1.5", "box", "box")}) == 5
    assert Policy.of("127.0.0.1", 1, with_token=True).token is not None


def test_the_token_opens_the_first_page_and_stays_in_a_cookie(store: Store) -> None:
    policy = Policy.of("0.0.0.0", 8765)
    remote = client(store, policy, "http://192.168.1.5:8765")
    for path in ("/", "/api/home", "/?token=wrong", f"/api/home?token={policy.token}"):
        refused = remote.get(path)
        assert refused.status_code == 401 and "token" in refused.json()["error"]
        assert "set-cookie" not in refused.headers
    let_in = remote.get(f"/?token={policy.token}")
    assert let_in.status_code == 200
    cookie = let_in.headers["set-cookie"]
    assert "HttpOnly" in cookie and "SameSite=Strict" in cookie
    assert remote.get("/api/home").status_code == 200
    stale = client(store, Policy.of("0.0.0.0", 8765), "http://192.168.1.5:8765")
    assert stale.get("/api/home", headers={"cookie": cookie.split(";")[0]}).status_code == 401


def test_a_server_on_all_addresses_is_known_by_addresses_and_not_by_names_of_others(store: Store) -> None:
    policy = Policy.of("0.0.0.0", 8765)
    cookie = {"cookie": f"{policy.cookie}={policy.token}"}
    remote = client(store, policy)
    assert remote.get("/api/home", headers={**cookie, "host": "10.0.0.7:8765"}).status_code == 200
    assert remote.get("/api/home", headers={**cookie, "host": "evil.example"}).status_code == 403


@pytest.mark.parametrize(
    "path",
    [
        "/pages/../guard.py",
        "/pages/%2e%2e/guard.py",
        "/pages/..%2fguard.py",
        "/pages//etc/passwd",
        "/pages/%2fetc/passwd",
        "/..%2f..%2fpyproject.toml",
        "/guard.py",
        "/pages/__init__.py",
    ],
)
def test_no_path_leads_to_a_file_that_is_not_a_page(local: TestClient, path: str) -> None:
    answered = local.get(path)
    assert answered.status_code == 404
    assert b"import" not in answered.content and b"root:" not in answered.content

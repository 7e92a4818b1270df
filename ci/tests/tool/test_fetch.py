# SPDX-License-Identifier: Apache-2.0
"""Downloads from a server that misbehaves, and the index that pip or uv is configured for."""

import base64
import hashlib
import os
import re
import signal
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from conftest import Project, digest, failing
from series import engine, fetch, index, tools
from series.config import Artifact, Paths
from series.errors import Exit, SeriesError, hide

DATA = bytes(range(256)) * 4000
PINNED = Artifact("file.bin", hashlib.sha256(DATA).hexdigest())


class Server(ThreadingHTTPServer):
    """Serves `files`; the attributes below plant its faults."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {"/file.bin": DATA}
        self.requests: list[tuple[str, str]] = []  # path, Range
        self.break_after: list[int] = []  # bytes, one entry an answer
        self.statuses: list[int] = []  # one entry an answer
        self.ranges = True
        self.stall = False  # after half of the bytes
        self.pause = 0.0  # seconds between 256 bytes
        self.password = ""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server = self.server
        wanted = self.headers.get("Range", "")
        server.requests.append((self.path, wanted))
        expected = "Basic " + base64.b64encode(f"user:{server.password}".encode()).decode()
        if server.password and self.headers.get("Authorization") != expected:
            self.send_response(401)
            self.send_header("WWW-Authenticate", "Basic")
            self.end_headers()
            return
        if server.statuses or self.path not in server.files:
            self.send_error(server.statuses.pop(0) if server.statuses else 404)
            return
        data = server.files[self.path]
        start = int(wanted[6:-1]) if wanted and server.ranges else 0
        if wanted and start >= len(data):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Type", "text/html" if self.path.endswith("/") else "x/y")
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        if server.stall and self.path.endswith(".gz"):
            self.wfile.write(data[: len(data) // 2])
            time.sleep(60)
        if server.pause and self.path.endswith(".gz"):
            for at in range(start, len(data), 256):
                time.sleep(server.pause)
                self.wfile.write(data[at : at + 256])
            return
        size = server.break_after.pop(0) if server.break_after else len(data)
        self.wfile.write(data[start : start + size])

    def do_HEAD(self) -> None:
        self.send_error(405)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with Server() as running:
        threading.Thread(target=running.serve_forever, args=(0.02,), daemon=True).start()
        yield running
        running.shutdown()


def download(server: Server, target: Path) -> list[float]:
    """Download DATA without waiting; return the pauses asked for."""
    pauses: list[float] = []
    fetch.download(f"{server.url}/file.bin", PINNED, target, {}, sleep=pauses.append)
    assert target.read_bytes() == DATA
    assert not target.with_name("file.bin.part").exists()
    return pauses


def refused(server: Server, target: Path) -> str:
    with failing(Exit.SOURCE) as caught:
        fetch.download(f"{server.url}/file.bin", PINNED, target, {}, sleep=lambda _: None)
    assert not target.exists()
    return str(caught.value)


def test_whole(server: Server, tmp_path: Path) -> None:
    assert download(server, tmp_path / "file.bin") == []
    assert server.requests == [("/file.bin", "")]


def test_broken_off_and_continued(server: Server, tmp_path: Path) -> None:
    server.break_after = [300_000, 200_000]
    assert download(server, tmp_path / "file.bin") == [1.0, 2.0]
    assert [wanted for _, wanted in server.requests] == ["", "bytes=300000-", "bytes=500000-"]


def test_what_arrived_is_kept_for_the_next_run(server: Server, tmp_path: Path) -> None:
    server.break_after = [1000] * fetch.RETRIES
    assert "run it again to continue" in refused(server, tmp_path / "file.bin")
    assert (tmp_path / "file.bin.part").read_bytes() == DATA[: 1000 * fetch.RETRIES]
    server.requests.clear()
    download(server, tmp_path / "file.bin")
    assert server.requests == [("/file.bin", f"bytes={1000 * fetch.RETRIES}-")]


@pytest.mark.parametrize("served", [DATA[:-1], DATA[:-1] + b"x", DATA + b"x", b""])
def test_wrong_bytes_are_not_kept(served: bytes, server: Server, tmp_path: Path) -> None:
    server.files["/file.bin"] = served
    assert "has sha256" in refused(server, tmp_path / "file.bin")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("part", [b"damaged", DATA[:5000] + b"x", DATA + b"longer", DATA])
def test_unusable_part_is_replaced(part: bytes, server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.bin.part").write_bytes(part)
    download(server, tmp_path / "file.bin")


def test_server_without_ranges(server: Server, tmp_path: Path) -> None:
    server.ranges = False
    (tmp_path / "file.bin.part").write_bytes(DATA[:5000])
    download(server, tmp_path / "file.bin")
    assert len(server.requests) == 1


def test_server_that_is_busy_at_first(server: Server, tmp_path: Path) -> None:
    server.statuses = [503, 429]
    assert len(download(server, tmp_path / "file.bin")) == 2


def test_missing_file_is_not_asked_for_twice(server: Server, tmp_path: Path) -> None:
    server.files.clear()
    assert "HTTP status 404" in refused(server, tmp_path / "file.bin")
    assert len(server.requests) == 1


@pytest.mark.parametrize("named", ["127.0.0.1", "other.example 127.0.0.1:{port}", ""])
def test_a_trusted_host_needs_no_certificate(
    named: str, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    make = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=wrong"]
    subprocess.run([*make, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    url = f"https://127.0.0.1:{server.server_port}/file.bin"
    env = {"UV_INSECURE_HOST": named.format(port=server.server_port)}
    target = tmp_path / "file.bin"
    if named:
        fetch.download(url, PINNED, target, env, sleep=lambda _: None)
        assert target.read_bytes() == DATA
        return
    with failing(Exit.SOURCE, "CERTIFICATE_VERIFY_FAILED"):
        fetch.download(url, PINNED, target, env, sleep=lambda _: None)


def test_pips_trusted_host_reaches_uv_and_the_download(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pip.conf").write_text("[global]\ntrusted-host = index.example\n")
    for name, value in environment(tmp_path, PIP_CONFIG_FILE=str(tmp_path / "pip.conf")).items():
        monkeypatch.setenv(name, value)
    index.pip_settings.cache_clear()
    env = index.environment(Paths(tmp_path, "v1"))
    index.pip_settings.cache_clear()
    assert index.trusted("https://index.example:8443/simple", env)
    assert not index.trusted("https://files.example/simple", env)


def test_caches_lie_in_the_build_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("UV_CACHE_DIR", "PIP_CACHE_DIR", "TMPDIR", "PYTHONPYCACHEPREFIX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    paths = Paths(tmp_path / "b", "v1")
    for env in (index.environment(paths), engine.environment(paths, cpu=True)):
        for name, value in env.items():
            if name.endswith(
                ("_CACHE_DIR", "_CACHE_ROOT", "_CACHE_HOME", "TMPDIR", "PREFIX", "_BASE")
            ):
                assert Path(value).is_relative_to(paths.build) or len(str(paths.build)) > 48, name
        assert str(tmp_path / "home") not in "".join(v for k, v in env.items() if k != "HOME")
    monkeypatch.setenv("UV_CACHE_DIR", "/kept")
    assert index.environment(paths)["UV_CACHE_DIR"] == "/kept"
    assert not paths.build.exists() or (paths.build / "CACHEDIR.TAG").is_file()
    # Sockets of an engine lie in TMPDIR, and their path may not be longer than 107 bytes.
    long = Paths(tmp_path / ("x" * 80), "v1")
    assert "TMPDIR" not in tools.caches(long)


def test_credentials_are_hidden() -> None:
    text = hide("at https://user:secret@host/simple and http://tok@other")
    assert text == "at https://host/simple and http://other"


# ---- the index ----


def own_index(server: Server, sources: Path, **sha256: str) -> None:
    """Make the server a package index with the toy's files."""
    links = []
    for path in sorted(sources.glob("toy-1.0*.*")):
        server.files[f"/files/{path.name}"] = path.read_bytes()
        value = sha256.get(path.suffix[1:], digest(path))
        links.append(f'<a href="/files/{path.name}#sha256={value}">{path.name}</a>')
    server.files["/simple/toy/"] = f"<html><body>{' '.join(links)}</body></html>".encode()


def environment(tmp_path: Path, **settings: str) -> dict[str, str]:
    """Settings for pip or uv, and none of this machine's."""
    return {
        **{name: "" for name in os.environ if name.startswith(("PIP_", "UV_"))},
        "PIP_CONFIG_FILE": "/dev/null",
        "UV_CACHE_DIR": str(tmp_path / "uv"),
        "UV_HTTP_RETRIES": "0",
        **settings,
    }


def with_password(server: Server) -> str:
    server.password = "s3cret"
    return server.url.replace("://", "://user:s3cret@") + "/simple"


@pytest.mark.long
@pytest.mark.parametrize("tool", ["PIP_INDEX_URL", "UV_DEFAULT_INDEX", "pip.conf"])
def test_fetch_through_the_configured_index(
    tool: str, server: Server, fresh: Project, tmp_path: Path
) -> None:
    own_index(server, fresh.sources)
    if tool == "pip.conf":
        (tmp_path / tool).write_text(f"[global]\nindex-url = {with_password(server)}\n")
        env = environment(tmp_path, PIP_CONFIG_FILE=str(tmp_path / tool))
    else:
        env = environment(tmp_path, **{tool: with_password(server)})
    done = fresh.run("fetch", env=env, sources=False)
    assert done.returncode == 0, done.stderr
    assert "s3cret" not in done.stdout + done.stderr
    found = fresh.root / "build/downloads/toy-1.0.tar.gz"
    assert digest(found) == digest(fresh.sources / found.name)
    # A damaged copy is detected, and fetched again.
    found.write_bytes(b"damaged")
    done = fresh.run("fetch", env=env, sources=False)
    assert done.returncode == 0
    assert digest(found) == digest(fresh.sources / found.name)


def test_killed_download_is_continued(server: Server, fresh: Project, tmp_path: Path) -> None:
    own_index(server, fresh.sources)
    server.stall = True
    env = environment(tmp_path, UV_DEFAULT_INDEX=f"{server.url}/simple")
    process = fresh.start("fetch", env=env, sources=False)
    while not [path for path, _ in server.requests if path.endswith(".gz")]:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    archive = fresh.sources / "toy-1.0.tar.gz"
    # How much had reached the disk when it was killed does not matter; say half.
    part = fresh.root / "build/downloads/toy-1.0.tar.gz.part"
    half = archive.stat().st_size // 2
    part.write_bytes(archive.read_bytes()[:half])
    server.stall = False
    server.requests.clear()
    done = fresh.run("fetch", env=env, sources=False)
    assert done.returncode == 0, done.stderr
    assert ("/files/toy-1.0.tar.gz", f"bytes={half}-") in server.requests


def refused_by_index(project: Project, env: dict[str, str]) -> str:
    before = project.snapshot()
    done = project.run("fetch", env=env, sources=False)
    assert done.returncode == Exit.SOURCE
    assert re.fullmatch(r"error: \S.*; \S.*\n", done.stderr), done.stderr
    after = project.snapshot()
    after.pop("build/CACHEDIR.TAG", None)
    assert after == before
    return done.stderr


def test_index_that_offers_other_bytes(server: Server, fresh: Project, tmp_path: Path) -> None:
    own_index(server, fresh.sources, gz="0" * 64)
    env = environment(tmp_path, UV_DEFAULT_INDEX=f"{server.url}/simple")
    assert "offers other bytes" in refused_by_index(fresh, env)
    assert not [path for path, _ in server.requests if path.endswith(".gz")]


def test_index_that_lies_about_its_bytes(server: Server, fresh: Project, tmp_path: Path) -> None:
    own_index(server, fresh.sources)
    server.files["/files/toy-1.0.tar.gz"] = b"something else"
    env = environment(tmp_path, UV_DEFAULT_INDEX=f"{server.url}/simple")
    done = fresh.run("apply", env=env, sources=False)
    assert done.returncode == Exit.SOURCE
    assert "has sha256" in done.stderr
    assert not fresh.tree.exists()
    assert not list((fresh.root / "build/downloads").glob("toy*"))


def test_index_without_the_release(server: Server, fresh: Project, tmp_path: Path) -> None:
    env = environment(tmp_path, UV_DEFAULT_INDEX=with_password(server))
    said = refused_by_index(fresh, env)
    assert "does not give toy 1.0" in said
    assert "s3cret" not in said


def test_wheel_is_verified_like_the_archive(master: Project, tmp_path: Path) -> None:
    from series.config import Base, Paths

    base = Base.load("v1", master.root)
    paths = Paths(tmp_path, "v1")
    assert base.wheel is not None
    found = fetch.fetch(base, base.wheel, paths, master.sources)
    assert digest(found) == base.wheel.sha256
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / base.wheel.name).write_bytes(b"other")
    found.unlink()
    with pytest.raises(SeriesError, match="has sha256"):
        fetch.fetch(base, base.wheel, paths, tmp_path / "bad")
    assert list(paths.downloads.iterdir()) == []

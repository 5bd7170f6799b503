"""storage/model_files.py: a site gets the link's model whole, once, from where it broke off, and nothing else."""

import json
import socket
import ssl
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from storage import model_files
from storage.certificates import issue
from storage.downloads import Patience
from storage.errors import SourceError
from storage.model_files import fetch_model, giving_model, listed_files

QUICK = Patience(tries=2, pause=0.01, timeout=5)


@pytest.fixture(scope="module")
def certs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("certs")
    issue(folder, ["north"])
    return folder


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(bytes(range(256)) * 10_000)
    (folder / "config.json").write_text("{}")
    (folder / "tokenizer.json").write_text('{"a": 1}')
    (folder / "secret.key").write_text("not a model's file")
    (folder / "weights.bin").write_bytes(b"a pickle")
    return folder


@pytest.fixture
def port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


def test_a_site_gets_the_models_files_and_no_others(tmp_path: Path, certs: Path, model: Path, port: int) -> None:
    authority = certs / "sites" / "north" / "ca.crt"
    with giving_model(model, certs / "link", "127.0.0.1", port):
        got = fetch_model(f"127.0.0.1:{port}", authority, tmp_path / "got", patience=QUICK)
        context = ssl.create_default_context(cafile=str(authority))
        for name in ("secret.key", "weights.bin", "../certs/link/server.key", "%2e%2e/model/secret.key"):
            with pytest.raises(urllib.error.HTTPError, match="404"):
                urllib.request.urlopen(f"https://127.0.0.1:{port}/{name}", context=context)
    assert {path.name for path in got.iterdir()} == {"model.safetensors", "config.json", "tokenizer.json"}
    assert all((got / name).read_bytes() == (model / name).read_bytes() for name in listed_files(model))


def test_a_download_that_broke_off_goes_on_where_it_was(
    tmp_path: Path, certs: Path, model: Path, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority, whole = certs / "link" / "ca.crt", model_files._Handler._send_file
    starts: list[int] = []

    def breaking(self: model_files._Handler, name: str) -> None:
        starts.append(self._start(f'"{self.server.files[name]["sha256"]}"'))
        if name == "model.safetensors" and len(starts) < 4:
            facts = self.server.files[name]
            start = starts[-1]
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(facts["bytes"] - start))
            self.send_header("ETag", f'"{facts["sha256"]}"')
            if start:
                self.send_header("Content-Range", f"bytes {start}-{facts['bytes'] - 1}/{facts['bytes']}")
            self.end_headers()
            self.wfile.write((self.server.folder / name).read_bytes()[start : start + 500_000])
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        whole(self, name)

    monkeypatch.setattr(model_files._Handler, "_send_file", breaking)
    with giving_model(model, certs / "link", "127.0.0.1", port):
        got = fetch_model(f"127.0.0.1:{port}", authority, tmp_path / "got", patience=QUICK)
    assert (got / "model.safetensors").read_bytes() == (model / "model.safetensors").read_bytes()
    # config.json, then the weights in pieces: each try begins where the one before ended.
    assert starts[1] == 0
    assert 0 < starts[2] < starts[3] < 2_560_000


def test_what_is_there_and_right_is_not_fetched_again(tmp_path: Path, certs: Path, model: Path, port: int) -> None:
    authority = certs / "link" / "ca.crt"
    with giving_model(model, certs / "link", "127.0.0.1", port):
        got = fetch_model(f"127.0.0.1:{port}", authority, tmp_path / "got", patience=QUICK)
        before = {path.name: path.stat().st_mtime_ns for path in got.iterdir()}
        (got / "config.json").write_text("[]")
        fetch_model(f"127.0.0.1:{port}", authority, tmp_path / "got", patience=QUICK)
    changed = {path.name for path in got.iterdir() if path.stat().st_mtime_ns != before[path.name]}
    assert changed == {"config.json"}
    assert (got / "config.json").read_text() == "{}"


def test_a_link_with_another_authority_gives_nothing(tmp_path: Path, certs: Path, model: Path, port: int) -> None:
    issue(tmp_path / "other", [])
    with giving_model(model, certs / "link", "127.0.0.1", port), pytest.raises(SourceError, match="certificate"):
        fetch_model(f"127.0.0.1:{port}", tmp_path / "other" / "link" / "ca.crt", tmp_path / "got", patience=QUICK)
    assert not (tmp_path / "got").exists()


@pytest.mark.parametrize("name", ["../../etc/cron.d/x.json", "x.pkl", "/x.safetensors", "a/b.json"])
def test_a_listing_with_other_names_is_refused(name: str, tmp_path: Path) -> None:
    listing = tmp_path / "files.json"
    facts = {"bytes": 1, "sha256": "0" * 64}
    listing.write_text(json.dumps({"model.safetensors": facts, name: facts}))
    with pytest.raises(SourceError, match="lists no model's files"):
        model_files._read_listing(listing)

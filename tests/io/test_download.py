"""A file is fetched once, checked, and never kept when it is another one (file:// stands in for the network)."""

from __future__ import annotations

import hashlib
from pathlib import Path
from threading import Event

import pytest

from detkit.errors import DetkitError
from detkit.io.download import fetch, sha256_of


def test_fetch(tmp_path: Path) -> None:
    source = tmp_path / "source.bin"
    source.write_bytes(b"weights" * 1000)
    promised = hashlib.sha256(source.read_bytes()).hexdigest()
    to = fetch(source.as_uri(), promised, tmp_path / "cache" / "w.bin")
    assert to.read_bytes() == source.read_bytes()
    assert sha256_of(to) == promised
    assert fetch(source.as_uri(), promised[:8], tmp_path / "short.bin").read_bytes() == source.read_bytes()
    source.unlink()
    assert fetch(source.as_uri(), promised, to) == to
    with pytest.raises(DetkitError, match="download failed"):
        fetch(source.as_uri(), "0" * 64, to)
    assert to.exists()


def test_another_content_is_not_kept(tmp_path: Path) -> None:
    source = tmp_path / "source.bin"
    source.write_bytes(b"something else")
    with pytest.raises(DetkitError, match="not the one expected"):
        fetch(source.as_uri(), "0" * 64, tmp_path / "w.bin")
    with pytest.raises(DetkitError, match="https"):
        fetch("http://example.org/w.bin", "0" * 64, tmp_path / "w.bin")
    assert [p.name for p in tmp_path.iterdir()] == ["source.bin"]


def test_a_silent_network_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a name server nor a row of addresses that never answer may hang the program."""
    never = Event()
    monkeypatch.setattr("detkit.io.download.CONNECT", 0.05)
    monkeypatch.setattr("urllib.request.urlopen", lambda url, timeout: never.wait())
    with pytest.raises(DetkitError, match="no answer within"):
        fetch("https://example.org/w.bin", "0" * 64, tmp_path / "w.bin")
    never.set()
    assert not list(tmp_path.iterdir())

"""What tests of several sources share: a server on this machine."""

from collections.abc import Iterator

import pytest

from imagepipe.sources import download
from tests.sources.loopback import LoopbackServer, serve


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackServer]:
    """A server that asks no proxy, and downloads that do not pause between attempts."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(download, "PAUSE", 0)
    with serve() as server:
        yield server

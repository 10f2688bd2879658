"""A stand-in for the Hugging Face hub on this machine, asked by the hub's own client."""

import threading
from contextlib import contextmanager
from http.server import ThreadingHTTPServer

import pytest


@contextmanager
def hub_on_this_machine(handler, tmp_path, monkeypatch):
    """A server with that handler, which keeps its `requests`, as the only hub that the client knows."""
    constants = pytest.importorskip("huggingface_hub.constants", reason="pip install 'forec-jax[hub]'")
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.requests = []
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    template = "{endpoint}/{repo_id}/resolve/{revision}/{filename}".replace("{endpoint}", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()

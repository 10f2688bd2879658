"""Models on a stand-in for the hub on this machine, asked by the hub's own client."""

import base64
import json
from http.server import BaseHTTPRequestHandler

import jax
import numpy as np
import pytest
from hub_server import hub_on_this_machine
from untrained import untrained_run

import forec_jax
from forec_jax import cli
from forec_jax.experiment import share
from forec_jax.experiment.export import Wanted, export
from forec_jax.models import WeightsError

COMMIT = "1234567890" * 4
TOKEN = "hf_never_to_be_seen"


class Handler(BaseHTTPRequestHandler):
    """Just enough of the hub for one repository that is written and read."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.requests.append(self.path)
        if self.path.endswith("/repos/create"):
            self.server.created = json.loads(body)
            self.answer({"url": f"http://127.0.0.1:{self.server.server_port}/owner/name"})
        elif self.path.endswith("/preupload/main"):
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            self.answer({"files": files})
        elif self.path.endswith("/commit/main"):
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.server.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self.answer(
                {
                    "commitUrl": f"http://127.0.0.1:{self.server.server_port}/owner/name/commit/{COMMIT}",
                    "commitOid": COMMIT,
                }
            )
        else:
            self.answer({"errors": [], "warnings": []})

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        name = self.path.rpartition("/")[2]
        if "/tree/" in self.path:
            self.answer([{"type": "file", "path": path, "size": 1, "oid": "0"} for path in self.server.files])
        elif "/resolve/" in self.path and name in self.server.files:
            self.answer(self.server.files[name])
        else:
            self.answer({"siblings": [], "id": "owner/name", "sha": COMMIT})

    def answer(self, content):
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(200)
        for header in (("X-Repo-Commit", COMMIT), ("ETag", f'"{abs(hash(body))}"'), ("Content-Length", str(len(body)))):
            self.send_header(*header)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture
def hub(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with hub_on_this_machine(Handler, tmp_path, monkeypatch) as server:
        server.files, server.created = {}, None
        yield server


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return untrained_run(tmp_path_factory.mktemp("share"))


def test_what_is_pushed_is_pulled_and_predicts_alike(hub, run, tmp_path, capsys):
    address = share.push(run, "teacher", "owner/name", private=True)
    assert address.endswith("owner/name")
    assert {"private": True}.items() <= hub.created.items() or hub.created["visibility"] == "private"
    assert sorted(hub.files) == [
        "README.md",
        "config.json",
        "labels.json",
        "model.json",
        "model.safetensors",
        "split.json",
    ]
    assert b"secret" not in b"".join(hub.files.values())
    hub.files["evil.py"] = b"raise SystemExit"  # nothing but data is fetched
    assert cli.run(["pull", "--repository=owner/name", f"--out={tmp_path / 'model'}"]) == 0
    assert not (tmp_path / "model" / "evil.py").exists()
    said = capsys.readouterr()
    assert TOKEN not in said.out + said.err
    image = np.random.default_rng(0).integers(0, 256, (32, 64, 3), dtype=np.uint8)
    found = forec_jax.load(tmp_path / "model").predict(image).probabilities
    wanted = jax.jit(run.method.predict)(run.state.teacher, image[None].astype(np.float32) / 255, None)
    np.testing.assert_allclose(found, wanted[0], atol=1e-5)


def test_the_card_says_what_the_summary_says(run, tmp_path):
    about = export(run, "teacher", tmp_path, Wanted("safetensors"))
    card = share.model_card(about, "owner/name").splitlines()
    assert "# name" in card
    assert "| mIoU of the last step | 51.00 % |" in card
    assert "| mIoU of the best step | 62.50 % |" in card
    assert r"| a\|b | 25.00 % |" in card
    assert "| c |  |" in card


def test_a_model_that_needs_code_is_not_fetched(hub, tmp_path):
    hub.files |= {"model.json": b"{}", "config.json": b'{"plugin": "evil.py"}'}
    with pytest.raises(WeightsError, match=r"owner/name needs a plugin \('evil.py'\)"):
        share.pull("owner/name", tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_what_is_no_model_and_no_repository_is_said(hub, tmp_path):
    hub.files["model.safetensors"] = b""
    with pytest.raises(WeightsError, match="holds no model that forec-jax push put there"):
        share.pull("owner/name", tmp_path / "model")
    with pytest.raises(WeightsError, match="must be OWNER/NAME"):
        share.pull("name", tmp_path / "model")
    (tmp_path / "file").touch()
    with pytest.raises(WeightsError, match="is not empty"):
        share.pull("owner/name", tmp_path)


def test_a_hub_out_of_reach_is_explained_without_the_token(run, hub, monkeypatch, capsys):
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # the client tries again some times
    hub.shutdown()
    hub.server_close()
    with pytest.raises(WeightsError, match=r"could not be written to .*hf auth login") as error:
        share.push(run, "teacher", "owner/name", private=False)
    assert TOKEN not in str(error.value)

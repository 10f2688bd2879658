import hashlib
import json
from http.server import BaseHTTPRequestHandler

import pytest
from hub_server import hub_on_this_machine

from forec_jax.models import WeightsError
from forec_jax.models.hub import CONFIG, FILE, Reference, check_computes_alike, fetch, parse_reference

CONTENT = b"tensors"
SHA256 = hashlib.sha256(CONTENT).hexdigest()
COMMIT = "1234567890" * 4


def test_references():
    assert parse_reference("hf:timm/resnet101.tv_in1k") == Reference("timm/resnet101.tv_in1k", None, None)
    text = f"hf:a/b@refs/pr/1#sha256={SHA256.upper()}"
    assert parse_reference(text) == Reference("a/b", "refs/pr/1", SHA256)


@pytest.mark.parametrize("text", ["hf:resnet101", "hf:a/b#sha256=12", "hf:a/b#md5=12", "hf:a/b/c"])
def test_what_is_no_reference_is_refused(text):
    with pytest.raises(WeightsError, match="OWNER/NAME"):
        parse_reference(text)


class Handler(BaseHTTPRequestHandler):
    """Just enough of the hub for one file of one repository."""

    promised = 0  # bytes more than are sent
    files = {"model.safetensors": CONTENT}  # noqa: RUF012 - tests put others in its place

    def do_HEAD(self):
        self.answer(with_body=False)

    def do_GET(self):
        self.answer(with_body=True)

    def answer(self, with_body):
        self.server.requests.append((self.command, self.path))
        name = self.path.rpartition("/")[2]
        known = self.path.startswith("/owner/name/resolve/") and name in self.files
        self.send_response(200 if known else 404)
        body = self.files[name] if known else b""
        headers = {
            "X-Repo-Commit": COMMIT,
            "ETag": f'"{hashlib.sha256(body).hexdigest()}"',
            "Content-Length": str(len(body) + self.promised),
        }
        for name, value in headers.items() if known else [("X-Error-Code", "RepoNotFound"), ("Content-Length", "0")]:
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with hub_on_this_machine(Handler, tmp_path, monkeypatch) as server:
        yield server


def test_fetches_once_and_checks_the_sum(hub):
    path = fetch(f"hf:owner/name@{COMMIT}#sha256={SHA256}")
    assert path.read_bytes() == CONTENT
    assert path.name == "model.safetensors"
    fetch(f"hf:owner/name@{COMMIT}")
    downloads = [path for command, path in hub.requests if command == "GET" and path.endswith(FILE)]
    assert downloads == [f"/owner/name/resolve/{COMMIT}/model.safetensors"]


def test_another_sum_names_both(hub):
    with pytest.raises(WeightsError, match=f"{SHA256}, not {'0' * 64}"):
        fetch(f"hf:owner/name#sha256={'0' * 64}")


def test_what_the_hub_has_not_is_explained(hub):
    with pytest.raises(WeightsError, match=r"owner/other.*by hand and set model\.weights"):
        fetch("hf:owner/other")


def test_a_hub_out_of_reach_is_explained(hub, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # the client tries again some times
    hub.shutdown()
    hub.server_close()
    with pytest.raises(WeightsError, match=r"by hand and set model\.weights"):
        fetch("hf:owner/name")


def test_a_body_that_breaks_off_is_explained(hub, monkeypatch):
    """The server promises more bytes than it sends; the error is the HTTP library's own."""
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    monkeypatch.setattr(Handler, "promised", 100)
    with pytest.raises(WeightsError, match=r"could not be fetched.*by hand"):
        fetch("hf:owner/name")


def test_without_the_client_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    with pytest.raises(WeightsError, match=r"forec-jax\[hub\]"):
        fetch("hf:owner/name")


@pytest.mark.parametrize("unusable", ["~/.cache/huggingface/hub", "huggingface/hub"])
def test_without_a_home_nothing_is_kept_in_the_current_folder(hub, tmp_path, monkeypatch, unusable):
    """What the client's own cache is called where there is no HOME, or an empty XDG_CACHE_HOME."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", unusable)
    monkeypatch.setattr("forec_jax.models.hub.cache_folder", lambda: tmp_path / "ours")
    assert fetch(f"hf:owner/name@{COMMIT}").is_relative_to(tmp_path / "ours")
    assert [folder.name for folder in tmp_path.iterdir()] == ["ours"]


def test_the_config_comes_along(hub, monkeypatch):
    monkeypatch.setattr(Handler, "files", {FILE: CONTENT, CONFIG: b'{"architecture": "resnetaa50"}'})
    path = fetch(f"hf:owner/name@{COMMIT}")
    with pytest.raises(WeightsError, match=r"config\.json says architecture=resnetaa50"):
        check_computes_alike(path)


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ({"architecture": "resnetaa50d"}, "architecture=resnetaa50d"),
        ({"architecture": "resnetblur50"}, "architecture=resnetblur50"),
        ({"architecture": "resnet50", "model_args": {"aa_layer": "avg"}}, "aa_layer=avg"),
        ({"model_type": "resnet", "downsample_in_bottleneck": True}, "downsample_in_bottleneck=True"),
        ({"model_type": "resnet", "downsample_in_first_stage": True}, "downsample_in_first_stage=True"),
        ({"model_type": "resnet", "hidden_act": "gelu"}, "hidden_act=gelu"),
        ({"model_type": "mobilenet_v2", "hidden_act": "relu6", "tf_padding": False}, "tf_padding=False"),
        ({"architecture": "mobilenetv2_100", "model_args": {"act_layer": "silu"}}, "act_layer=silu"),
    ],
)
def test_networks_that_compute_otherwise_with_the_same_tensors_are_refused(tmp_path, config, why):
    (tmp_path / CONFIG).write_text(json.dumps(config))
    with pytest.raises(WeightsError, match=f"take weights of a plain network.*\n.*says {why}:"):
        check_computes_alike(tmp_path / FILE)


@pytest.mark.parametrize(
    "config",
    [
        {"architecture": "resnet50", "num_classes": 1000, "pretrained_cfg": {"tag": "a1_in1k"}},
        {"model_type": "mobilenet_v2", "hidden_act": "relu6", "tf_padding": True, "layer_norm_eps": 0.001},
        {"architecture": "mobilenetv2_100", "num_classes": 1000},
        {"architecture": "resnet50d"},
        {"model_type": "resnet", "downsample_in_bottleneck": False, "hidden_act": "relu"},
        {"architecture": None, "model_args": None},
        ["no config"],
    ],
)
def test_plain_networks_pass(tmp_path, config):
    (tmp_path / CONFIG).write_text(json.dumps(config))
    check_computes_alike(tmp_path / FILE)


def test_a_config_beside_another_file_is_not_its_own(tmp_path):
    """A work directory holds a config.json too."""
    (tmp_path / CONFIG).write_text('{"architecture": "resnetaa50"}')
    check_computes_alike(tmp_path / "weights.safetensors")


def test_a_damaged_config_is_named(tmp_path):
    (tmp_path / CONFIG).write_text("{")
    with pytest.raises(WeightsError, match=r"config\.json is damaged"):
        check_computes_alike(tmp_path / FILE)

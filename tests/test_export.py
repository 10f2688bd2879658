"""Exported models say what the library says, without the library."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from untrained import untrained_run

import forec_jax
from forec_jax import cli
from forec_jax.experiment.export import Wanted
from forec_jax.experiment.export import export as exported
from forec_jax.face import Model

SCRIPTS = re.findall(r"```python\n(.*?)```", Path("docs/export.md").read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return untrained_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def workdir(run, tmp_path_factory):
    """An exported run, which commands take as one."""
    folder = tmp_path_factory.mktemp("workdir")
    about = exported(run, "teacher", folder, Wanted("safetensors"))
    assert about["networks"] == {"student": ["encoder", "segmentation"]}  # no reconstruction
    return folder


@pytest.fixture(scope="module")
def model(run):
    return Model(run, "teacher")


def photo(size, folder):
    """A photo.jpg, and its pixels as they are read."""
    height, width = size
    small = np.random.default_rng(0).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    Image.fromarray(small).resize((width, height)).save(folder / "photo.jpg")
    return np.asarray(Image.open(folder / "photo.jpg").convert("RGB"))


def export(workdir, out, *flags):
    assert cli.run(["export", f"--workdir={workdir}", f"--out={out}", *flags]) == 0
    return json.loads((out / "model.json").read_text())


def run_script(text, folder):
    """The label that a script of the docs finds, in a process of its own that knows no forec_jax."""
    blocked = "import sys\nsys.modules['forec_jax'] = None\n"
    subprocess.run([sys.executable, "-c", blocked + text], cwd=folder, check=True, timeout=120)
    return np.asarray(Image.open(folder / "label.png"))


def assert_nearly_all_alike(found, wanted):
    """Labels are alike but for pixels whose best two classes are as good as equal."""
    assert found.shape == wanted.shape
    assert len(np.unique(wanted)) > 1
    assert (found == wanted).mean() > 0.999


def test_an_onnx_file_says_what_the_library_says(workdir, model, tmp_path):
    pytest.importorskip("onnxruntime", reason="pip install 'forec-jax[export]'")
    pixels = photo((33, 47), tmp_path)
    about = export(workdir, tmp_path / "taken", "--size=33x47")
    assert about["files"][0]["largest_difference"] < 1e-5
    assert_nearly_all_alike(run_script(SCRIPTS[0], tmp_path), model.predict(pixels).label)


def test_one_onnx_file_takes_images_of_many_sizes(workdir, model, tmp_path):
    pytest.importorskip("onnxruntime", reason="pip install 'forec-jax[export]'")
    pixels = photo((41, 29), tmp_path)
    about = export(workdir, tmp_path / "taken", "--size=64x64", "--smaller")
    assert [one["name"] for one in about["inputs"]] == ["image", "size"]
    assert_nearly_all_alike(run_script(SCRIPTS[1], tmp_path), model.predict(pixels).label)


def test_a_stablehlo_file_says_what_the_library_says(workdir, model, tmp_path):
    pixels = photo((33, 47), tmp_path)
    about = export(workdir, tmp_path / "taken", "--format=stablehlo", "--size=33x47", "--platforms=cpu,cuda")
    assert about["platforms"] == ["cpu", "cuda"]
    assert about["files"][0]["largest_difference"] < 1e-5
    assert_nearly_all_alike(run_script(SCRIPTS[2], tmp_path), model.predict(pixels).label)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 0), ("bfloat16", 0.05)])
def test_exported_weights_read_as_a_run(workdir, model, tmp_path, dtype, tolerance):
    pixels = photo((33, 47), tmp_path)
    about = export(workdir, tmp_path / "taken", "--format=safetensors", f"--dtype={dtype}")
    assert about["config"]["data"]["root"] == ""
    assert about["trained"]["split"] == json.loads((workdir / "split.json").read_text())
    taken = forec_jax.load(tmp_path / "taken")
    assert (taken.classes, taken.palette) == (model.classes, model.palette)
    found, wanted = taken.predict(pixels).probabilities, model.predict(pixels).probabilities
    np.testing.assert_allclose(found, wanted, atol=tolerance)


def test_weights_of_another_network_are_refused(workdir, tmp_path):
    export(workdir, tmp_path / "taken", "--format=safetensors")
    config = json.loads((tmp_path / "taken" / "config.json").read_text())
    config["model"]["unet"]["width"] = 0.0625
    (tmp_path / "taken" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"model\.safetensors: .* the config's network wants"):
        forec_jax.load(tmp_path / "taken")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--size=33"], "--size=33 must be a height and a width"),
        (["--size=33x64", "--smaller"], "multiples of 32: take 64x64"),
        (["--dtype=bfloat16"], "ONNX's convolutions run in float32"),
        (["--format=safetensors", "--size=33x33"], "holds weights for images of any size"),
        (["--platforms=cpu,abacus"], "abacus"),
    ],
)
def test_what_cannot_be_exported_is_said(workdir, tmp_path, capsys, flags, message):
    assert cli.run(["export", f"--workdir={workdir}", f"--out={tmp_path / 'taken'}", *flags]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.onnx"))


def test_an_image_is_predicted_in_tiles(workdir, model, tmp_path):
    """Each part says what that part of the image says by itself."""
    pixels = photo((40, 70), tmp_path)
    flags = [f"--images={tmp_path / 'photo.jpg'}", f"--out={tmp_path / 'out'}", "--tile=40", "--overlap=10"]
    assert cli.run(["predict", f"--workdir={workdir}", "--probabilities", *flags]) == 0
    found = np.load(tmp_path / "out" / "probabilities" / "photo.npz")["probabilities"]
    left, right = (model.predict(part).probabilities for part in (pixels[:, :40], pixels[:, 30:]))
    np.testing.assert_allclose(found, np.concatenate([left[:, :35], right[:, 5:]], axis=1), atol=1e-3)

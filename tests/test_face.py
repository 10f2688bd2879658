import ast
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import forec_jax

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")

OPTIONS = {
    "steps": 6,  # as many, and as large batches, as tiny_run.py, so that what that compiled serves here too
    "evaluate_every": 6,
    "checkpoint_every": 6,
    "data.shapes.size": 48,
    "data.crop": 33,
    "data.labelled": "8:0",
    "data.longest_side": 40,
    "eval.split": "tune",
    "eval.batch": 8,
    "eval.bucket": 64,
    "eval.pictures": 0,
    "model.encoder": "unet",  # compiled in half of a ResNet's time
    "model.unet.width": 0.03125,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the README's lines run: it holds the run that its training lines leave."""
    folder = tmp_path_factory.mktemp("face")
    assert forec_jax.train("configs/shapes.py:forec", folder / "runs" / "forec", OPTIONS) is None
    return folder


@pytest.fixture(scope="module")
def model(folder):
    return forec_jax.load(folder / "runs" / "forec", checkpoint="best")


def test_a_file_a_picture_and_an_array_are_predicted_alike(model, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    found = [model.predict(image) for image in (tmp_path / "a.png", Image.fromarray(pixels), pixels)]
    for one in found:
        assert one.label.shape == one.confidence.shape == (50, 70)
        assert one.probabilities.shape == (50, 70, len(model.classes))
        np.testing.assert_allclose(one.probabilities.sum(-1), 1.0, atol=1e-5)
        np.testing.assert_array_equal(one.label, one.probabilities.argmax(-1))
        np.testing.assert_array_equal(one.probabilities, found[0].probabilities)
    assert len(model.palette) == len(model.classes)


def test_the_labels_are_those_that_predict_writes(model, tmp_path):
    pixels = np.random.default_rng(1).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    (tmp_path / "in").mkdir()
    Image.fromarray(pixels).save(tmp_path / "in" / "a.png")
    assert model.predict_folder(tmp_path / "in", tmp_path / "out") == 1
    written = np.asarray(Image.open(tmp_path / "out" / "index" / "a.png"))
    np.testing.assert_array_equal(model.predict(pixels).label, written)


def test_the_python_lines_of_the_readme_run(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    photo = Image.fromarray(np.random.default_rng(2).integers(0, 256, (50, 70, 3), dtype=np.uint8))
    Path("photos").mkdir()
    for file in ("photo.jpg", "photos/a.jpg"):
        photo.save(file)
    (lines,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names = {}
    exec(lines, names)
    found, classes = names["found"], names["model"].classes
    assert found.label.shape == (50, 70)
    assert sorted(ast.literal_eval(capsys.readouterr().out)) == sorted(classes[k] for k in np.unique(found.label))
    assert [file.name for file in Path("predictions/overlay").iterdir()] == ["a.png"]


def test_a_picture_of_more_than_8_bits_is_refused_and_one_with_an_orientation_is_turned_upright(model):
    for pixels in (np.full((50, 70), 3000, np.uint16), np.full((50, 70), 0.5, np.float32)):
        with pytest.raises(ValueError, match="has no colours of 8 bits"):
            model.predict(Image.fromarray(pixels))
    picture = Image.fromarray(np.zeros((50, 70, 3), np.uint8))
    picture.getexif()[0x0112] = 6  # a quarter turn
    assert model.predict(picture).label.shape == (70, 50)


def test_an_array_that_is_no_image_is_refused(model):
    with pytest.raises(ValueError, match=r"u8\[H,W,3\], not float32\[4, 4\]"):
        model.predict(np.zeros((4, 4), np.float32))


def test_the_face_is_short_and_has_nothing_else():
    assert len(forec_jax.__all__) <= 10
    with pytest.raises(AttributeError, match="no attribute 'predict'"):
        forec_jax.predict  # noqa: B018

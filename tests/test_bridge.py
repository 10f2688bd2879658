import json

import jax
import numpy as np
import pytest

from forec_jax.config import load_config
from forec_jax.contracts import TrainState
from forec_jax.data import DataError, folder_dataset, shapes_dataset
from forec_jax.experiment import build, sources
from forec_jax.experiment.label import only_from_tags, surest, write_labels
from forec_jax.experiment.load import Run, choose_threshold
from forec_jax.experiment.masks import Labelling
from forec_jax.experiment.workdir import WorkdirError
from forec_jax.methods import WsssRec
from forec_jax.methods.parts.tags import tags_head
from forec_jax.methods.wsss_rec import wsss_heads
from forec_jax.parallel import make_mesh

SIZE = 40


@pytest.fixture
def run(make_toy_network, monkeypatch):
    """A run of wsss_rec with a network of a few matrices on twenty images."""
    dataset = shapes_dataset(size=SIZE, counts={"train": 20, "tune": 8, "val": 4, "val_decorrelated": 3})
    monkeypatch.setattr(sources, "build_full_dataset", lambda c, val_ids=None: dataset)
    monkeypatch.setattr(sources, "check_tags", lambda *a: None)  # so few images need not show every class
    c = load_config("configs/tags.py:wsss", {"data.shapes.size": SIZE, "eval.bucket": 64, "eval.batch": 8})
    labels = dataset.labels
    network, classifier = make_toy_network(wsss_heads(7)), make_toy_network((tags_head(tuple(range(1, 7))),))
    method = WsssRec(network, classifier, tuple(range(1, 7)), 0)
    state = TrainState(np.int32(5), *method.init(jax.random.key(0))[:3], None, {})
    return Run(c, labels, method, state, make_mesh(devices=jax.devices()[:1]))


def test_masks_from_tags_become_a_data_set(run, tmp_path):
    how = Labelling(network="student", keep=0.5, confidence=0.3, labelled="4:0")
    written = write_labels(run, tmp_path / "masks", how)
    assert (written.true, written.found + written.without) == (4, 16)
    assert abs(written.found - written.without) <= 3  # half of the images of each number of tags
    dataset = folder_dataset(tmp_path / "masks", tmp_path / "prepared")
    pool, truth = dataset.source("train"), shapes_dataset(size=SIZE).source("train")
    assert (dataset.classes, dataset.background_classes) == (run.labels.classes, (0,))
    assert (len(pool), len(dataset.maskless), len(dataset.source("val"))) == (20, written.without, 4)
    assert len(dataset.source("val_decorrelated")) == 3
    variables = build.network_variables(run.state, "student")
    true, confidences = 0, []  # number of tags, whether there is no mask, mean confidence
    for index, name in enumerate(pool.ids):
        theirs, maskless = truth[index], name in dataset.maskless
        image = pool.without_labels()[index].image
        np.testing.assert_array_equal(image, theirs.image)
        if not maskless and np.array_equal(pool[index].label, theirs.label):
            true += 1
            continue
        present = np.isin(np.arange(7), np.unique(theirs.label)).astype(np.float32)
        unit = image[None].astype(np.float32) / 255
        scores = np.asarray(run.method.scores(variables, unit, None, jax.numpy.asarray(present[None])))[0]
        confidences.append((present[1:].sum(), maskless, scores.max(-1).mean()))
        if not maskless:
            expected = np.where(scores.max(-1) >= 0.3, scores.argmax(-1), 255)
            assert (pool[index].label != expected).mean() < 0.01  # rounding may flip a pixel
            assert set(np.unique(pool[index].label)) <= {0, 255, *np.flatnonzero(present)}
    assert true == 4
    written_confidences = json.loads((tmp_path / "masks" / "confidences.json").read_text())
    assert (written_confidences.keys() < set(pool.ids), len(written_confidences)) == (True, 16)
    np.testing.assert_allclose(sorted(written_confidences.values()), sorted(c for *_, c in confidences), rtol=1e-4)
    for number in {number for number, *_ in confidences}:
        kept = [c for n, maskless, c in confidences if n == number and not maskless]
        left = [c for n, maskless, c in confidences if n == number and maskless]
        assert min(kept, default=1) >= max(left, default=0)
    np.testing.assert_array_equal(dataset.source("val")[3].label, shapes_dataset(size=SIZE).source("val")[3].label)


def test_images_without_the_tag_do_not_take_all_the_places():
    """They are background, and sure of it: 1.0 each."""
    confidences = {"a": 0.6, "b": 0.9, "c": 0.7, "d": 0.8, "x": 1.0, "y": 1.0, "z": 1.0, "w": 1.0}
    numbers = {name: int(name in "abcd") for name in confidences}
    assert surest(confidences, numbers, 0.5) == {"b", "d", "x", "y"}
    assert surest(confidences, numbers, 1.0) == set(confidences)


def test_nothing_is_overwritten(run, tmp_path):
    (tmp_path / "file.txt").write_text("mine")
    with pytest.raises(DataError, match="is not an empty folder"):
        write_labels(run, tmp_path, Labelling(network="student"))


def test_a_run_with_labels_has_no_such_masks(run, tmp_path):
    other = run._replace(method=object())
    other.config.method.name = "supervised"
    with pytest.raises(WorkdirError, match="a run of supervised makes no masks from tags"):
        only_from_tags(other)
    with pytest.raises(WorkdirError, match="supervised, which has no mask threshold"):
        choose_threshold(other, tmp_path, "tune", "student")

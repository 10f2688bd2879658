"""A run's predictions as labels for another training."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from forec_jax import cli
from forec_jax.config import load_config
from forec_jax.contracts import IGNORE
from forec_jax.data import DataError, folder_dataset, select, shapes_dataset
from forec_jax.experiment import label, sources
from forec_jax.experiment.label import pair_counts, surest, write_labels, write_masks
from forec_jax.experiment.load import load_run
from forec_jax.experiment.masks import Labelling
from forec_jax.experiment.run import run_training
from forec_jax.experiment.workdir import WorkdirError
from forec_jax.options import OptionError
from forec_jax.visualize import save_index_png

SIZE = 48
OPTIONS = {
    "steps": 4,
    "milestones": (2,),
    "evaluate_every": 4,
    "checkpoint_every": 4,
    "data.shapes.size": SIZE,
    "data.crop": 33,
    "data.labelled": "8:0",
    "eval.bucket": 64,
    "eval.batch": 8,
    "eval.pictures": 0,
    "model.encoder": "unet",  # compiled in half of a ResNet's time
    "model.unet.width": 0.03125,
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    counts = {"train": 24, "tune": 2, "val": 4, "val_decorrelated": 2}
    with pytest.MonkeyPatch.context() as patch:
        small = lambda c, val_ids=None: shapes_dataset(size=SIZE, counts=counts)  # noqa: E731
        patch.setattr(sources, "build_full_dataset", small)
        workdir = tmp_path_factory.mktemp("label") / "run"
        assert run_training(load_config("configs/shapes.py:mean_teacher", OPTIONS), workdir) is None
        yield workdir


def test_images_in_both_parts_of_a_run_are_not_among_those_that_it_labels(monkeypatch):
    dataset = shapes_dataset(size=SIZE, counts={"train": 4, "val": 1})
    train = dataset.source("train")
    parts = {"dataset": dataset, "labelled": select(train, train.ids[:1]), "unlabelled": train, "validation": None}
    monkeypatch.setattr(label, "_training_data", lambda run, c: SimpleNamespace(**parts))
    run = SimpleNamespace(config=load_config("configs/shapes.py:mean_teacher", {"data.pool": "train"}))
    images = label._from_labels(run)
    assert list(images.others.ids) == list(train.ids[1:])
    assert len(images.splits["train"]) == 4


@pytest.mark.slow
def test_a_milestone_is_kept_and_the_last_state_is_another(trained):
    kept, last = load_run(trained, 2), load_run(trained, "last")
    assert (int(kept.state.step), int(last.state.step)) == (2, 4)
    with pytest.raises(WorkdirError, match="holds no 3 checkpoint"):
        load_run(trained, 3)


@pytest.mark.parametrize(
    ("rank", "flips"), [("confidence", False), pytest.param("agreement", True, marks=pytest.mark.slow)]
)
def test_the_unlabelled_images_get_the_masks_that_the_run_predicts(trained, tmp_path, rank, flips):
    run, out = load_run(trained, "last"), tmp_path / "labelled"
    how = Labelling(keep=0.5, rank=rank, flips=flips, scales=(1.0, 0.5) if flips else (1.0,))
    written = write_labels(run, out, how)
    assert written == (8, 8, 8)  # half of 16 predicted, 8 true, 8 without
    dataset = folder_dataset(out, tmp_path / "prepared")
    pool, truth = dataset.source("train"), shapes_dataset(size=SIZE).source("train")
    assert (len(pool), len(dataset.maskless), len(dataset.source("val"))) == (24, 8, 4)
    data = sources.build_training_data(run.config)
    for index, name in enumerate(pool.ids):
        image = truth[truth.ids.index(name)]
        np.testing.assert_array_equal(pool.without_labels()[index].image, image.image)
        if name in data.labelled.ids:
            np.testing.assert_array_equal(pool[index].label, image.label)
    with pytest.raises(DataError, match="exists and is not an empty folder"):
        write_labels(run, out, how)


@pytest.mark.slow
def test_a_second_training_takes_the_stored_masks_beside_the_true_ones(trained, tmp_path):
    folder, second = tmp_path / "labelled", tmp_path / "second"
    written = write_labels(load_run(trained, "last"), folder, Labelling(keep=0.5, pixel_confidence=True))
    options = {**OPTIONS, "milestones": (), "data.pseudo": str(folder), "batch.labelled": 8, "batch.pseudo": 8}
    c = load_config("configs/shapes.py:st", options)
    assert run_training(c, second) is None
    summary = json.loads((second / "summary.json").read_text())
    assert (summary["split"]["labelled"], summary["split"]["pseudo"]) == (8, written.found)
    some = next((folder / "masks").glob("*.png"))
    save_index_png(some, np.zeros((SIZE, SIZE), np.uint8), shapes_dataset(size=SIZE).palette)
    with pytest.raises(WorkdirError, match=r"holds a run on other images than those of data\.pseudo="):
        run_training(load_config("configs/shapes.py:st", options), second)
    with pytest.raises(OptionError, match=r"set data\.pseudo to a folder"):
        run_training(load_config("configs/shapes.py:st", {**options, "data.pseudo": ""}), tmp_path / "third")


def test_images_with_a_stored_mask_keep_it(trained, tmp_path):
    """Half of 16 images have masks of one class that nobody would find; the other half gets what the run finds."""
    run, before, out = load_run(trained, "last"), tmp_path / "before", tmp_path / "out"
    write_labels(run, before, Labelling(keep=0.5, pixel_confidence=True))
    others = [name for name in json.loads((before / "confidences.json").read_text())]
    kept = [name for name in others if (before / "masks" / f"{name}.png").exists()]
    for name in kept:
        save_index_png(
            before / "masks" / f"{name}.png", np.full((SIZE, SIZE), 3, np.uint8), shapes_dataset(size=SIZE).palette
        )
    assert write_labels(run, out, Labelling(stored=str(before), pixel_confidence=True)) == (16, 8, 0)
    for folder in ("masks", "confidence"):
        for name in kept:
            assert (out / folder / f"{name}.png").read_bytes() == (before / folder / f"{name}.png").read_bytes()
    assert set(json.loads((out / "confidences.json").read_text())) == set(others) - set(kept)
    assert all(
        (out / "masks" / f"{name}.png").exists() and (out / "images" / f"{name}.png").exists() for name in others
    )


def test_masks_alone_are_those_of_the_data_set_and_each_class_keeps_its_share(trained, tmp_path):
    """Half of each class's pixels, and no image or list; a run whose background has no class writes none."""
    run = load_run(trained, "last")
    assert write_labels(run, tmp_path / "all", Labelling(pixel_confidence=True)) == (16, 8, 0)
    run = run._replace(labels=run.labels._replace(background_classes=()))
    assert write_masks(run, tmp_path / "half", Labelling(pixel_confidence=True, keep_pixels=0.5)) == (16, 8, 0)
    assert {path.name for path in (tmp_path / "half").iterdir()} == {
        "masks",
        "confidence",
        "classes.toml",
        "confidences.json",
    }
    assert "background =" not in (tmp_path / "half" / "classes.toml").read_text()
    names = sorted(path.name for path in (tmp_path / "half" / "masks").iterdir())
    every, half = (
        np.stack([np.asarray(Image.open(tmp_path / folder / "masks" / name)) for name in names])
        for folder in ("all", "half")
    )
    assert len(names) == 16
    np.testing.assert_array_equal(half[half != IGNORE], every[half != IGNORE])
    for k in np.unique(every):
        assert np.mean(half[every == k] == k) >= 0.5  # all of those that are as unsure as the last one
    confidence = [(tmp_path / folder / "confidence" / names[0]).read_bytes() for folder in ("all", "half")]
    assert confidence[0] == confidence[1]


def test_reliability_is_the_mean_agreement_of_the_milestones_with_the_last_state(tmp_path, monkeypatch):
    """ST++: M_1 = 01/11 and M_2 = M_3 = 00/11: (.583333 + 1) / 2; an image on which all agree has 1."""
    last = np.array([[0, 0], [1, 1]], np.uint8)
    said = {"first": np.array([[0, 1], [1, 1]], np.uint8), "second": last}
    for name in "ab":
        (tmp_path / "masks").mkdir(exist_ok=True)
        save_index_png(tmp_path / "masks" / f"{name}.png", last, shapes_dataset(size=SIZE).palette)

    def found(run, images, how):
        for name, mask in (("a", said[run.name]), ("b", last)):
            yield SimpleNamespace(example=SimpleNamespace(id=name), label=mask)

    monkeypatch.setattr(label, "found_masks", found)
    runs = [SimpleNamespace(name=name, labels=SimpleNamespace(classes=("background", "disc"))) for name in said]
    scores = label._by_agreement(runs, Labelling())(tmp_path, (), {"a": 0.5, "b": 0.5})
    assert scores == pytest.approx({"a": 0.791667, "b": 1.0}, abs=1e-6)
    save_index_png(tmp_path / "masks" / "b.png", np.full_like(last, IGNORE), shapes_dataset(size=SIZE).palette)
    scores = label._by_agreement(runs, Labelling())(tmp_path, (), {"a": 0.5, "b": 0.5})
    assert scores == pytest.approx({"a": 0.791667, "b": 0.0}, abs=1e-6)  # nobody is sure of a pixel: the last in rank


def test_pixels_below_the_confidence_are_void(trained, tmp_path):
    run = load_run(trained, "last")
    write_labels(run, tmp_path / "out", Labelling(confidence=1.1))
    dataset = folder_dataset(tmp_path / "out", tmp_path / "prepared")
    labelled = sources.build_training_data(run.config).labelled.ids
    pool = dataset.source("train")
    assert all((pool[i].label == IGNORE).all() for i, name in enumerate(pool.ids) if name not in labelled)


def test_without_milestones_there_is_no_agreement_and_true_masks_are_the_runs_own(trained, tmp_path):
    run = load_run(trained, "last")
    run.config.milestones = ()
    with pytest.raises(WorkdirError, match=r"has no earlier milestones; train with --config\.milestones"):
        write_labels(run, tmp_path / "out", Labelling(rank="agreement"))
    with pytest.raises(WorkdirError, match="--labelled is for masks from tags"):
        write_labels(run, tmp_path / "out", Labelling(labelled="4:0"))


def test_the_command_says_what_it_wrote(trained, tmp_path, capsys):
    assert cli.run(["label", f"--workdir={trained}", f"--out={tmp_path / 'out'}", "--keep=0.25"]) == 0
    assert "4 predicted masks, 8 true ones, 12 images without" in capsys.readouterr().out


def test_how_often_two_masks_say_what_by_hand():
    one, other = np.array([[0, 1, 1, IGNORE]], np.uint8), np.array([[0, 1, 0, 1]], np.uint8)
    np.testing.assert_array_equal(pair_counts(one, other, 2), [[1, 0], [1, 1]])


def test_the_surest_of_each_kind_are_kept():
    scores = {"a": 0.9, "b": 0.8, "c": 0.1, "d": 0.2}
    assert surest(scores, dict.fromkeys(scores, 0), 0.5) == {"a", "b"}
    assert surest(scores, {"a": 0, "b": 0, "c": 1, "d": 1}, 0.5) == {"a", "d"}

"""Scores of stored runs: of their own data set, of any other, side by side, and when the data changes under them."""

import dataclasses
import json
import os
import shutil

import numpy as np
import pytest
from PIL import Image

from forec_jax import cli
from forec_jax.config import load_config
from forec_jax.data import DataError, Labels, folder_dataset
from forec_jax.evaluation import Evaluation
from forec_jax.experiment import table
from forec_jax.experiment.contents import differing, stored_contents
from forec_jax.experiment.load import Stored, load_run, read_stored
from forec_jax.experiment.results import Question, Result, forget_after, kept_results
from forec_jax.experiment.score import say_what_is_not_shown
from forec_jax.experiment.table import Row, differences, incomparable, repetitions, spread
from forec_jax.experiment.use import Seen
from forec_jax.options import OptionError

NAMES = '["background", "disc", "square"]'
STEPS = 2
OPTIONS = [
    f"--config.steps={STEPS}",
    "--config.evaluate_every=1",
    "--config.data.crop=48",
    "--config.batch.labelled=8",
    "--config.batch.unlabelled=8",
    "--config.eval.batch=8",
    "--config.eval.bucket=64",
    "--config.eval.pictures=0",
    "--config.model.encoder=unet",
    "--config.model.unet.width=0.03125",
    "--config.data.on_change=raise",
]


def draw(root, name, seed):
    """A photograph with classes 1 and 2, and its mask."""
    rng = np.random.default_rng(seed)
    image, mask = rng.integers(0, 90, (40, 48, 3)).astype(np.uint8), np.zeros((40, 48), np.uint8)
    for k in (1, 2):
        y, x = rng.integers(0, 24, 2)
        image[y : y + 12, x : x + 16], mask[y : y + 12, x : x + 16] = (200, 80 * k, 40), k
    for part, pixels in (("images", image), ("masks", mask)):
        (root / part).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(root / part / f"{name}.png")


def make_folder(root):
    for i in range(10):
        draw(root, f"a{i}", i)
    for i in range(3):
        draw(root, f"u{i}", 100 + i)
        (root / "masks" / f"u{i}.png").unlink()
    (root / "classes.toml").write_text(f"names = {NAMES}\n")
    return root


def train(photos, workdir, *more):
    config = ["--config=configs/folder.py:mean_teacher", f"--config.data.root={photos}"]
    prepared = f"--config.data.prepared={photos.parent / 'prepared'}"
    return cli.run(["train", *config, prepared, f"--workdir={workdir}", *OPTIONS, *more])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    base = tmp_path_factory.mktemp("scores")
    photos = make_folder(base / "photos")
    assert train(photos, base / "run") == 0
    return base


@pytest.fixture
def here(trained, tmp_path):
    """Photographs and the run that learned them, both free to be changed."""
    photos, run = (shutil.copytree(trained / name, tmp_path / name) for name in ("photos", "run"))
    config = json.loads((run / "config.json").read_text())
    config["data"] |= {"root": str(photos), "prepared": str(tmp_path / "prepared")}
    (run / "config.json").write_text(json.dumps(config))
    return photos, run


def told(capsys, code, *argv):
    assert cli.run([argv[0], *map(str, argv[1:])]) == code
    return capsys.readouterr()


def val_of(run):
    return json.loads((run / "val.json").read_text())


def change_mask(photos, name):
    file = photos / "masks" / f"{name}.png"
    mask = np.array(Image.open(file))
    mask[0, 0] = 2 - mask[0, 0]
    Image.fromarray(mask).save(file)


# --- classes and files that change under a run


def test_other_classes_or_another_order_are_refused_by_every_command(here, capsys):
    photos, run = here
    before = (run / "labels.json").read_text()
    for names in ('["square", "disc", "background"]', '["background", "disc", "square", "star"]'):
        (photos / "classes.toml").write_text(f"names = {names}\n")
        for argv in (("evaluate", f"--workdir={run}"), ("table", f"--workdirs={run}")):
            error = told(capsys, 2, *argv).err
            assert "learned the classes [background, disc, square]; the data set now has [" in error
            assert names.replace('"', "") in error
            assert "classes.toml" in error
        assert train(photos, run) == 2
        assert "learned the classes [background, disc, square]" in capsys.readouterr().err
        assert (run / "labels.json").read_text() == before


def test_another_background_is_refused_where_a_run_would_go_on(here, capsys):
    photos, run = here
    (photos / "classes.toml").write_text(f'names = {NAMES}\nbackground = "disc"\n')
    assert train(photos, run) == 2
    assert "began with [background] as background; the data set now has [disc]" in capsys.readouterr().err
    told(capsys, 0, "evaluate", f"--workdir={run}")  # it changes no score


def test_files_that_changed_stop_a_run_that_goes_on_unless_it_may(here, capsys, caplog):
    photos, run = here
    val = val_of(run)[0]
    train_id = next(name for name in stored_contents(run).trained if name.startswith("a"))
    for file in (photos / "images").iterdir():
        os.utime(file, (1, 1))  # another time alone is no change
    prepared = f"--config.data.prepared={run.parent / 'prepared'}"
    assert train(photos, run, prepared) == 0
    change_mask(photos, val)
    change_mask(photos, train_id)
    assert train(photos, run, prepared) == 2
    error = capsys.readouterr().err
    assert f"1 of the {len(stored_contents(run).trained)} to train on and 1 of the" in error
    assert train_id in error
    assert "--config.data.on_change=warn" in error
    assert train(photos, run, prepared, "--config.data.on_change=warn") == 0
    assert "it goes on, as data.on_change says" in caplog.text
    assert stored_contents(run).changed


def test_a_score_on_changed_files_says_so_and_is_not_taken_from_the_log(here, capsys, caplog, monkeypatch):
    photos, run = here
    loads = []
    monkeypatch.setattr(table, "load_run", lambda *a: loads.append(a) or load_run(*a))
    told(capsys, 0, "table", f"--workdirs={run}")
    assert not loads  # the training's own score
    change_mask(photos, val_of(run)[0])
    told(capsys, 0, "evaluate", f"--workdir={run}", "--checkpoint=best")
    assert f"1 images or masks of val changed ({val_of(run)[0]})" in caplog.text
    told(capsys, 0, "table", f"--workdirs={run}")
    assert len(loads) == (json.loads((run / "evaluations.json").read_text())[0]["step"] != STEPS)
    told(capsys, 0, "table", f"--workdirs={run}", "--checkpoint=best")
    assert len(loads) <= 1  # evaluate has kept it


def test_what_is_not_known_of_a_file_is_no_change():
    assert differing({"a": "1", "b": "", "c": "3", "gone": "4"}, {"a": "2", "b": "5", "c": "3", "new": "6"}) == [
        "a",
        "gone",
        "new",
    ]


def test_the_sum_of_a_mask_is_of_what_it_says(tmp_path):
    photos = make_folder(tmp_path / "photos")

    def sums():
        return folder_dataset(photos, tmp_path / "prepared").sums

    first = sums()
    mask = Image.open(photos / "masks" / "a0.png")
    mask.save(photos / "masks" / "a0.png", compress_level=1)
    assert sums() == first
    pixels = np.array(Image.open(photos / "masks" / "a1.png"))
    Image.fromarray(np.where(pixels == 2, 9, pixels).astype(np.uint8)).save(photos / "masks" / "a1.png")
    (photos / "classes.toml").write_text(f"names = {NAMES}\nvoid = 9\n")
    assert differing(first, sums()) == ["a1"]


def test_an_edited_val_list_leaves_the_run_its_val_and_is_named(here, capsys, caplog):
    photos, run = here
    before = val_of(run)
    (photos / "val.txt").write_text("\n".join([*before[1:], "a0", "a1", "a2", "a3"]))
    told(capsys, 0, "table", f"--workdirs={run}")
    assert "val.txt differs in" in caplog.text
    assert val_of(run) == before


def test_a_data_set_that_moved_is_asked_for_by_the_flag_that_takes_it(here, capsys):
    photos, run = here
    moved = photos.rename(photos.with_name("moved"))
    error = told(capsys, 2, "evaluate", f"--workdir={run}", f"--config.data.root={moved}").err
    assert "--config.data.root: evaluate takes the config that its run has stored; use --data_root" in error
    for argv in (("evaluate", f"--workdir={run}"), ("table", f"--workdirs={run}")):
        error = told(capsys, 2, *argv).err
        assert f"{photos}, which is not there" in error
        assert "--data_root=" in error
        told(capsys, 0, *argv, f"--data_root={moved}")


# --- which images are scored


def test_a_split_is_scored_by_the_images_that_have_masks(here, capsys, caplog):
    _, run = here
    told(capsys, 0, "evaluate", f"--workdir={run}", "--split=train")
    assert "3 of the" in caplog.text
    assert "images of train have no mask and are not scored" in caplog.text
    (entry,) = json.loads((run / "evaluations.json").read_text())
    assert (entry["split"], entry["images"], entry["network"]) == ("train", 10 - len(val_of(run)), "teacher")
    assert set(entry["iou"]) == {"background", "disc", "square"}


def test_classes_that_no_mask_shows_are_named(caplog):
    confusion = np.array([[5, 1, 0], [0, 0, 0], [2, 0, 3]])
    say_what_is_not_shown(Evaluation(0.5, np.ones(3), confusion), ("a", "b", "c"), "val")
    assert "no image of val shows: b." in caplog.text
    caplog.clear()
    say_what_is_not_shown(Evaluation(0.5, np.ones(3), confusion + np.eye(3, dtype=int)), ("a", "b", "c"), "val")
    assert not caplog.records


def test_an_unknown_split_names_the_one_that_may_be_meant(tmp_path):
    photos = make_folder(tmp_path / "photos")
    (photos / "val_test.txt").write_text("a0\na1\n")
    dataset = folder_dataset(photos, tmp_path / "prepared")
    with pytest.raises(DataError, match=r"no split 'test'; did you mean val_test\? it has: train, val, val_test"):
        dataset.scored("test")


def test_any_images_with_masks_are_scored_by_the_rules_of_a_data_set(here, capsys):
    photos, run = here
    other = run.parent / "other"
    for part, ending in (("images", ""), ("masks", "_mask")):
        (other / part).mkdir(parents=True)
        for name in val_of(run):
            shutil.copy(photos / part / f"{name}.png", other / part / f"{name}{ending}.png")
    own = told(capsys, 0, "evaluate", f"--workdir={run}").out.splitlines()
    given = [f"--images={other / 'images'}", f"--masks={other / 'masks'}"]
    assert told(capsys, 0, "evaluate", f"--workdir={run}", *given).out.splitlines()[:-1] == own[:-1]
    files = [f"--csv={run.parent / 'scores' / 'a.csv'}", f"--confusion={run.parent / 'scores' / 'a.png'}"]
    as_json = json.loads(
        told(capsys, 0, "evaluate", f"--workdir={run}", *given, "--json", "--boundary=0.02", *files).out
    )
    assert (
        (run.parent / "scores" / "a.csv").read_text().startswith("class,pixels,iou,precision,recall,f1,boundary_iou,")
    )
    assert (run.parent / "scores" / "a.png").read_bytes().startswith(b"\x89PNG")
    assert (as_json["boundary"], 0 <= as_json["mean_boundary_iou"] <= 1) == (0.02, True)
    assert as_json["classes"]["disc"]["iou"] == as_json["iou"]["disc"]
    assert as_json["split"] == str(other / "images")
    assert f"{as_json['miou']:.4f} mIoU" in own[-1]
    mask = other / "masks" / f"{val_of(run)[0]}_mask.png"
    for pixels, reason in (
        (np.zeros((9, 9), np.uint8), "the mask is 9x9, its image 48x40"),
        (np.full((40, 48), 7, np.uint8), "the mask holds [7]"),
        (None, "has no mask in"),
    ):
        mask.unlink() if pixels is None else Image.fromarray(pixels).save(mask)
        error = told(capsys, 2, "evaluate", f"--workdir={run}", *given).err
        assert reason in error
        assert val_of(run)[0] in error
    assert "--masks is missing" in told(capsys, 2, "evaluate", f"--workdir={run}", given[0]).err


# --- how they are seen


def test_windows_are_chosen_in_pixels_and_make_sense():
    c = load_config("configs/folder.py", {"eval.crop": 100})
    e = Seen("sliding", 60, 40).of(c).eval
    assert (e.mode, e.crop, round(e.crop * e.stride_fraction)) == ("sliding", 60, 40)
    assert (c.eval.mode, c.eval.crop) == ("whole", 100)
    assert Seen().of(c).eval == c.eval
    e = Seen(scales=(0.5, 1.0), flip=True).of(c).eval
    assert (tuple(e.scales), e.flip) == ((0.5, 1.0), True)
    for seen, reason in ((Seen(None, 60), "add --mode=sliding"), (Seen("sliding", 60, 61), "leaves gaps")):
        with pytest.raises(OptionError, match=reason):
            seen.of(c)


@pytest.mark.slow
def test_a_model_is_asked_window_by_window_and_for_all_probabilities(here, capsys):
    photos, run = here
    images = f"--images={photos / 'images' / 'a0.png'}"
    for name, more in {"whole": [], "tiles": ["--mode=sliding", "--window=33", "--stride=15"]}.items():
        told(capsys, 0, "predict", f"--workdir={run}", images, f"--out={run.parent / name}", "--probabilities", *more)
    found = {
        name: np.load(run.parent / name / "probabilities" / "a0.npz")["probabilities"] for name in ("whole", "tiles")
    }
    for name, probabilities in found.items():
        assert (probabilities.dtype, probabilities.shape) == (np.float16, (40, 48, 3))
        np.testing.assert_allclose(probabilities.sum(-1, dtype=np.float32), 1, atol=2e-3)
        index = np.asarray(Image.open(run.parent / name / "index" / "a0.png"))
        best = np.take_along_axis(probabilities, index[..., None].astype(int), -1)[..., 0]
        np.testing.assert_array_equal(best, probabilities.max(-1))
    assert np.abs(found["whole"] - found["tiles"]).max() > 1e-3
    tiles = ["--mode=sliding", "--window=33", "--stride=15"]
    told(capsys, 0, "evaluate", f"--workdir={run}", *tiles, "--scales=0.75,1", "--flip")
    protocol = {"mode": "sliding", "crop": 33, "stride": 15, "longest_side": 1024, "scales": [0.75, 1.0], "flip": True}
    assert kept_results(run)[0].question.protocol == protocol
    assert (
        "must be numbers above 0"
        in told(capsys, 2, "predict", f"--workdir={run}", images, "--out=x", "--scales=nan").err
    )


# --- side by side


def row(name, options, miou=0.5, sha256="s", mode="whole", step=800):
    c = load_config("configs/folder.py", {"steps": 800, **options})
    labels = Labels(("a", "b"), ((0, 0, 0), (1, 1, 1)), (0,))
    result = Result(Question("val", sha256, step, "teacher", {"mode": mode}), 9, miou, {})
    return Row(name, Stored(table.Path(f"no_folder/{name}"), c, labels, None), {"val": result})


def test_runs_of_one_experiment_have_a_mean_and_a_deviation():
    """.4, .5, .6: mean 50, deviation 10 of the sample. Another learning rate or protocol is another experiment."""
    rows = [row(f"run{i}", {"seed": i}, 0.4 + 0.1 * i) for i in range(3)]
    others = [
        row("faster", {"optim.lr": 1.0}, 0.9),
        row("tiles", {}, 0.9, mode="sliding"),
        row("list", {"data.labelled": "x"}),
    ]
    ((name, group),) = repetitions([*rows, *others])
    assert (name, [r.name for r in group]) == ("mean of 3", ["run0", "run1", "run2"])
    assert spread(group, "val").in_text("+-") == "50.00 +- 10.00 (3)"


def test_what_runs_differ_in_is_listed_and_what_cannot_be_compared_is_marked():
    one, two = row("one", {}), row("two", {"optim.lr": 1.0, "log_every": 7}, sha256="t", mode="sliding", step=20)
    assert differences([one, one]) == []
    assert differences([one, two]) == [f"optim.lr: {one.stored.config.optim.lr} | 1.0"]
    assert incomparable([one, one], ["val"], unfinished=True) == []
    assert incomparable([one, two], ["val"], unfinished=True) == [
        "NOT COMPARABLE: two is not finished: step 20 of 800",
        "NOT COMPARABLE: one and two were scored on different images or masks of val",
        "NOT COMPARABLE: one and two were scored differently: mode whole | sliding",
    ]


def test_states_that_are_made_anew_have_no_score_on_record(here, capsys):
    _, run = here
    told(capsys, 0, "evaluate", f"--workdir={run}")
    told(capsys, 0, "evaluate", f"--workdir={run}")
    assert [result.question.step for result in kept_results(run)] == [STEPS]  # one question, one answer
    forget_after(run, STEPS)
    assert len(kept_results(run)) == 1
    forget_after(run, STEPS - 1)
    assert kept_results(run) == []


def test_a_score_is_found_anew_where_nothing_tells_whether_the_images_are_the_same(here, capsys, monkeypatch):
    """Rows of a hub's data set have numbers for names, no folder and no sums: other masks would go unseen."""
    _, run = here
    told(capsys, 0, "evaluate", f"--workdir={run}")
    stored = read_stored(run)
    dataset = dataclasses.replace(stored.dataset(), sums={})
    stored.config.data.root = ""
    monkeypatch.setattr(table, "evaluated", lambda *_: (None, "anew"))
    kept_as_if_fixed = table.sum_of(dataset, dataset.scored("val"))
    monkeypatch.setattr(table, "found_before", lambda results, question: question.sha256)
    asked = (stored, dataset, "val", "teacher", "last", Seen())
    assert table.result_of(*asked) == "anew"
    fixed = dataclasses.replace(dataset, fixed=True)
    assert table.result_of(stored, fixed, *asked[2:]) == kept_as_if_fixed


def test_a_damaged_record_of_scores_costs_the_record_alone(here, capsys, caplog):
    _, run = here
    (run / "evaluations.json").write_text("{")
    told(capsys, 0, "evaluate", f"--workdir={run}")
    assert "the result is not kept in" in caplog.text
    assert (run / "evaluations.json").read_text() == "{"

"""From tags to masks to labels, as a user runs the commands, on runs of a few steps."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from forec_jax import cli
from forec_jax.config import load_config
from forec_jax.data import Labels, folder_dataset
from forec_jax.experiment.build import build_colour, build_method
from forec_jax.options import OptionError

TINY = [
    "--config.steps=2",
    "--config.evaluate_every=2",
    "--config.checkpoint_every=2",
    "--config.log_every=1",
    "--config.data.shapes.size=48",
    "--config.data.crop=33",
    "--config.batch.tagged=8",
    "--config.eval.batch=48",
    "--config.eval.split=tune",
    "--config.eval.bucket=64",
    "--config.eval.pictures=0",
    "--config.model.width=0.0625",
    "--config.model.decoder.channels=4",
    "--config.model.decoder.low_level_channels=4",
]


def train(variant, workdir, *options):
    unet = "--config.model.encoder=unet" in options
    tiny = [option for option in TINY if not (unet and "decoder" in option)]  # it has no such options
    return cli.run(["train", f"--config=configs/tags.py:{variant}", f"--workdir={workdir}", *tiny, *options])


def error_of(capsys, code):
    assert code == 2
    return capsys.readouterr().err


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "classifier"
    assert train("shapes+classifier", workdir) == 0
    return workdir


@pytest.fixture(scope="module")
def wsss(classifier, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "wsss"
    assert train("wsss", workdir, f"--config.method.classifier={classifier}") == 0
    return workdir


@pytest.mark.slow
def test_a_run_says_that_it_had_tags_and_no_masks(classifier, wsss):
    for workdir, method in ((classifier, "tag_classifier"), (wsss, "wsss_rec")):
        summary = json.loads((workdir / "summary.json").read_text())
        assert summary["method"] == method
        assert (summary["split"]["labelled"], summary["split"]["tagged"]) == (0, 512)
        assert summary["protocol"]["tags"] == "masks"


@pytest.mark.slow
def test_a_run_is_read_when_its_classifier_has_gone(classifier, wsss, capsys):
    hidden = classifier.rename(classifier.with_name("gone"))
    try:
        assert cli.run(["evaluate", f"--workdir={wsss}", "--split=tune"]) == 0
    finally:
        hidden.rename(classifier)
    events = [json.loads(line) for line in (wsss / "metrics.jsonl").read_text().splitlines()]
    assert f"{events[-1]['teacher_miou']:.4f} mIoU" in capsys.readouterr().out


@pytest.mark.slow
def test_the_stored_classifier_is_the_trained_one(classifier, wsss):
    from forec_jax.experiment.load import load_run

    trained = load_run(classifier, "last").state
    used = load_run(wsss, "last").state.memory["classifier"]
    for mine, theirs in ((used.params, trained.params), (used.batch_stats, trained.batch_stats)):
        jax.tree.map(np.testing.assert_array_equal, mine, theirs["student"])


@pytest.mark.slow
def test_a_threshold_is_chosen_and_used(wsss, capsys):
    assert cli.run(["threshold", f"--workdir={wsss}", "--split=tune"]) == 0
    chosen = json.loads((wsss / "mask_threshold.json").read_text())
    best = max(chosen["miou"].values())
    assert (chosen["masks"], chosen["miou"][f"{chosen['threshold']:.2f}"]) == (96, best)
    assert "chosen on the 96 masks of tune" in capsys.readouterr().out
    assert cli.run(["evaluate", f"--workdir={wsss}", "--split=tune"]) == 0
    (wsss / "mask_threshold.json").unlink()
    assert f"{best:.4f} mIoU" in capsys.readouterr().out


@pytest.mark.slow
def test_the_commands_for_pictures_and_labels(classifier, wsss, tmp_path, capsys):
    arguments = [f"--workdir={classifier},{wsss}", "--images=tune_00000", f"--out={tmp_path}"]
    assert cli.run(["visualize", *arguments]) == 0
    assert {file.name for file in tmp_path.rglob("*.png")} == {"tune_00000.png"}
    assert (tmp_path / "decomposition" / "wsss" / "tune_00000.png").exists()
    out = tmp_path / "masks"
    command = ["bridge", f"--workdir={wsss}", f"--out={out}", "--keep=0.25", "--confidence=0.2", "--labelled=12:0"]
    assert cli.run(command) == 0
    assert f"{out}: 125 masks from tags, 12 true ones, 375 images without" in capsys.readouterr().out
    assert len(folder_dataset(out, tmp_path / "prepared").maskless) == 375
    assert "is not an empty folder" in error_of(capsys, cli.run(command))


@pytest.mark.slow
def test_one_command_goes_from_tags_to_a_segmenter_and_goes_on_where_it_was_stopped(tmp_path, capsys):
    workdir = tmp_path / "tags"
    options = [option.replace("--config", f"--{stage}") for stage in ("classifier", "wsss") for option in TINY]
    options += [
        option.replace("--config", "--segmenter") for option in TINY if "tagged" not in option and "split" not in option
    ]
    options += ["--segmenter.data.longest_side=48"]
    command = ["chain", "--config=configs/tags.py:shapes", f"--workdir={workdir}", "--confidence=0.2", *options]
    assert cli.run(command) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[-3:]] == [
        "classifier",
        "wsss",
        "segmenter",
    ]
    for stage in ("classifier", "wsss"):
        assert json.loads((workdir / stage / "mask_threshold.json").read_text())["masks"] == 96
    summary = json.loads((workdir / "segmenter" / "summary.json").read_text())
    assert (summary["auxiliary"], summary["split"]["labelled"], summary["split"]["unlabelled"]) == (
        ["reconstruction"],
        256,
        256,
    )
    assert "begun with other options: --split=train (was tune)" in error_of(
        capsys, cli.run([*command, "--split=train"])
    )
    masks = (workdir / "masks" / "classes.toml").stat().st_mtime_ns
    (workdir / "segmenter").rename(workdir / "away")
    assert cli.run(command) == 0
    assert (workdir / "masks" / "classes.toml").stat().st_mtime_ns == masks
    assert json.loads((workdir / "segmenter" / "summary.json").read_text()) == summary


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--split=nowhere", "shapes has no split 'nowhere'"),
        ("--labelled=9999:0", "labelled=9999:0"),
        ("--segmenter.batch.labelled=3", "batch.labelled=3 must be a multiple"),
        ("--config.batch.labelled=3", "batch.labelled=3 must be a multiple"),  # of all stages
        ("--config.stepps=3", "stepps"),
    ],
)
def test_a_chain_that_would_break_later_does_not_begin(tmp_path, capsys, option, message):
    command = ["chain", "--config=configs/tags.py:shapes", f"--workdir={tmp_path / 'tags'}", option]
    assert message in error_of(capsys, cli.run(command))
    assert not (tmp_path / "tags").exists()


@pytest.mark.slow
def test_a_classifier_of_other_classes_is_an_error(classifier, tmp_path, capsys):
    options = (f"--config.method.classifier={classifier}", "--config.data.tag=star")
    message = error_of(capsys, train("wsss", tmp_path / "run", *options))
    assert "knows the classes background, disc" in message
    assert "this run has background, star" in message


def test_a_classifier_is_asked_for(tmp_path, capsys):
    assert "method.wsss_rec.classifier is empty" in error_of(capsys, train("wsss", tmp_path / "run"))


@pytest.mark.slow
def test_a_run_that_is_no_classifier_is_an_error(wsss, tmp_path, capsys):
    message = error_of(capsys, train("wsss", tmp_path / "run", f"--config.method.classifier={wsss}"))
    assert "holds a run of wsss_rec; train a classifier" in message


def test_a_unet_cannot_classify(tmp_path, capsys):
    message = error_of(capsys, train("classifier", tmp_path / "run", "--config.model.encoder=unet"))
    assert "cannot classify tags: choose resnet18" in message


def test_below_two_classes_there_is_nothing_to_tell_apart(make_toy_network):
    c = load_config("configs/tags.py:wsss", {})
    with pytest.raises(OptionError, match="need a background and a class"):
        build_method(c, Labels(("thing",), ((0, 0, 0),), (0,)), guide=lambda role: None)


def test_the_papers_variant_and_the_ablations():
    c = load_config("configs/tags.py:shapes+wsss+paper", {})
    assert (c.model.encoder, c.model.unet.width, c.data.crop, c.batch.tagged, c.steps) == (
        "unet",
        1.0,
        224,
        8,
        20_000,
    )
    assert (c.optim.name, c.optim.lr, c.optim.weight_decay, c.optim.poly_power) == (
        "adamw",
        1e-4,
        0,
        0,
    )  # Adam, constant
    o = c.method.wsss_rec
    assert (o.reconstruction_weight, o.mask_weight, o.class_weight, o.mask_loss) == (1.0, 1e-3, 1e-3, "area")
    assert (o.area_of_classes, o.class_of_parts) == ("sum", "mean")
    assert (c.model.unet.last_size, c.model.unet.align_corners) == (3, False)
    assert (c.data.flip, c.data.scale, c.data.longest_side) == (False, (1.0, 1.0), 224)
    c = load_config("configs/tags.py:voc+dog+classifier+paper", {})
    assert (c.model.encoder, c.data.crop, c.batch.tagged, c.steps, c.optim.lr) == ("resnet18", 224, 64, 2_500, 1e-4)
    assert (c.model.resnet.output_stride, c.model.resnet.stem, c.data.flip) == (32, "7x7", False)
    image = jnp.full((1, 4, 4, 3), 0.3)
    assert all((build_colour(c)(jax.random.key(n), image, image[..., 0] > 0) == image).all() for n in range(8))
    weights = ("reconstruction_weight", "mask_weight", "class_weight")
    for part, weight in zip(("no_reconstruction", "no_mask_loss", "no_class_loss"), weights, strict=True):
        o = load_config(f"configs/tags.py:wsss+{part}", {}).method.wsss_rec
        assert [name for name in weights if not o[name]] == [weight]
    c = load_config("configs/tags.py:voc+dog+classifier", {})
    assert (c.data.name, c.data.tag, c.batch.labelled, c.method.name) == ("voc", "dog", 0, "tag_classifier")

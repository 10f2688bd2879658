"""The variants of docs/methods.md by name on VOC's and CamVid's layouts: two steps each, on trees that the test makes."""

import json
import math

import numpy as np
import pytest
from PIL import Image

from forec_jax import cli

TINY = [
    "--config.steps=2",
    "--config.log_every=1",
    "--config.evaluate_every=2",
    "--config.checkpoint_every=2",
    "--config.batch.labelled=8",  # the tests have eight devices
    "--config.data.crop=33",
    "--config.eval.pictures=1",
    "--config.method.threshold=0.0",  # so that pseudo-labels count from the first step on
    "--config.model.encoder=resnet18",
    "--config.model.width=0.125",
    "--config.model.weights=",
    "--config.model.decoder.channels=8",
    "--config.model.decoder.low_level_channels=4",
]
RECO = [
    "--config.auxiliary.reco.channels=8",
    "--config.auxiliary.reco.queries=4",
    "--config.auxiliary.reco.negative_keys=8",
]
VARIANTS = {  # and the terms that each must log
    "reco": {"supervised_loss", "unsupervised_loss", "reco_loss"},
    "classmix+reco": {"unsupervised_loss", "reco_loss"},
    "reco_forec": {"reco_loss", "reconstruction_labelled_loss", "reconstruction_unlabelled_loss"},
    "s4gan": {"supervised_loss", "feature_matching_loss", "discriminator_real_loss"},
    "s4gan_forec": {"feature_matching_loss", "reconstruction_labelled_loss"},
    "s4gan+cutmix": {"unsupervised_loss", "feature_matching_loss"},
    "s4gan+reco": {"feature_matching_loss", "reco_loss"},
    "ps_mt": {"supervised_loss", "unsupervised_loss"},
    "ps_mt_forec": {"unsupervised_loss", "reconstruction_labelled_loss"},
    "ps_mt+reconstruction": {"unsupervised_loss", "reconstruction_labelled_loss"},
    "ps_mt+reco": {"unsupervised_loss", "reco_loss"},
    "vat": {"supervised_loss", "consistency_loss"},
    "vat+forec": {"consistency_loss", "reconstruction_labelled_loss"},
    "adv_semseg": {"adversarial_labelled_loss", "adversarial_unlabelled_loss", "discriminator_fake_loss"},
    "adv_semseg+forec": {"adversarial_labelled_loss", "reconstruction_labelled_loss"},
    "gct": {"flaw_loss", "consistency_loss", "student_2_correction_loss"},
    "gct+forec": {"flaw_loss", "student_2_reconstruction_labelled_loss"},
    "cct": {"supervised_loss", "consistency_loss"},
    "cct+forec": {"consistency_loss", "reconstruction_labelled_loss"},
    "ael": {"supervised_loss", "unsupervised_loss", "labelled_consistency_loss"},
    "ael+forec": {"labelled_consistency_loss", "reconstruction_labelled_loss"},
    "partial_5pc+ael": {"unsupervised_loss", "labelled_consistency_loss"},
    "ucc": {"supervised_loss", "unsupervised_loss", "segmentation_2_unsupervised_loss"},
    "ucc+forec": {"segmentation_2_unsupervised_loss", "reconstruction_labelled_loss"},
    "pseudoseg": {"supervised_loss", "attention_loss", "tags_loss", "unsupervised_loss"},
    "pseudoseg+forec": {"attention_loss", "reconstruction_labelled_loss"},
    "pseudoseg+reco": {"tags_loss", "reco_loss"},
    "ecs": {"supervised_loss", "corrector_loss", "approval_loss", "unsupervised_loss"},
    "ecs+forec": {"corrector_loss", "reconstruction_labelled_loss"},
    "partial_5pc+ecs": {"corrector_loss", "unsupervised_loss"},
    "partial_5pc+cct": {"supervised_loss", "consistency_loss"},
    "partial_5pc+vat": {"supervised_loss", "consistency_loss"},
    "partial_5pc+adv_semseg": {"supervised_loss", "adversarial_unlabelled_loss"},
    "partial_1px": {"supervised_loss", "unsupervised_loss"},
    "partial_1px+ps_mt": {"supervised_loss", "unsupervised_loss"},
    "partial_5pc+s4gan": {"supervised_loss", "unsupervised_loss", "feature_matching_loss", "discriminator_real_loss"},
    "partial_1pc+classmix+reco": {"supervised_loss", "unsupervised_loss", "reco_loss"},
    "partial_25pc+forec": {"supervised_loss", "reconstruction_labelled_loss"},
}


def scene(index):
    """A picture of 48 x 40 in two colours, and its mask with two classes."""
    rng = np.random.default_rng(index)
    mask = np.where(np.arange(48) < rng.integers(12, 36), 1 + index % 3, 3).astype(np.uint8) * np.ones(
        (40, 1), np.uint8
    )
    image = (60 * mask[..., None] + rng.integers(0, 60, (40, 48, 3))).astype(np.uint8)
    return Image.fromarray(image), Image.fromarray(mask)


@pytest.fixture(scope="module")
def trees(tmp_path_factory):
    """VOCdevkit and CamVid with six images to train on and two to evaluate."""
    voc = tmp_path_factory.mktemp("voc") / "VOCdevkit"
    camvid = tmp_path_factory.mktemp("camvid") / "CamVid"
    lists = voc / "VOC2012" / "ImageSets" / "Segmentation"
    for folder in (lists, voc / "VOC2012" / "JPEGImages", voc / "VOC2012" / "SegmentationClassAug"):
        folder.mkdir(parents=True)
    for first, split, number in ((0, "train", 6), (6, "val", 2)):
        names = [f"i{index}" for index in range(first, first + number)]
        (lists / f"{split}.txt").write_text("\n".join(names) + "\n")
        for folder in (split, f"{split}annot"):
            (camvid / folder).mkdir(parents=True)
        for index, name in enumerate(names, start=first):
            image, mask = scene(index)
            image.save(voc / "VOC2012" / "JPEGImages" / f"{name}.jpg")
            mask.save(voc / "VOC2012" / "SegmentationClassAug" / f"{name}.png")
            image.save(camvid / split / f"{name}.png")
            mask.save(camvid / f"{split}annot" / f"{name}.png")
    return {"voc": voc, "camvid": camvid}


@pytest.mark.slow
@pytest.mark.parametrize("data", ["voc", "camvid"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_variant_runs_by_name(trees, tmp_path, data, variant):
    partial = variant.startswith("partial")
    options = [f"--config.data.root={trees[data]}", f"--config.data.prepared={tmp_path / 'prepared'}", *TINY]
    options += [] if partial else ["--config.data.labelled=2:0", "--config.batch.unlabelled=8"]
    options += RECO if "reco" in variant.split("+") or variant == "reco_forec" else []
    options += ["--config.data.pool=train"] if data == "voc" else []
    workdir = tmp_path / "run"
    assert cli.run(["train", f"--config=configs/{data}.py:{variant}", f"--workdir={workdir}", *options]) == 0
    events = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    steps = [event for event in events if event["event"] == "train"]
    assert [event["step"] for event in steps] == [1, 2]
    for event in steps:
        assert VARIANTS[variant] <= event.keys()
        assert all(math.isfinite(value) for name, value in event.items() if name.endswith("loss"))
    assert json.loads((workdir / "summary.json").read_text())["last"]["step"] == 2

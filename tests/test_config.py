import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict, config_flags

from forec_jax.augment import (
    BetaBox,
    ClassMix,
    ClippedBox,
    CutMix,
    CutOut,
    HalfAreaBox,
    InTurn,
    Mirror,
    NoMixing,
    Photometric,
    ShuffledCutMix,
    Zoom,
)
from forec_jax.config import apply_variant, config_path, defaults, load_config
from forec_jax.contracts import UNLABELLED, HeadSpec
from forec_jax.data import Labels, shapes_dataset
from forec_jax.experiment import build, sources
from forec_jax.experiment.run import check_rows
from forec_jax.experiment.workdir import WorkdirError, read_config
from forec_jax.losses import (
    balanced_cross_entropy,
    dice_cross_entropy,
    dice_loss,
    focal_loss,
    mean_cross_entropy,
    ohem_cross_entropy,
)
from forec_jax.methods import (
    ForegroundReconstruction,
    ImageReconstruction,
    MeanTeacher,
    PsMt,
    RegionalContrast,
    S4Gan,
    Supervised,
)
from forec_jax.methods.tasks.reco import Options, queries_at_once
from forec_jax.options import OptionError
from forec_jax.overrides import check_keys
from forec_jax.parallel import make_mesh
from forec_jax.variants import SUMS, variants

LABELS = Labels(("background", "a", "b"), ((0, 0, 0), (1, 1, 1), (2, 2, 2)), (0,))


def config(variant="forec"):
    c = defaults()
    c.data.name = "shapes"
    c.model.encoder, c.model.resnet.width = "resnet18", 0.125
    return apply_variant(c, variant)


def test_forec_is_mean_teacher_with_foreground_reconstruction():
    method = build.build_method(config("forec"), LABELS)
    assert isinstance(method, MeanTeacher)
    (weight, task), *_ = method.auxiliary
    assert weight == 1.0
    assert task == ForegroundReconstruction((0,), threshold=0.95, labelled_weight=1.0, unlabelled_weight=0.5)


def test_variants_add_up():
    method = build.build_method(config("supervised+reconstruction+foreground_segmentation"), LABELS)
    assert isinstance(method, Supervised)
    assert isinstance(method.auxiliary[1].task, ImageReconstruction)
    assert method.network.heads == (
        HeadSpec("segmentation", 3),
        HeadSpec("foreground", 2),
        HeadSpec("reconstruction", 3),
    )


def same(one, other):
    return config(one).to_json() == config(other).to_json()


def test_a_method_comes_first_and_tasks_next_wherever_they_stand():
    assert same("classmix+ps_mt", "ps_mt+classmix")
    assert config("classmix+ps_mt").augment.mixing == "classmix"
    assert same("other_lambdas+forec", "forec+other_lambdas")
    assert config("other_lambdas+forec").auxiliary.reconstruction.unlabelled_weight == 1.0
    assert same("reco_paper+reco", "reco+reco_paper")
    assert config("reco_paper+reco").auxiliary.reco.class_mean == "present"  # not the task's default
    assert same("cutmix+ps_mt_paper", "ps_mt_paper+cutmix")
    assert config("cutmix+ps_mt_paper").augment.mixing == "cutmix_half"
    assert not same("small+reco_paper", "reco_paper+small")  # the others from left to right


def test_two_methods_are_an_error():
    with pytest.raises(ValueError, match="names 2 methods, supervised and mean_teacher; choose one"):
        config("supervised+forec+mean_teacher")
    with pytest.raises(ValueError, match="names 2 methods, ps_mt_paper and mean_teacher; choose one"):
        config("ps_mt_paper+mean_teacher")


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("optim.lrr", r"--config\.optim\.lrr: there is no such option; did you mean --config\.optim\.lr\?"),
        ("auxiliary.reco.weight", r"this config has no task reco; add it to the variant: \+reco$"),
        (
            "auxiliary.reconstruction.weight",
            r"no task reconstruction; add it to the variant: \+reconstruction or forec$",
        ),
        ("colour_of_the_sky", r"see: forec-jax options"),
    ],
)
def test_an_unknown_key_is_named_with_what_may_be_meant(key, message):
    with pytest.raises(ValueError, match=message):
        check_keys(config("foreground_segmentation"), ["optim.lr", key])


def test_the_other_reading_of_the_lambdas():
    c = config("forec+other_lambdas")
    assert c.method.unsupervised_weight == 0.5
    assert (c.auxiliary.reconstruction.labelled_weight, c.auxiliary.reconstruction.unlabelled_weight) == (1.0, 1.0)


@pytest.mark.parametrize("part", sorted({**variants(), **SUMS}.keys() - {"wsss_rec"}))  # it learns from a run
def test_every_variant_builds(part):
    build.build_method(config(part), LABELS)


@pytest.mark.parametrize(("name", "kind"), [("ps_mt", PsMt), ("s4gan", S4Gan)])
def test_forec_attaches_to_every_method_as_a_sum(name, kind):
    by_name, by_sum = (build.build_method(config(variant), LABELS) for variant in (f"{name}_forec", f"{name}+forec"))
    assert isinstance(by_name, kind)
    assert by_name.auxiliary == by_sum.auxiliary == build.build_method(config("forec"), LABELS).auxiliary


def test_ps_mt_as_published():
    c = config("ps_mt")
    c.steps = 800
    method = build.build_method(c, LABELS)
    assert (method.warmup, method.ramp, method.epsilon) == (50, 120, 2.0)
    assert (method.threshold, method.unsupervised_weight, method.decay, method.bn_mode) == (0.6, 0.6, 0.996, "ema")
    assert (method.mixing, method.labelled_mixing) == (CutMix(1.0, BetaBox()), NoMixing())
    assert method.normaliser == "kept"


def test_ps_mt_as_its_authors_ran_it():
    c = config("ps_mt_paper+forec")
    method = build.build_method(c, LABELS)
    assert isinstance(method, PsMt)
    assert (method.warmup_passes, method.teacher_mode, method.top_classes) == (5, "train", 7)
    assert (method.perturbed, method.direction, method.epsilon) == ("fused", "published", 2.0)
    assert method.mixing == ShuffledCutMix(1.0, ClippedBox(4.0))
    assert (method.threshold, method.decay, method.supervised_loss) == (0.6, 0.996, mean_cross_entropy)
    plain = build.build_method(config("ps_mt"), LABELS)
    assert (plain.warmup_passes, plain.teacher_mode, plain.top_classes) == (0, "inference", 0)
    assert (plain.perturbed, plain.direction) == ("encoder", "exact")


@pytest.mark.parametrize(
    ("name", "variant", "encoder", "rows", "crop", "steps", "threshold"),
    [
        ("voc", "unimatch_paper", "resnet101", 8, 321, 80 * 1311, 0.95),
        ("voc", "unimatch_v2_paper", "dinov2_base", 16, 518, 39_300, 0.95),
        ("voc", "fixmatch_paper+dinov2_small", "dinov2_small", 16, 518, 39_300, 0.95),
        ("cityscapes", "unimatch_paper", "resnet101", 8, 801, 240 * 325, 0.0),
        ("cityscapes", "unimatch_v2_paper", "dinov2_base", 8, 798, 58_500, 0.95),
    ],
)
def test_unimatch_as_its_authors_ran_it(name, variant, encoder, rows, crop, steps, threshold):
    c = load_config(f"configs/{name}.py:{variant}+forec", {})
    assert (c.model.encoder, c.batch.labelled, c.batch.unlabelled) == (encoder, rows, rows)
    assert (c.data.crop, c.steps, c.method.threshold) == (crop, steps, threshold)
    assert (c.method.supervised_loss == "ohem") == (name == "cityscapes")
    assert (c.method.supervised_weight, c.method.unsupervised_weight) == (0.5, 0.5)


def test_fixmatch_with_an_ema_is_a_mean_teacher_with_its_settings():
    c = config("fixmatch_ema")
    assert (c.method.name, c.ema.decay, c.augment.mix_labelled) == ("mean_teacher", 0.996, False)
    with pytest.raises(ValueError, match="names 2 methods, fixmatch_paper and unimatch; choose one"):
        config("fixmatch_paper+unimatch")


def test_s4gan_as_its_authors_ran_it():
    c = config("s4gan_paper")
    method = build.build_method(c, LABELS)
    assert isinstance(method, S4Gan)
    assert (method.threshold, method.unsupervised_weight, method.feature_matching_weight) == (0.6, 1.0, 0.1)
    assert (method.gaps, method.mixing, method.ramp) == ("shown", NoMixing(), 0)
    image = jnp.full((1, 4, 4, 3), 0.3)
    colour = build.build_colour(c)
    assert all((colour(jax.random.key(n), image, jnp.ones((1, 4, 4), bool)) == image).all() for n in range(8))


@pytest.mark.parametrize(
    ("name", "mixing"),
    [
        ("cutout", CutOut(1.0, HalfAreaBox())),
        ("cutmix", CutMix(1.0, HalfAreaBox())),
        ("classmix", ClassMix(3, probability=1.0)),
    ],
)
def test_recos_baselines_mix_every_unlabelled_row_and_no_labelled_one(name, mixing):
    c = config(f"mean_teacher+{name}")
    method = build.build_method(c, LABELS)
    assert (method.mixing, method.labelled_mixing) == (mixing, NoMixing())
    a, published = c.augment, Photometric.reco()
    for key in dataclasses.asdict(published):
        assert a[key] == getattr(published, key), key


@pytest.mark.parametrize(("length", "steps"), [(0.0, 0), (0.25, 200), (1.0, 1), (37.0, 37)])
def test_a_ramp_is_given_in_steps_or_as_a_fraction(length, steps):
    c = config("mean_teacher")
    c.steps, c.method.ramp = 800, length
    assert build.build_method(c, LABELS).ramp == steps


@pytest.mark.parametrize("length", [-0.1, 1.5])
def test_a_ramp_that_is_neither_is_an_error(length):
    c = config("mean_teacher")
    c.method.ramp = length
    with pytest.raises(OptionError, match=rf"method\.ramp={length} must be .*steps, or a fraction"):
        build.build_method(c, LABELS)


@pytest.mark.parametrize("variant", ["mean_teacher", "ps_mt", "s4gan"])
def test_partial_labels_reach_every_method_that_fills_them(variant):
    c = config(variant)
    assert not build.build_method(c, LABELS).partial_labels
    c.data.partial = "1px"
    assert build.build_method(c, LABELS).partial_labels


@pytest.mark.parametrize(
    ("variant", "key", "value"),
    [
        ("s4gan", "augment.mixing", "classmix"),
        ("s4gan", "method.s4gan.dropout", 1.0),
        ("ps_mt", "method.ps_mt.epsilon", -1.0),
        ("ps_mt", "method.ps_mt.epoch", -1),
    ],
)
def test_options_that_a_method_cannot_use_are_named(variant, key, value):
    c = config(variant)
    c.update_from_flattened_dict({key: value})
    with pytest.raises(OptionError, match=rf"{key.replace('.', '[.]')}='?{value}'?"):
        build.build_method(c, LABELS)


def test_an_epoch_is_the_unlabelled_images_over_the_batch():
    data = sources.TrainingData(dataset=None, split=None, labelled=range(8), unlabelled=range(101), validation=None)
    c = config("ps_mt").lock()
    c.batch.unlabelled = 10
    resolved = build.with_epoch(c, sources.epoch_of(c, data))
    assert (resolved.method.ps_mt.epoch, c.method.ps_mt.epoch) == (11, 0)
    assert build.build_method(resolved, LABELS).epoch == 11
    partial = data._replace(labelled=range(41), unlabelled=None)
    c.batch.labelled = 8
    assert build.with_epoch(c, sources.epoch_of(c, partial)).method.ps_mt.epoch == 6
    assert sources.epoch_of(c, partial._replace(labelled=None)) == (0, 0)  # tags
    c.method.ps_mt.epoch = 7
    assert build.with_epoch(c, sources.epoch_of(c, data)).method.ps_mt.epoch == 7
    c.batch.labelled, c.batch.unlabelled, c.data.unlabelled_pairs = 0, 1, True
    assert sources.epoch_of(c, data) == (101, 8)  # too few rows, which is told where rows are built


def test_pairs_of_one_image_are_not_torn_apart():
    c = config("mean_teacher")
    c.data.unlabelled_pairs, c.accumulate = True, 2
    with pytest.raises(OptionError, match=r"tear the pairs of data\.unlabelled_pairs apart; set accumulate=1"):
        build.build_mesh(c)


def test_stored_masks_that_no_row_would_show_are_an_error():
    c = config("mean_teacher")
    c.data.pseudo = "somewhere"
    with pytest.raises(OptionError, match=r"data\.pseudo is of no use with batch\.pseudo=0"):
        check_rows(c)


def test_a_warm_up_in_passes_lies_beside_the_schedule():
    """92 labels, 8 a step: 60 steps in which the rate does not move, then L_u's ramp and the decay begin."""
    data = sources.TrainingData(dataset=None, split=None, labelled=range(92), unlabelled=range(800), validation=None)
    c = config("ps_mt").lock()
    c.update_from_flattened_dict({"method.ps_mt.warmup_passes": 5, "steps": 1060, "batch.labelled": 8})
    assert build.with_epoch(c, sources.epoch_of(c, data)._replace(steps=0)) is c  # data unknown
    c = build.with_epoch(c, sources.epoch_of(c, data))
    assert (c.method.ps_mt.warmup, c.optim.hold) == (60, 60)
    method, rate = build.build_method(c, LABELS), build.build_rate(c)
    assert method.warmup == 60
    assert [rate(step) / c.optim.lr for step in (0, 60, 560, 1060)] == pytest.approx([1, 1, 0.5**0.9, 0])


def test_the_discriminator_sees_boxes_in_both_kinds_of_rows_or_in_none():
    for variant in ("s4gan", "s4gan+cutmix", "s4gan+cutout"):
        method = build.build_method(config(variant), LABELS)
        assert method.labelled_mixing == method.mixing
    assert method.mixing == CutOut(1.0, HalfAreaBox())


def test_the_discriminator_has_adam_and_its_own_rate():
    c = config("s4gan")
    c.optim.clip_norm, c.method.s4gan.lr = 1e-6, 0.25
    tx, params = build.build_optimizer(c), {n: {"encoder": jnp.ones(2)} for n in ("student", "discriminator")}
    updates, state = tx.update(params, tx.init(params), params)
    np.testing.assert_allclose(updates["discriminator"]["encoder"], -0.25, rtol=1e-5)
    assert float(jnp.abs(updates["student"]["encoder"]).max()) < 1e-3
    # The second gradient is -1: m = (0.9 * 0.1 - 0.1) / (1 - 0.81), v stays 1 (betas 0.9 and 0.99).
    updates, state = tx.update(jax.tree.map(jnp.negative, params), state, params)
    rate = 0.25 * (1 - 1 / c.steps) ** 0.9
    np.testing.assert_allclose(updates["discriminator"]["encoder"], rate * 0.01 / 0.19, rtol=1e-4)
    # The third is 2: m = (0.9 * -0.01 + 0.2) / (1 - 0.729), v = (0.99 * 0.0199 + 0.04) / (1 - 0.970299).
    updates, _ = tx.update(jax.tree.map(lambda leaf: 2 * leaf, params), state, params)
    rate = 0.25 * (1 - 2 / c.steps) ** 0.9
    expected = -rate * (0.191 / 0.271) / ((0.059701 / 0.029701) ** 0.5)
    np.testing.assert_allclose(updates["discriminator"]["encoder"], expected, rtol=1e-4)


def test_the_discriminators_rate_is_held_as_the_others():
    c = config("s4gan")
    c.steps, c.optim.hold, c.method.s4gan.lr = 4, 2, 0.25
    tx, params = build.build_optimizer(c), {"discriminator": {"encoder": jnp.ones(1)}}
    state, rates = tx.init(params), []
    for _ in range(4):
        updates, state = tx.update(params, state, params)
        rates.append(-float(updates["discriminator"]["encoder"][0]))
    assert rates == pytest.approx([0.25, 0.25, 0.25, 0.25 * 0.5**0.9], rel=1e-4)


def test_the_variants_of_reco():
    c = config("reco_paper+forec+partial_1px")
    method = build.build_method(c, LABELS)
    assert isinstance(method, MeanTeacher)
    assert method.auxiliary[0].task == RegionalContrast(
        3, reads="segmentation", class_mean="present", sure_pixels=True, at_once=8
    )
    assert isinstance(method.auxiliary[1].task, ForegroundReconstruction)
    assert (method.normaliser, method.threshold, method.partial_labels) == ("eta", 0.97, True)
    assert (c.batch.labelled, c.batch.unlabelled, c.data.labelled, c.data.unlabelled) == (10, 0, "all", "none")
    zoom, mixing = Zoom((0.5, 1.5)), ClassMix(3, probability=1.0)
    assert method.labelled_mixing == method.mixing == InTurn((zoom, mixing, Mirror()))  # rows that a teacher completes
    whole = build.build_method(config("reco_paper"), LABELS)
    assert (whole.mixing, whole.labelled_mixing) == (method.mixing, NoMixing())
    assert config("reco_paper").data.unlabelled_plain
    assert [config(name).method.separate_passes for name in ("reco_paper", "ps_mt_paper", "s4gan_paper", "reco")] == [
        True,
        True,
        True,
        False,
    ]
    assert config("reco_forec").to_dict() == config("forec+reco").to_dict()
    assert config("reco").method.normaliser == "valid"  # the task alone: it attaches to any method
    assert config("reco").auxiliary.reco.class_mean == "contrasted"


@pytest.mark.parametrize(("variant", "reads"), [("reco", "segmentation"), ("reco_paper", "segmentation"), ("own", "")])
def test_recos_representation_reads_what_the_segmentation_fuses_or_has_a_decoder_of_its_own(variant, reads):
    c = config("reco_paper" if variant == "own" else variant)
    if variant == "own":
        c.auxiliary.reco.head = "own"
    method = build.build_method(c, LABELS)
    assert [head.reads for head in method.network.heads] == ["", reads]
    parts = jax.eval_shape(method.network.init, jax.random.key(0)).params
    assert ("pooling" in parts["representation"]) == (variant == "own")


@pytest.mark.parametrize(
    ("file", "variant", "labelled", "unlabelled"),
    [
        ("voc", "reco_paper", 10, 10),
        ("voc", "supervised+reco_paper", 20, 0),
        ("voc", "partial_1px+reco_paper", 10, 0),
        ("sunrgbd", "reco_paper", 5, 5),
        ("sunrgbd", "supervised+reco_paper", 10, 0),
        ("cityscapes", "reco_paper", 2, 2),
        ("cityscapes", "supervised+reco_paper", 4, 0),
    ],
)
def test_recos_batches(file, variant, labelled, unlabelled):
    c = load_config(f"configs/{file}.py:{variant}", {})
    assert (c.batch.labelled, c.batch.unlabelled) == (labelled, unlabelled)
    assert c.method.supervised_loss == "cross_entropy"


def test_reco_on_cityscapes_sees_images_at_half_their_size():
    c = load_config("configs/cityscapes.py:reco_paper", {})
    assert (c.data.longest_side, c.data.crop, c.data.scale, c.eval.mode) == (1024, 512, (1.0, 1.0), "whole")
    mixing = ClassMix(
        19, probability=1.0
    )  # of half the predicted classes; the student's view is mirrored, and not scaled
    labels = Labels(tuple(map(str, range(19))), ((0, 0, 0),) * 19, (0,))
    assert build.build_method(c, labels).mixing == InTurn((mixing, Mirror()))


@pytest.mark.parametrize("name", ["mean_teacher", "ps_mt"])
def test_rows_with_partial_labels_are_mixed_as_unlabelled_ones(name):
    method = build.build_method(config(f"{name}+cutmix+partial_1px"), LABELS)
    assert method.partial_labels
    assert method.labelled_mixing == method.mixing == CutMix(1.0, HalfAreaBox())


@pytest.mark.parametrize("name", ["mean_teacher", "fixmatch", "ps_mt", "s4gan", "st", "supervised"])
def test_the_students_own_geometry_in_every_method(name):
    c = config(name)
    assert "Zoom" not in str(build.build_method(c, LABELS))  # off, unless it is asked for
    c.augment.student_scale, c.augment.student_flip, c.augment.mix_labelled = (0.5, 2.0), True, False
    method = build.build_method(c, LABELS)
    own = method.mixing.changes[1:]
    assert own == (Zoom((0.5, 2.0)), Mirror())
    alike = name in ("s4gan", "supervised")
    assert alike or method.labelled_mixing == InTurn((NoMixing(), *own))
    c.augment.student_labelled = False
    method = build.build_method(c, LABELS)
    labelled = method.mixing if name == "supervised" else method.labelled_mixing
    assert labelled == (method.mixing if name == "s4gan" else NoMixing())


def test_supervised_rows_with_partial_labels_are_mixed_where_asked_alone():
    c = config("supervised+classmix+partial_1px")
    assert isinstance(build.build_method(c, LABELS).mixing, NoMixing)
    c.augment.mix_labelled = True
    assert isinstance(build.build_method(c, LABELS).mixing, ClassMix)


def test_reco_warns_of_two_classes(caplog):
    build.build_method(config("reco"), Labels(("a", "b"), ((0, 0, 0), (1, 1, 1)), (0,)))
    assert "there are only 2 (a, b)" in caplog.text
    caplog.clear()
    build.build_method(config("reco"), LABELS)
    assert not caplog.text


@pytest.mark.parametrize(
    ("name", "value"),
    [("queries", 0), ("queries_at_once", -1), ("temperature", 0.0), ("stride", 2), ("key_sets", "all")],
)
def test_impossible_options_of_reco_are_errors(name, value):
    c = config("reco")
    c.auxiliary.reco[name] = value
    with pytest.raises(OptionError, match=rf"auxiliary\.reco\.{name}={value!r}"):
        build.build_method(c, LABELS)


@pytest.mark.parametrize("partial", ["0%", "120%", "5"])
def test_an_impossible_share_of_labels_is_an_error(partial):
    with pytest.raises(OptionError, match=rf"data\.partial='{partial}'.*percentage"):
        sources.with_partial_labels(shapes_dataset(size=48).source("tune"), partial)


def test_partial_labels_of_a_config():
    c = config("partial_5pc")
    c.data.shapes.size, c.data.pool, c.eval.split = 48, "tune", "val"
    data = sources.build_training_data(c)
    assert (len(data.labelled), data.unlabelled) == (96, None)
    label, full = data.labelled[0].label, shapes_dataset(size=48).source("tune")[0].label
    assert (label == UNLABELLED).mean() > 0.5
    assert np.isin(np.unique(full), np.unique(label)).all()


def test_the_two_streams_of_partial_labels():
    """The published way: 10 + 10 rows of all images, the masks of either stream shown in part."""
    c = config("reco_paper+partial_5pc+two_streams")
    c.data.shapes.size, c.data.pool, c.eval.split = 48, "tune", "val"
    assert (c.batch.labelled, c.batch.unlabelled, c.data.overlap, c.data.partial_rounding) == (10, 10, True, "down")
    method = build.build_method(c, LABELS)
    assert not method.partial_labels
    assert method.auxiliary[0].task.sure_pixels
    data = sources.build_training_data(c)
    assert (len(data.labelled), len(data.unlabelled)) == (96, 96)
    np.testing.assert_array_equal(data.unlabelled[3].label, data.labelled[3].label)
    assert data.labelled.rounding == "down"
    c.batch.unlabelled = 0
    with pytest.raises(OptionError, match="needs unlabelled rows"):
        check_rows(c)


def test_without_partial_labels_images_in_both_parts_are_unlabelled_rows_like_others():
    c = config("mean_teacher")
    c.data.shapes.size, c.data.pool, c.eval.split = 48, "tune", "val"
    c.data.update({"labelled": "8:0", "unlabelled": "all", "overlap": True})
    data = sources.build_training_data(c)
    assert (len(data.labelled), len(data.unlabelled), data.unlabelled[0].label) == (8, 96, None)


def test_an_unknown_variant_names_the_known_ones():
    with pytest.raises(ValueError, match=r"unknown variant 'forex'.*forec.*mean_teacher"):
        config("forex")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("method.name", "magic"),
        ("method.normaliser", "none"),
        ("method.supervised_loss", "hinge"),
        ("ema.bn_mode", "frozen"),
        ("augment.mixing", "mixup"),
        ("compute_dtype", "float16"),
        ("auxiliary.reconstruction.target", "background"),
        ("auxiliary.reconstruction.void", "one"),
    ],
)
def test_a_wrong_choice_names_the_key_and_the_choices(key, value):
    c = config()
    c.update_from_flattened_dict({key: value})
    with pytest.raises(OptionError, match=rf"{key.replace('.', '[.]')}='{value}': choose one of"):
        build.build_method(c, LABELS)


@pytest.mark.parametrize("variant", ["supervised", "mean_teacher"])
def test_ohem_is_the_supervised_loss_of_either_method(variant):
    c = config(variant)
    c.method.supervised_loss, c.method.ohem_min_kept = "ohem", 50
    loss = build.build_method(c, LABELS).supervised_loss
    assert (loss.func, loss.keywords) == (ohem_cross_entropy, {"threshold": 0.7, "min_kept": 50})


@pytest.mark.parametrize("variant", ["supervised", "mean_teacher"])
@pytest.mark.parametrize(
    ("options", "function", "keywords"),
    [
        ({"supervised_loss": "focal"}, focal_loss, {"gamma": 2.0, "class_weights": (1.0, 1.0, 1.0)}),
        ({"supervised_loss": "dice", "class_weights": "1,0,.5"}, dice_loss, {"class_weights": (1.0, 0.0, 0.5)}),
        ({"supervised_loss": "dice_cross_entropy"}, dice_cross_entropy, {"class_weights": (1.0, 1.0, 1.0)}),
        ({"class_weights": "median_frequency"}, balanced_cross_entropy, {"class_weights": (3.0, 2.0, 1.0)}),
    ],
)
def test_the_supervised_loss_is_chosen_by_name_and_classes_by_weight(variant, options, function, keywords):
    c = config(variant)
    c.method.update(options)
    loss = build.build_method(c, LABELS, frequency_weights=(3.0, 2.0, 1.0)).supervised_loss
    assert (loss.func, loss.keywords) == (function, keywords)


@pytest.mark.parametrize("weights", ["1,2", "1,2,x", "1,2,-1", "0,0,0", "1,2,nan", "median"])
def test_class_weights_are_a_number_a_class(weights):
    c = config()
    c.method.class_weights = weights
    with pytest.raises(
        OptionError, match=rf"method\.class_weights='{weights}' must be 3 numbers .* 'median_frequency'"
    ):
        build.build_method(c, LABELS)


def test_ohem_takes_no_class_weights():
    c = config()
    c.method.supervised_loss, c.method.class_weights = "ohem", "1,2,3"
    with pytest.raises(OptionError, match="chooses pixels by their loss and takes none"):
        build.build_method(c, LABELS)


@pytest.mark.parametrize(("key", "value"), [("ohem_threshold", 0.0), ("ohem_threshold", 70.0), ("ohem_min_kept", 0)])
def test_impossible_bounds_of_ohem_are_errors(key, value):
    c = config()
    c.method.supervised_loss = "ohem"
    c.method[key] = value
    with pytest.raises(OptionError, match=rf"method\.{key}={value} must be .*published"):
        build.build_method(c, LABELS)


def test_the_batch_must_fill_the_devices():
    c = config()
    c.batch.labelled = 6
    with pytest.raises(ValueError, match=r"batch\.labelled=6 must be a multiple of the number of devices, 8"):
        build.build_mesh(c)


def test_accumulation_must_divide_the_rows_of_a_device():
    c = config()
    c.accumulate = 3
    with pytest.raises(OptionError, match="accumulate=3"):
        build.build_mesh(c)


def load(path):
    from absl import flags

    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", None, "", flag_values=values)
    values(["test", f"--config={config_path(path)}"])
    return values.config


@pytest.mark.parametrize(
    "file",
    [
        "configs/shapes.py",
        "configs/voc.py",
        "configs/camvid.py",
        "configs/cityscapes.py",
        "configs/sunrgbd.py",
        "configs/folder.py",
    ],
)
def test_config_files_load_locked_with_every_variant(file):
    for variant in ("supervised", "reconstruction", "mean_teacher+forec", "ps_mt_forec", "s4gan", "classmix+forec"):
        assert load(f"{file}:{variant}").is_locked


def test_the_papers_of_ps_mt_and_s4gan_have_their_settings_on_each_data_set():
    voc, cityscapes = (load(f"configs/{data}.py:ps_mt_paper") for data in ("voc", "cityscapes"))
    assert (voc.augment.mixing, cityscapes.augment.mixing) == ("cutmix_clipped", "cutmix_three")
    assert (voc.method.unsupervised_weight, cityscapes.method.unsupervised_weight) == (0.6, 3.0)
    assert voc.method.supervised_loss == cityscapes.method.supervised_loss == "cross_entropy"
    assert (voc.data.crop, cityscapes.data.crop, cityscapes.eval.crop) == (512, 800, 800)
    # 12 of 80 and of 320 epochs after the warm-up, of 1,311.25 and 325.375 steps
    assert voc.method.ramp * voc.steps == pytest.approx(12 * 10490 / 8, rel=1e-3)
    assert cityscapes.method.ramp * cityscapes.steps == pytest.approx(12 * 2603 / 8, rel=3e-3)
    voc, cityscapes = (load(f"configs/{data}.py:s4gan_paper") for data in ("voc", "cityscapes"))
    assert (voc.method.threshold, cityscapes.method.threshold) == (0.6, 0.7)
    for data in ("camvid", "folder", "shapes"):
        before = load(f"configs/{data}.py:s4gan")
        for name, method in (("ps_mt_paper", "ps_mt"), ("s4gan_paper", "s4gan")):
            c = load(f"configs/{data}.py:{name}+forec")
            assert (c.method.name, c.method.supervised_loss) == (method, "cross_entropy")
            assert (c.data.crop, c.steps, c.optim.lr) == (before.data.crop, before.steps, before.optim.lr)


def test_photographs_of_ones_own_on_a_cpu_with_and_without_pretrained_weights():
    plain, c = load("configs/folder.py:small+forec"), load("configs/folder.py:pretrained+small+forec")
    assert (plain.model.encoder, plain.model.weights, plain.optim.lr) == ("resnet18", "", 1e-3)
    assert (c.model.encoder, c.model.weights) == ("efficientnet_lite2", "efficientnet_lite2")
    assert (c.optim.lr, c.optim.head_lr_multiplier) == (2e-4, 5.0)
    assert (c.data.longest_side, c.data.crop, c.method.ramp) == (320, 225, 0.4)


@pytest.mark.parametrize("data", ["voc", "camvid"])
def test_a_short_training_on_photographs_has_no_threshold_but_one_that_a_method_means_by_its_own(data):
    found = {name: load(f"configs/{data}.py:small+{name}") for name in ("forec", "fixmatch", "s4gan", "classmix+eta")}
    assert {name: c.method.threshold for name, c in found.items()} == {
        "forec": 0.0,
        "fixmatch": 0.0,
        "s4gan": 0.6,
        "classmix+eta": 0.97,
    }
    assert found["forec"].auxiliary.reconstruction.threshold == 0.95  # of the unlabelled pixels that are painted


def test_the_paper_variant():
    c = load("configs/voc.py:paper+forec")
    assert (c.model.encoder, c.data.crop, c.optim.lr, c.optim.weight_decay) == ("resnet101", 512, 1e-3, 1e-4)
    c = load("configs/cityscapes.py:paper+forec+scenery")
    assert (c.model.encoder, c.data.crop, c.optim.lr, c.optim.weight_decay) == ("resnet101", 712, 1e-2, 5e-4)
    assert c.data.background == "sky,vegetation,building"


def test_the_defaults_hold_every_key_that_everyone_may_rely_on():
    keys = """seed steps log_every evaluate_every checkpoint_every batch.labelled batch.unlabelled compute_dtype accumulate
    data.name data.root data.pool data.labelled data.unlabelled data.prepared data.crop model.encoder model.weights
    model.decoder method.name auxiliary optim.name optim.lr optim.head_lr_multiplier ema.decay ema.bn_mode mesh.fsdp
    eval.mode"""
    c = defaults()
    for key in keys.split():
        node = c
        for part in key.split("."):
            assert part in node, key
            node = node[part]
    assert isinstance(c.auxiliary, ConfigDict)


def test_a_config_is_loaded_in_python_as_on_the_command_line():
    c = load_config("configs/shapes.py:supervised", {"optim.lr": 5e-4, "data.scale": (0.5, 1.0), "steps": 7})
    assert (c.method.name, c.optim.lr, c.data.scale, c.steps) == ("supervised", 5e-4, (0.5, 1.0), 7)
    with pytest.raises(KeyError, match="lrr"):
        load_config("configs/shapes.py", {"optim.lrr": 1.0})
    with pytest.raises(ValueError, match=r"no file configs/none\.py"):
        load_config("configs/none.py", {})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace('"clip_norm"', '"clipping"'), r"does not know \(optim.clipping\).*another version"),
        (lambda text: text[: len(text) // 2], "config.json is damaged"),
        (lambda text: "[1]", "config.json is damaged"),
    ],
)
def test_a_config_of_another_version_or_half_of_one_is_refused(tmp_path, change, message):
    file = tmp_path / "config.json"
    file.write_text(change(config("forec").to_json()))
    with pytest.raises(WorkdirError, match=message):
        read_config(file)


def test_an_option_younger_than_a_run_has_its_default(tmp_path):
    content = json.loads(config("forec").to_json())
    del content["method"]["supervised_weight"]
    content["optim"]["lr"], content["data"]["scale"] = 0.25, [0.5, 3.0]
    (tmp_path / "config.json").write_text(json.dumps(content))
    c = read_config(tmp_path / "config.json")
    assert (c.method.supervised_weight, c.optim.lr, c.data.scale) == (1.0, 0.25, (0.5, 3.0))
    assert c.auxiliary.reconstruction.target == "foreground"


def test_a_tasks_option_that_is_younger_has_its_default_and_an_unknown_one_is_named(tmp_path):
    content = json.loads(config("forec+reco").to_json())
    del content["auxiliary"]["reco"]["queries_at_once"]
    content["auxiliary"]["reco"]["queries"] = 64
    (tmp_path / "config.json").write_text(json.dumps(content))
    c = read_config(tmp_path / "config.json")
    assert (c.auxiliary.reco.queries_at_once, c.auxiliary.reco.queries) == (0, 64)
    assert c.auxiliary.reconstruction.target == "foreground"
    content["auxiliary"]["reco"]["keys"] = 512
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(WorkdirError, match=r"does not know \(auxiliary\.reco\.keys\)"):
        read_config(tmp_path / "config.json")


def test_devices_share_all_queries_at_once():
    o = Options()
    assert queries_at_once(o, None) == queries_at_once(o, make_mesh(devices=jax.devices()[:1])) == 8
    assert queries_at_once(o, make_mesh()) == 256


def test_thresholds_on_shapes_are_the_data_sets_whatever_the_methods_own_means():
    c = load_config("configs/shapes.py:s4gan_forec", {})
    assert c.method.threshold == 0.6
    assert c.auxiliary.reconstruction.threshold == load_config("configs/shapes.py:forec", {}).method.threshold

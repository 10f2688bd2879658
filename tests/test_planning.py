import numpy as np
import pytest

from forec_jax import cli
from forec_jax.config import load_config
from forec_jax.data.datasets import camvid
from forec_jax.experiment import build
from forec_jax.experiment.plan import (
    Plan,
    abstract_batch,
    collective_bytes,
    describe,
    parameters_by_part,
    plan_training,
    planned_labels,
    planned_method,
    traced_step,
)

PROGRAM = """
  %all-reduce.1 = f32[128,64]{1,0} all-reduce(%a), channel_id=1, to_apply=%add
  %g = (bf16[10]{0}, /*index=1*/f32[3]{0}) all-gather(%b, %c), dimensions={0}
  %r = s32[] all-reduce(%d), to_apply=%max
  %s = f32[8]{0} reduce-scatter-start(%e), dimensions={0}
  %fused = f32[9]{0} fusion(%all-reduce.1), kind=kLoop
"""


def test_collectives_are_counted_by_the_bytes_of_their_results():
    assert collective_bytes(PROGRAM) == {"all-reduce": 128 * 64 * 4 + 4, "all-gather": 32, "reduce-scatter": 32}


def tiny(options):
    return load_config(
        "configs/shapes.py:supervised",
        {"data.crop": 33, "model.width": 0.125, "model.decoder.channels": 8, "batch.labelled": 8} | options,
    )


@pytest.mark.slow
def test_a_plan_counts_what_the_config_builds():
    """On the tests' eight devices; every number follows from the sizes or bounds what the compiler may say."""
    plan = plan_training(tiny({}))
    weights = 4 * sum(plan.parameters.values())
    batch = 33 * 33 * (3 + 4 + 1) + 4
    # Weights, the teacher and two moments of AdamW; the rest is BatchNorm's statistics and the step.
    assert 4 * weights + batch <= plan.state_bytes <= 1.1 * 4 * weights + batch
    # All gradients, but for those that the compiler knows to be zero (taps that see padding alone at this crop).
    assert plan.collective_bytes["all-reduce"] >= 0.9 * weights
    assert plan.flops > 0
    assert plan.peak_bytes > plan.state_bytes


def test_parts_of_the_same_name_are_counted_for_each_network():
    parts = {"encoder": {"w": np.zeros((3, 4))}, "segmentation": {"w": np.zeros((4, 2)), "b": np.zeros(2)}}
    assert parameters_by_part({"student": parts, "student_2": parts}) == {
        "encoder": 12,
        "segmentation": 10,
        "student_2's encoder": 12,
        "student_2's segmentation": 10,
    }


@pytest.mark.slow
def test_a_plan_over_fsdp_holds_a_part_a_device_and_gathers_it():
    whole, split = plan_training(tiny({})), plan_training(tiny({"mesh.fsdp": 8}))
    assert whole.parameters == split.parameters
    assert split.state_bytes < 0.5 * whole.state_bytes
    assert split.collective_bytes["all-gather"] > 0


@pytest.mark.parametrize(
    ("config", "options", "images"),
    [
        pytest.param(
            "configs/shapes.py:ps_mt", {"batch.labelled": 8, "batch.unlabelled": 8}, 16, marks=pytest.mark.slow
        ),
        ("configs/shapes.py:partial_5pc+two_streams", {"batch.labelled": 8, "batch.unlabelled": 8}, 16),
        ("configs/tags.py:shapes+classifier", {"batch.tagged": 8}, 8),
    ],
)
def test_every_kind_of_method_has_a_step_to_lower(config, options, images):
    small = {"data.crop": 33, "model.width": 0.0625, "model.decoder.channels": 4, "model.decoder.low_level_channels": 4}
    c = load_config(config, small | options)
    mesh = build.build_mesh(c)
    traced_step(c, planned_method(c, mesh), mesh, 1).lower()
    assert hasattr(abstract_batch(c, mesh).unlabelled, "label") == c.data.overlap
    assert c.batch.labelled + c.batch.unlabelled + c.batch.tagged == images
    assert c.method.ps_mt.epoch == 0  # the config is as it was


@pytest.mark.parametrize(
    ("variant", "options"),
    [
        ("vit_tiny", {"model.dinov2.width": 1 / 6, "model.dinov2.depth": 2, "model.dinov2.remat": True}),
        pytest.param(
            "dinov3_small",
            {"model.dinov3.width": 1 / 6, "model.dinov3.depth": 2, "model.dinov3.remat": True},
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "mit_b0",
            {"model.mit.width": 1 / 8, "model.mit.depth": 1, "model.mit.remat": True},
            marks=pytest.mark.slow,
        ),
    ],
)
def test_transformers_have_a_step_to_lower_in_bfloat16_and_over_fsdp(variant, options):
    small = {"data.crop": 112, "compute_dtype": "bfloat16", "mesh.fsdp": 8}
    c = load_config(f"configs/shapes.py:{variant}+supervised", small | {"batch.labelled": 8} | options)
    mesh = build.build_mesh(c)
    text = traced_step(c, planned_method(c, mesh), mesh, 1).lower().as_text()
    assert "bf16" in text
    assert "optimization_barrier" in text  # remat


def test_the_classes_of_every_data_set_are_known():
    counts = {"voc": 21, "camvid": 11, "cityscapes": 19, "sunrgbd": 37}
    for name, count in counts.items():
        assert len(planned_labels(load_config(f"configs/{name}.py", {})).classes) == count
    assert planned_labels(load_config("configs/tags.py:voc+dog+classifier", {})).classes == ("background", "dog")
    roads = load_config("configs/camvid.py", {})
    assert planned_labels(roads).background_classes == (list(camvid.PALETTE).index("road"),)
    roads.data.background = "sky,building"
    assert planned_labels(roads).background_classes == tuple(map(list(camvid.PALETTE).index, ("sky", "building")))


def test_the_hours_follow_from_the_rate():
    plan = Plan("1 x cpu", {"encoder": 2_000_000, "segmentation": 500_000}, 16, 8, 3e12, 2**30, 2**31, {})
    text = describe(plan, steps=4500, rate=20.0, pool=360)
    assert "2.50 M (encoder 2.00 M, segmentation 0.50 M)" in text
    assert "3.00 GiB a device at most, 1.00 of it" in text
    assert "1.0 hours at 20 images a second" in text
    assert "100.0 of 360 images, 8 of them a step" in text
    bare = describe(plan, steps=4500, rate=None, pool=None)
    assert "hours" not in bare
    assert "epochs" not in bare


@pytest.mark.parametrize(
    ("options", "message"),
    [([], "--config is missing"), (["--config=configs/voc.py:magic"], "unknown variant 'magic'")],
)
def test_a_plan_that_cannot_be_made_is_explained(capsys, options, message):
    assert cli.run(["plan", *options]) == 2
    assert message in capsys.readouterr().err

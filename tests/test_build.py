import jax
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from forec_jax.config import check_options, defaults, load_config
from forec_jax.contracts import HeadSpec
from forec_jax.data import DataError
from forec_jax.experiment.build import build_buckets, build_network, build_optimizer
from forec_jax.experiment.plan import counted_flops, planned_method, traced_step
from forec_jax.experiment.sources import build_training_data
from forec_jax.models import count_parameters
from forec_jax.models.weightfile import Origin, write_variables
from forec_jax.options import OptionError
from forec_jax.parallel import make_mesh
from forec_jax.training import first_state


def test_a_network_starts_from_the_weights_that_the_config_names(tmp_path):
    c = defaults()
    c.model.encoder, c.model.resnet.width = "resnet18", 1 / 16
    c.model.deeplab.update({"channels": 8, "low_level_channels": 4})
    heads = (HeadSpec("segmentation", 3), HeadSpec("reconstruction", 3))
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(build_network(c, heads[:1]).init, jax.random.key(0))
    stored = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes)
    write_variables(tmp_path / "a.safetensors", stored, Origin("resnet18", "7x7", "torchvision", "0" * 64))
    c.model.weights = str(tmp_path / "a.safetensors")
    first = build_network(c, heads).init(jax.random.key(0))
    assert set(first.params) == {"encoder", "segmentation", "reconstruction"}
    for name, value in load_file(c.model.weights).items():
        leaf = first._asdict()
        for step in name.split("/"):
            leaf = leaf[step]
        np.testing.assert_array_equal(leaf, value)


@pytest.mark.parametrize(
    "options", [pytest.param({"encoder_statistics": "weights"}, marks=pytest.mark.slow), {"freeze": "encoder"}]
)
def test_an_encoder_keeps_the_statistics_of_its_weights_in_training_where_asked(options):
    c = defaults()
    c.model.encoder, c.model.resnet.width = "resnet18", 1 / 16
    c.model.deeplab.update({"channels": 8, "low_level_channels": 4})
    c.model.update(options)
    network = build_network(c, (HeadSpec("segmentation", 3),))
    first = network.init(jax.random.key(0))
    image = np.random.default_rng(0).random((2, 33, 33, 3), np.float32)
    (trained, stats), (shown, _) = (
        jax.jit(network.encode, static_argnames="train")(first, image, train=train) for train in (True, False)
    )
    jax.tree.map(np.testing.assert_array_equal, trained.maps, shown.maps)
    jax.tree.map(np.testing.assert_array_equal, stats, first.batch_stats)
    _, stats = network.decode(first, "segmentation", trained, train=True)
    assert np.any(stats["segmentation"]["fuse1"]["norm"]["mean"])


@pytest.mark.slow
def test_a_step_with_a_frozen_encoder_has_less_to_do_and_less_to_keep():
    small = {"model.encoder": "unet", "model.unet.width": 1 / 16, "data.crop": 32}
    c = load_config("configs/shapes.py:supervised", small)
    mesh = make_mesh(devices=jax.devices()[:1])
    network = build_network(c, (HeadSpec("segmentation", 3),))
    variables = jax.eval_shape(network.init, jax.random.key(0))
    rows = jax.ShapeDtypeStruct((c.batch.labelled, 32, 32, 3), jax.numpy.float32)
    forward = counted_flops(jax.jit(network.encode).trace(variables, rows))
    flops, kept = {}, {}
    for freeze in ("", "encoder"):
        c.model.freeze = freeze
        method, tx = planned_method(c, mesh), build_optimizer(c)
        flops[freeze] = counted_flops(traced_step(c, method, mesh, 1))
        state = jax.eval_shape(lambda m=method, t=tx: first_state(m, t, 0))
        kept[freeze] = sum(leaf.size for leaf in jax.tree.leaves(state.opt_state))
    assert flops[""] - flops["encoder"] > 1.5 * forward  # the backward pass is some two times the forward pass
    encoder = count_parameters(variables.params)["encoder"]
    assert c.optim.name == "adamw"
    assert 0 <= kept[""] - kept["encoder"] - 2 * encoder < 4  # two moments, and the number of the encoder's steps


def test_what_may_be_frozen_is_a_choice():
    with pytest.raises(OptionError, match=r"model\.freeze='head': choose one of '', 'encoder'"):
        check_options(load_config("configs/shapes.py:forec", {"model.freeze": "head"}))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model.encoder": "dinov2_small"}, r"data\.crop=64: dinov2_small sees patches of 14 pixels; take 56 or 70"),
        ({"model.encoder": "dinov3_base", "data.crop": 10}, r"data\.crop=10: .* patches of 16 pixels; take 16$"),
        (
            {"model.encoder": "dinov3_base", "eval.bucket": 98},
            r"eval\.bucket=98 must be a multiple of 16; take 96 or 112",
        ),
        ({"model.encoder": "mit_b0", "eval.bucket": 8}, r"eval\.bucket=8 must be a multiple of 32; take 32$"),
        ({"model.encoder": "mit_b0", "model.decoder": "dpt"}, r"'dpt' cannot read .*'mit_b0': take segformer"),
        ({"model.decoder": "segformer"}, r"cannot read .*'resnet18': take deeplab or deeplab_v2 or pspnet"),
    ],
)
def test_sizes_and_decoders_that_an_encoder_cannot_take_are_named(options, message):
    c = load_config("configs/shapes.py:supervised", options)
    with pytest.raises(OptionError, match=message):
        build_buckets(c, planned_method(c, make_mesh()), batch=1)


def test_statistics_of_weights_need_weights():
    with pytest.raises(OptionError, match=r"needs model\.weights"):
        check_options(load_config("configs/shapes.py:forec", {"model.encoder_statistics": "weights"}))


def test_weights_that_do_not_fit_are_explained_by_the_options_that_matter(tmp_path):
    c = defaults()
    c.model.update({"encoder": "resnet18", "weights": str(tmp_path / "none.npz")})
    c.model.resnet.width = 1 / 16
    with pytest.raises(
        OptionError,
        match=r"model\.weights=.*resnet18.*model\.resnet\.width=0\.0625: no weights at .*need model\.resnet\.width=1$",
    ):
        build_network(c, (HeadSpec("segmentation", 3),))
    c.model.resnet.width = 1.0
    with pytest.raises(OptionError, match=r"model\.resnet\.width=1\.0: no weights at .*none\.npz$"):
        build_network(c, (HeadSpec("segmentation", 3),))


@pytest.mark.parametrize(("labelled", "ids"), [("all", "abc"), ("balanced:2:0", "ac")])
def test_an_image_that_cannot_be_read_ends_no_start_where_training_passes_over_it(tmp_path, caplog, labelled, ids):
    """The sky is on b alone, and b is broken: it counts as shown by no image, and a draw takes b last."""
    root = tmp_path / "camvid"
    for folder in ("train", "trainannot", "val", "valannot"):
        (root / folder).mkdir(parents=True)
    for folder, name, value in (("train", "a", 1), ("train", "b", 0), ("train", "c", 2), ("val", "d", 0)):
        Image.new("RGB", (40, 40)).save(root / folder / f"{name}.png")
        Image.new("L", (40, 40), value).save(root / f"{folder}annot" / f"{name}.png")
    (root / "train" / "b.png").write_bytes(b"no image")
    c = defaults()
    c.data.update({"name": "camvid", "root": str(root), "prepared": str(tmp_path / "prepared"), "labelled": labelled})
    c.batch.unlabelled = 0
    with pytest.raises(DataError, match=r"b\.png: cannot be decoded"):
        build_training_data(c)
    c.data.on_corrupt = "skip"
    assert build_training_data(c).split.labelled == tuple(ids)
    assert "no labelled image shows: sky, " in caplog.text

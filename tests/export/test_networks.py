"""Each kind of network as an ONNX file: onnxruntime's probabilities are the library's."""

import jax
import numpy as np
import pytest

from forec_jax.config import load_config
from forec_jax.contracts import Variables
from forec_jax.data import Labels
from forec_jax.experiment import build
from forec_jax.experiment.export import prediction
from forec_jax.export import to_onnx
from forec_jax.models.layers import within

pytest.importorskip("onnx", reason="pip install 'forec-jax[export]'")
onnxruntime = pytest.importorskip("onnxruntime", reason="pip install 'forec-jax[export]'")

LABELS = Labels(tuple("abcde"), tuple((k, k, k) for k in range(5)), (0,))
DEEPLAB, PSPNET = {"model.deeplab.channels": 8}, {"model.decoder": "pspnet", "model.pspnet.channels": 8}
DEEPLAB_V2 = {"model.decoder": "deeplab_v2"}
RESNET, MOBILENET = {"model.resnet.width": 0.125}, {"model.mobilenet_v2.width": 0.25}
LITE = {"model.efficientnet_lite.width": 0.125}
DPT = {"model.dpt.channels": 4, "model.dpt.projections": (2, 2, 3, 3)}
DINOV3 = {"model.dinov3.width": 1 / 6, "model.dinov3.depth": 4, "model.dinov3.licence_accepted": True}
DINOV2 = {"model.dinov2.width": 1 / 6, "model.dinov2.depth": 4, "data.crop": 70}
MIT = {"model.mit.width": 0.125, "model.mit.depth": 1, "model.segformer.channels": 6}
CLASSIFIER = {"method.tag_classifier.tag_threshold": 0.5}

slow = pytest.mark.slow


def method_of(encoder, options, config="configs/shapes.py:supervised"):
    c = load_config(config, {"model.encoder": encoder, "eval.bucket": 448, **options})
    return build.build_method(c, LABELS)


def difference(method, size, smaller):
    """The largest difference of a probability, of three images of noise: together, and each alone."""
    params, statistics, *_ = method.init(jax.random.key(0))
    variables = {name: Variables(params[name], statistics[name]) for name in params}
    program = prediction(method, jax.device_get(variables), size, smaller=smaller)
    content = to_onnx(program.function, program.inputs, "out", "a test").SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    image = np.random.default_rng(0).integers(0, 256, (3, *size, 3), dtype=np.uint8)
    extent = np.array([size, [size[0] // 2 + 1, size[1]], [5, size[1] - 3]], np.int32)
    given = {"image": image, "size": extent} if smaller else {"image": image}
    valid = within(extent, size) if smaller else None
    wanted = np.asarray(jax.jit(method.predict)(variables, image.astype(np.float32) / 255.0, valid))
    (together,) = session.run(None, given)
    alone = [session.run(None, {name: array[row : row + 1] for name, array in given.items()})[0] for row in range(3)]
    seen = np.ones((3, *size), bool) if valid is None else np.asarray(valid)
    return max(float(np.abs(found - wanted)[seen].max()) for found in (together, np.concatenate(alone)))


@pytest.mark.parametrize(
    ("encoder", "options", "whole", "part"),
    [
        pytest.param("resnet18", RESNET | DEEPLAB, (49, 67), (64, 96), marks=slow),
        pytest.param("resnet18", RESNET | DEEPLAB_V2, (49, 67), (64, 96), marks=slow),
        pytest.param("resnet18", RESNET | PSPNET, (49, 67), (64, 96), marks=slow),
        pytest.param("mobilenet_v2", MOBILENET | DEEPLAB, (49, 67), (64, 96), marks=slow),
        pytest.param("efficientnet_lite0", LITE | DEEPLAB, (49, 67), (64, 96), marks=slow),
        pytest.param("dinov2_small", DINOV2 | DPT, (42, 56), (56, 56), marks=slow),
        pytest.param("dinov3_small", DINOV3 | DPT, (48, 64), (64, 64), marks=slow),
        pytest.param("dinov3_small_plus", DINOV3 | DPT, (48, 64), (64, 64), marks=slow),
        pytest.param("mit_b0", MIT, (49, 67), (64, 96), marks=slow),
    ],
)
def test_the_file_says_what_the_library_says(encoder, options, whole, part):
    method = method_of(encoder, options)
    found = difference(method, whole, smaller=False), difference(method, part, smaller=True)
    assert max(found) < 1e-4


@slow
def test_class_activation_maps():
    method = method_of("resnet18", RESNET | CLASSIFIER, "configs/tags.py:shapes+classifier")
    found = difference(method, (49, 67), smaller=False), difference(method, (64, 96), smaller=True)
    assert max(found) < 1e-4

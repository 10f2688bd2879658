"""A trained model to take away: as StableHLO, as ONNX, or as safetensors, with a JSON beside it that says how it is used."""

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import export as jax_export
from ml_collections import ConfigDict

import forec_jax
from forec_jax.contracts import Method, Thresholded, Variables
from forec_jax.experiment import build
from forec_jax.experiment.load import THRESHOLD, Run, guides, stored_method, with_chosen_threshold
from forec_jax.experiment.taken import ABOUT, is_taken, weights_file
from forec_jax.experiment.workdir import SPLIT, damage_named, read_config, stored_summary
from forec_jax.export import ExportError, Input, symbolic, to_onnx
from forec_jax.files import read_json, sha256_of, write_json, write_whole
from forec_jax.kinds import mapping
from forec_jax.models.encoders import ENCODERS
from forec_jax.models.layers import within
from forec_jax.models.weightfile import Origin, write_variables
from forec_jax.options import OptionError, choose

log = logging.getLogger(__name__)

FORMATS = ("stablehlo", "onnx", "safetensors")
PLATFORMS = ("cpu", "cuda", "tpu")
KEPT = ("labels.json", THRESHOLD, SPLIT)
"""The files of a work directory that go into an exported folder as they are."""

TOLERANCE = 1e-4
"""The largest difference of a probability between an exported float32 model and the library's that passes without a word."""

_SUFFIX = {"stablehlo": ".stablehlo", "onnx": ".onnx"}
_IMAGE, _SIZE, _OUTPUT = "image", "size", "probabilities"


@dataclass(frozen=True)
class Wanted:
    """What is taken away."""

    format: str = "onnx"
    sizes: tuple[tuple[int, int], ...] = ()  # heights and widths, a file each; (): the run's crop
    smaller: bool = False  # images of at most that size, whose own a second input says
    dtype: str = "float32"  # of activations and kernels
    platforms: tuple[str, ...] = PLATFORMS  # of stablehlo


class Program(NamedTuple):
    """A prediction as a function of arrays, weights inside."""

    function: Callable[..., jax.Array]
    inputs: tuple[Input, ...]


def export(run: Run, network: str, out: Path, wanted: Wanted) -> dict[str, Any]:
    """Writes a run's model to the folder `out`; returns what model.json says.

    Raises:
      OptionError: the format does not know the dtype, or the network does not take the size.
      ExportError: the model cannot be written in the format, or what that needs is not installed.
    """
    choose("--format", wanted.format, FORMATS)
    _check(run, wanted)
    run = _in_dtype(run, wanted.dtype)
    variables = read_parts(run.method, jax.device_get(build.network_variables(run.state, network)))
    about = _about(run, network, variables, wanted)
    variables = {name: _rounded(own, wanted.dtype) for name, own in variables.items()}
    out.mkdir(parents=True, exist_ok=True)
    if wanted.format == "safetensors":
        about["files"] = _write_weights(run, variables, out)
    else:
        about["files"] = [
            _write_program(run, variables, out, wanted, size)
            for size in wanted.sizes or ((run.config.data.crop, run.config.data.crop),)
        ]
    write_json(out / ABOUT, about)
    return about


def read_parts(method: Method, variables: dict[str, Variables]) -> dict[str, Variables]:
    """What of the networks' variables a prediction reads: no auxiliary head, and no network that has no say."""
    side = build.side_multiple(method)
    image = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    traced = jax.make_jaxpr(lambda v, x: method.predict(v, x, None))(variables, image).jaxpr
    seen = {id(variable) for eqn in traced.eqns for variable in eqn.invars}
    leaves, tree = jax.tree.flatten(variables)
    read = jax.tree.unflatten(tree, [id(variable) in seen for variable in traced.invars[: len(leaves)]])
    kept = {}
    for name, own in variables.items():
        parts = [part for part in own.params if any(jax.tree.leaves(read[name].params[part]))]
        if parts:
            kept[name] = Variables(*({part: kind[part] for part in parts if part in kind} for kind in own))
    return kept


def prediction(method: Method, variables: dict[str, Variables], size: tuple[int, int], *, smaller: bool) -> Program:
    """The class probabilities f32[batch,*size,K] of images u8[batch,*size,3]; preprocessing is inside.

    With `smaller`, an image may fill the top-left part alone: its height and width are the second input, i32[batch,2].
    What it says there is what the library says of that part by itself; outside it has no meaning.
    """

    def whole(image: jax.Array) -> jax.Array:
        return method.predict(variables, image.astype(jnp.float32) / 255.0, None)

    def part(image: jax.Array, extent: jax.Array) -> jax.Array:
        return method.predict(variables, image.astype(jnp.float32) / 255.0, within(extent, size))

    image = Input(_IMAGE, np.uint8, (*size, 3))
    return Program(part, (image, Input(_SIZE, np.int32, (2,)))) if smaller else Program(whole, (image,))


def _check(run: Run, wanted: Wanted) -> None:
    """Raises OptionError for what cannot be exported, before anything is computed."""
    if wanted.format == "onnx" and wanted.dtype != "float32":
        raise OptionError(
            "--dtype=bfloat16: ONNX's convolutions run in float32 on most machines; take --format=stablehlo, or "
            "--dtype=float32"
        )
    if wanted.format == "safetensors" and (wanted.sizes or wanted.smaller):
        raise OptionError(
            "--size and --smaller are of a program; --format=safetensors holds weights for images of any size"
        )
    for platform in wanted.platforms:
        choose("--platforms", platform, (*PLATFORMS, "rocm"))
    if run.config.plugin:
        log.warning("the run has a plugin of its own (%s), which is not exported", run.config.plugin)
    if run.config.eval.mode == "sliding":
        log.warning(
            "the run is scored by windows of %d pixels (eval.mode=sliding); the exported model sees all that it is given at "
            "once: give it windows of that size and average them, or expect other scores",
            run.config.eval.crop,
        )
    if tuple(run.config.eval.scales) != (1.0,) or run.config.eval.flip:
        log.warning(
            "the run is scored at eval.scales=%s with eval.flip=%s; the exported model sees an image once: expect others",
            tuple(run.config.eval.scales),
            run.config.eval.flip,
        )


def _in_dtype(run: Run, dtype: str) -> Run:
    """The run with activations in that dtype."""
    choose("--dtype", dtype, ("float32", "bfloat16"))
    if run.config.compute_dtype == dtype:
        return run
    c = run.config.copy_and_resolve_references()
    c.compute_dtype = dtype
    method = with_chosen_threshold(stored_method(c, run.labels, run.workdir), run.workdir)
    return run._replace(config=c, method=method)


def _rounded(variables: Variables, dtype: str) -> Variables:
    """The variables with kernels in that dtype: what is not one, as BatchNorm's, is small and stays float32."""

    def leaf(path: tuple[Any, ...], value: np.ndarray) -> np.ndarray:
        return value.astype(jnp.dtype(dtype)) if path[-1].key == "kernel" else value

    return Variables(*(jax.tree_util.tree_map_with_path(leaf, kind) for kind in variables))


def _write_weights(run: Run, variables: dict[str, Variables], out: Path) -> list[dict[str, Any]]:
    """A .safetensors a network, and what the library needs to read the folder as a run."""
    options = run.config.model[ENCODERS[run.config.model.encoder].name]
    form = options.get("stem", options.get("form", ""))
    files = []
    for name, own in variables.items():
        path = out / weights_file(name, tuple(variables))
        origin = Origin(run.config.model.encoder, form, "forec_jax", sha256_of(run.workdir / "config.json"))
        write_variables(path, own, origin)
        files.append({"name": path.name, "network": name, "sha256": sha256_of(path)})
    for name in KEPT:
        if (run.workdir / name).is_file():
            write_whole(out / name, (run.workdir / name).read_bytes())
    for role in guides(run.config):
        write_json(out / f"{role}.json", _without_places(read_config(run.workdir / f"{role}.json")))
    write_json(out / "config.json", _without_places(run.config))
    return files


def _write_program(
    run: Run, variables: dict[str, Variables], out: Path, wanted: Wanted, size: tuple[int, int]
) -> dict[str, Any]:
    """A file for images of one size, compared with the library."""
    program = _traceable(run, variables, size, wanted)
    path = out / f"model-{size[0]}x{size[1]}{_SUFFIX[wanted.format]}"
    if wanted.format == "onnx":
        content = _onnx(program, f"{run.config.method.name} by forec_jax {forec_jax.__version__}")
        says = _onnx_runner(content)
    else:
        exported = jax_export.export(jax.jit(program.function), platforms=wanted.platforms)(*symbolic(program.inputs))
        content = bytes(exported.serialize())
        says = (
            jax.jit(jax_export.deserialize(bytearray(content)).call)
            if jax.default_backend() in wanted.platforms
            else None
        )
    write_whole(path, content)
    difference = None if says is None else _difference(run.method, variables, program, size, says)
    if difference is not None and difference > TOLERANCE and wanted.dtype == "float32":
        log.warning("%s: a probability differs from the library's by %.1e", path, difference)
    return {
        "name": path.name,
        "height": size[0],
        "width": size[1],
        "sha256": sha256_of(path),
        "largest_difference": difference,
    }


def _traceable(run: Run, variables: dict[str, Variables], size: tuple[int, int], wanted: Wanted) -> Program:
    """The program for a size. Raises OptionError where the network does not take that."""
    multiple = build.side_multiple(run.method)
    if wanted.smaller and any(side % multiple for side in size):
        fitting = "x".join(str(-(-side // multiple) * multiple) for side in size)
        raise OptionError(f"--size={size[0]}x{size[1]} with --smaller takes multiples of {multiple}: take {fitting}")
    program = prediction(run.method, variables, size, smaller=wanted.smaller)
    shapes = [jax.ShapeDtypeStruct((1, *one.shape), one.dtype) for one in program.inputs]
    try:
        jax.eval_shape(program.function, *shapes)
    except ValueError as error:
        raise OptionError(f"--size={size[0]}x{size[1]}: {error}; take another size, or --smaller") from error
    return program


def _onnx(program: Program, about: str) -> bytes:
    try:
        import onnx
    except ImportError as error:
        raise ExportError("ONNX files need the package onnx: pip install 'forec-jax[export]'") from error
    model = to_onnx(program.function, program.inputs, _OUTPUT, about)
    onnx.checker.check_model(model)
    content: bytes = model.SerializeToString()
    return content


def _onnx_runner(content: bytes) -> Callable[..., Any] | None:
    """What runs an ONNX file on the CPU; None where onnxruntime is not installed."""
    try:
        import onnxruntime
    except ImportError:
        log.warning("the ONNX file was not compared with the library, as onnxruntime is not installed")
        return None
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_inputs()]
    return lambda *arrays: session.run(None, dict(zip(names, arrays, strict=True)))[0]


def _difference(
    method: Method,
    variables: dict[str, Variables],
    program: Program,
    size: tuple[int, int],
    says: Callable[..., Any],
) -> float:
    """The largest difference of a probability to the library's, on two images of noise."""
    draw = np.random.default_rng(0)
    image = draw.integers(0, 256, (2, *size, 3), dtype=np.uint8)
    extent = np.array([size, [-(-2 * side // 3) for side in size]], np.int32)
    seen = np.asarray(within(jnp.asarray(extent), size)) if len(program.inputs) > 1 else np.ones((2, *size), bool)
    given = (image, extent)[: len(program.inputs)]
    valid = jnp.asarray(seen) if len(program.inputs) > 1 else None
    wanted = jax.jit(method.predict)(variables, image.astype(np.float32) / 255.0, valid)
    return float(np.abs(np.asarray(says(*given)) - np.asarray(wanted))[seen].max())


def _about(run: Run, network: str, variables: dict[str, Variables], wanted: Wanted) -> dict[str, Any]:
    """What model.json says, but for its files."""
    c, first = run.config, next(iter(run.method.networks.values()))
    program = wanted.format != "safetensors"
    others = sorted(run.method.networks.keys() - variables.keys())
    if others:
        log.info("not exported: %s; %s alone predicts", " and ".join(others), " and ".join(variables))
    return {
        "format": wanted.format,
        "written_by": {"forec_jax": forec_jax.__version__, "jax": jax.__version__},
        "dtype": wanted.dtype,
        "platforms": list(wanted.platforms) if wanted.format == "stablehlo" else None,
        "inputs": _inputs(wanted.smaller) if program else None,
        "output": {"name": _OUTPUT, "dtype": "float32", "layout": "[batch, height, width, class], in 0..1"},
        "preprocessing": {
            "where": "inside the model" if program else "by whoever runs the weights",
            "steps": "image / 255, then (image - mean) / std by channel",
            "mean": list(first.mean),
            "std": list(first.std),
            "longest_side": c.data.longest_side,
            "longest_side_means": "larger images are scaled down to it first, bilinearly with anti-aliasing; 0: as they are",
            "sides_are_multiples_of": build.side_multiple(run.method),
        },
        "classes": list(run.labels.classes),
        "palette": [list(colour) for colour in run.labels.palette],
        "weights": "kernels are [rows, columns, in, out]; names are paths, such as params/encoder/...",
        "networks": {name: sorted(own.params) for name, own in variables.items()},
        "trained": {
            "method": c.method.name,
            "network": network if run.state.teacher else "student",
            "step": int(run.state.step),
            "mask_threshold": run.method.mask_threshold if isinstance(run.method, Thresholded) else None,
            "split": _split(run.workdir),
            "scores": _scores(run.workdir),
        },
        "config": _without_places(c),
    }


def _inputs(smaller: bool) -> list[dict[str, str]]:
    image = {"name": _IMAGE, "dtype": "uint8", "layout": "[batch, height, width, 3], red, green, blue in 0..255"}
    extent = {"name": _SIZE, "dtype": "int32", "layout": "[batch, 2], rows and columns of the image, from the top left"}
    return [image, extent] if smaller else [image]


def _split(workdir: Path) -> dict[str, Any] | None:
    """The sums of a run's images; None where it has none."""
    file = workdir / SPLIT
    if not file.is_file():
        return None
    with damage_named(file, "remove it if the lists of images are as they were"):
        return dict(mapping(read_json(file)))


def _scores(workdir: Path) -> dict[str, Any] | None:
    """The scores in a run's summary, or those that came with an exported one; None where it has none."""
    if is_taken(workdir):
        with damage_named(workdir / ABOUT, "export it again"):
            about = read_json(workdir / ABOUT)
            taken: dict[str, Any] | None = about["trained"]["scores"]
            return taken
    content = stored_summary(workdir)
    kept = {key: content[key] for key in ("best", "last", "per_class", "seed", "steps", "devices") if key in content}
    return kept or None


def _without_places(c: ConfigDict) -> dict[str, Any]:
    """The config without where things lie on this machine."""
    content: dict[str, Any] = json.loads(c.to_json())
    content["data"] |= {"root": "", "prepared": ""}
    content["model"]["weights"] = ""
    return content

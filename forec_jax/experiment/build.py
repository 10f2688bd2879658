"""From a config to the objects of a run: network, method, optimiser, mesh, evaluator."""

import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from forec_jax.augment import ColourOptions, MixingOptions, Photometric, StudentOptions, mixing_of, photometric
from forec_jax.config import RunOptions, decoder_name, labels_in_both, method_entry
from forec_jax.contracts import Batch, HeadSpec, Method, Network, TrainState, Variables
from forec_jax.data import Labels
from forec_jax.evaluation import Averaged, Buckets, EvaluationOptions, Evaluator, Predicts, SlidingWindow
from forec_jax.evaluation.evaluate import MOST_PIXELS, Mode
from forec_jax.methods import Auxiliary
from forec_jax.methods.entry import Epoch, Guide, Parts, TaskParts
from forec_jax.methods.parts.teacher import EmaOptions
from forec_jax.methods.parts.terms import PseudoLabelOptions
from forec_jax.methods.parts.views import Colour
from forec_jax.methods.tasks import TASKS
from forec_jax.methods.tasks.reconstruction import RECONSTRUCTION, PixelSpace
from forec_jax.models import WeightsError, assemble, filled, fitting_weights
from forec_jax.models.decoders import DECODERS
from forec_jax.models.encoders import ENCODERS
from forec_jax.models.network import (
    EncoderEntry,
    Form,
    ModelOptions,
    with_frozen_encoder,
    with_statistics_of_weights,
)
from forec_jax.options import OptionError, choose, from_config
from forec_jax.parallel import global_batch, local_mesh, make_mesh
from forec_jax.training import (
    OptimizerOptions,
    Schedule,
    drop_not_finite,
    make_optimizer,
    poly_schedule,
    with_own_optimizers,
)
from forec_jax.training.step import Step


def _no_guide(role: str) -> Guide | None:
    """No run to learn from."""
    del role
    return None


def build_method(
    c: ConfigDict,
    labels: Labels,
    more: tuple[Auxiliary, ...] = (),
    guide: Callable[[str], Guide | None] = _no_guide,
    mesh: Mesh | None = None,
    frequency_weights: tuple[float, ...] | None = None,
) -> Method:
    """The method with its networks and auxiliary tasks: those of the config, and `more`, which no config knows.

    `guide` gives the trained runs that the method learns from, by their roles; `mesh` is the devices of a training, and
    `frequency_weights` are the classes' by its labelled masks, where it asks for them.
    """
    entry = method_entry(c)
    parts = _build_parts(c, labels, (*_build_auxiliary(c, labels, mesh), *more), guide, frequency_weights)
    return entry.build(method_options(c), parts)


def method_options(c: ConfigDict) -> Any:
    """The own options of the config's method."""
    entry = method_entry(c)
    options: Any = from_config(entry.options, c.method[entry.name], f"method.{entry.name}")
    return options


def _build_parts(
    c: ConfigDict,
    labels: Labels,
    auxiliary: tuple[Auxiliary, ...],
    guide: Callable[[str], Guide | None],
    frequency_weights: tuple[float, ...] | None,
) -> Parts:
    """All that a method may be built from."""
    mixing = from_config(MixingOptions, c.augment, "augment")
    return Parts(
        labels=labels,
        network=functools.partial(build_network, c),
        auxiliary=auxiliary,
        colour=build_colour(c),
        colour_labelled=from_config(ColourOptions, c.augment, "augment").colour_labelled,
        mixing=mixing_of(mixing, len(labels.classes)),
        mix_labelled=mixing.mix_labelled,
        student=from_config(StudentOptions, c.augment, "augment"),
        ema=from_config(EmaOptions, c.ema, "ema"),
        steps=c.steps,
        partial=bool(c.data.partial) and not labels_in_both(c),
        compute_dtype=compute_dtype(c),
        shared=lambda block: from_config(block, c.method, "method"),
        guide=guide,
        frequency_weights=frequency_weights,
    )


def _build_auxiliary(c: ConfigDict, labels: Labels, mesh: Mesh | None) -> tuple[Auxiliary, ...]:
    """The auxiliary tasks, in the order of their names."""
    tasks = []
    for name in sorted(c.auxiliary):
        entry = TASKS[choose("auxiliary", name, tuple(TASKS))]
        options: Any = from_config(entry.options, c.auxiliary[name], f"auxiliary.{name}")
        tasks.append(Auxiliary(options.weight, entry.build(options, TaskParts(labels, mesh))))
    return tuple(tasks)


def build_colour(c: ConfigDict) -> Colour:
    """The colour changes of the student's view."""
    options = from_config(Photometric, c.augment, "augment")
    return lambda key, image, valid: photometric(key, image, options, valid)


def compute_dtype(c: ConfigDict) -> Any:
    """The dtype of activations."""
    return jnp.dtype(from_config(RunOptions, c, "").compute_dtype)


def build_network(c: ConfigDict, heads: tuple[HeadSpec, ...]) -> Network:
    """The network; its first weights come from model.weights where that is set."""
    m = from_config(ModelOptions, c.model, "model")
    encoder = ENCODERS[choose("model.encoder", m.encoder, tuple(ENCODERS))]
    decoder, form = DECODERS[decoder_name(c)], Form(m.bn_momentum, compute_dtype(c))
    options: Any = from_config(encoder.options, c.model[encoder.name], f"model.{encoder.name}")
    decoder_options: Any = from_config(decoder.options, c.model[decoder.name], f"model.{decoder.name}")
    built = encoder.build(m.encoder, options, form)
    if m.encoder_statistics == "weights" or m.freeze:
        built = with_statistics_of_weights(built)
    if c.data.crop % built.patch:
        nearest = _nearest(c.data.crop, built.patch)
        raise OptionError(f"data.crop={c.data.crop}: {m.encoder} sees patches of {built.patch} pixels; {nearest}")
    made = decoder.build(decoder_options, form)
    if built.gives != made.reads:
        fitting = [name for name, entry in DECODERS.items() if entry.build(entry.options(), form).reads == built.gives]
        raise OptionError(
            f"model.decoder={decoder.name!r} cannot read model.encoder={m.encoder!r}: take {' or '.join(fitting)}"
        )
    try:
        network = assemble(built, made, heads)
    except ValueError as error:
        raise OptionError(f"model.encoder={m.encoder!r} with model.decoder={decoder.name!r}: {error}") from error
    if m.freeze:
        network = with_frozen_encoder(network)
    return _with_weights(network, m, encoder, options, c.seed) if m.weights else network


def _with_weights(network: Network, m: ModelOptions, encoder: EncoderEntry, options: Any, seed: int) -> Network:
    """The network that starts from the weights of model.weights. Raises OptionError where they do not fit.

    What does not fit of the segmentation's head is named in the log.
    """
    run = Path(m.weights).expanduser()
    from_run = (run / "config.json").is_file()
    if not from_run and encoder.weights is None:
        raise OptionError(
            f"model.weights={m.weights!r}: model.encoder={m.encoder!r} starts from random weights; leave it empty"
        )
    try:
        stored = _of_run(run, m) if from_run else encoder.weights(m.weights, m.encoder, options)  # type: ignore[misc]
        layout = jax.eval_shape(network.init, jax.random.key(seed))
        weights = fitting_weights(stored, layout)
    except WeightsError as error:
        why = f", a run of another encoder: {error}" if from_run else _misfit(m, encoder, options, error)
        raise OptionError(f"model.weights={m.weights!r}{why}") from error
    given = tuple(part for part, tree in weights.params.items() if tree.keys() == layout.params[part].keys())
    return network._replace(init=functools.partial(_pretrained_init, network, weights), given=given)


def _of_run(workdir: Path, m: ModelOptions) -> Variables:
    from forec_jax.experiment.load import run_weights  # reading a run builds its network

    return run_weights(workdir, m.weights_network, m.weights_checkpoint)


def _misfit(m: ModelOptions, encoder: EncoderEntry, options: Any, error: WeightsError) -> str:
    """What matters for whether published weights fit, in words."""
    prefix = f"model.{encoder.name}"
    form = {key: vars(options)[key] for key in ("stem", "width") if key in vars(options)}
    chosen = ", ".join((f"model.encoder={m.encoder!r}", *(f"{prefix}.{key}={value!r}" for key, value in form.items())))
    published = "" if form.get("width", 1) == 1 else f"; published weights need {prefix}.width=1"
    return f" with {chosen}: {error}{published}"


def _pretrained_init(network: Network, weights: Variables, key: jax.Array) -> Variables:
    """A network's first variables with pretrained ones in their places."""
    return filled(network.init(key), weights)


def _start(c: ConfigDict, epoch: Epoch) -> dict[str, float]:
    """method.start where it is given in passes over the labelled images."""
    if PseudoLabelOptions not in method_entry(c).shared:
        return {}
    passes = from_config(PseudoLabelOptions, c.method, "method").start_passes
    return {"method.start": float(passes * epoch.labelled)} if passes else {}


def with_epoch(c: ConfigDict, epoch: Epoch) -> ConfigDict:
    """The config with the options that follow from how long an epoch is; often as it is."""
    changes = _of_epoch(c, epoch)
    if not changes or not epoch.steps:
        return c
    resolved = c.copy_and_resolve_references()
    resolved.update_from_flattened_dict(changes)
    return resolved


def keys_of_epoch(c: ConfigDict) -> set[str]:
    """The options of a config that `with_epoch` works out, by dotted key."""
    return set(_of_epoch(c, Epoch(1, 1)))


def _of_epoch(c: ConfigDict, epoch: Epoch) -> dict[str, Any]:
    """The options that follow from how long an epoch is."""
    return {**method_entry(c).of_epoch(method_options(c), epoch), **_start(c, epoch)}


def build_optimizer(c: ConfigDict) -> optax.GradientTransformation:
    """The optimiser with its schedule; some networks have one to themselves, with the same decay over time."""
    o = from_config(OptimizerOptions, c.optim, "optim")

    def decayed(peak: float) -> optax.Schedule:
        return poly_schedule(peak, c.steps, o.poly_power, warmup=0, hold=o.hold)

    own = method_entry(c).optimizers(method_options(c), decayed)
    return with_own_optimizers(make_optimizer(o, c.steps, freeze=c.model.freeze), own)


def build_rate(c: ConfigDict) -> Callable[[int], float]:
    """The encoder's learning rate of the step after that many, for reports; dropped updates would delay it."""
    o = from_config(OptimizerOptions, c.optim, "optim")
    schedule = poly_schedule(o.lr, c.steps, o.poly_power, o.warmup, o.hold)
    return lambda done: float(schedule(done))


def build_guard(c: ConfigDict) -> Callable[[Step], Step]:
    """What on_nan puts around the step: nothing, as the loop stops by itself, or what drops an update."""
    return drop_not_finite if from_config(RunOptions, c, "").on_nan == "skip" else lambda step: step


def build_schedule(c: ConfigDict) -> Schedule:
    """When to log, evaluate and save."""
    return from_config(Schedule, c, "")


def build_mesh(c: ConfigDict) -> Mesh:
    """The device mesh; checks that the batch spreads evenly over it."""
    if c.data.unlabelled_pairs and c.accumulate > 1:
        raise OptionError("accumulate: its parts would tear the pairs of data.unlabelled_pairs apart; set accumulate=1")
    mesh = make_mesh(c.mesh.fsdp)
    for key in Batch._fields:
        rows = global_batch(mesh, c.batch[key], f"batch.{key}")
        if rows // mesh.size % c.accumulate:
            raise OptionError(
                f"accumulate={c.accumulate} must divide the {rows // mesh.size} {key} rows of each device"
            )
    return mesh


def side_multiple(method: Method) -> int:
    """What padded image sides must be multiples of for a method's networks."""
    return math.lcm(*(network.multiple for network in method.networks.values()))


def _nearest(value: int, multiple: int) -> str:
    """What to take in place of a value that `multiple` does not divide, in words."""
    below = value // multiple * multiple
    return f"take {below} or {below + multiple}" if below else f"take {multiple}"


def build_evaluator(c: ConfigDict, method: Method, labels: Labels, mesh: Mesh, boundary: float = 0.0) -> Evaluator:
    """Scores the method on a source; by the boundary IoU as well, where its distance `boundary` is above 0."""
    devices = local_mesh(mesh).size
    buckets = build_buckets(c, method, -(-c.eval.batch // mesh.size) * devices)
    seen: Mode = "center_crop" if c.eval.mode == "center_crop" else "whole"
    return Evaluator(build_predicts(c, method), len(labels.classes), mesh, buckets, seen, c.eval.crop, boundary)


def build_buckets(c: ConfigDict, method: Method, batch: int) -> Buckets:
    """How images become batches of few shapes. Raises OptionError for sides that the networks cannot take."""
    multiple = side_multiple(method)
    if c.eval.bucket % multiple:
        nearest = _nearest(c.eval.bucket, multiple)
        raise OptionError(f"eval.bucket={c.eval.bucket} must be a multiple of {multiple}; {nearest}")
    largest = max(1.0, *from_config(EvaluationOptions, c.eval, "eval").scales)
    return Buckets(c.eval.bucket, batch, MOST_PIXELS / largest**2)


def build_predicts(c: ConfigDict, method: Method) -> Predicts:
    """What predicts an image: `build_single`, or the mean of what that says at eval.scales, and with eval.flip mirrored."""
    o, single = from_config(EvaluationOptions, c.eval, "eval"), build_single(c, method)
    if o.scales == (1.0,) and not o.flip:
        return single
    return Averaged(single, o.scales, o.flip, side_multiple(method))


def build_single(c: ConfigDict, method: Method) -> Predicts:
    """What predicts an image as it is: the method on all of it at once, or, with eval.mode="sliding", window by window."""
    o = from_config(EvaluationOptions, c.eval, "eval")
    if o.mode != "sliding":
        return method
    return SlidingWindow(method, o.crop, o.stride, side_multiple(method))


def network_variables(state: TrainState, network: str) -> dict[str, Variables]:
    """The teacher's or the student's networks, as Method.predict takes them; the student's where there is no teacher."""
    if choose("--network", network, ("teacher", "student")) == "teacher" and state.teacher:
        return state.teacher
    return {name: Variables(state.params[name], state.batch_stats[name]) for name in state.params}


def pixel_space(c: ConfigDict) -> PixelSpace:
    """The space that the reconstruction head paints in; "unit" for a run without one."""
    return c.auxiliary.reconstruction.pixel_space if RECONSTRUCTION in c.auxiliary else "unit"

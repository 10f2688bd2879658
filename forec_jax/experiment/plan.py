"""What a training step needs, from the compiler alone: no step is run and no image is read.

The exception is wsss_rec: its trained classifier is loaded, as the classifier's weights are part of the state.
"""

import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from forec_jax.config import check_options, labels_in_both
from forec_jax.contracts import Batch, Labelled, Method, Pseudo, PyTree, Tagged, TrainState, Unlabelled
from forec_jax.experiment import build
from forec_jax.experiment.load import guide_of
from forec_jax.experiment.sources import planned_labels
from forec_jax.methods.entry import Epoch
from forec_jax.methods.parts.heads import STUDENT
from forec_jax.parallel import batch_sharding
from forec_jax.training import abstract_state, compile_step, state_sharding

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
BYTES = {
    "pred": 1,
    "s8": 1,
    "u8": 1,
    "bf16": 2,
    "f16": 2,
    "s16": 2,
    "u16": 2,
    "s32": 4,
    "u32": 4,
    "f32": 4,
    "s64": 8,
    "u64": 8,
}


class Plan(NamedTuple):
    """The needs of one step; bytes are those of one device."""

    devices: str
    parameters: dict[str, int]  # by part of the networks that are trained
    images: int  # a step, over all devices
    pooled: int  # those of them that are drawn from the whole pool: an epoch is as many steps as show each of it once
    flops: float  # a step, over all devices
    state_bytes: int  # weights, teacher, optimiser and batch
    temporary_bytes: int  # activations, gradients and the compiler's own
    collective_bytes: dict[str, int]  # of the results of the collectives in the program, by kind

    @property
    def peak_bytes(self) -> int:
        """The compiler's estimate of the most memory that a device needs."""
        return self.state_bytes + self.temporary_bytes


def plan_training(c: ConfigDict) -> Plan:
    """Compiles a config's step for the devices that are there, and reads off what it needs."""
    check_options(c)
    mesh = build.build_mesh(c)
    method = planned_method(c, mesh)
    build.build_buckets(c, method, 1)  # whether a training could evaluate
    traced = traced_step(c, method, mesh, c.accumulate)
    compiled = traced.lower().compile(compiler_options=keep_remat())
    # A loop over parts of the batch would count once: FLOPs are those of the batch taken whole.
    whole = traced if c.accumulate == 1 else traced_step(c, method, mesh, 1)
    memory = compiled.memory_analysis()
    params = _abstract_training_state(c, method, mesh).params
    return Plan(
        devices=f"{mesh.size} x {mesh.devices.flat[0].device_kind}, mesh {dict(mesh.shape)}",
        parameters=parameters_by_part(params),
        images=sum(c.batch.values()),
        pooled=c.batch.unlabelled or c.batch.tagged or c.batch.pseudo or c.batch.labelled,
        flops=counted_flops(whole),
        state_bytes=memory.argument_size_in_bytes,
        temporary_bytes=memory.temp_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes,
        collective_bytes=collective_bytes(compiled.as_text() or ""),
    )


def parameters_by_part(params: Mapping[str, PyTree]) -> dict[str, int]:
    """How many parameters the parts of the trained networks have; parts of another than the student name their network."""
    return {
        part if network == STUDENT else f"{network}'s {part}": sum(
            math.prod(leaf.shape) for leaf in jax.tree.leaves(tree)
        )
        for network, parts in params.items()
        for part, tree in parts.items()
    }


def keep_remat() -> dict[str, str]:
    """Compiler options that keep what `model.remat` asks for: a CPU's compiler undoes it with jax 0.10."""
    return {"xla_disable_hlo_passes": "cse_barrier_expander"} if jax.default_backend() == "cpu" else {}


def traced_step(c: ConfigDict, method: Method, mesh: Mesh, accumulate: int) -> Any:
    """The step of a config, ready to be lowered, taken in `accumulate` parts."""
    tx = build.build_optimizer(c)
    step: Any = compile_step(method, tx, seed=c.seed, accumulate=accumulate, mesh=mesh, wrap=build.build_guard(c))
    return step.trace(_abstract_training_state(c, method, mesh), abstract_batch(c, mesh))


def counted_flops(traced: Any) -> float:
    """The FLOPs of a traced program, by XLA's count.

    The count takes a loop's body once. So it is that of a TPU's program: a CPU's takes attention head by head, in a loop,
    and a GPU's may call cuDNN, of whose work XLA does not know.
    """
    cost: Mapping[str, float] = traced.lower(lowering_platforms=("tpu",)).cost_analysis() or {}
    return float(cost.get("flops", math.nan))


def _abstract_training_state(c: ConfigDict, method: Method, mesh: Mesh) -> TrainState:
    """The shapes and shardings of a config's state."""
    tx = build.build_optimizer(c)
    return abstract_state(method, tx, c.seed, state_sharding(method, tx, c.seed, mesh))


def planned_method(c: ConfigDict, mesh: Mesh) -> Method:
    """The method as a run builds it. An epoch, which follows from the data, is of one step: it changes no shape.

    Raises OptionError for a method that learns from a trained run, and has none.
    """
    return build.build_method(build.with_epoch(c, Epoch(1, 1)), planned_labels(c), guide=guide_of(c), mesh=mesh)


def abstract_batch(c: ConfigDict, mesh: Mesh) -> Batch:
    """The shapes and shardings of a config's batch."""

    def leaf(rows: int, dtype: Any, shape: tuple[int, ...]) -> Any:
        return jax.ShapeDtypeStruct((rows, *shape), dtype, sharding=batch_sharding(mesh))

    square = (c.data.crop, c.data.crop)
    of_row: dict[str, tuple[Any, tuple[int, ...]]] = {
        "image": (jnp.uint8, (*square, 3)),
        "label": (jnp.int32, square),
        "valid": (jnp.bool, square),
        "confidence": (jnp.uint8, square),
        "tags": (jnp.float32, (len(planned_labels(c).classes),)),
        "skipped": (jnp.int32, ()),
    }
    unlabelled: Any = Labelled if labels_in_both(c) else Unlabelled
    kinds: dict[str, Any] = {"labelled": Labelled, "unlabelled": unlabelled, "tagged": Tagged, "pseudo": Pseudo}
    parts = {
        part: kind(*(leaf(c.batch[part], *of_row[field]) for field in kind._fields))
        for part, kind in kinds.items()
        if c.batch[part]
    }
    return Batch(**parts)


def collective_bytes(program: str) -> dict[str, int]:
    """Bytes of the results of each kind of collective in a compiled program's text (HLO), as one device sees them.

    An instruction in a loop counts once. What the wires carry depends on the algorithm: a ring moves about twice an
    all-reduce's result through each device, and an all-gather's once.
    """
    total: dict[str, int] = {}
    for result, kind in re.findall(rf"= (\(.*?\)|\S+) ({'|'.join(COLLECTIVES)})(?:-start)?\(", program):
        total[kind] = total.get(kind, 0) + sum(_size(*array) for array in re.findall(r"(\w+)\[([\d,]*)\]", result))
    return total


def _size(dtype: str, shape: str) -> int:
    return BYTES.get(dtype, 4) * math.prod(int(side) for side in shape.split(",") if side)


def describe(plan: Plan, steps: int, rate: float | None, pool: int | None) -> str:
    """A plan in lines of text; `rate` is in images a second, `pool` in images, and None leaves time or epochs out."""
    total = sum(plan.parameters.values())
    parts = ", ".join(f"{part} {count / 1e6:.2f} M" for part, count in plan.parameters.items())
    moved = ", ".join(f"{kind} {size / 2**20:.1f} MiB" for kind, size in sorted(plan.collective_bytes.items()))
    lines = {
        "devices": plan.devices,
        "parameters": f"{total / 1e6:.2f} M ({parts})",
        "work": f"{plan.flops / 1e12:.3f} TFLOP a step of {plan.images} images",
        "memory": f"{plan.peak_bytes / 2**30:.2f} GiB a device at most, {plan.state_bytes / 2**30:.2f} of it state",
        "collectives": f"{moved or 'none'} a step and device",
        "steps": f"{steps}, {steps * plan.images} images",
    }
    if pool is not None:
        lines["epochs"] = f"{steps * plan.pooled / pool:.1f} of {pool} images, {plan.pooled} of them a step"
    if rate is not None:
        lines["time"] = f"{hours(steps * plan.images, rate):.1f} hours at {rate:g} images a second"
    return "\n".join(f"{name:<12} {text}" for name, text in lines.items())


def hours(images: float, rate: float) -> float:
    """How long a training on so many images takes, at so many images a second; evaluations come on top."""
    return images / rate / 3600

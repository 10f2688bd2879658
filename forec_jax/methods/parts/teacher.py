"""The EMA teacher."""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
import optax

from forec_jax.contracts import Array, Network, PyTree, TrainState, Variables
from forec_jax.methods.parts.heads import SEGMENTATION, run_heads
from forec_jax.models.network import ENCODER, PYRAMID
from forec_jax.options import SHARE, option

BatchNormMode = Literal["ema", "copy", "own"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class EmaOptions:
    """How the teacher follows the student."""

    decay: float = option(0.99, "of the teacher: min(1 - 1/(t+1), decay)", SHARE)
    bn_mode: BatchNormMode = option(
        "ema", 'the teacher\'s BatchNorm statistics: "ema" averages them, "copy" takes the student\'s, "own" its own'
    )


TEACHER_HEADS = (SEGMENTATION,)
"""Of a teacher whose predictions are all that is asked of it: it keeps no auxiliary head."""


def ema_decay(step: Array, decay: float) -> Array:
    """The decay of the update after step `step` (from 0): min(1 - 1/(step+1), decay), so the first update copies (U2PL)."""
    return jnp.minimum(1.0 - 1.0 / (step.astype(jnp.float32) + 1.0), decay)


def _restrict(tree: PyTree, heads: tuple[str, ...]) -> PyTree:
    """The parts of a params or batch_stats dict that these heads need; there is a pyramid where it is shared."""
    return {part: tree[part] for part in (ENCODER, PYRAMID, *heads) if part in tree}


def first_teacher(student: Variables, heads: tuple[str, ...] = TEACHER_HEADS) -> Variables:
    """A teacher equal to the student, with buffers of its own (the state is donated: no two leaves may share one)."""
    return jax.tree.map(jnp.copy, Variables(_restrict(student.params, heads), _restrict(student.batch_stats, heads)))


def updated_teacher(
    teacher: Variables,
    student: Variables,
    own_stats: PyTree,
    *,
    decay: Array,
    bn_mode: BatchNormMode,
    frozen: tuple[str, ...] = (),
) -> Variables:
    """teacher <- decay * teacher + (1 - decay) * student, in float32.

    BatchNorm's running statistics: "ema" averages them like the weights (AugSeg, UniMatch V2), "copy" takes the student's,
    "own" takes `own_stats`, those of the teacher's own train-mode forward (U2PL). The teacher keeps the parts it has.
    Parts in `frozen` are the student's already, and stay: rounding would move the average of two equal numbers.
    """
    params, student_stats = ({part: tree[part] for part in teacher.params} for tree in student)
    params = optax.incremental_update(params, teacher.params, 1.0 - decay)
    match bn_mode:
        case "ema":
            stats = optax.incremental_update(student_stats, teacher.batch_stats, 1.0 - decay)
        case "copy":
            stats = student_stats
        case "own":
            stats = own_stats
    kept = Variables(*({part: tree[part] for part in frozen if part in tree} for tree in teacher))
    return Variables({**params, **kept.params}, {**stats, **kept.batch_stats})


def ema_of_students(
    state: TrainState,
    params: dict[str, PyTree],
    batch_stats: dict[str, PyTree],
    teacher_stats: dict[str, PyTree],
    *,
    decay: float,
    bn_mode: BatchNormMode,
    frozen: tuple[str, ...] = (),
) -> dict[str, Variables]:
    """The teacher after a step where it is the EMA of the trained networks of the same names, as `Method.update_teacher`."""
    return {
        name: updated_teacher(
            teacher,
            Variables(params[name], batch_stats[name]),
            teacher_stats[name],
            decay=ema_decay(state.step, decay),
            bn_mode=bn_mode,
            frozen=frozen,
        )
        for name, teacher in state.teacher.items()
    }


def teacher_statistics(
    network: Network,
    teacher: Variables,
    image: Array,
    rng: Array,
    bn_mode: BatchNormMode,
    heads: tuple[str, ...] = TEACHER_HEADS,
) -> PyTree:
    """The teacher's BatchNorm statistics after a step: moved by a train-mode forward of its own if bn_mode is "own".

    `image` is the student's view, f32[B,H,W,3]; `heads` are the teacher's.
    """
    if bn_mode != "own":
        return teacher.batch_stats
    frozen = jax.lax.stop_gradient(teacher)
    _, stats = run_heads(network, frozen, image, heads, train=True, rng=rng)
    return stats

"""Training: the state, the compiled step, the optimiser, the loop, checkpoints and reports."""

from forec_jax.training.checkpoint import CheckpointError, Checkpoints, holds_any, newest_step
from forec_jax.training.loop import Interruption, NotFiniteError, Schedule, train
from forec_jax.training.optimizer import OptimizerOptions, make_optimizer, poly_schedule, with_own_optimizers
from forec_jax.training.reporting import Onlooker, Reporter
from forec_jax.training.state import abstract_state, create_state, first_state, state_sharding
from forec_jax.training.step import compile_step, drop_not_finite, objective, train_step

__all__ = [
    "CheckpointError",
    "Checkpoints",
    "Interruption",
    "NotFiniteError",
    "Onlooker",
    "OptimizerOptions",
    "Reporter",
    "Schedule",
    "abstract_state",
    "compile_step",
    "create_state",
    "drop_not_finite",
    "first_state",
    "holds_any",
    "make_optimizer",
    "newest_step",
    "objective",
    "poly_schedule",
    "state_sharding",
    "train",
    "train_step",
    "with_own_optimizers",
]

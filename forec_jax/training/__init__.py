"""Training: the state, the compiled step, the optimiser, the loop, checkpoints and reports."""

from forec_jax.training.checkpoint import CheckpointError, Checkpoints
from forec_jax.training.loop import NotFiniteError, Schedule, train
from forec_jax.training.optimizer import make_optimizer, poly_schedule, with_own_optimizers
from forec_jax.training.reporting import Reporter
from forec_jax.training.state import abstract_state, create_state, first_state
from forec_jax.training.step import compile_step, objective, train_step

__all__ = [
    "CheckpointError",
    "Checkpoints",
    "NotFiniteError",
    "Reporter",
    "Schedule",
    "abstract_state",
    "compile_step",
    "create_state",
    "first_state",
    "make_optimizer",
    "objective",
    "poly_schedule",
    "train",
    "train_step",
    "with_own_optimizers",
]

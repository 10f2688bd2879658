"""How surely the student knows each class, as part of a method's memory: AEL's confidence bank (Hu et al., NeurIPS 2021)."""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp

from forec_jax.contracts import Array, Mean, Metrics, Views
from forec_jax.methods.parts.terms import labelled_pixels
from forec_jax.options import SHARE, option

BANK = "class_confidence"
"""What the bank is called in the memory, and its mean among the metrics."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class BankOptions:
    """How the bank moves."""

    bank_decay: float = option(0.999, "of the bank b of class confidences", SHARE)
    absent: Literal["skip", "zero"] = option(
        "skip",
        'a class without a labelled pixel in the batch: "skip" it, or call its confidence "zero" (AEL\'s released code)',
    )

    def after_step(self, bank: Array, logits: Array, views: Views) -> Array:
        """The bank f32[K] moved by the student's logits f32[B,H,W,K] of the labelled pixels; see `moved_bank`."""
        truth, skip = labelled_pixels(views), self.absent == "skip"
        return moved_bank(bank, logits, views.label, truth, decay=self.bank_decay, skip_absent=skip)


def bank_metrics(bank: Array) -> Metrics:
    """The mean and the lowest of f32[K] class confidences."""
    return {
        BANK: Mean(jnp.sum(bank), jnp.float32(len(bank))),
        f"{BANK}_lowest": Mean(jnp.min(bank), jnp.float32(1)),
    }


def moved_bank(bank: Array, logits: Array, label: Array, included: Array, *, decay: float, skip_absent: bool) -> Array:
    """decay * bank + (1 - decay) * v, where v is the mean probability of the true class over each class's pixels.

    Args:
        bank: f32[K] in [0, 1].
        logits: f32[B,H,W,K], the student's.
        label: i32[B,H,W], in [0, K) where included.
        included: bool[B,H,W], the labelled pixels.
        decay: in [0, 1].
        skip_absent: whether a class without a pixel stays as it is. Otherwise its v is 0, as in the released code: rare
            classes then look worse than they are.
    """
    probability = jax.nn.softmax(logits.astype(jnp.float32), axis=-1)
    is_class = (label[..., None] == jnp.arange(len(bank))[None, None, None]) & included[..., None]
    number = jnp.sum(is_class, axis=(0, 1, 2), dtype=jnp.float32)
    mean = jnp.sum(jnp.where(is_class, probability, 0.0), axis=(0, 1, 2)) / jnp.maximum(number, 1.0)
    moved = decay * bank + (1.0 - decay) * mean
    return jax.lax.stop_gradient(jnp.where((number > 0) | (not skip_absent), moved, bank))


def sampling_rates(bank: Array, power: float) -> Array:
    """((1 - b) / max(1 - b))^power of f32[K]: 1 for the class that is known worst; 1 for all where all are known."""
    unsure = 1.0 - bank
    worst = jnp.max(unsure)
    return jnp.where(worst > 0, unsure / jnp.where(worst > 0, worst, 1.0), 1.0) ** power

"""ReCo: regional contrast of a representation head as an auxiliary task (Liu et al., ICLR 2022)."""

import dataclasses
from collections.abc import Mapping
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from forec_jax.contracts import Array, HeadOutput, HeadSpec, Mean, Metrics, Term, Terms, Views
from forec_jax.losses import class_means, class_weights, draw, regional_contrast
from forec_jax.losses.contrast import ClassMeans, Draws, Keys
from forec_jax.methods.background import is_known
from forec_jax.methods.student import SEGMENTATION
from forec_jax.parallel import replicated, spread

Queries = Literal["hard", "easy", "random"]
KeySets = Literal["own", "shared"]

REPRESENTATION = "representation"


class Sample(NamedTuple):
    """What is contrasted: N pixels at the representation's resolution, row by row, and the draws among them."""

    representation: Array  # f32[N,D]
    label: Array  # i32[N]
    valid: Array  # bool[N], whether a pixel takes part
    hard: Array  # bool[N], whether the student is unsure of its label
    means: ClassMeans
    draws: Draws


@dataclasses.dataclass(frozen=True)
class RegionalContrast:
    """Pulls pixels that the student is unsure of to their class's mean representation, away from pixels of other classes.

    A pixel takes part where it is ground truth, or where the teacher is more confident than `pixel_threshold` (the
    paper's delta_w). It is a hard query where the student gives its label a probability of at most `query_threshold`
    (delta_s), otherwise an easy one. Everything is seen at the resolution of the representation, by nearest pixels.
    """

    classes: int
    channels: int = 256
    upsample: bool = False  # the representation at the image's resolution instead of a quarter of it
    queries: int = 256  # of each class
    negative_keys: int = 512  # of each query
    key_sets: KeySets = "own"  # every query has keys of its own, or those of a class share them
    query_sampling: Queries = "hard"
    key_sampling: Keys = "active"
    query_threshold: float = 0.97
    pixel_threshold: float = 0.7
    temperature: float = 0.5
    relation_temperature: float = 0.5
    at_once: int = 256  # queries whose keys are gathered together
    mesh: Mesh | None = None  # whose devices share the queries; without one the compiler chooses

    @property
    def head(self) -> HeadSpec:
        """A decoder like the segmentation's, ending in the representation."""
        return HeadSpec(REPRESENTATION, self.channels, upsample=self.upsample)

    def loss(self, outputs: Mapping[str, HeadOutput], views: Views, key: Array) -> tuple[Terms, Metrics]:
        """The contrast over labelled and unlabelled pixels together."""
        sample = self.shared_out(self.sample(outputs, views, key))
        mean = regional_contrast(
            sample.representation, sample.means, sample.draws, temperature=self.temperature, at_once=self.at_once
        )
        return {"reco_loss": Term(mean, 1.0)}, {
            "reco_valid": share(sample.valid, jnp.ones_like(sample.valid)),
            "reco_hard": share(sample.hard & sample.valid, sample.valid),
        }

    def shared_out(self, sample: Sample) -> Sample:
        """The representation on every device, the queries and their keys split over them.

        Otherwise the keys, many times the representation, would cross between devices, and each contrast all queries.
        """
        if self.mesh is None:
            return sample
        whole = jax.lax.with_sharding_constraint(sample.representation, replicated(self.mesh))
        query, key = (spread(self.mesh, index, 1) for index in (sample.draws.query, sample.draws.key))
        return sample._replace(representation=whole, draws=sample.draws._replace(query=query, key=key))

    def sample(self, outputs: Mapping[str, HeadOutput], views: Views, key: Array) -> Sample:
        """Who takes part, who is hard, and which queries and keys are drawn."""
        representation = outputs[self.head.name].output
        size = (representation.shape[1], representation.shape[2])
        label = nearest(views.label, size).reshape(-1)
        valid = nearest(is_known(views, self.pixel_threshold), size).reshape(-1)
        logits = nearest(outputs[SEGMENTATION].output, size).reshape(-1, self.classes)
        hard = label_probability(logits, label) <= self.query_threshold

        representation = representation.reshape(-1, self.channels)
        means = class_means(representation, label, valid, self.classes)
        draws = draw(
            key,
            label,
            valid,
            {"hard": hard, "easy": ~hard, "random": jnp.ones_like(hard)}[self.query_sampling],
            class_weights(means, self.key_sampling, self.relation_temperature),
            queries=self.queries,
            sets=1 if self.key_sets == "shared" else self.queries,
            keys=self.negative_keys,
        )
        return Sample(representation, label, valid, hard, means, draws)


def share(part: Array, whole: Array) -> Mean:
    """How much of the True in `whole` is True in `part`."""
    return Mean(jnp.sum(part, dtype=jnp.float32), jnp.sum(whole, dtype=jnp.float32))


def label_probability(logits: Array, label: Array) -> Array:
    """The probability of each pixel's label i32[N] by f32[N,K], without gradient; 0 where the label is IGNORE."""
    probabilities = jax.nn.softmax(jax.lax.stop_gradient(logits), axis=-1)
    is_label = label[:, None] == jnp.arange(logits.shape[-1])
    return jnp.sum(jnp.where(is_label, probabilities, 0.0), axis=-1)


def nearest(pixels: Array, size: tuple[int, int]) -> Array:
    """[B,H,W,...] at [B,*size,...]: the nearest pixels, corners on corners as in the decoder's resizes."""
    rows, columns = (
        np.rint(np.linspace(0, old - 1, new)).astype(np.int32) for old, new in zip(pixels.shape[1:3], size, strict=True)
    )
    return pixels[:, rows[:, None], columns[None, :]]

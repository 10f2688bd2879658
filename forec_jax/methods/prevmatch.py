"""PrevMatch: UniMatch that its own earlier selves guide as well (Shin et al., "Revisiting and Maximizing Temporal
Knowledge in Semi-supervised Semantic Segmentation", 2024)."""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from forec_jax.contracts import (
    IGNORE,
    Array,
    Aux,
    Batch,
    FirstState,
    Metrics,
    PyTree,
    Term,
    Terms,
    TrainState,
    Variables,
    Views,
)
from forec_jax.methods import unimatch
from forec_jax.methods.entry import MethodEntry, Parts, semi_supervised
from forec_jax.methods.parts.heads import STUDENT
from forec_jax.methods.parts.snapshots import (
    Snapshots,
    draw_snapshots,
    no_snapshots,
    snapshot_probabilities,
    with_snapshot,
)
from forec_jax.methods.parts.terms import PseudoLabelOptions, SupervisedOptions, under_name
from forec_jax.methods.parts.views import both_parts, unit_image, weak_rows
from forec_jax.methods.parts.weak_to_strong import WEAK_TO_STRONG
from forec_jax.methods.unimatch import Seen, UniMatch, consistency
from forec_jax.options import SHARE, STEPS, OptionError, at_least, option

SNAPSHOTS, GUIDED = "snapshots", "guided"
"""The name of the snapshots in the method's memory, and of the terms that they guide."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(unimatch.Options):
    """The guidance. A built method has `every` in steps."""

    snapshots: int = option(8, "earlier selves that are kept; published: 8, COCO and ADE20K 5", at_least(1))
    every: float = option(0.025, "from one snapshot to the next: steps, or below 1 a fraction of all steps", STEPS)
    drawn: int = option(3, "the most of them that guide a step: a random number from 1 on", at_least(1))
    guided_threshold: float = option(
        0.9, "confidence above which their pseudo-label counts; published: 0.9, Cityscapes 0", SHARE
    )
    image_confidence: bool = option(
        False, "the guided error of an image is times the mean confidence of its labels (published on Cityscapes)"
    )
    guided_weight: float = option(1.0, "lambda half-way through training, where it is largest", at_least(0))


@dataclasses.dataclass(frozen=True)
class PrevMatch(UniMatch, Options):
    """L = 2 / (2 + lambda) * (UniMatch's L_s and U + lambda * U') + auxiliary terms.

    U' are UniMatch's three terms again, with labels of the student's earlier selves: the sum of the logits of a few
    snapshots, drawn in each step with random weights. lambda rises from 0 to `guided_weight` half-way through the
    training of `steps` steps, and falls again. Until there is a snapshot it is 0: the method is UniMatch.
    Snapshots are taken by time, never by a score.
    """

    steps: int = dataclasses.field(kw_only=True)

    def init(self, key: Array) -> FirstState:
        """The first params, batch_stats, teacher and memory: the tasks', and room for the snapshots."""
        params, batch_stats, teacher, memory = super().init(key)
        student = Variables(params[STUDENT], batch_stats[STUDENT])
        room = no_snapshots(student, self.snapshots, self.network.frozen)
        return params, batch_stats, teacher, {**memory, SNAPSHOTS: room}

    def loss(self, params: dict[str, PyTree], state: TrainState, batch: Batch, key: Array) -> tuple[Terms, Aux]:
        """The loss terms; see the class."""
        _, unlabelled = both_parts(batch, "prevmatch")
        key, draw_key = jax.random.split(key)
        student = Variables(params[STUDENT], state.batch_stats[STUDENT])
        snapshots = with_snapshot(state.memory[SNAPSHOTS], student, state.step, int(self.every), self.network.frozen)
        state = state._replace(memory={**state.memory, SNAPSHOTS: snapshots})
        drawn = draw_snapshots(draw_key, snapshots, self.drawn)
        image = unit_image(unlabelled.image)
        guided = weak_rows(unlabelled, snapshot_probabilities(self.network, snapshots, drawn, student, image))
        seen = self.passes(params, state, batch, key, extra=(guided.label, guided.confidence))

        terms, metrics = consistency(seen, functools.partial(self.unsupervised, step=state.step))
        guided_terms, guided_metrics = consistency(_as_guided(seen), functools.partial(self.guided, step=state.step))
        weight = self.weight(state.step, snapshots)
        terms = _times(self.supervised(seen) | terms, 2 / (2 + weight))
        terms |= under_name(GUIDED, _times(guided_terms, 2 * weight / (2 + weight)))
        return self.completed(seen, terms, metrics | under_name(GUIDED, guided_metrics), state, key)

    def weight(self, step: Array, snapshots: Snapshots) -> Array:
        """lambda in a step, f32[]."""
        triangle = 1.0 - jnp.abs(2.0 * step / self.steps - 1.0)
        return jnp.where(jnp.any(snapshots.step >= 0), self.guided_weight * jnp.maximum(triangle, 0.0), 0.0)

    def guided(self, logits: Array, views: Views, step: Array) -> tuple[Terms, Metrics]:
        """L_u of views that the snapshots label, with its weight in a step."""
        by_own_threshold = dataclasses.replace(self, threshold=self.guided_threshold)
        weight = image_confidence(views) if self.image_confidence else 1.0
        return by_own_threshold.unsupervised(logits, views, step, pixel_weight=weight)


def image_confidence(views: Views) -> Array:
    """The mean confidence of the labelled pixels of each image, f32[B,1,1]; 0 without any."""
    counts = views.valid & (views.label != IGNORE)
    total = jnp.sum(jnp.where(counts, views.confidence, 0.0), axis=(1, 2), keepdims=True)
    return total / jnp.maximum(jnp.sum(counts, axis=(1, 2), keepdims=True), 1)


def _as_guided(seen: Seen) -> Seen:
    """The same, with the snapshots' labels and confidence in place of the student's."""
    weak, strong = (
        rows._replace(label=rows.extra[0], confidence=rows.extra[1]) for rows in (seen.weak, seen.strong_rows)
    )
    return seen._replace(weak=weak, strong_rows=strong)


def _times(terms: Terms, factor: Array) -> Terms:
    """The terms with `factor` times their weights."""
    return {name: Term(mean, factor * weight) for name, (mean, weight) in terms.items()}


def build(o: Options, p: Parts) -> PrevMatch:
    """The method from its parts. Raises OptionError where more snapshots would be drawn than are kept."""
    if o.drawn > o.snapshots:
        raise OptionError(
            f"method.prevmatch.drawn={o.drawn} is more than are kept: take {o.snapshots} at most, or raise "
            "method.prevmatch.snapshots"
        )
    return semi_supervised(PrevMatch, p, dataclasses.replace(o, every=max(p.in_steps(o.every), 1)), steps=p.steps)


ENTRY = MethodEntry(
    "prevmatch",
    Options,
    (SupervisedOptions, PseudoLabelOptions),
    build,
    published=WEAK_TO_STRONG,
)

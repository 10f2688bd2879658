"""ReCo: regional contrast of a representation head as an auxiliary task (Liu et al., ICLR 2022)."""

import dataclasses
import logging
from collections.abc import Mapping
from typing import ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from forec_jax.contracts import IGNORE, Array, HeadOutput, HeadSpec, Mean, Metrics, PyTree, Term, Terms, Views
from forec_jax.losses import class_means, class_weights, draw, regional_contrast
from forec_jax.losses.contrast import ClassMeans, Draws, Keys
from forec_jax.methods.entry import TaskEntry, TaskOptions, TaskParts
from forec_jax.methods.parts.background import is_known
from forec_jax.methods.parts.heads import SEGMENTATION
from forec_jax.models.resize import nearest
from forec_jax.options import SHARE, at_least, must_be, one_of, option, taken
from forec_jax.parallel import replicated, spread

log = logging.getLogger(__name__)

Queries = Literal["hard", "easy", "random"]
KeySets = Literal["own", "shared"]
Form = Literal["own", "reads"]
ClassMean = Literal["contrasted", "present"]

REPRESENTATION = "representation"

TEMPERATURE = must_be("above 0; published: 0.5", lambda value: value > 0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Contrast:
    """Who is contrasted with whom."""

    channels: int = option(256, "of the representation", at_least(1))
    queries: int = option(256, "pixels drawn of each class", at_least(1))
    negative_keys: int = option(512, "drawn for each query", at_least(1))
    key_sets: KeySets = option(
        "own", '"own": each query has its own keys; "shared": those of a class share them (less memory)'
    )
    query_sampling: Queries = option(
        "hard", 'queries: pixels up to the next threshold ("hard"), above it ("easy"), or "random"'
    )
    query_threshold: float = option(
        0.97, "delta_s: the student's probability of a pixel's label up to which it is hard", SHARE
    )
    key_sampling: Keys = option(
        "active", 'classes of the keys: "active", the similar ones more often, or "random" pixels'
    )
    pixel_threshold: float = option(
        0.7, "delta_w: the teacher's confidence above which an unlabelled pixel takes part", SHARE
    )
    temperature: float = option(0.5, "tau of the loss", TEMPERATURE)
    relation_temperature: float = option(
        0.5, "active keys: of the softmax over the similarities; the paper's formula has 1", TEMPERATURE
    )
    sure_pixels: bool = option(
        False, "pixels of labelled rows that nobody labelled take part where the student is surer than query_threshold"
    )
    class_mean: ClassMean = option(
        "contrasted", 'what the sum over classes is divided by: "contrasted" classes, or all "present" ones (published)'
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(Contrast, TaskOptions):
    """The contrast, and how it is computed."""

    head: Form = option(
        "own",
        'of the representation: it "reads" what the segmentation\'s decoder fuses (published), or has a decoder of its '
        '"own" (runs of earlier versions)',
    )
    stride: int = option(4, "resolution of the representation: 4, a quarter of the image's, or 1", one_of(4, 1))
    queries_at_once: int = option(
        0,
        "whose keys are gathered together: memory and time, not the result; 0: 256, on a CPU 8",
        must_be("0, for the machine's, or more", lambda value: value >= 0),
    )


class Sample(NamedTuple):
    """What is contrasted: N pixels at the representation's resolution, row by row, and the draws among them."""

    representation: Array  # f32[N,D]
    label: Array  # i32[N]
    valid: Array  # bool[N], whether a pixel takes part
    hard: Array  # bool[N], whether the student is unsure of its label
    means: ClassMeans
    draws: Draws


@dataclasses.dataclass(frozen=True)
class RegionalContrast(Contrast):
    """Pulls pixels that the student is unsure of to their class's mean representation, away from pixels of other classes.

    A pixel takes part where it is ground truth, or where the teacher is more confident than `pixel_threshold` (the
    paper's delta_w). It is a hard query where the student gives its label a probability of at most `query_threshold`
    (delta_s), otherwise an easy one. Everything is seen at the resolution of the representation, by nearest pixels.
    """

    memory: ClassVar[PyTree] = ()
    classes: int
    reads: str = ""  # the head whose fused features the representation is made of; empty: its own
    upsample: bool = False  # the representation at the image's resolution instead of a quarter of it
    at_once: int = 256  # queries whose keys are gathered together
    mesh: Mesh | None = None  # whose devices share the queries; without one the compiler chooses

    @property
    def head(self) -> HeadSpec:
        """A decoder like the segmentation's, or the end of one, ending in the representation."""
        return HeadSpec(REPRESENTATION, self.channels, upsample=self.upsample, reads=self.reads)

    def loss(
        self, outputs: Mapping[str, HeadOutput], views: Views, key: Array, memory: PyTree
    ) -> tuple[Terms, Metrics, PyTree]:
        """The contrast over labelled and unlabelled pixels together."""
        sample = self.shared_out(self.sample(outputs, views, key))
        mean = regional_contrast(
            sample.representation,
            sample.means.mean,
            sample.representation,
            sample.draws,
            temperature=self.temperature,
            at_once=self.at_once,
        )
        if self.class_mean == "present":
            mean = mean._replace(number=jnp.sum(sample.means.number > 0, dtype=jnp.float32))
        metrics = {
            "reco_valid": share(sample.valid, jnp.ones_like(sample.valid)),
            "reco_hard": share(sample.hard & sample.valid, sample.valid),
        }
        return {"reco_loss": Term(mean, 1.0)}, metrics, memory

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
        if self.sure_pixels:
            views = with_sure_pixels(views, outputs[SEGMENTATION].output, self.query_threshold)
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


def with_sure_pixels(views: Views, logits: Array, threshold: float) -> Views:
    """The views with the student's word, f32[B,H,W,K], on pixels of labelled rows that nobody labelled.

    It is said with confidence 1 where the student is surer than the threshold, and nothing is said elsewhere.
    """
    probabilities = jax.nn.softmax(jax.lax.stop_gradient(logits), axis=-1)
    nothing_said = views.valid & ~views.is_ground_truth & (views.label == IGNORE)
    sure = nothing_said & views.labelled_row[:, None, None] & (jnp.max(probabilities, axis=-1) > threshold)
    return views._replace(
        label=jnp.where(sure, jnp.argmax(probabilities, axis=-1), views.label),
        confidence=jnp.where(sure, 1.0, views.confidence),
    )


def share(part: Array, whole: Array) -> Mean:
    """How much of the True in `whole` is True in `part`."""
    return Mean(jnp.sum(part, dtype=jnp.float32), jnp.sum(whole, dtype=jnp.float32))


def label_probability(logits: Array, label: Array) -> Array:
    """The probability of each pixel's label i32[N] by f32[N,K], without gradient; 0 where the label is IGNORE."""
    probabilities = jax.nn.softmax(jax.lax.stop_gradient(logits), axis=-1)
    is_label = label[:, None] == jnp.arange(logits.shape[-1])[None]
    return jnp.sum(jnp.where(is_label, probabilities, 0.0), axis=-1)


def queries_at_once(o: Options, mesh: Mesh | None) -> int:
    """How many queries have their keys gathered together: all where several devices share them."""
    if mesh is not None and mesh.size > 1:
        return o.queries
    # Keys that stay in a CPU core's cache are gathered twice as fast; a GPU wants large pieces.
    return o.queries_at_once or (8 if jax.default_backend() == "cpu" else 256)


def build(o: Options, p: TaskParts) -> RegionalContrast:
    """ReCo over the devices of a mesh; warns where there are few classes to contrast."""
    classes = p.labels.classes
    if len(classes) <= 2:
        log.warning(
            "auxiliary.reco contrasts classes, and there are only %d (%s): users of it report no gain with two",
            len(classes),
            ", ".join(classes),
        )
    return RegionalContrast(
        len(classes),
        reads=SEGMENTATION if o.head == "reads" else "",
        upsample=o.stride == 1,
        at_once=queries_at_once(o, p.mesh),
        mesh=p.mesh,
        **taken(RegionalContrast, o),
    )


ENTRY = TaskEntry("reco", Options, build, {"reco": {"head": "reads"}})

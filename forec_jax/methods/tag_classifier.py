"""A classifier from image-level tags; its class activation maps are masks (Zhou et al., CVPR 2016)."""

import dataclasses

import jax
import jax.numpy as jnp

from forec_jax.contracts import (
    Array,
    Aux,
    Batch,
    FirstState,
    Network,
    PyTree,
    Tagged,
    Term,
    Terms,
    TrainState,
    Variables,
)
from forec_jax.data.source import Labels
from forec_jax.methods.entry import MethodEntry, Parts
from forec_jax.methods.parts.heads import STUDENT, run_heads
from forec_jax.methods.parts.tags import TAGS, activations, pooled, tag_errors, tags_head
from forec_jax.methods.parts.views import Colour, unit_image
from forec_jax.models.layers import resize_valid
from forec_jax.options import SHARE, OptionError, must_be, option, taken


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskOptions:
    """How masks are made of scores, for the methods that find them from tags."""

    mask_threshold: float = option(
        0.5,
        "share that foreground must exceed (docs/methods.md)",
        must_be("between 0 and 1, and neither", lambda value: 0 < value < 1),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """The classifier's own."""

    tag_threshold: float = option(0.5, "probability above which a class is said to be in an image", SHARE)


def tagged_part(batch: Batch) -> Tagged:
    """The batch's tagged rows; raises ValueError where it has none."""
    if batch.tagged is None:
        raise ValueError("masks from tags need tagged rows: set batch.tagged above 0")
    return batch.tagged


def score_maps(network: Network, variables: Variables, image: Array, valid: Array | None) -> Array:
    """f32[B,h,w,C] of images f32[B,H,W,3] in [0,1], in inference mode: neither the statistics nor anything else moves."""
    features, _ = network.encode(variables, image, valid=valid, train=False, rng=None)
    head, _ = network.decode(variables, TAGS, features, train=False, rng=None)
    return head.output


@dataclasses.dataclass(frozen=True)
class TagClassifier(MaskOptions, Options):
    """L = binary cross-entropy between each class's tag and the mean of its score map over the image. No teacher.

    What is evaluated are its class activation maps: the positive part of a class's score map, as a share of the
    largest value in the image, for the classes that it finds in the image. A pixel's class is that of the largest share,
    or the background where none exceeds `mask_threshold`.
    """

    network: Network
    colour: Colour
    foreground: tuple[int, ...]  # the classes of the head's channels
    background: int

    @property
    def networks(self) -> dict[str, Network]:
        """The classifier."""
        return {STUDENT: self.network}

    def init(self, key: Array) -> FirstState:
        """The first params, batch_stats, teacher (none) and memory (none)."""
        variables = self.network.init(key)
        return {STUDENT: variables.params}, {STUDENT: variables.batch_stats}, {}, {}

    def loss(self, params: dict[str, PyTree], state: TrainState, batch: Batch, key: Array) -> tuple[Terms, Aux]:
        """The loss term; see the class."""
        part = tagged_part(batch)
        colour_key, dropout_key = jax.random.split(key)
        image = self.colour(colour_key, unit_image(part.image), part.valid)
        variables = Variables(params[STUDENT], state.batch_stats[STUDENT])
        outputs, stats = run_heads(self.network, variables, image, (TAGS,), train=True, rng=dropout_key)
        logits = pooled(outputs[TAGS].output, part.valid)
        target = part.tags[:, jnp.array(self.foreground)]
        error, right = tag_errors(logits, target, jnp.ones(len(target), bool))
        return {"tags_loss": Term(error, 1.0)}, Aux({STUDENT: stats}, {}, state.memory, {"tags_right": right})

    def update_teacher(
        self,
        state: TrainState,
        params: dict[str, PyTree],
        batch_stats: dict[str, PyTree],
        teacher_stats: dict[str, PyTree],
    ) -> dict[str, Variables]:
        """There is none."""
        return {}

    def scores(
        self, variables: dict[str, Variables], image: Array, valid: Array | None, present: Array | None = None
    ) -> Array:
        """The activations f32[B,H,W,K] in [0, 1], the background's 1, of images f32[B,H,W,3] in [0,1].

        Only classes in `present` (f32[B,K], an image's tags) have any; None asks the classifier which these are.
        """
        maps = score_maps(self.network, variables[STUDENT], image, valid)
        inside = jnp.ones(image.shape[:3], bool) if valid is None else valid
        found = jax.nn.sigmoid(pooled(maps, inside)) > self.tag_threshold
        shown = found if present is None else present[:, jnp.array(self.foreground)] > 0
        share = activations(
            resize_valid(maps, (image.shape[1], image.shape[2]), valid, align_corners=True), shown, inside
        )
        parts = share[..., : self.background], jnp.ones_like(share[..., :1]), share[..., self.background :]
        return jnp.concatenate([part for part in parts if part.shape[-1]], axis=-1)

    def at_threshold(self, scores: Array, threshold: Array | float) -> Array:
        """Probabilities f32[B,H,W,K] from `scores`: the background wins where no share exceeds the threshold."""
        is_background = jnp.arange(scores.shape[-1])[None, None, None] == self.background
        weights = jnp.where(is_background, scores * threshold, scores)
        return weights / jnp.maximum(jnp.sum(weights, axis=-1, keepdims=True), 1e-6)

    def predict(self, variables: dict[str, Variables], image: Array, valid: Array | None) -> Array:
        """Class probabilities f32[B,H,W,K] of images f32[B,H,W,3] in [0,1]."""
        return self.at_threshold(self.scores(variables, image, valid), self.mask_threshold)


def foreground_classes(labels: Labels) -> tuple[int, ...]:
    """The classes that tags speak of: all but the background, which must be one class. Raises OptionError otherwise."""
    if len(labels.classes) < 2:
        raise OptionError(f"the classes are {', '.join(labels.classes)}: masks from tags need a background and a class")
    if len(labels.background_classes) != 1:
        names = [labels.classes[k] for k in labels.background_classes]
        raise OptionError(
            f"masks from tags need one background class, not {len(names)} ({', '.join(names)}): set data.background=NAME, "
            "or background in classes.toml"
        )
    return tuple(k for k in range(len(labels.classes)) if k not in labels.background_classes)


def check_no_tasks(method: str, p: Parts) -> None:
    """Raises OptionError where there are auxiliary tasks: they need labels."""
    if p.auxiliary:
        names = [task.head.name for _, task in p.auxiliary]
        raise OptionError(f"method.name={method!r} has no labels for auxiliary tasks; leave {names} out")


def build(o: Options, p: Parts) -> TagClassifier:
    """The method from its parts."""
    foreground = foreground_classes(p.labels)
    check_no_tasks("tag_classifier", p)
    options = taken(TagClassifier, o, p.shared(MaskOptions))
    return TagClassifier(
        p.network((tags_head(foreground),)), p.colour, foreground, p.labels.background_classes[0], **options
    )


TAGS_ALONE = {"batch.labelled": 0, "batch.unlabelled": 0}
"""What the variants of the methods that see tags set."""

ENTRY = MethodEntry(
    "tag_classifier",
    Options,
    (MaskOptions,),
    build,
    published=TAGS_ALONE | {"batch.tagged": 32},
    needs=frozenset({"tagged"}),
)

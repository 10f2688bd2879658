"""WSSSByRec: masks from image tags by reconstruction from a structured decomposition (Zeng), with any number of classes."""

import dataclasses
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from forec_jax.contracts import (
    Array,
    Aux,
    Batch,
    FirstState,
    HeadSpec,
    Mean,
    Metrics,
    Network,
    PyTree,
    Term,
    Terms,
    TrainState,
    Variables,
)
from forec_jax.data.source import Labels
from forec_jax.losses import area_loss, mask_area, size_penalty_loss, squared_error
from forec_jax.methods.entry import Guide, MethodEntry, Parts
from forec_jax.methods.parts.ema import EmaMethod
from forec_jax.methods.parts.heads import SEGMENTATION, STUDENT, class_probabilities, run_heads
from forec_jax.methods.parts.tags import pooled
from forec_jax.methods.parts.teacher import teacher_statistics
from forec_jax.methods.parts.views import interleave, unit_image
from forec_jax.methods.tag_classifier import (
    TAGS_ALONE,
    MaskOptions,
    TagClassifier,
    check_no_tasks,
    foreground_classes,
    score_maps,
    tagged_part,
)
from forec_jax.options import OptionError, at_least, option, taken

CLASSIFIER = "classifier"
IMAGE_LETS = "image_lets"
HEADS = (SEGMENTATION, IMAGE_LETS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Weights:
    """What each term counts."""

    reconstruction_weight: float = option(1.0, "of L_recon; 0 leaves a term out", at_least(0))
    mask_weight: float = option(1e-3, "lambda_m, of L_mask", at_least(0))
    class_weight: float = option(1e-3, "lambda_c, of L_cls", at_least(0))
    mask_loss: Literal["area", "size_penalty"] = option(
        "area", 'L_mask by the masks\' "area", or "size_penalty": pooled scores, focal penalty'
    )
    area_of_classes: Literal["mean", "sum"] = option(
        "mean", 'the "area" loss over the classes: their "mean", or their "sum", as published'
    )
    class_of_parts: Literal["sum", "mean"] = option(
        "sum", 'L_cls over the two parts that the classifier is shown: their "sum", or their "mean", as published'
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(Weights):
    """The terms, and who guides them."""

    classifier: str = option("", "work directory of the trained tag_classifier that guides it")


def wsss_heads(classes: int) -> tuple[HeadSpec, HeadSpec]:
    """f_m's mask-lets, which are a segmentation, and f_x's image-lets."""
    return HeadSpec(SEGMENTATION, classes), HeadSpec(IMAGE_LETS, 3 * classes)


class Decomposition(NamedTuple):
    """An image as mask-lets times image-lets."""

    logits: Array  # f32[B,H,W,K]
    masks: Array  # f32[B,H,W,K] in [0, 1], their softmax: M
    images: Array  # f32[B,H,W,K,3] in [0, 1]: X

    def parts(self) -> Array:
        """f32[B,H,W,K,3]: M_k X_k."""
        return self.masks[..., None] * self.images

    def reconstruction(self) -> Array:
        """f32[B,H,W,3]: the sum of the parts."""
        return jnp.sum(self.parts(), axis=3)


def decomposition(logits: Array, colours: Array) -> Decomposition:
    """From the two heads' outputs, f32[B,H,W,K] and f32[B,H,W,3K]."""
    logits = logits.astype(jnp.float32)
    images = jax.nn.sigmoid(colours.astype(jnp.float32)).reshape(*logits.shape, 3)
    return Decomposition(logits, jax.nn.softmax(logits, axis=-1), images)


@dataclasses.dataclass(frozen=True)
class WsssRec(EmaMethod, Weights, MaskOptions):
    """L = reconstruction_weight L_recon + mask_weight L_mask + class_weight L_cls, on tagged rows alone.

    L_recon is the squared error between the image and sum_k M_k X_k. L_mask ties the masks' sizes to the tags. L_cls asks
    a fixed classifier about two parts of each image: the part of one class, drawn from the image's tags (from all classes
    where it has none), should show that class if it is tagged, and nothing else; the background's part should show nothing.
    With two classes that is the paper's loss; with more it is two looks an image, whatever their number. The classifier
    lives in `memory`, runs in inference mode and never changes.

    What is evaluated are the masks (the EMA's as well, which the paper has not): foreground is where a class's mask,
    against the background's, exceeds `mask_threshold`; with 0.5 the largest mask wins.
    """

    classifier: Network  # its `init` gives the trained variables
    foreground: tuple[int, ...]  # the classes of the classifier's channels
    background: int

    def init(self, key: Array) -> FirstState:
        """The first params, batch_stats, teacher and memory: the classifier."""
        params, batch_stats, teacher, _ = super().init(key)
        return params, batch_stats, teacher, {CLASSIFIER: self.classifier.init(key)}

    def loss(self, params: dict[str, PyTree], state: TrainState, batch: Batch, key: Array) -> tuple[Terms, Aux]:
        """The loss terms; see the class."""
        part = tagged_part(batch)
        image = unit_image(part.image)
        draw_key, dropout_key = jax.random.split(key)
        student = Variables(params[STUDENT], state.batch_stats[STUDENT])
        outputs, stats = run_heads(self.network, student, image, HEADS, train=True, rng=dropout_key)
        found = decomposition(*(outputs[head].output for head in HEADS))
        terms = {
            "reconstruction_loss": Term(
                squared_error(found.reconstruction(), image, part.valid), self.reconstruction_weight
            ),
            "mask_loss": Term(self._mask_loss(found, part.valid, part.tags), self.mask_weight),
        }
        guidance, metrics = self._class_terms(state.memory[CLASSIFIER], found, image, part.valid, part.tags, draw_key)
        teacher_stats = teacher_statistics(self.network, state.teacher[STUDENT], image, dropout_key, self.bn_mode)
        return terms | guidance, Aux({STUDENT: stats}, {STUDENT: teacher_stats}, state.memory, metrics)

    def _mask_loss(self, found: Decomposition, valid: Array, tags: Array) -> Mean:
        if self.mask_loss == "area":
            error = area_loss(found.masks, valid, tags.at[:, self.background].set(1.0))
            number = error.number if self.area_of_classes == "mean" else error.number / tags.shape[1]
            return error._replace(number=number)
        return size_penalty_loss(found.logits, valid, tags, jnp.array(self.foreground))

    def _class_terms(
        self, classifier: Variables, found: Decomposition, image: Array, valid: Array, tags: Array, key: Array
    ) -> tuple[Terms, Metrics]:
        """L_cls, apart for the drawn class's part and the background's, and the share of the image in foreground masks."""
        tagged = tags[:, jnp.array(self.foreground)]
        any_tag = jnp.any(tagged > 0, axis=-1, keepdims=True)
        drawn = jax.random.categorical(key, jnp.log(jnp.where(any_tag, tagged, 1.0)))
        row = jnp.arange(drawn.shape[0])
        # The padding is what the classifier was trained with: nothing can be painted there for it to see.
        parts = jnp.where(valid[..., None, None], found.parts(), image[:, :, :, None])
        shown = interleave(parts[row, :, :, jnp.array(self.foreground)[drawn]], parts[:, :, :, self.background])
        maps = score_maps(self.classifier, classifier, shown, None)
        logits = pooled(maps, interleave(valid, valid)).reshape(len(drawn), 2, -1)
        target = tagged * jax.nn.one_hot(drawn, tagged.shape[1])
        number = jnp.asarray(target.size, jnp.float32)
        error = optax.sigmoid_binary_cross_entropy(logits, jnp.stack([target, jnp.zeros_like(target)], axis=1))
        weight = self.class_weight if self.class_of_parts == "sum" else self.class_weight / error.shape[1]
        terms = {
            "class_foreground_loss": Term(Mean(jnp.sum(error[:, 0]), number), weight),
            "class_background_loss": Term(Mean(jnp.sum(error[:, 1]), number), weight),
        }
        covered = 1 - mask_area(found.masks, valid)[:, self.background]
        return terms, {"foreground": Mean(jnp.sum(covered), jnp.asarray(len(drawn), jnp.float32))}

    def decompose(self, variables: dict[str, Variables], image: Array, valid: Array | None) -> Decomposition:
        """The decomposition of images f32[B,H,W,3] in [0,1], in inference mode; the variables are the student's."""
        features, _ = self.network.encode(variables[STUDENT], image, valid=valid, train=False, rng=None)
        heads = (self.network.decode(variables[STUDENT], head, features, train=False, rng=None) for head in HEADS)
        return decomposition(*(head.output for head, _ in heads))

    def scores(
        self, variables: dict[str, Variables], image: Array, valid: Array | None, present: Array | None = None
    ) -> Array:
        """The masks f32[B,H,W,K], which add up to 1, of images f32[B,H,W,3] in [0,1].

        `present` (f32[B,K], an image's tags) takes the masks of other classes out; None leaves them all.
        """
        masks = class_probabilities(self.network, variables[STUDENT], image, valid)
        if present is None:
            return masks
        kept = masks * present.at[:, self.background].set(1.0)[:, None, None]
        return kept / jnp.maximum(jnp.sum(kept, axis=-1, keepdims=True), 1e-6)

    def at_threshold(self, scores: Array, threshold: Array | float) -> Array:
        """Probabilities f32[B,H,W,K] from `scores`: a class wins where M_k / (M_k + M_background) exceeds the threshold."""
        is_background = jnp.arange(scores.shape[-1])[None, None, None] == self.background
        weights = scores * jnp.where(is_background, threshold, 1.0 - threshold)
        return weights / jnp.maximum(jnp.sum(weights, axis=-1, keepdims=True), 1e-6)

    def predict(self, variables: dict[str, Variables], image: Array, valid: Array | None) -> Array:
        """Class probabilities f32[B,H,W,K] of images f32[B,H,W,3] in [0,1]."""
        return self.at_threshold(self.scores(variables, image, valid), self.mask_threshold)


def _guiding_network(guide: Guide | None, labels: Labels) -> Network:
    """The trained classifier's network, whose `init` gives its variables. Raises OptionError where it cannot guide."""
    if guide is None:
        raise OptionError(
            "method.wsss_rec.classifier is empty: train one by --config=configs/tags.py:classifier, and name its work "
            "directory"
        )
    if not isinstance(guide.method, TagClassifier):
        raise OptionError(
            f"method.wsss_rec.classifier={guide.workdir} holds a run of {guide.name}; train a classifier by "
            "--config=configs/tags.py:classifier"
        )
    if guide.labels.classes != labels.classes or guide.labels.background_classes != labels.background_classes:
        raise OptionError(
            f"method.wsss_rec.classifier={guide.workdir} knows the classes {', '.join(guide.labels.classes)}, this run "
            f"has {', '.join(labels.classes)}; train a classifier with the same data.name, data.tag and data.background"
        )
    network, variables = guide.method.network, guide.variables
    if variables is None:
        return network
    return network._replace(init=lambda _: jax.tree.map(jnp.asarray, variables))


def build(o: Options, p: Parts) -> WsssRec:
    """The method from its parts."""
    foreground = foreground_classes(p.labels)
    check_no_tasks("wsss_rec", p)
    classifier = _guiding_network(p.guide(CLASSIFIER), p.labels)
    network, (background,) = p.network(wsss_heads(len(p.labels.classes))), p.labels.background_classes
    return WsssRec(network, classifier, foreground, background, **taken(WsssRec, o, p.shared(MaskOptions), p.ema))


ENTRY = MethodEntry(
    "wsss_rec",
    Options,
    (MaskOptions,),
    build,
    published=TAGS_ALONE | {"batch.tagged": 8},
    needs=frozenset({"tagged"}),
    guides=lambda o: {CLASSIFIER: o.classifier},
)

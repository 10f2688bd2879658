"""A method, an auxiliary task, a data set and an encoder of one's own, as a user brings them: --config.plugin=this file."""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from forec_jax.contracts import Aux, HeadSpec, Mean, Term, Variables
from forec_jax.data import DataEntry, Dataset, Example, Labels
from forec_jax.methods.entry import MethodEntry, TaskEntry, TaskOptions, semi_supervised
from forec_jax.methods.parts.ema import SemiSupervised
from forec_jax.methods.parts.heads import SEGMENTATION, STUDENT, auxiliary_terms, head_names, run_heads
from forec_jax.methods.parts.terms import PseudoLabelOptions, SupervisedOptions, supervised_terms, unsupervised_terms
from forec_jax.methods.parts.views import labelled_rows, self_labelled, student_input, unlabelled_rows
from forec_jax.models.layers import Conv
from forec_jax.models.network import Encoder, EncoderEntry
from forec_jax.options import SHARE, at_least, option

LABELS = Labels(("background", "stripe"), ((0, 0, 0), (255, 0, 0)), (0,))


@dataclasses.dataclass(frozen=True, kw_only=True)
class SelfOptions:
    """How much the student trusts itself."""

    trust: float = option(0.5, "factor on the student's own confidence", SHARE)


@dataclasses.dataclass(frozen=True)
class SelfTraining(SemiSupervised, SelfOptions):
    """The student's own argmax on the unlabelled rows, without a teacher's word."""

    def loss(self, params, state, batch, key):
        """L_s + L_u + tasks."""
        colour_l, colour_u, dropout_key, task_key = jax.random.split(key, 4)
        rows = unlabelled_rows(colour_u, batch.unlabelled, self.colour)
        image, views = student_input(labelled_rows(colour_l, batch.labelled, self.colour), rows)
        student = Variables(params[STUDENT], state.batch_stats[STUDENT])
        outputs, stats = run_heads(
            self.network, student, image, head_names(self.auxiliary), train=True, rng=dropout_key
        )
        logits = outputs[SEGMENTATION].output
        views = self_labelled(views, jax.nn.softmax(logits))
        views = views._replace(confidence=views.confidence * self.trust)
        terms = supervised_terms(logits, views, loss=self.supervised_loss, weight=self.supervised_weight)
        own, metrics = unsupervised_terms(logits, views, threshold=0.0, normaliser="valid", weight=1.0)
        tasks, more, memory = auxiliary_terms(self.auxiliary, outputs, views, task_key, state.memory)
        teacher_stats = {STUDENT: state.teacher[STUDENT].batch_stats}
        return terms | own | tasks, Aux({STUDENT: stats}, teacher_stats, memory, metrics | more)


METHOD = MethodEntry(
    "self_training",
    SelfOptions,
    (SupervisedOptions, PseudoLabelOptions),
    lambda o, p: semi_supervised(SelfTraining, p, o),
    published={"augment.mixing": "none", "method.self_training.trust": 0.75},
)


@dataclasses.dataclass(frozen=True)
class Brightness:
    """A head that says how bright each pixel is; it counts the images that it has seen."""

    head: HeadSpec = HeadSpec("brightness", 1)
    memory: Mapping[str, float] = dataclasses.field(default_factory=lambda: {"seen": 0.0})

    def loss(self, outputs, views, key, memory):
        """The mean squared error over valid pixels."""
        error = (outputs["brightness"].output[..., 0] - views.image.mean(-1)) ** 2
        mean = Mean(jnp.sum(jnp.where(views.valid, error, 0.0)), jnp.sum(views.valid, dtype=jnp.float32))
        seen = memory["seen"] + views.valid.shape[0]
        return {"brightness_loss": Term(mean, 1.0)}, {"brightness_seen": Mean(seen, jnp.ones(()))}, {"seen": seen}


TASK = TaskEntry("brightness", TaskOptions, lambda o, p: Brightness(), {"brightness": {}})


@dataclasses.dataclass(frozen=True)
class Stripes:
    """Images with one bright stripe."""

    ids: tuple[str, ...]
    labelled: bool = True

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, index):
        label = np.zeros((48, 48), np.uint8)
        label[:, 5 + index : 15 + index] = 1
        image = np.repeat(60 + 120 * label[..., None], 3, axis=-1)
        return Example(self.ids[index], image, label if self.labelled else None)

    def without_labels(self):
        """The same images without masks."""
        return Stripes(self.ids, labelled=False)


@dataclasses.dataclass(frozen=True)
class StripeOptions:
    """How many there are."""

    images: int = option(12, "of the pool", at_least(4))


def stripes(place, o):
    """The data set."""
    names = {"train": tuple(f"t{i}" for i in range(o.images)), "val": ("v0", "v1")}
    sources = {split: Stripes(ids) for split, ids in names.items()}
    return Dataset("stripes", LABELS.classes, LABELS.palette, sources, LABELS.background_classes)


DATA = DataEntry("stripes", StripeOptions, stripes, lambda root, o: LABELS)


@dataclasses.dataclass(frozen=True)
class PlainOptions:
    """How wide it is."""

    channels: int = option(4, "of both maps", at_least(1))


class Plain(nn.Module):
    """Two strided convolutions."""

    channels: int

    @nn.compact
    def __call__(self, x, valid=None):
        """f32[B,H,W,3] -> maps at stride 4 and 16."""
        low = nn.relu(Conv(self.channels, size=4, strides=4, padding=((0, 0), (0, 0)), last=True, name="low")(x))
        high = nn.relu(Conv(self.channels, size=4, strides=4, padding=((0, 0), (0, 0)), last=True, name="high")(low))
        return low, high


ENCODER = EncoderEntry(
    "plain",
    ("plain",),
    PlainOptions,
    lambda variant, o, form: Encoder(lambda train: Plain(o.channels), (0.5,) * 3, (0.5,) * 3, gives="low_high"),
    decoder="deeplab",
)

ENTRIES = (METHOD, TASK, DATA, ENCODER)

"""The contracts of the library on one page: what a batch is, what a network is, what a method and an auxiliary task promise.

Everything here is a plain tuple of arrays or a protocol; there is no behaviour beyond the value of a mean and the two halves
of a head, one after the other.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

Array = jax.Array
PyTree = Any
RGB = tuple[float, float, float]

IMAGENET_MEAN: RGB = (0.485, 0.456, 0.406)
IMAGENET_STD: RGB = (0.229, 0.224, 0.225)

IGNORE = 255
"""The label of a pixel that says nothing: void in the ground truth, or padding."""

UNLABELLED = 254
"""The label of a pixel that nobody has labelled, in a partly labelled batch: unlike IGNORE, a teacher may say its class."""


class Stopped(Exception):
    """A long operation was ended on request; what it has found so far does not count."""


class Labelled(NamedTuple):
    """Rows with masks."""

    image: Array  # u8[b,H,W,3]
    label: Array  # i32[b,H,W], IGNORE where void or padding, UNLABELLED where nobody said (partial labels only)
    valid: Array  # bool[b,H,W], False in the padding
    skipped: Array  # i32[b], unreadable entries passed over to fill this row


class Unlabelled(NamedTuple):
    """Rows without masks."""

    image: Array  # u8[b,H,W,3]
    valid: Array  # bool[b,H,W], False in the padding
    skipped: Array  # i32[b], unreadable entries passed over to fill this row


class Tagged(NamedTuple):
    """Rows with image-level tags (weak supervision)."""

    image: Array  # u8[b,H,W,3]
    valid: Array  # bool[b,H,W], False in the padding
    tags: Array  # f32[b,K], 1 where the class is in the image
    skipped: Array  # i32[b], unreadable entries passed over to fill this row


class Pseudo(NamedTuple):
    """Rows with stored masks that a model predicted (`forec-jax label`)."""

    image: Array  # u8[b,H,W,3]
    label: Array  # i32[b,H,W], IGNORE in the padding and where the model was too unsure
    confidence: Array  # u8[b,H,W], the model's, in 255ths; 255 where it was not stored
    valid: Array  # bool[b,H,W], False in the padding
    skipped: Array  # i32[b], unreadable entries passed over to fill this row


class Batch(NamedTuple):
    """Any of the four parts; a part that a method does not ask for is None."""

    labelled: Labelled | None = None
    unlabelled: Unlabelled | Labelled | None = None  # Labelled where partial labels of these rows are known as well
    tagged: Tagged | None = None
    pseudo: Pseudo | None = None


class Variables(NamedTuple):
    """What a network needs to run: trained parameters and BatchNorm's running statistics, dicts by part."""

    params: PyTree
    batch_stats: PyTree


class HeadSpec(NamedTuple):
    """A head to grow on the shared encoder: a decoder of its own that ends in a 1x1 convolution, or that alone."""

    name: str
    channels: int
    upsample: bool = True  # resize the output to the image's size; otherwise it stays at the decoder's stride
    linear: bool = False
    """A 1x1 convolution alone: of the encoder's last features, at their stride (a classifier's scores), or of what the
    head that it reads fuses, as `upsample` says."""
    reads: str = ""  # the head whose fused features this one classifies; empty: its own


class HeadOutput(NamedTuple):
    """What a head says."""

    output: Array  # f32[B,H,W,channels], or at the decoder's stride when the head does not upsample
    latent: Array  # [B,h,w,D], the channels entering the last convolution (the paper's latent images)


def nothing_fused(
    variables: Variables, head: str, features: PyTree, *, train: bool = False, rng: Array | None = None
) -> tuple[PyTree, PyTree]:
    """The features and the batch_stats as they are: the `Network.fuse` of a decoder that has nothing to fuse."""
    del head, train, rng
    return features, variables.batch_stats


class Network(NamedTuple):
    """One encoder with named heads, as pure functions.

    Images are f32[B,H,W,3] in [0, 1]; the network normalises them as its encoder expects. `valid` (bool[B,H,W]) makes
    the result on a padded image equal to that on the image alone: it marks a top-left rectangle in each row, and H and W
    are then multiples of `multiple`. None means that every pixel counts. In train mode BatchNorm uses the statistics of
    the whole (global) batch and the returned batch_stats hold the moved averages; otherwise they come back unchanged.
    A head is decoded in two halves: `fuse` makes one map of the encoder's, `classify` the output of that. Where a decoder
    has nothing to fuse, the fused features are the encoder's. A head that reads another fuses nothing itself: its `fuse` is
    that of the other. In inference mode both take each row by itself, and can be differentiated twice in reverse mode
    (adversarial perturbations). Training leaves the parts in `frozen` as they are: no gradient reaches their parameters,
    and their statistics stand still.
    """

    init: Callable[[Array], Variables]  # key -> variables with every head
    encode: Callable[..., tuple[PyTree, PyTree]]  # (variables, image, *, valid, train, rng) -> features, batch_stats
    classify: Callable[..., tuple[HeadOutput, PyTree]]  # (variables, head, fused, *, train, rng) -> output, batch_stats
    heads: tuple[HeadSpec, ...]
    multiple: int = 32  # what image sides are multiples of where `valid` is given
    fuse: Callable[..., tuple[PyTree, PyTree]] = nothing_fused
    """(variables, head, features, *, train, rng) -> fused, batch_stats."""
    frozen: tuple[str, ...] = ()  # parts of the variables that training leaves as they are
    given: tuple[str, ...] = ()  # parts whose first values come from elsewhere, whatever the key
    std: RGB = (1.0, 1.0, 1.0)
    mean: RGB = (0.0, 0.0, 0.0)
    """Images are normalised as (image - mean) / std, channel by channel."""

    def decode(
        self, variables: Variables, head: str, features: PyTree, *, train: bool = False, rng: Array | None = None
    ) -> tuple[HeadOutput, PyTree]:
        """What a head makes of the features, and the batch_stats after it: `fuse`, then `classify`."""
        fused, stats = self.fuse(variables, head, features, train=train, rng=rng)
        output: tuple[HeadOutput, PyTree] = self.classify(
            variables._replace(batch_stats=stats), head, fused, train=train, rng=rng
        )
        return output


class Views(NamedTuple):
    """What the student saw and what it should have said; what an auxiliary task is given."""

    image: Array  # f32[B,H,W,3] in [0,1]: the clean image after geometry and mixing, before colour changes
    label: Array  # i32[B,H,W]: ground truth, else the teacher's unthresholded argmax; IGNORE for void and padding, and
    #               for a pixel that neither anyone nor a teacher labelled; never UNLABELLED
    confidence: Array  # f32[B,H,W] in [0,1]: the teacher's; 1 on ground truth
    is_ground_truth: Array  # bool[B,H,W]: per pixel, so that partly labelled and mixed rows are no special case
    valid: Array  # bool[B,H,W]: neither padding nor cut out
    labelled_row: Array  # bool[B]: used for weights only


class Mean(NamedTuple):
    """A mean kept as a sum and a count, so that parts of a batch add up to exactly the mean over the whole batch."""

    total: Array  # f32[]
    number: Array  # f32[], of what was added up

    def value(self) -> Array:
        """The mean; 0 where nothing was counted."""
        return self.total / jnp.where(self.number > 0, self.number, 1.0)


class Term(NamedTuple):
    """A weighted part of the loss."""

    mean: Mean
    weight: Array | float


Terms = dict[str, Term]  # names end in "loss"
Metrics = dict[str, Mean]


class Aux(NamedTuple):
    """What a method's loss leaves behind besides its value. Dicts by network name."""

    batch_stats: dict[str, PyTree]
    teacher_stats: dict[str, PyTree]  # the teacher's own BatchNorm statistics (bn_mode="own"), otherwise unchanged
    memory: PyTree
    metrics: Metrics


class TrainState(NamedTuple):
    """Everything that training changes. The random keys and the batches follow from the seed and `step`."""

    step: Array  # i32[]
    params: dict[str, PyTree]  # by network name
    batch_stats: dict[str, PyTree]  # by network name
    teacher: dict[str, Variables]  # by network name, float32; empty when the method has none
    opt_state: PyTree
    memory: PyTree
    """The method's own (a fixed classifier) and its tasks', by their heads' names; no gradient flows into it."""


FirstState = tuple[dict[str, PyTree], dict[str, PyTree], dict[str, Variables], PyTree]
"""What a method starts from: params, batch_stats and teacher by network name, and memory."""


class AuxiliaryTask(Protocol):
    """A task beside segmentation that attaches to any method. A frozen dataclass; applies its own threshold."""

    @property
    def head(self) -> HeadSpec:
        """What the network must grow for it; never part of an exported model."""
        ...

    @property
    def memory(self) -> PyTree:
        """What it remembers from step to step, at first: a fixed tree of arrays; () for nothing."""
        ...

    def loss(
        self, outputs: Mapping[str, HeadOutput], views: Views, key: Array, memory: PyTree
    ) -> tuple[Terms, Metrics, PyTree]:
        """The task's loss terms, its metrics, and what it remembers now; `outputs` by head, `segmentation` among them."""
        ...


class Method(Protocol):
    """A way to train. A frozen dataclass of networks, auxiliary tasks and hyper-parameters."""

    @property
    def networks(self) -> dict[str, Network]:
        """The trained networks, by the names that they have in the state's params."""
        ...

    def init(self, key: Array) -> FirstState:
        """The first params, batch_stats, teacher and memory."""
        ...

    def loss(self, params: dict[str, PyTree], state: TrainState, batch: Batch, key: Array) -> tuple[Terms, Aux]:
        """The loss terms of a batch as a function of `params` alone; everything else of `state` is constant."""
        ...

    def update_teacher(
        self,
        state: TrainState,
        params: dict[str, PyTree],
        batch_stats: dict[str, PyTree],
        teacher_stats: dict[str, PyTree],
    ) -> dict[str, Variables]:
        """The teacher after a step; `state` is the state before it, the rest the values after it."""
        ...

    def predict(self, variables: dict[str, Variables], image: Array, valid: Array | None) -> Array:
        """Class probabilities f32[B,H,W,K] of images f32[B,H,W,3] in [0,1]: what is evaluated and exported."""
        ...


@runtime_checkable
class Thresholded(Protocol):
    """A method that finds masks from tags: its prediction is `at_threshold(scores(...), mask_threshold)`."""

    mask_threshold: float

    def scores(
        self, variables: dict[str, Variables], image: Array, valid: Array | None, present: Array | None = None
    ) -> Array:
        """Scores f32[B,H,W,K] of images f32[B,H,W,3] in [0,1], of the classes in `present` f32[B,K] where it is given."""
        ...

    def at_threshold(self, scores: Array, threshold: Array | float) -> Array:
        """Class probabilities f32[B,H,W,K]."""
        ...

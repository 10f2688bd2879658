"""The same training step in plain PyTorch: what the library is measured against.

The same networks (torch_networks.py, torch_transformer.py), batch, colour changes, mixing (torch_views.py), losses,
optimiser and EMA, written as one would for PyTorch: channels_last memory, autocast for bfloat16, multi-tensor updates, no
read of a value within a step. Random draws have the same distributions, not the same values.
"""

import copy
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch_networks import PeerNetwork
from torch_views import colour_changes, complementary_dropout, cutmix, unit_image

from forec_jax.training import OptimizerOptions

SEGMENTATION, RECONSTRUCTION = "segmentation", "reconstruction"
IGNORE = 255
THRESHOLD = 0.95


class TorchStep:
    """A student, its EMA teacher and the optimiser; a call runs steps on one resident batch.

    Args:
      network: of the student.
      method: one of METHODS.
      batch: NumPy arrays, as the library's `Batch`.
      dtype: "float32", or "bfloat16" for autocast.
      compiled: whether to let torch.compile fuse augmentation, network and losses.
      optim: of the library; with poly decay over `STEPS` steps.
      decay: of the teacher.
      frozen: whether the encoder stays as it is: no gradient, BatchNorm as in inference, one for student and teacher.
    """

    name, version = "PyTorch", f"torch {torch.__version__}"
    METHODS: ClassVar[tuple[str, ...]] = ("supervised", "mean_teacher", "forec")
    STEPS = 4000

    def __init__(
        self,
        network: PeerNetwork,
        method: str,
        batch: Any,
        dtype: str,
        *,
        compiled: bool,
        optim: OptimizerOptions | None = None,
        decay: float = 0.99,
        frozen: bool = False,
    ):
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.method, self.dtype, self.decay, self.frozen = method, dtype, decay, frozen
        self.optim, self.count = optim or OptimizerOptions(), 0
        torch.backends.cudnn.benchmark = True
        self.student = network.to(self.device, memory_format=torch.channels_last)
        self._train()
        self.teacher = copy.deepcopy(self.student).eval().requires_grad_(False)
        for name in set(self.teacher.heads) - {SEGMENTATION}:
            del self.teacher.heads[name]
        if frozen:
            self.student.backbone.requires_grad_(False)
            self.teacher.backbone = self.student.backbone
        self.pairs = self._pairs()
        self.optimiser = self._optimiser()
        parts = {"labelled": batch.labelled, "unlabelled": batch.unlabelled}
        self.batch = {
            name: {key: torch.from_numpy(np.asarray(value)).to(self.device) for key, value in part._asdict().items()}
            for name, part in parts.items()
            if part is not None
        }
        self._loss: Callable[[], Tensor] = torch.compile(self.loss) if compiled else self.loss

    def _train(self) -> None:
        """Puts what is trained into train mode."""
        self.student.train()
        if self.frozen:
            self.student.backbone.eval()

    def _optimiser(self) -> torch.optim.Optimizer:
        """SGD or AdamW; the heads' learning rate is a multiple of the encoder's."""
        o = self.optim
        parts = [(self.student.heads, o.head_lr_multiplier)]
        if not self.frozen:
            parts.insert(0, (self.student.backbone, 1.0))
        groups = [{"params": list(part.parameters()), "factor": factor} for part, factor in parts]
        if o.name == "adamw":
            return torch.optim.AdamW(groups, lr=o.lr, weight_decay=o.weight_decay, foreach=True)
        return torch.optim.SGD(groups, lr=o.lr, momentum=o.momentum, weight_decay=o.weight_decay, foreach=True)

    def _pairs(self) -> tuple[list[Tensor], list[Tensor]]:
        """The teacher's parameters and BatchNorm statistics, and the student's that they follow."""
        student = {**dict(self.student.named_parameters()), **dict(self.student.named_buffers())}
        teacher = {**dict(self.teacher.named_parameters()), **dict(self.teacher.named_buffers())}
        names = [
            name
            for name, value in teacher.items()
            if value.is_floating_point() and not (self.frozen and name.startswith("backbone."))
        ]
        return [teacher[name] for name in names], [student[name].detach() for name in names]

    def autocast(self) -> torch.autocast:
        """bfloat16 where it is asked for."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.dtype == "bfloat16")

    def labelled_rows(self) -> dict[str, Tensor]:
        """The labelled rows, f32, i64 or bool [B,C,H,W]."""
        part = self.batch["labelled"]
        clean, label = unit_image(part["image"]), part["label"][:, None].long()
        return {
            "clean": clean,
            "label": label,
            "confidence": torch.ones_like(label, dtype=torch.float32),
            "truth": torch.ones_like(label, dtype=torch.bool),
            "valid": part["valid"][:, None],
        }

    def pseudo_labelled(self) -> dict[str, Tensor]:
        """The unlabelled rows with the teacher's labels."""
        part = self.batch["unlabelled"]
        clean, valid = unit_image(part["image"]), part["valid"][:, None]
        with self.autocast():
            logits = self.teacher(clean)[SEGMENTATION]
        confidence, label = logits.softmax(1).max(1, keepdim=True)
        return {
            "clean": clean,
            "label": torch.where(valid, label, IGNORE),
            "confidence": torch.where(valid, confidence, 0),
            "truth": torch.zeros_like(valid),
            "valid": valid,
        }

    @torch.no_grad()
    def views(self) -> dict[str, Tensor]:
        """What the student sees and what it should say, f32, i64 or bool [B,C,H,W]."""
        rows = strong_view(self.labelled_rows())
        if self.method == "supervised":
            return rows
        more = strong_view(self.pseudo_labelled())
        return {name: torch.cat([rows[name], more[name]]) for name in rows}

    def loss(self) -> Tensor:
        """The method's loss on the batch."""
        views = self.views()
        with self.autocast():
            image = views["strong"].contiguous(memory_format=torch.channels_last)
            outputs = self.student(image)
        label, truth = views["label"], views["truth"]
        error, known = pixel_errors(outputs[SEGMENTATION], label), label != IGNORE
        total = masked_mean(error, truth & known, truth & known)
        if self.method == "supervised":
            return total
        candidate = ~truth & views["valid"] & known
        total = total + masked_mean(error, candidate & (views["confidence"] > THRESHOLD), candidate)
        return total + self.reconstruction(outputs, views) if self.method == "forec" else total

    def reconstruction(self, outputs: dict[str, Tensor], views: dict[str, Tensor]) -> Tensor:
        """FOrec's term: foreground as it is, background as 0, unknown pixels left out."""
        label, truth = views["label"], views["truth"]
        included = views["valid"] & (label != IGNORE) & (truth | (views["confidence"] > THRESHOLD))
        target = torch.where(included & (label != 0), views["clean"], 0)
        error = (outputs[RECONSTRUCTION] - target).square().mean(1, keepdim=True)
        labelled, unlabelled = included & truth, included & ~truth
        return masked_mean(error, labelled, labelled) + 0.5 * masked_mean(error, unlabelled, unlabelled)

    def step(self) -> tuple[Tensor, Tensor]:
        """One update; the loss and the gradient's norm stay on the device."""
        rate = self.optim.lr * max(1 - self.count / self.STEPS, 0.0) ** self.optim.poly_power
        for group in self.optimiser.param_groups:
            group["lr"] = rate * group["factor"]
        loss = self._loss()
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        gradients = [p.grad for p in self.student.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        self.optimiser.step()
        decay = min(1 - 1 / (self.count + 1), self.decay)
        torch._foreach_lerp_(*self.pairs, 1 - decay)
        self.count += 1
        return loss.detach(), norm

    def run(self, steps: int) -> None:
        """Steps, to the end of the last."""
        for _ in range(steps):
            self.step()
        synchronise()

    def student_passes(self) -> int:
        """How often the student sees as many rows as are labelled."""
        return 1 if self.method == "supervised" else 2

    def flops(self) -> float:
        """Of a step's convolutions and matrix products; a backward pass as twice the forward pass.

        PyTorch's own count of a backward pass takes a depthwise convolution for a dense one. A frozen encoder has none.
        """
        image = unit_image(self.batch["labelled"]["image"])
        self.student.eval()  # in train mode this would move the running statistics
        size = image.shape[2:]
        maps, encoder = self._counted(lambda: self.student.encode(image))
        _, heads = self._counted(lambda: self.student.decode(maps, size))
        _, teacher = self._counted(lambda: self.teacher(image))
        self._train()
        student = (1 if self.frozen else 3) * encoder + 3 * heads
        return float(self.student_passes() * student + ("unlabelled" in self.batch) * teacher)

    def _counted(self, call: Callable[[], Any]) -> tuple[Any, int]:
        """What a call without gradients returns, and its FLOP."""
        from torch.utils.flop_counter import FlopCounterMode

        with FlopCounterMode(display=False) as counter, torch.no_grad(), self.autocast():
            found = call()
        return found, counter.get_total_flops()

    def device_name(self) -> str:
        """What the device calls itself."""
        return torch.cuda.get_device_name() if self.device.type == "cuda" else "cpu"

    def peak_bytes(self) -> int | None:
        """The most memory the GPU has held; None on a CPU, where PyTorch does not count it."""
        return torch.cuda.max_memory_allocated() if self.device.type == "cuda" else None


class UniMatchV2Step(TorchStep):
    """Two strong views of each unlabelled row in a pass of their own, with complementary dropout (UniMatch V2).

    L = L_s / 2 + (L_1 + L_2) / 4; the labelled rows have neither colour changes nor CutMix.
    """

    METHODS = ("unimatch_v2",)

    @torch.no_grad()
    def strong_views(self) -> dict[str, Tensor]:
        """Both strong views of the unlabelled rows, one after the other, as `views` has them."""
        weak = self.pseudo_labelled()
        first, second = strong_view(weak), strong_view(weak)
        return {name: torch.cat([first[name], second[name]]) for name in first}

    def loss(self) -> Tensor:
        """The method's loss on the batch."""
        rows, views = self.labelled_rows(), self.strong_views()
        image, strong = (x.contiguous(memory_format=torch.channels_last) for x in (rows["clean"], views["strong"]))
        with self.autocast():
            logits = self.student(image)[SEGMENTATION]
            maps = complementary_dropout(self.student.encode(strong))
            strong_logits = self.student.decode(maps, strong.shape[2:])[SEGMENTATION]
        known = rows["label"] != IGNORE
        total = 0.5 * masked_mean(pixel_errors(logits, rows["label"]), known, known)
        errors = pixel_errors(strong_logits, views["label"])
        candidate = views["valid"] & (views["label"] != IGNORE)
        kept = candidate & (views["confidence"] > THRESHOLD)
        for error, included, counted in zip(errors.chunk(2), kept.chunk(2), candidate.chunk(2), strict=True):
            total = total + 0.25 * masked_mean(error, included, counted)
        return total

    def student_passes(self) -> int:
        """The labelled rows, and two views of as many unlabelled ones."""
        return 3


STEPS = {method: kind for kind in (TorchStep, UniMatchV2Step) for method in kind.METHODS}
"""The step of each method that has a counterpart."""


def strong_view(rows: dict[str, Tensor]) -> dict[str, Tensor]:
    """The rows with colour changes as "strong", and CutMix in all of them."""
    return cutmix(rows | {"strong": colour_changes(rows["clean"])})


def pixel_errors(logits: Tensor, label: Tensor) -> Tensor:
    """Each pixel's cross-entropy f32[B,1,H,W], 0 at IGNORE; logits f32[B,K,H,W], label i64[B,1,H,W]."""
    return functional.cross_entropy(logits, label[:, 0], ignore_index=IGNORE, reduction="none")[:, None]


def masked_mean(error: Tensor, included: Tensor, counted: Tensor) -> Tensor:
    """The sum over the included pixels by the number of the counted ones; 0 where there are none."""
    return torch.where(included, error, 0).sum() / counted.sum().clamp_min(1)


def synchronise() -> None:
    """Waits for the GPU, where there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


class TorchMatmul:
    """A square matrix product: what the device reaches at best."""

    def __init__(self, size: int, dtype: str) -> None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.flops = 2.0 * size**3
        self._matrix = torch.ones(size, size, dtype=getattr(torch, dtype), device=device)

    def run(self) -> None:
        """One product, to its end."""
        self._matrix @ self._matrix
        synchronise()

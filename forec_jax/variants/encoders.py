"""The parts of a variant's name that choose a transformer, with the decoder and the training that it is published with."""

from collections.abc import Mapping

from forec_jax.variants.part import Variant

_DPT = {  # channels of the fused maps, and of the four maps before fusion
    "small": (64, (48, 96, 192, 384)),
    "small_plus": (64, (48, 96, 192, 384)),
    "base": (128, (96, 192, 384, 768)),
    "large": (256, (256, 512, 1024, 1024)),
    "giant": (384, (1536, 1536, 1536, 1536)),
}


def _dino(encoder: str, crop: int, bucket: int, meaning: str) -> Variant:
    """A DINOv2 or DINOv3 with DPT, trained as UniMatch V2 does (VOC, ADE20K and COCO: crop 518; Cityscapes: 798)."""
    channels, projections = _DPT[encoder.partition("_")[2]]
    return Variant(
        {
            "model.encoder": encoder,
            "model.dpt.channels": channels,
            "model.dpt.projections": projections,
            "data.crop": crop,
            "data.scale": (0.5, 2.0),
            "eval.bucket": bucket,
            "optim.name": "adamw",
            "optim.lr": 5e-6,
            "optim.head_lr_multiplier": 40.0,
            "optim.weight_decay": 1e-2,
            "optim.poly_power": 0.9,
        },
        meaning=f"{encoder} with DPT, {meaning}",
    )


def _mit(encoder: str) -> Variant:
    """A MiT with SegFormer's head, trained as SegFormer is (ADE20K: crop 512, 16 images; Cityscapes: 1024, 8 images)."""
    return Variant(
        {
            "model.encoder": encoder,
            "model.segformer.channels": 256 if encoder in ("mit_b0", "mit_b1") else 768,
            "data.crop": 512,
            "data.scale": (0.5, 2.0),
            "optim.name": "adamw",
            "optim.lr": 6e-5,
            "optim.head_lr_multiplier": 10.0,
            "optim.weight_decay": 1e-2,
            "optim.decay_batch_norm": False,
            "optim.poly_power": 1.0,
            "optim.warmup": 1500,
        },
        meaning=f"{encoder} with SegFormer's head, trained as SegFormer is; NVIDIA's weights are not for commercial use",
    )


_AS_UNIMATCH_V2 = "trained as UniMatch V2 trains it; name its weights"
_DINOV3 = "trained as UniMatch V2 trains DINOv2; its weights stand under Meta's own licence"

ENCODER_VARIANTS: Mapping[str, Variant] = {
    **{f"dinov2_{size}": _dino(f"dinov2_{size}", 518, 140, _AS_UNIMATCH_V2) for size in _DPT if size != "small_plus"},
    **{f"dinov3_{size}": _dino(f"dinov3_{size}", 512, 128, _DINOV3) for size in _DPT if size != "giant"},
    **{encoder: _mit(encoder) for encoder in (f"mit_b{number}" for number in range(6))},
    "vit_tiny": Variant(
        {
            "model.encoder": "dinov2_small",
            "model.dinov2.width": 0.5,
            "model.dinov2.depth": 6,
            "model.dpt.channels": 32,
            "model.dpt.projections": (24, 48, 96, 192),
            "data.crop": 70,
            "eval.bucket": 98,
        },
        meaning="a small vision transformer with DPT that learns from random weights, for shapes",
    ),
}
"""By name."""

"""Methods and auxiliary tasks: one file each."""

from forec_jax.methods.foreground_segmentation import ForegroundSegmentation
from forec_jax.methods.mean_teacher import MeanTeacher
from forec_jax.methods.ps_mt import PsMt
from forec_jax.methods.reco import RegionalContrast
from forec_jax.methods.reconstruction import ForegroundReconstruction, ImageReconstruction
from forec_jax.methods.s4gan import S4Gan
from forec_jax.methods.student import Auxiliary
from forec_jax.methods.supervised import Supervised
from forec_jax.methods.tag_classifier import TagClassifier
from forec_jax.methods.wsss_rec import WsssRec

__all__ = [
    "Auxiliary",
    "ForegroundReconstruction",
    "ForegroundSegmentation",
    "ImageReconstruction",
    "MeanTeacher",
    "PsMt",
    "RegionalContrast",
    "S4Gan",
    "Supervised",
    "TagClassifier",
    "WsssRec",
]

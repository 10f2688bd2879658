"""The methods: one file each, listed here. `parts/` is what they share, `tasks/` the auxiliary tasks."""

from forec_jax.methods import (
    adv_semseg,
    ael,
    cac,
    cct,
    cps,
    dmt,
    ecs,
    fixmatch,
    gct,
    maskmatch,
    mean_teacher,
    prevmatch,
    ps_mt,
    pseudoseg,
    s4gan,
    self_training,
    supervised,
    tag_classifier,
    u2pl,
    ucc,
    unimatch,
    unimatch_v2,
    vat,
    wsss_rec,
)
from forec_jax.methods.cac import Cac
from forec_jax.methods.cps import Cps
from forec_jax.methods.mean_teacher import MeanTeacher
from forec_jax.methods.parts.heads import Auxiliary
from forec_jax.methods.ps_mt import PsMt
from forec_jax.methods.s4gan import S4Gan
from forec_jax.methods.supervised import Supervised
from forec_jax.methods.tag_classifier import TagClassifier
from forec_jax.methods.tasks.foreground_segmentation import ForegroundSegmentation
from forec_jax.methods.tasks.reco import RegionalContrast
from forec_jax.methods.tasks.reconstruction import ForegroundReconstruction, ImageReconstruction
from forec_jax.methods.u2pl import U2pl
from forec_jax.methods.wsss_rec import WsssRec

METHODS = {
    module.ENTRY.name: module.ENTRY
    for module in (
        supervised,
        mean_teacher,
        fixmatch,
        unimatch,
        unimatch_v2,
        prevmatch,
        maskmatch,
        self_training,
        dmt,
        ps_mt,
        s4gan,
        cct,
        cps,
        u2pl,
        ael,
        ucc,
        adv_semseg,
        gct,
        vat,
        cac,
        pseudoseg,
        ecs,
        tag_classifier,
        wsss_rec,
    )
}
"""By the name that method.name has."""

__all__ = [
    "METHODS",
    "Auxiliary",
    "Cac",
    "Cps",
    "ForegroundReconstruction",
    "ForegroundSegmentation",
    "ImageReconstruction",
    "MeanTeacher",
    "PsMt",
    "RegionalContrast",
    "S4Gan",
    "Supervised",
    "TagClassifier",
    "U2pl",
    "WsssRec",
]

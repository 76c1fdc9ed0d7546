"""Keys of training without sampling heuristics (Chen et al., TIP 2021)."""

from detectron2.config import CfgNode as CN

from .rules import BOOLEAN, COUNT, PROBABILITY, SHARE, TEXT, integer, number, one_of

__all__ = ["add_sampling_free_config"]


def add_sampling_free_config(cfg: CN) -> None:
    """Add ``MODEL.SAMPLING_FREE``, ``MODEL.OHEM`` and ``MODEL.GHM`` to ``cfg``, in place.

    Symbols: N samples enter the class loss, N_f of them foreground, P of those in this batch,
    C classes, pi the initial score.
    """
    cfg.MODEL.SAMPLING_FREE = CN()
    cfg.MODEL.SAMPLING_FREE.ENABLED = False
    # Where: dense heads (no focal loss), the RPN and the ROI heads (no subsampling).
    cfg.MODEL.SAMPLING_FREE.ON_DENSE = True
    cfg.MODEL.SAMPLING_FREE.ON_RPN = True
    cfg.MODEL.SAMPLING_FREE.ON_ROI = True

    _add_prior(cfg.MODEL.SAMPLING_FREE)
    _add_guide(cfg.MODEL.SAMPLING_FREE)
    _add_threshold(cfg.MODEL.SAMPLING_FREE)

    # Most foreground proposals an image gives the mask head, against running out of memory late in
    # training; 0: all of them, as in the authors' code.
    cfg.MODEL.SAMPLING_FREE.MASK_MAX_FOREGROUND = 0

    _add_rivals(cfg)


def _add_prior(node: CN) -> None:
    # pi of the last classification layer's bias, b = -log((1 - pi) / pi). 0: measure
    # pi = N_f / (C N) on the training set before iteration 0.
    node.PRIOR = 0.0
    # Batches to measure it on at most, and the relative standard error at which to stop earlier.
    node.PRIOR_BATCHES = 500
    node.PRIOR_TOLERANCE = 0.02
    # File that keeps measured priors by all they depend on; empty: one in OUTPUT_DIR.
    node.PRIOR_FILE = ""
    # One pi for each class instead of one for all.
    node.PRIOR_PER_CLASS = False
    # Give the ROI head's softmax layer its optimal bias too, which the authors' code does not.
    node.ROI_BIAS_INIT = False
    # N_f / N that ROI_BIAS_INIT assumes: proposals do not exist before training.
    node.ROI_FOREGROUND_RATIO = 0.1


def _add_guide(node: CN) -> None:
    # Guided scale r = mean(guides) / L_cls of the class loss: "per_step", or "frozen" at its value
    # in step GUIDE_WARMUP, as in the authors' 2021 code for dense heads (RPN and ROI heads stay
    # per step); "none": only the bias and the missing sampler.
    node.GUIDE = "per_step"
    node.GUIDE_WARMUP = 100
    # Weigh all losses of a dense head by learned uncertainties, L / (2 sigma^2) + log(sigma); only
    # with GUIDE "frozen".
    node.LEARN_SIGMA = False
    # FCOS and ATSS: the guides are box and centerness loss (the authors' last code), not the box
    # loss alone.
    node.GUIDE_CENTERNESS = True
    # w_cls: the scaled class loss is w_cls times the guides. 2 was chosen with smooth L1, beta 1.
    node.CLS_SCALE = CN()
    node.CLS_SCALE.DENSE = 1.0
    node.CLS_SCALE.RPN = 1.0
    node.CLS_SCALE.ROI = 2.0
    # Divisor of the box loss: "fg", the authors' 4 P (dense and ROI) and 8 P (RPN; on dense heads P
    # for box losses that are one number a box), or "native", the detector's own. The guided scale
    # hands its size on to the class loss.
    node.REG_NORM = "fg"
    # Form r of the losses' means over all ranks instead of each rank's own losses.
    node.SYNC_RATIO = False
    # Count ignored anchors (label -1) as background, as the authors' 2020 RetinaNet does.
    node.IGNORE_AS_NEGATIVE = False


def _add_threshold(node: CN) -> None:
    # Score threshold at inference: "fixed", the detector's SCORE_THRESH_TEST; "fg_ratio", C pi for
    # dense heads; "class_adaptive", theta_j = (N_f / N) N_j / sum N_j for each class.
    node.SCORE_THRESH = "fg_ratio"
    # Score threshold of ROI heads instead of MODEL.ROI_HEADS.SCORE_THRESH_TEST, unless SCORE_THRESH
    # is "fixed"; 0: keep that.
    node.ROI_SCORE_THRESH = 1e-3


def _add_rivals(cfg: CN) -> None:
    """What the method is compared with: hard sampling (OHEM) and soft sampling (GHM-C)."""
    cfg.MODEL.OHEM = CN()
    # Instead of random samples the ROI heads (RPN) learn from the BATCH_SIZE_PER_IMAGE proposals
    # (anchors) of each image whose class and box loss together is largest (Shrivastava et al.,
    # CVPR 2016).
    cfg.MODEL.OHEM.ON_ROI = False
    cfg.MODEL.OHEM.ON_RPN = False
    # Of proposals that overlap more than this, only the one with the larger loss counts; 1: all.
    # The RPN's anchors are too many for it.
    cfg.MODEL.OHEM.NMS_THRESH = 0.7

    # CLS_LOSS "ghmc" (Li et al., AAAI 2019): regions of the gradient's size, the momentum of their
    # counts, and what the loss is divided by: "occupied" regions (authors' code) or "all" (paper).
    cfg.MODEL.GHM = CN()
    cfg.MODEL.GHM.BINS = 30
    cfg.MODEL.GHM.MOMENTUM = 0.75
    cfg.MODEL.GHM.DIVIDE_BY = "occupied"


RULES = {
    "MODEL.SAMPLING_FREE.ENABLED": BOOLEAN,
    "MODEL.SAMPLING_FREE.ON_DENSE": BOOLEAN,
    "MODEL.SAMPLING_FREE.ON_RPN": BOOLEAN,
    "MODEL.SAMPLING_FREE.ON_ROI": BOOLEAN,
    "MODEL.SAMPLING_FREE.MASK_MAX_FOREGROUND": integer(0),
    "MODEL.SAMPLING_FREE.PRIOR": number(0, below=1),
    "MODEL.SAMPLING_FREE.PRIOR_BATCHES": COUNT,
    "MODEL.SAMPLING_FREE.PRIOR_TOLERANCE": PROBABILITY,
    "MODEL.SAMPLING_FREE.PRIOR_FILE": TEXT,
    "MODEL.SAMPLING_FREE.PRIOR_PER_CLASS": BOOLEAN,
    "MODEL.SAMPLING_FREE.ROI_BIAS_INIT": BOOLEAN,
    "MODEL.SAMPLING_FREE.ROI_FOREGROUND_RATIO": PROBABILITY,
    "MODEL.SAMPLING_FREE.GUIDE": one_of("per_step", "frozen", "none"),
    "MODEL.SAMPLING_FREE.GUIDE_WARMUP": COUNT,
    "MODEL.SAMPLING_FREE.LEARN_SIGMA": BOOLEAN,
    "MODEL.SAMPLING_FREE.GUIDE_CENTERNESS": BOOLEAN,
    "MODEL.SAMPLING_FREE.CLS_SCALE.DENSE": number(above=0),
    "MODEL.SAMPLING_FREE.CLS_SCALE.RPN": number(above=0),
    "MODEL.SAMPLING_FREE.CLS_SCALE.ROI": number(above=0),
    "MODEL.SAMPLING_FREE.REG_NORM": one_of("fg", "native"),
    "MODEL.SAMPLING_FREE.SYNC_RATIO": BOOLEAN,
    "MODEL.SAMPLING_FREE.IGNORE_AS_NEGATIVE": BOOLEAN,
    "MODEL.SAMPLING_FREE.SCORE_THRESH": one_of("fixed", "fg_ratio", "class_adaptive"),
    "MODEL.SAMPLING_FREE.ROI_SCORE_THRESH": SHARE,
    "MODEL.OHEM.ON_ROI": BOOLEAN,
    "MODEL.OHEM.ON_RPN": BOOLEAN,
    "MODEL.OHEM.NMS_THRESH": SHARE,
    "MODEL.GHM.BINS": COUNT,
    "MODEL.GHM.MOMENTUM": number(0, below=1),
    "MODEL.GHM.DIVIDE_BY": one_of("occupied", "all"),
}

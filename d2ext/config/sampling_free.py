"""Keys of training without sampling heuristics (Chen et al., TIP 2021), and of its rivals.

Symbols: N samples enter the class loss, N_f of them foreground, P of those in this batch, C
classes, pi the initial score.
"""

from .keys import Key, Section
from .rules import BOOLEAN, COUNT, PROBABILITY, SHARE, TEXT, integer, number, one_of

__all__ = ["SECTIONS"]

_PLACES = [
    Key("ENABLED", False, BOOLEAN, "use it", ""),
    Key("ON_DENSE", True, BOOLEAN, "in dense heads: no focal loss", ""),
    Key("ON_RPN", True, BOOLEAN, "in the RPN: no subsampling", ""),
    Key("ON_ROI", True, BOOLEAN, "in the ROI heads: no subsampling", ""),
]

_PRIOR = [
    # 0: measure pi = N_f / (C N) on the training set before iteration 0.
    Key("PRIOR", 0.0, number(0, below=1), "pi of the classifier's bias; 0: measure it"),
    Key("PRIOR_BATCHES", 500, COUNT, "batches to measure it on, at most", "max_batches", "measure"),
    Key("PRIOR_TOLERANCE", 0.02, PROBABILITY, "relative standard error at which to stop earlier",
        "tolerance", "measure"),
    # It keeps measured priors by all they depend on.
    Key("PRIOR_FILE", "", TEXT, "where measurements are kept; empty: in OUTPUT_DIR", ""),
    Key("PRIOR_PER_CLASS", False, BOOLEAN, "one pi for each class instead of one for all"),
    # The authors' code does not.
    Key("ROI_BIAS_INIT", False, BOOLEAN, "give the ROI head's softmax its optimal bias too", ""),
    # Proposals do not exist before training.
    Key("ROI_FOREGROUND_RATIO", 0.1, PROBABILITY, "N_f / N that ROI_BIAS_INIT assumes", ""),
]  # fmt: skip

_ANY_GUIDE = "guide_dense guide_rpn guide_roi"
_GUIDE = [
    # r = mean(guides) / L_cls scales the class loss. "frozen" as in the authors' 2021 code for
    # dense heads (RPN and ROI heads stay per step).
    Key("GUIDE", "per_step", one_of("per_step", "frozen", "none"),
        "r anew in every step; dense heads: at its value in GUIDE_WARMUP; or no scale",
        "mode", _ANY_GUIDE),
    # Counted in forward passes under SOLVER.ACCUMULATE, and from 0 in every new run.
    Key("GUIDE_WARMUP", 100, COUNT, "step at which `frozen` keeps r", "warmup", _ANY_GUIDE),
    Key("LEARN_SIGMA", False, BOOLEAN,
        "`frozen`: weigh a dense head's losses by L / (2 sigma^2) + log(sigma), sigma learned",
        part=_ANY_GUIDE),
    # The guides are box and centerness loss in the authors' last code.
    Key("GUIDE_CENTERNESS", True, BOOLEAN,
        "FCOS and ATSS: centerness (or quality) loss guides too", ""),
    # w: the scaled class loss is w times the guides. 2 was chosen with smooth L1, beta 1.
    Key("CLS_SCALE.DENSE", 1.0, number(above=0), "w of dense heads", "weight", "guide_dense"),
    Key("CLS_SCALE.RPN", 1.0, number(above=0), "w of the RPN", "weight", "guide_rpn"),
    Key("CLS_SCALE.ROI", 2.0, number(above=0), "w of the ROI heads", "weight", "guide_roi"),
    # "fg": the authors' 4 P (dense and ROI) and 8 P (RPN; on dense heads P for box losses that are
    # one number a box). The guided scale hands its size on to the class loss.
    Key("REG_NORM", "fg", one_of("fg", "native"),
        "divisor of the box loss: 4 P (dense, ROI) and 8 P (RPN), or the detector's own"),
    Key("SYNC_RATIO", False, BOOLEAN, "form r of the losses' means over all ranks", "sync",
        _ANY_GUIDE),
    # As the authors' 2020 RetinaNet does.
    Key("IGNORE_AS_NEGATIVE", False, BOOLEAN, "ignored anchors count as background"),
]  # fmt: skip

_INFERENCE = [
    # "class_adaptive": theta_j = (N_f / N) N_j / sum N_j for each class.
    Key("SCORE_THRESH", "fg_ratio", one_of("fixed", "fg_ratio", "class_adaptive"),
        "least score of dense heads: the detector's key, C pi, or a part of it by class"),
    # Instead of MODEL.ROI_HEADS.SCORE_THRESH_TEST.
    Key("ROI_SCORE_THRESH", 1e-3, SHARE,
        "least score of ROI heads, unless SCORE_THRESH is `fixed`; 0: the detector's key", ""),
    # Against running out of memory late in training.
    Key("MASK_MAX_FOREGROUND", 0, integer(0),
        "most foreground proposals of an image in the mask head; 0: all (authors' code)", ""),
]  # fmt: skip

SECTIONS = [
    Section("MODEL.SAMPLING_FREE", *_PLACES, *_PRIOR, *_GUIDE, *_INFERENCE),
    # Hard sampling (Shrivastava et al., CVPR 2016): instead of random samples a head learns from
    # the BATCH_SIZE_PER_IMAGE samples of each image whose class and box loss is largest.
    Section(
        "MODEL.OHEM",
        Key("ON_ROI", False, BOOLEAN, "ROI heads learn from their hardest proposals", ""),
        Key("ON_RPN", False, BOOLEAN, "the RPN learns from its hardest anchors", ""),
        # The RPN's anchors are too many for it.
        Key("NMS_THRESH", 0.7, SHARE,
            "of proposals that overlap more, only that with the larger loss counts; 1: all", ""),
    ),
    # Soft sampling, CLS_LOSS "ghmc" (Li et al., AAAI 2019).
    Section(
        "MODEL.GHM",
        Key("BINS", 30, COUNT, "regions of the gradient's size"),
        Key("MOMENTUM", 0.75, number(0, below=1), "momentum of their counts"),
        Key("DIVIDE_BY", "occupied", one_of("occupied", "all"),
            "divisor of the loss: regions that are not empty (authors' code), or all (paper)"),
        # As mmdetection. The counts then start at 0. GHM-R of MODEL.GHM_R follows this key, too.
        Key("PER_LEVEL", False, BOOLEAN,
            "dense heads: GHM-C and GHM-R count each level of the pyramid on its own"),
    ),
]  # fmt: skip

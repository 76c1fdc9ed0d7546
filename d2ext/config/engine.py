"""Keys of the trainer: numbers, schedule, hooks, checkpoints, watching, faults."""

import signal
from typing import Any

from .keys import Key, Section
from .rules import (
    BOOLEAN,
    COUNT,
    NAME,
    TEXT,
    Relation,
    Rule,
    integer,
    listing,
    number,
    one_of,
    registered,
)

__all__ = ["RELATIONS", "SECTIONS"]

_UNSTOPPABLE = ("SIGKILL", "SIGSTOP")
_SIGNAL = Rule(
    "the name of a signal that can be caught, such as 'SIGTERM'",
    lambda v: isinstance(v, str) and v in signal.Signals.__members__ and v not in _UNSTOPPABLE,
)
_REPEAT = Rule(
    "a pair of a data set's name and a number above 0",
    lambda v: (
        isinstance(v, (list, tuple))
        and len(v) == 2
        and NAME.accepts(v[0])
        and number(above=0).accepts(v[1])
    ),
)


def _known_backend(cfg: Any) -> bool:
    from torch._dynamo import list_backends  # takes a second to import, so only if it is needed

    return cfg.MODEL.COMPILE.BACKEND in list_backends(exclude_tags=())


_COMPILE = Section(
    "MODEL.COMPILE",
    # State-dict keys stay the same, so checkpoints go both ways. The first steps take minutes.
    Key("ENABLED", False, BOOLEAN, "torch.compile for backbone, neck and heads", ""),
    # inductor needs a C++ compiler on the CPU, Triton on CUDA.
    Key("BACKEND", "inductor", NAME, "inductor, aot_eager, eager, or any that torch.compile knows"),
    Key("MODE", "", one_of("", "default", "reduce-overhead", "max-autotune",
                           "max-autotune-no-cudagraphs"), "inductor's mode"),
    # False is faster where all images have one size.
    Key("DYNAMIC", True, BOOLEAN, "compile once for images of any size"),
)  # fmt: skip

_MODEL = Section(
    "MODEL",
    # The same numbers in another order: checkpoints go both ways. auto: with autocast, and with
    # depthwise convolutions on a CPU.
    Key("CHANNELS_LAST", "auto", one_of("auto", "on", "off"),
        "the order in memory that convolutions are faster in", ""),
)  # fmt: skip

_SOLVER = Section(
    "SOLVER",
    # Both take BASE_LR, WEIGHT_DECAY and their per-layer keys.
    Key("OPTIMIZER", "SGD", registered("d2ext.engine.optimizer:OPTIMIZERS"),
        "SGD (Detectron2's) or AdamW", ""),
    # SOLVER.IMS_PER_BATCH stays the number of images in one *step*, over all ranks and
    # micro-steps: raising ACCUMULATE saves memory and changes no learning rate.
    Key("ACCUMULATE", 1, COUNT, "micro-steps in one step"),
    # SOLVER.CLIP_GRADIENTS.CLIP_TYPE is Detectron2's ("value" and "norm", a parameter at a time)
    # and takes "global_norm" as well: the norm of all gradients together.
    Key("REFERENCE_BATCH", 0, integer(0),
        "images a step for which rate, schedule and periods were chosen; 0: unknown", ""),
    # Learning rate up; iterations, steps, warm-up and periods down. While off, a difference is
    # warned of.
    Key("AUTO_SCALE", False, BOOLEAN, "scale them by IMS_PER_BATCH / REFERENCE_BATCH", ""),
    # An epoch is every image once, or, under repeat-factor sampling, every image as often as it is
    # repeated.
    # LR_SCHEDULER_NAME "QuadraticWarmupCosineLR" is YOLOX': the rate rises with the square of the
    # step, falls along a cosine to BASE_LR_END and stays there. In United-Perception's, COSINE_FROM
    # "warmup", it falls from what the last step of the warm-up has, just below BASE_LR.
    Key("FLAT_ITERS", 0, integer(0), "that schedule's steps at the end with BASE_LR_END", ""),
    Key("COSINE_FROM", "base", one_of("base", "warmup"), "where its cosine starts", ""),
    # Biases of the last class layer (cls_score), whatever WEIGHT_DECAY_BIAS is.
    Key("WEIGHT_DECAY_CLASS_BIAS", None, number(0) | one_of(None),
        "their weight decay; None: as other biases", ""),
    Key("EPOCHS", 0.0, number(0), "length in epochs; 0: SOLVER.MAX_ITER", ""),
    Key("EPOCH_STEPS", (), listing(number(above=0), strictly=True),
        "epochs at which the rate falls; (): SOLVER.STEPS", ""),
    Key("WARMUP_EPOCHS", 0.0, number(0), "warm-up in epochs; 0: SOLVER.WARMUP_ITERS", ""),
    Key("CHECKPOINT_EPOCHS", 0.0, number(0),
        "epochs between checkpoints; 0: SOLVER.CHECKPOINT_PERIOD", ""),
    # It warns and names operations for which torch has no deterministic algorithm.
    Key("DETERMINISTIC", False, BOOLEAN, "deterministic algorithms where torch has them", ""),
)  # fmt: skip

_AMP = Section(
    "SOLVER.AMP",
    # auto: bf16 where the hardware has it, fp16 on other GPUs, float32 on other CPUs. fp16 has a
    # gradient scaler. SOLVER.AMP.ENABLED is Detectron2's.
    Key("DTYPE", "auto", one_of("auto", "fp16", "bf16"), "autocast's type: fp16 on CUDA only", ""),
)

_DATA = [
    Section(
        "DATALOADER",
        # "fast": d2ext.data.FastMapper, the same samples with pixels within one grey level; a
        # config it does not cover is refused. See docs/data.md.
        Key("MAPPER", "auto", one_of("auto", "fast", "detectron2"),
            "who reads training images; auto: the fast one where it covers the config", ""),
        # Figures are compared with published ones to the last digit.
        Key("MAPPER_TEST", "detectron2", one_of("auto", "fast", "detectron2"),
            "who reads images for evaluation", ""),
        # "auto": on if they take no more than a quarter of the free memory. With the fast mapper.
        Key("CACHE", "auto", one_of("auto", "on", "off"),
            "keep decoded training images in memory, once for all workers", ""),
        # Boxes without area or outside of their image, polygons of two points, annotations of
        # images that are not there. "skip" as Detectron2 does, but counted in the log. Worse
        # mistakes are always an error. See docs/reliability_data.md.
        Key("BAD_ANNOTATIONS", "skip", registered("d2ext.data.checks.kinds:BAD_ANNOTATIONS"),
            "objects that nothing can be learnt from: skip or refuse", ""),
        # Detectron2 trains on them; the evaluation knows them by itself.
        Key("VOC_DIFFICULT", "train", one_of("train", "drop"),
            "objects that Pascal VOC's files call difficult: trained on, or left out", ""),
        # "stochastic": anew each epoch, right on average. "ceil": the same list each epoch.
        Key("REPEAT_ROUNDING", "stochastic", one_of("stochastic", "ceil"),
            "rounding of the factors of RepeatFactorTrainingSampler", ""),
        # Detectron2 reads these two keys but may not define them.
        Key("RANDOM_SUBSET_RATIO", 1.0, number(above=0, high=1),
            "share of the images that RandomSubsetTrainingSampler uses", ""),
    ),
    Section(
        "DATASETS",
        Key("TRAIN_REPEAT_FACTOR", [], listing(_REPEAT),
            "[[data set, factor], ...] of the Weighted*TrainingSamplers", ""),
    ),
]  # fmt: skip

_ENGINE = [
    Section(
        "ENGINE",
        # See docs/trainer.md, "Hooks by name".
        Key("HOOKS", [],
            listing(
                registered(
                    "d2ext.engine.hooks.base:HOOK_REGISTRY",
                    advice="; others come from the module that registers them, named with --import",
                )
            ),
            "names in HOOK_REGISTRY, in order", ""),
        Key("FAST_DEV_RUN", False, BOOLEAN,
            "a handful of steps, one checkpoint, one evaluation of a few images", ""),
        Key("LOG_PERIOD", 20, COUNT, "steps between two reads of the losses by all writers", ""),
        # Best and final ones, and those of other runs in the folder, are not counted and never
        # removed.
        Key("MAX_TO_KEEP", 5, integer(0), "checkpoints model_*.pth that are kept; 0: all"),
        Key("STOP_SIGNALS", ["SIGTERM", "SIGINT"], listing(_SIGNAL),
            "signals that finish the step, write a checkpoint and exit with code 75", ""),
        # "stop" saves the batch and ends the run; "skip" leaves the step out.
        Key("NONFINITE", "stop", one_of("stop", "skip"), "what a non-finite loss does", ""),
        Key("MAX_SKIPPED_STEPS", 10, integer(0), "steps left out before `skip` stops too", ""),
        # Needed if some parameters get no gradient in some steps.
        Key("FIND_UNUSED_PARAMETERS", False, BOOLEAN, "DistributedDataParallel's switch"),
        Key("PROGRESS_BAR", "auto", one_of("auto", "on", "off"),
            "auto: when the error stream is a terminal", ""),
        Key("TENSORBOARD", True, BOOLEAN, "write TensorBoard's files", ""),
    ),
    # e <- e + (1 - DECAY) (x - e) for parameters and buffers.
    Section(
        "ENGINE.EMA",
        Key("ENABLED", False, BOOLEAN, "keep an exponential moving average of the weights", ""),
        Key("DECAY", 0.9998, number(0, below=1), "share of the old average in a step"),
        Key("WARMUP", 10, number(0), "decay of step t at most (1 + t) / (WARMUP + t); 0: off"),
        # "exp" is YOLOX', with 2000: the first step copies the weights.
        Key("RULE", "ratio", one_of("ratio", "exp"),
            "`exp`: decay of step t is DECAY (1 - exp(-t / WARMUP))"),
        Key("EVAL", True, BOOLEAN, "evaluate the average too, as `ema/...`", ""),
    ),
    Section(
        "ENGINE.BEST_CHECKPOINT",
        # "bbox/AP", "ema/bbox/AP", "val/total_loss", ... "auto" is the AP of the first task, where
        # there are evaluations before the last step.
        Key("METRIC", "auto", TEXT, "what model_best.pth is the best checkpoint by; '': off", ""),
        Key("MODE", "max", one_of("max", "min"), "whether more is better", ""),
    ),
    Section(
        "ENGINE.EARLY_STOPPING",
        Key("PATIENCE", 0, integer(0), "evaluations without progress that end the run; 0: off", ""),
        Key("METRIC", "bbox/AP", NAME, "what makes progress", ""),
        Key("MODE", "max", one_of("max", "min"), "whether more is better", ""),
        Key("MIN_DELTA", 0.0, number(0), "the least progress", ""),
    ),
    Section(
        "ENGINE.WANDB",
        Key("ENABLED", False, BOOLEAN, "log to Weights & Biases; needs the package wandb", ""),
        Key("PROJECT", "d2ext", TEXT, "its project", ""),
        Key("NAME", "", TEXT, "name of the run there", ""),
    ),
]  # fmt: skip

_TEST = [
    Section(
        "TEST",
        Key("EVAL_EPOCHS", 0.0, number(0), "epochs between evaluations; 0: TEST.EVAL_PERIOD", ""),
    ),
    # The training losses on DATASETS.TEST, without augmentation, as "val/...".
    Section(
        "TEST.VAL_LOSS",
        Key("PERIOD", 0, integer(0), "steps between validation losses, and at the end; 0: off", ""),
        Key("MAX_BATCHES", 0, integer(0), "batches of a rank at most; 0: the whole set", ""),
    ),
]  # fmt: skip

SECTIONS = [_COMPILE, _MODEL, _SOLVER, _AMP, *_DATA, *_ENGINE, *_TEST]

RELATIONS = [
    Relation(
        ("MODEL.COMPILE.BACKEND",),
        "torch.compile knows no such backend, so choose one of torch._dynamo.list_backends()",
        _known_backend,
        when=lambda cfg: cfg.MODEL.COMPILE.ENABLED,
    ),
    Relation(
        ("TEST.VAL_LOSS.PERIOD", "DATASETS.TEST"),
        "the validation loss needs a data set",
        lambda cfg: len(cfg.DATASETS.TEST) > 0,
        when=lambda cfg: cfg.TEST.VAL_LOSS.PERIOD > 0,
    ),
]

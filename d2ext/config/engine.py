"""Keys of the trainer: numbers, schedule, hooks, checkpoints, watching, faults."""

import signal

from detectron2.config import CfgNode as CN

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

__all__ = ["add_engine_config"]


def add_engine_config(cfg: CN) -> None:
    """Add the keys of this area to ``cfg``, in place."""
    _add_compile_keys(cfg)
    _add_solver_keys(cfg)
    _add_engine_keys(cfg)
    _add_test_keys(cfg)


def _add_compile_keys(cfg: CN) -> None:
    # torch.compile for backbone, neck and heads in training and its evaluations. State-dict keys
    # stay the same, so checkpoints go both ways. The first steps take minutes.
    cfg.MODEL.COMPILE = CN()
    cfg.MODEL.COMPILE.ENABLED = False
    # "inductor" (needs a C++ compiler on the CPU, Triton on CUDA), "aot_eager", "eager", ...
    cfg.MODEL.COMPILE.BACKEND = "inductor"
    # inductor's mode: "reduce-overhead", "max-autotune", ...; "" is torch's default.
    cfg.MODEL.COMPILE.MODE = ""
    # Compile once for images of any size. False is faster where all images have one size.
    cfg.MODEL.COMPILE.DYNAMIC = True


def _add_solver_keys(cfg: CN) -> None:
    # Autocast's type: "fp16" (CUDA only, with a gradient scaler) or "bf16" (CUDA and CPU).
    # SOLVER.AMP.ENABLED is Detectron2's.
    cfg.SOLVER.AMP.DTYPE = "fp16"

    # "SGD" (Detectron2's) or "AdamW". Both take BASE_LR, WEIGHT_DECAY and their per-layer keys.
    cfg.SOLVER.OPTIMIZER = "SGD"

    # Micro-steps in one step. SOLVER.IMS_PER_BATCH stays the number of images in one *step*, over
    # all ranks and micro-steps: raising ACCUMULATE saves memory and changes no learning rate.
    cfg.SOLVER.ACCUMULATE = 1

    # SOLVER.CLIP_GRADIENTS.CLIP_TYPE is Detectron2's ("value" and "norm", a parameter at a time)
    # and takes "global_norm" as well: the norm of all gradients together.

    # Images a step for which BASE_LR, MAX_ITER, STEPS and the periods were chosen; 0: unknown.
    cfg.SOLVER.REFERENCE_BATCH = 0
    # Scale learning rate (up), iterations, steps, warm-up and periods (down) by
    # IMS_PER_BATCH / REFERENCE_BATCH. While off, a difference is warned of.
    cfg.SOLVER.AUTO_SCALE = False

    # The schedule in epochs; 0 or () leaves the iteration keys as they are. An epoch is every
    # image once, or, under repeat-factor sampling, every image as often as it is repeated.
    cfg.SOLVER.EPOCHS = 0.0
    cfg.SOLVER.EPOCH_STEPS = ()
    cfg.SOLVER.WARMUP_EPOCHS = 0.0
    cfg.SOLVER.CHECKPOINT_EPOCHS = 0.0

    # Deterministic algorithms where torch has them; it warns and names the operation elsewhere.
    cfg.SOLVER.DETERMINISTIC = False

    # Who turns a training image into the model's input. "detectron2": Detectron2's DatasetMapper.
    # "fast": d2ext.data.FastMapper, the same samples with pixels within one grey level; a config
    # it does not cover is refused. "auto": the fast one where it covers the config. See
    # docs/data.md.
    cfg.DATALOADER.MAPPER = "auto"
    # The same for evaluation, where figures are compared with published ones to the last digit.
    cfg.DATALOADER.MAPPER_TEST = "detectron2"

    # Objects that nothing can be learnt from (boxes without area or outside of their image,
    # polygons of two points, annotations of images that are not there): "skip" leaves them out, as
    # Detectron2 does, but counts them in the log; "refuse" is an error. Worse mistakes are always
    # an error. See docs/reliability_data.md.
    cfg.DATALOADER.BAD_ANNOTATIONS = "skip"

    # Rounding of RepeatFactorTrainingSampler's factors: "stochastic" (anew each epoch, right on
    # average) or "ceil" (the same list each epoch).
    cfg.DATALOADER.REPEAT_ROUNDING = "stochastic"
    # Share of the images that RandomSubsetTrainingSampler uses, and [[data set, factor], ...] of
    # the Weighted*TrainingSamplers. Detectron2 reads these two keys but may not define them.
    for node, key, default in (
        (cfg.DATALOADER, "RANDOM_SUBSET_RATIO", 1.0),
        (cfg.DATASETS, "TRAIN_REPEAT_FACTOR", []),
    ):
        if key not in node:
            node[key] = default


def _add_engine_keys(cfg: CN) -> None:
    cfg.ENGINE = CN()

    # Names in d2ext.engine.HOOK_REGISTRY, in order. See docs/trainer.md, "Hooks by name".
    cfg.ENGINE.HOOKS = []

    # A handful of steps, one checkpoint, one evaluation of a few images, whatever else is set.
    cfg.ENGINE.FAST_DEV_RUN = False

    # Steps between two reads of the losses by the log, JSON, TensorBoard and W&B.
    cfg.ENGINE.LOG_PERIOD = 20

    # Checkpoints model_*.pth of this run that are kept, newest first; 0 keeps all. Best and final
    # ones, and those of other runs in the folder, are not counted and never removed.
    cfg.ENGINE.MAX_TO_KEEP = 5

    # Signals that finish the step, write a checkpoint and exit with code 75.
    cfg.ENGINE.STOP_SIGNALS = ["SIGTERM", "SIGINT"]

    # A non-finite loss: "stop" saves the batch and ends the run; "skip" leaves the step out,
    # and stops after MAX_SKIPPED_STEPS of them.
    cfg.ENGINE.NONFINITE = "stop"
    cfg.ENGINE.MAX_SKIPPED_STEPS = 10

    # DistributedDataParallel's switch: needed if some parameters get no gradient in some steps.
    cfg.ENGINE.FIND_UNUSED_PARAMETERS = False

    # Exponential moving average of parameters and buffers: e <- e + (1 - DECAY) (x - e).
    cfg.ENGINE.EMA = CN()
    cfg.ENGINE.EMA.ENABLED = False
    cfg.ENGINE.EMA.DECAY = 0.9998
    # The decay of step t is min(DECAY, (1 + t) / (WARMUP + t)); 0: DECAY from the first step.
    cfg.ENGINE.EMA.WARMUP = 10
    # Evaluate the average too, as "ema/...", beside the raw model.
    cfg.ENGINE.EMA.EVAL = True

    # Keep the checkpoint with the best METRIC ("bbox/AP", "ema/bbox/AP", "val/total_loss", ...)
    # as model_best.pth; "" is off.
    cfg.ENGINE.BEST_CHECKPOINT = CN()
    cfg.ENGINE.BEST_CHECKPOINT.METRIC = ""
    cfg.ENGINE.BEST_CHECKPOINT.MODE = "max"

    # Stop when METRIC did not improve by MIN_DELTA in PATIENCE evaluations in a row; 0 is off.
    cfg.ENGINE.EARLY_STOPPING = CN()
    cfg.ENGINE.EARLY_STOPPING.PATIENCE = 0
    cfg.ENGINE.EARLY_STOPPING.METRIC = "bbox/AP"
    cfg.ENGINE.EARLY_STOPPING.MODE = "max"
    cfg.ENGINE.EARLY_STOPPING.MIN_DELTA = 0.0

    # A progress bar: "auto" (when the error stream is a terminal), "on" or "off".
    cfg.ENGINE.PROGRESS_BAR = "auto"
    cfg.ENGINE.TENSORBOARD = True

    # Weights & Biases; needs the package wandb.
    cfg.ENGINE.WANDB = CN()
    cfg.ENGINE.WANDB.ENABLED = False
    cfg.ENGINE.WANDB.PROJECT = "d2ext"
    cfg.ENGINE.WANDB.NAME = ""


def _add_test_keys(cfg: CN) -> None:
    # Evaluation period in epochs; 0 leaves TEST.EVAL_PERIOD as it is.
    cfg.TEST.EVAL_EPOCHS = 0.0

    # The training losses on DATASETS.TEST every PERIOD steps and at the end, without
    # augmentation, as "val/..."; 0 is off. MAX_BATCHES is a limit per rank; 0: the whole set.
    cfg.TEST.VAL_LOSS = CN()
    cfg.TEST.VAL_LOSS.PERIOD = 0
    cfg.TEST.VAL_LOSS.MAX_BATCHES = 0


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


def _known_backend(cfg: CN) -> bool:
    from torch._dynamo import list_backends  # takes a second to import, so only if it is needed

    return cfg.MODEL.COMPILE.BACKEND in list_backends(exclude_tags=())


RULES = {
    "MODEL.COMPILE.ENABLED": BOOLEAN,
    "MODEL.COMPILE.BACKEND": NAME,
    "MODEL.COMPILE.MODE": one_of(
        "", "default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"
    ),
    "MODEL.COMPILE.DYNAMIC": BOOLEAN,
    "SOLVER.AMP.DTYPE": one_of("fp16", "bf16"),
    "SOLVER.OPTIMIZER": registered("d2ext.engine.optimizer:OPTIMIZERS", "SGD"),
    "SOLVER.ACCUMULATE": COUNT,
    "SOLVER.REFERENCE_BATCH": integer(0),
    "SOLVER.AUTO_SCALE": BOOLEAN,
    "SOLVER.EPOCHS": number(0),
    "SOLVER.EPOCH_STEPS": listing(number(above=0), strictly=True),
    "SOLVER.WARMUP_EPOCHS": number(0),
    "SOLVER.CHECKPOINT_EPOCHS": number(0),
    "SOLVER.DETERMINISTIC": BOOLEAN,
    "DATALOADER.MAPPER": one_of("auto", "fast", "detectron2"),
    "DATALOADER.MAPPER_TEST": one_of("auto", "fast", "detectron2"),
    "DATALOADER.BAD_ANNOTATIONS": registered("d2ext.data.checks.kinds:BAD_ANNOTATIONS"),
    "DATALOADER.REPEAT_ROUNDING": one_of("stochastic", "ceil"),
    "DATALOADER.RANDOM_SUBSET_RATIO": number(above=0, high=1),
    "DATASETS.TRAIN_REPEAT_FACTOR": listing(_REPEAT),
    "ENGINE.HOOKS": listing(
        registered(
            "d2ext.engine.hooks.base:HOOK_REGISTRY",
            advice="; others come from the module that registers them, named with --import",
        )
    ),
    "ENGINE.FAST_DEV_RUN": BOOLEAN,
    "ENGINE.LOG_PERIOD": COUNT,
    "ENGINE.MAX_TO_KEEP": integer(0),
    "ENGINE.STOP_SIGNALS": listing(_SIGNAL),
    "ENGINE.NONFINITE": one_of("stop", "skip"),
    "ENGINE.MAX_SKIPPED_STEPS": integer(0),
    "ENGINE.FIND_UNUSED_PARAMETERS": BOOLEAN,
    "ENGINE.EMA.ENABLED": BOOLEAN,
    "ENGINE.EMA.DECAY": number(0, below=1),
    "ENGINE.EMA.WARMUP": number(0),
    "ENGINE.EMA.EVAL": BOOLEAN,
    "ENGINE.BEST_CHECKPOINT.METRIC": TEXT,
    "ENGINE.BEST_CHECKPOINT.MODE": one_of("max", "min"),
    "ENGINE.EARLY_STOPPING.PATIENCE": integer(0),
    "ENGINE.EARLY_STOPPING.METRIC": NAME,
    "ENGINE.EARLY_STOPPING.MODE": one_of("max", "min"),
    "ENGINE.EARLY_STOPPING.MIN_DELTA": number(0),
    "ENGINE.PROGRESS_BAR": one_of("auto", "on", "off"),
    "ENGINE.TENSORBOARD": BOOLEAN,
    "ENGINE.WANDB.ENABLED": BOOLEAN,
    "ENGINE.WANDB.PROJECT": TEXT,
    "ENGINE.WANDB.NAME": TEXT,
    "TEST.EVAL_EPOCHS": number(0),
    "TEST.VAL_LOSS.PERIOD": integer(0),
    "TEST.VAL_LOSS.MAX_BATCHES": integer(0),
}

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

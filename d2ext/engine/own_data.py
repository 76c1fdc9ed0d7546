"""``--data`` on the command line: read the data, choose a recipe, write it, say why."""

import argparse
import json
import logging
import os
import time
from typing import Any, Dict, List, Tuple

import torch
import yaml
from detectron2.config import CfgNode

from d2ext._files import RunError, atomic_write, mistakes_in_sentences
from d2ext.config import get_cfg
from d2ext.data.own import RegisteredData, register_own_data, use_own_data
from d2ext.data.sources import parse_shares
from d2ext.model_zoo import get_config_file

from .recipe import (
    METHODS,
    Recipe,
    choose_model,
    choose_schedule,
    facts_of,
    from_scratch,
    smaller,
    this_machine,
)

__all__ = ["RECIPE", "measure_step", "prepare_own_data", "recipe_config"]

#: The file in the output folder that a chosen recipe is written to.
RECIPE = "recipe.yaml"

_MINUTES = {"cpu": 10.0, "cuda": 20.0}
_TRIALS = 4
# Threads do not share a step's work evenly.
_SLACK = 1.15


def prepare_own_data(args: argparse.Namespace) -> None:
    """Turn ``--data`` and what belongs to it into a config file and overrides, in place."""
    chosen = {"--minutes": args.minutes, "--method": args.method}
    given = [flag for flag, value in chosen.items() if value not in (None, "")]
    if args.minutes is not None and not 0 < args.minutes < float("inf"):
        raise RunError(f"--minutes is {args.minutes:g}; it must be a number above 0.")
    if given and (args.config_file or not args.data):
        what = "--config-file is there" if args.config_file else "--data is not"
        raise RunError(
            f"{' and '.join(given)} choose a config for --data PATH, and {what}; leave one of "
            "them out (the schedule is SOLVER.MAX_ITER)."
        )
    if not args.data:
        return
    opts = ["DATASETS.DATA", os.path.abspath(os.path.expanduser(args.data))]
    shares = parse_shares(args.split)
    if args.split:
        opts += ["DATASETS.SPLIT", str(list(shares))]
    data = register_own_data(opts[1], shares)
    if args.machine_rank == 0:
        _tell_data(data)
    args.opts = [*args.opts, *opts]
    if args.config_file:
        return
    folder = _output_folder(args.opts)
    path = os.path.join(folder, RECIPE)
    if args.resume or args.eval_only:
        if not os.path.isfile(path):
            raise RunError(f"{path} is not there to go on from; name it with --config-file.")
    else:
        _choose(args, data, folder, path)
    args.config_file = [path]


def recipe_config(recipe: Recipe, opts: List[str]) -> CfgNode:
    """The config of a recipe with overrides, its data registered and counted."""
    cfg = get_cfg()
    for file in recipe.files:
        cfg.merge_from_file(get_config_file(file))
    cfg.merge_from_list([word for pair in recipe.keys.items() for word in pair])
    cfg.merge_from_list(opts)
    use_own_data(cfg, opts)
    return cfg


def measure_step(cfg: CfgNode, steps: int = _TRIALS) -> Tuple[float, float]:
    """Seconds of a training step, the fastest of several, after one to warm up.

    The fastest, because whatever else runs on the machine only ever adds time.

    Returns:
        what it would take on a machine that is otherwise idle, and what it took
    """
    from detectron2.utils.events import EventStorage

    from .precision import GlobalNormClipper, Precision
    from .single_step import take_step
    from .trainer import Trainer

    cfg = cfg.clone()
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.SOLVER.BASE_LR *= cfg.SOLVER.WARMUP_FACTOR
    model = Trainer.build_model(cfg).train()
    optimizer = Trainer.build_optimizer(cfg, model)
    batches = iter(Trainer.build_train_loader(cfg))
    how = {"precision": Precision(cfg), "clip": GlobalNormClipper.from_config(cfg)}
    times, busy = [], []
    with EventStorage():
        for _ in range(steps + 1):
            start, cpu = time.perf_counter(), time.process_time()
            take_step(model, optimizer, batches, **how)
            if cfg.MODEL.DEVICE.startswith("cuda"):
                torch.cuda.synchronize()
            times.append(time.perf_counter() - start)
            busy.append(time.process_time() - cpu)
    taken = min(times[1:])
    if cfg.MODEL.DEVICE.startswith("cuda"):
        return taken, taken
    # If other programs run, too, the CPU time says how long it would take without them.
    return min(taken, _SLACK * min(busy[1:]) / torch.get_num_threads()), taken


def _choose(args: argparse.Namespace, data: RegisteredData, folder: str, path: str) -> None:
    if args.method and args.method not in METHODS:
        raise RunError(f"--method {args.method} is not known; choose {', '.join(METHODS)}.")
    device = dict(zip(args.opts[::2], args.opts[1::2])).get("MODEL.DEVICE")
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    machine = this_machine(device)
    minutes = args.minutes or _MINUTES[machine.device]
    facts = facts_of(_split(data, "train"), _split(data, data.evaluated))
    recipe = choose_model(facts, machine, args.method)
    with _quiet():
        seconds, taken = _measure(recipe, args.opts)
        slim = from_scratch(facts, machine, args.method, seconds, minutes)
        if slim is not None:
            recipe = slim
            seconds, taken = _measure(recipe, args.opts)
        less = smaller(recipe, facts, seconds, minutes)
        if less is not None:
            recipe = less
            seconds, taken = _measure(recipe, args.opts)
    recipe = choose_schedule(recipe, facts, seconds, minutes)
    os.makedirs(folder, exist_ok=True)
    with atomic_write(path) as stream:
        stream.write(_text(recipe, args).encode())
    print("Chosen for these data, this machine and the time:")
    for what, why in recipe.reasons:
        print(f"  {what}: {why}")
    if taken > 1.5 * seconds:
        print(f"  Others use this machine: a step took {taken:.2f} s, so that it will take longer.")
    print(f"Written to {path}; edit it and give it as --config-file to repeat or change it.")


def _measure(recipe: Recipe, opts: List[str]) -> Tuple[float, float]:
    with mistakes_in_sentences():  # an override that does not fit
        return measure_step(recipe_config(recipe, opts))


def _split(data: RegisteredData, split: str) -> Dict[str, Any]:
    with open(os.path.join(data.folder, f"{split}.json"), encoding="utf-8") as stream:
        return json.load(stream)


def _output_folder(opts: List[str]) -> str:
    given = dict(zip(opts[::2], opts[1::2]))
    return str(given.get("OUTPUT_DIR", get_cfg().OUTPUT_DIR))


def _tell_data(data: RegisteredData) -> None:
    parts = ", ".join(f"{len(_split(data, split)['images'])} {split}" for split in data.names)
    classes = ", ".join(data.classes[:8]) + (", ..." if len(data.classes) > 8 else "")
    print(f"{data.form}: {parts} images; {len(data.classes)} classes: {classes}")
    for note in data.notes:
        print(f"  note: {note}")
    if data.problems:
        print(
            f"  left out: {len(data.problems)} objects, the first in {data.problems[0].file} "
            f"({data.problems[0].kind}); 'd2ext data check' lists them"
        )


def _text(recipe: Recipe, args: argparse.Namespace) -> str:
    """The recipe as a YAML file that needs no other: what differs from the defaults."""
    cfg, default = recipe_config(recipe, args.opts), get_cfg()
    lines = ["# Chosen by d2ext train --data. The reasons:"]
    lines += [f"#   {what}: {why}" for what, why in recipe.reasons]
    tree = _difference(cfg, default)
    tree.pop("OUTPUT_DIR", None)
    tree["VERSION"] = cfg.VERSION  # without one Detectron2 warns, each time that it is read
    return "\n".join(lines) + "\n" + yaml.safe_dump(tree, sort_keys=False, width=100)


def _difference(node: CfgNode, default: CfgNode) -> Dict[str, Any]:
    found: Dict[str, Any] = {}
    for key, value in node.items():
        other = default.get(key)
        if isinstance(value, CfgNode):
            inner = _difference(value, other if isinstance(other, CfgNode) else CfgNode())
            if inner:
                found[key] = inner
        elif value != other:
            found[key] = _plain(value)
    return found


def _plain(value: Any) -> Any:
    return [_plain(v) for v in value] if isinstance(value, (tuple, list)) else value


class _quiet:
    """Keeps the messages of building a model for a measurement out of the terminal."""

    def __enter__(self) -> None:
        self.before = logging.root.manager.disable
        logging.disable(logging.WARNING)

    def __exit__(self, *_: Tuple[Any, ...]) -> None:
        logging.disable(self.before)

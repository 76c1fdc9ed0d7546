"""What can be wrong with a study that loads, found before anything runs."""

import difflib
from typing import Any, List, Sequence

import yaml

from d2ext._files import sentence_of
from d2ext.data.own import use_own_data
from d2ext.report.run import evaluated_figure

from .definition import Study
from .results import FROM_DETECTIONS

__all__ = ["check_study"]


def check_study(study: Study) -> List[str]:
    """What is wrong with the configs of a study, one sentence for each run; empty: nothing.

    A grid of hours should not find out about a misspelt key in its last row, or after it that a
    figure was never kept.
    """
    problems, configs = [], {}
    for run in study.runs:
        if run.name in configs:
            continue
        configs[run.name] = None
        try:
            configs[run.name] = cfg = run.resolve()
            use_own_data(cfg, [str(word) for word in run.overrides])
            _check_config(cfg, study.measure)
        # yacs raises AssertionErrors, and YAML has errors of its own.
        except (OSError, KeyError, ValueError, AssertionError, yaml.YAMLError) as error:
            problems.append(f"{run.name}: {sentence_of(error)}")
    return problems or _never_kept(study, list(configs.values()))


def _check_config(cfg: Any, measure: Sequence[str]) -> None:
    from d2ext.data import require_dataset
    from d2ext.engine import Trainer
    from d2ext.evaluation import evaluator_types

    require_dataset(*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)
    Trainer.check_config(cfg)
    for name in cfg.DATASETS.TEST:
        evaluator_types(name)  # refuses what has no evaluator, as the trainer will
    for word in FROM_DETECTIONS:
        if word in measure:
            _require_files(cfg, word)


def _require_files(cfg: Any, word: str) -> None:
    """What is measured on detections is measured in COCO's files of them and of annotations."""
    from detectron2.data import MetadataCatalog

    from d2ext.evaluation import evaluator_types

    if not cfg.DATASETS.TEST:
        raise ValueError(f"measure: {word} needs a data set in DATASETS.TEST; name one.")
    name = cfg.DATASETS.TEST[0]
    kinds = evaluator_types(name)
    if "coco" not in kinds:
        raise ValueError(
            f"measure: {word} needs data that is evaluated as coco, and '{name}' is evaluated "
            f"as {' and '.join(kinds)}; take {word} out of measure."
        )
    if "json_file" not in MetadataCatalog.get(name).as_dict():
        raise ValueError(
            f"measure: {word} needs annotations in a JSON file of COCO's form, and '{name}' "
            f"has none; give its metadata a json_file, or take {word} out of measure."
        )


def _never_kept(study: Study, configs: Sequence[Any]) -> List[str]:
    """A sentence for each of the study's figures that no run can have."""
    measured = tuple(f"{w}/" if w in FROM_DETECTIONS else w for w in study.measure)
    known = list(dict.fromkeys(figure for cfg in configs for figure in _known_figures(cfg)))
    problems = []
    for figure in study.figures:
        task, name = evaluated_figure(figure) or ("", "")
        # Figures of other tasks come from other evaluators, with names of theirs.
        elsewhere = task and task.split("/")[-1] not in ("bbox", "segm")
        of_class = name.startswith("AP-") and f"{task}/AP" in known
        if elsewhere or of_class or figure in known or (measured and figure.startswith(measured)):
            continue
        near = difflib.get_close_matches(figure, known, n=2)
        hint = f"did you mean {' or '.join(near)}?" if near else "choose another."
        if not (task or near):
            hint = "to keep it, add the beginning of its name to measure."
        problems.append(f"figures: no run will have '{figure}'; {hint}")
    return problems


def _known_figures(cfg: Any) -> List[str]:
    """All box and mask figures that evaluating this config can give, but those of classes."""
    from d2ext.evaluation import evaluator_types
    from d2ext.evaluation.metrics import metric_names

    names = {
        "coco": metric_names("coco", 100),
        "lvis": metric_names("lvis", 300),
        "pascal_voc": ["AP", "AP50", "AP75"],
    }
    averages = ["", "ema/"] if cfg.ENGINE.EMA.ENABLED and cfg.ENGINE.EMA.EVAL else [""]
    several = len(cfg.DATASETS.TEST) > 1
    return [
        f"{average}{data}/{task}/{name}" if several else f"{average}{task}/{name}"
        for average in averages
        for data in cfg.DATASETS.TEST
        for task in ("bbox", "segm")
        for kind in evaluator_types(data)
        for name in names.get(kind, ())
    ]

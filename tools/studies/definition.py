"""Study files: which configs, which seeds, and what is kept and shown of the runs.

A study is a YAML file::

    name: dw
    baseline: fcos               # what the others are compared with, seed by seed
    seeds: [1, 2, 3]
    common: [SOLVER.MAX_ITER, 800]
    runs:
      fcos: {config: configs/Demo/fcos_shapes.yaml}
      dw: {config: configs/Demo/dw_shapes.yaml, overrides: [MODEL.DW.SOFT_PRIOR, false]}

Overrides that several runs combine may be written once, under ``parts``, and a config that all
share on top::

    config: configs/Demo/fcos_shapes.yaml
    parts: {efl: [MODEL.DENSE.CLS_LOSS, efl], alwa: [SOLVER.ALWA.ENABLED, true]}
    runs: {fcos: {}, both: {parts: [efl, alwa]}}

A study that is like another one names its file and says the rest; runs and parts join those of
the other file, words of ``common`` come after its words, and ``name`` and ``title`` are its own::

    _BASE_: dw.yaml
    name: dw_long
    common: [SOLVER.MAX_ITER, 1600]

``title`` is the study in a few words. ``import: [module]`` names modules of yours to import first,
``figures: [bbox/AP]`` what the table shows, and ``measure`` what is kept besides the evaluation:
``consistency`` (how far scores follow IoUs), ``bootstrap`` (AP on test images that are drawn again
and again) or beginnings of names in ``metrics.json``, such as ``alwa/``.
"""

import dataclasses
import functools
import hashlib
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

from .study_file import read_study_file

__all__ = ["Run", "Study", "load_study"]


@dataclasses.dataclass(frozen=True)
class Run:
    """One config with one seed.

    Attributes:
        name: its name in the study.
        seed: its seed.
        config: the YAML file.
        overrides: KEY VALUE words after the config.
    """

    name: str
    seed: int
    config: str
    overrides: Sequence[Any]

    def __str__(self) -> str:
        return f"{self.name}, seed {self.seed}"

    @property
    def key(self) -> Tuple[str, int]:
        """What tells it from the other runs of its study."""
        return self.name, self.seed

    def words(self) -> List[str]:
        """What ``train_net.py`` is told besides the output folder."""
        return ["--config-file", self.config, *map(str, self.overrides), "SEED", str(self.seed)]

    def resolve(self) -> Any:
        """The whole config."""
        from d2ext import get_cfg

        cfg = get_cfg()
        cfg.merge_from_file(self.config)
        cfg.merge_from_list([*map(str, self.overrides), "SEED", self.seed])
        return cfg

    def fingerprint(self) -> str:
        """Changes when the config does, through whichever file it came.

        Only what differs from the defaults counts, so that a key which is new in d2ext does not
        make all finished runs old.
        """
        cfg, default = self.resolve(), _default_config()
        changed = []
        for key in sorted(cfg.dotted_keys()):
            value, usual = cfg, default
            for word in key.split("."):
                value, usual = value[word], usual.get(word) if usual is not None else None
            if value != usual:
                changed.append(f"{key}={value!r}")
        return hashlib.sha256("\n".join(changed).encode()).hexdigest()[:16]


@functools.lru_cache(maxsize=1)
def _default_config() -> Any:
    from d2ext import get_cfg

    return get_cfg()


@dataclasses.dataclass(frozen=True)
class Study:
    """What a study file says.

    Attributes:
        name: names its folder of results.
        runs: every config with every seed.
        title: the study in a few words, for pages.
        baseline: the run that others are compared with.
        modules: modules to import before a config is read or trained.
        figures: what the table and the plot show; none: their own choice.
        measure: what is kept of a run besides the figures of its evaluation.
    """

    name: str
    runs: List[Run]
    title: str = ""
    baseline: Optional[str] = None
    modules: Sequence[str] = ()
    figures: Sequence[str] = ()
    measure: Sequence[str] = ()


def load_study(path: Path, root: Path) -> Study:
    """Read a study file.

    Args:
        path: the file.
        root: where configs are looked for after the file's own folder and the current one.
    """
    path = Path(path)
    text = read_study_file(path)
    runs = []
    for name, entry in text["runs"].items():
        overrides = _overrides(path, text, name, entry)
        config = entry["config"] or text["config"]
        if config is None:
            raise ValueError(f"{path}: '{name}' names no config, and neither does the file.")
        file = _find_config(config, [path.parent, Path.cwd(), Path(root)])
        runs += [Run(name, seed, str(file), overrides) for seed in text["seeds"]]
    baseline = text["baseline"]
    if baseline is not None and baseline not in text["runs"]:
        known = ", ".join(text["runs"])
        raise ValueError(f"{path}: the baseline '{baseline}' is not one of {known}.")
    # Seed by seed, so that a study which is stopped early has all its configs at some seeds.
    runs.sort(key=lambda run: run.seed)
    return Study(
        name=text["name"],
        runs=runs,
        title=text["title"] or text["name"],
        baseline=baseline,
        modules=tuple(text["import"]),
        figures=tuple(text["figures"]),
        measure=tuple(text["measure"]),
    )


def _overrides(path: Path, text: Dict[str, Any], name: str, entry: Dict[str, Any]) -> Tuple:
    overrides = list(text["common"])
    for part in entry["parts"]:
        if part not in text["parts"]:
            raise ValueError(f"{path}: '{name}' has the part '{part}', which parts lacks.")
        overrides += text["parts"][part]
    overrides += entry["overrides"]
    if len(overrides) % 2:
        raise ValueError(f"{path}: the overrides of '{name}' are not KEY VALUE pairs.")
    return tuple(overrides)


def _find_config(name: str, folders: Sequence[Path]) -> Path:
    """The first file of that name; the last folder's where there is none, for the message."""
    candidates = [folder / name for folder in folders]
    return next((c.resolve() for c in candidates if c.is_file()), candidates[-1])

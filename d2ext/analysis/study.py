"""Grids of configs and seeds, run as ``train_net.py`` runs, and what came of them.

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

Each finished run is one line of ``results.jsonl``. A run whose line is there, with the same config,
is never repeated; one that was killed goes on from its last checkpoint.
"""

import dataclasses
import hashlib
import json
import math
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

import yaml

__all__ = ["Run", "Study", "compare", "load_study", "markdown_table"]

# Two-sided 95 % points of Student's t by degrees of freedom; beyond the table the normal one.
_T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)


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

    def words(self) -> List[str]:
        """What ``train_net.py`` is told besides the output folder."""
        return ["--config-file", self.config, *map(str, self.overrides), "SEED", str(self.seed)]

    def fingerprint(self) -> str:
        """Changes when the config does, through whichever file it came.

        Only what differs from the defaults counts, so that a key which is new in d2ext does not
        make all finished runs old.
        """
        from d2ext import get_cfg

        cfg, default = get_cfg(), get_cfg()
        cfg.merge_from_file(self.config)
        cfg.merge_from_list([*map(str, self.overrides), "SEED", self.seed])
        changed = []
        for key in sorted(cfg.dotted_keys()):
            value, usual = cfg, default
            for word in key.split("."):
                value, usual = value[word], usual.get(word) if usual is not None else None
            if value != usual:
                changed.append(f"{key}={value!r}")
        return hashlib.sha256("\n".join(changed).encode()).hexdigest()[:16]


@dataclasses.dataclass(frozen=True)
class Study:
    """What a study file says."""

    name: str
    runs: List[Run]
    baseline: Optional[str] = None


def load_study(path: Path, root: Path) -> Study:
    """Read a study file; config paths are relative to ``root``."""
    text = yaml.safe_load(Path(path).read_text())
    common, parts = text.get("common", []), text.get("parts", {})
    runs = []
    for name, entry in text["runs"].items():
        overrides = list(common)
        for part in entry.get("parts", ()):
            if part not in parts:
                raise ValueError(f"{path}: '{name}' has the part '{part}', which parts lacks.")
            overrides += parts[part]
        overrides = (*overrides, *entry.get("overrides", ()))
        if len(overrides) % 2:
            raise ValueError(f"{path}: the overrides of '{name}' are not KEY VALUE pairs.")
        config = entry.get("config", text.get("config"))
        if config is None:
            raise ValueError(f"{path}: '{name}' names no config, and neither does the file.")
        for seed in text.get("seeds", [1]):
            runs.append(Run(name, seed, str(Path(root) / config), overrides))
    baseline = text.get("baseline")
    if baseline is not None and baseline not in text["runs"]:
        raise ValueError(f"{path}: the baseline '{baseline}' is none of {', '.join(text['runs'])}.")
    # Seed by seed, so that a study which is stopped early has all its configs at some seeds.
    runs.sort(key=lambda run: run.seed)
    return Study(text["name"], runs, baseline)


class Runner:
    """Runs what a study has not finished yet.

    Args:
        study: the study.
        folder: one folder a run below it, and ``results.jsonl``.
        command: how ``train_net.py`` is called.
        jobs: runs at the same time.
    """

    def __init__(self, study: Study, folder: Path, command: Sequence[str], jobs: int = 1):
        self.study = study
        self.folder = Path(folder)
        self.command = list(command)
        self.jobs = jobs

    @property
    def results_file(self) -> Path:
        return self.folder / "results.jsonl"

    def results(self) -> List[Dict[str, Any]]:
        """All finished runs whose config is still that of the study."""
        wanted = {(run.name, run.seed): run.fingerprint() for run in self.study.runs}
        found = []
        if self.results_file.exists():
            for line in self.results_file.read_text().splitlines():
                record = json.loads(line)
                if wanted.get((record["name"], record["seed"])) == record["config"]:
                    found.append(record)
        return found

    def run(self, report=print) -> List[Dict[str, Any]]:
        """Run what is missing; a failed run is reported and the others go on."""
        self.folder.mkdir(parents=True, exist_ok=True)
        done = {(r["name"], r["seed"]) for r in self.results()}
        missing = [run for run in self.study.runs if (run.name, run.seed) not in done]
        report(f"{self.study.name}: {len(done)} runs are finished, {len(missing)} to do.")
        start = time.time()
        with ThreadPoolExecutor(self.jobs) as pool:
            for count, (run, failure) in enumerate(zip(missing, pool.map(self._one, missing)), 1):
                left = (time.time() - start) / count * (len(missing) - count) / 60
                state = failure or "done"
                report(f"{run.name}, seed {run.seed}: {state}. About {left:.0f} minutes are left.")
        return self.results()

    def _one(self, run: Run) -> str:
        """Train and evaluate one run; returns what went wrong, or nothing."""
        fingerprint = run.fingerprint()
        output = self.folder / f"{run.name}_seed{run.seed}_{fingerprint[:6]}"
        output.mkdir(parents=True, exist_ok=True)
        start = time.time()
        words = [*self.command, "--resume", *run.words(), "OUTPUT_DIR", str(output)]
        with open(output / "stdout.txt", "a") as log:
            code = subprocess.run(words, stdout=log, stderr=subprocess.STDOUT).returncode
        if code:
            return f"failed with exit code {code}, see {output / 'stdout.txt'}"
        record = {
            "name": run.name,
            "seed": run.seed,
            "config": fingerprint,
            "seconds": round(time.time() - start, 1),
            "versions": versions(),
            "figures": last_figures(output / "metrics.json"),
            "output": output.name,
        }
        with open(self.results_file, "a") as results:
            results.write(json.dumps(record) + "\n")
        return ""


def versions() -> Dict[str, str]:
    """Versions of what a run depends on."""
    import torch
    import torchvision

    import d2ext

    return {
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "d2ext": d2ext.__version__,
    }


def last_figures(metrics: Path) -> Dict[str, float]:
    """The last value of every evaluation figure in a ``metrics.json``."""
    found: Dict[str, float] = {}
    for line in metrics.read_text().splitlines():
        for key, value in json.loads(line).items():
            if key.startswith(("bbox/", "segm/", "ema/")) and isinstance(value, (int, float)):
                found[key] = value
    return found


def compare(
    results: List[Dict[str, Any]], figure: str, baseline: Optional[str]
) -> Dict[str, Dict[str, float]]:
    """Mean and standard deviation of a figure, and its difference to the baseline seed by seed.

    Returns:
        For each run: ``mean``, ``std``, ``seeds`` and, unless it is the baseline, ``difference``
        with the half-width ``interval`` of its 95 % confidence interval (Student's t over seeds).
    """
    values: Dict[str, Dict[int, float]] = {}
    for record in results:
        values.setdefault(record["name"], {})[record["seed"]] = record["figures"][figure]
    table = {}
    for name, by_seed in values.items():
        row = {"seeds": len(by_seed), "mean": statistics.fmean(by_seed.values())}
        row["std"] = statistics.stdev(by_seed.values()) if len(by_seed) > 1 else math.nan
        shared = sorted(by_seed.keys() & values.get(baseline, {}).keys())
        if name != baseline and shared:
            differences = [by_seed[s] - values[baseline][s] for s in shared]
            row["difference"] = statistics.fmean(differences)
            row["interval"] = _half_width(differences)
        table[name] = row
    return table


def _half_width(values: Sequence[float]) -> float:
    if len(values) < 2:
        return math.nan
    t = _T95[len(values) - 2] if len(values) - 2 < len(_T95) else 1.96
    return t * statistics.stdev(values) / math.sqrt(len(values))


def markdown_table(
    results: List[Dict[str, Any]], figures: Sequence[str], baseline: Optional[str]
) -> str:
    """All runs and figures as a Markdown table, in the order of their first seed."""
    names = list(dict.fromkeys(record["name"] for record in results))
    tables = {figure: compare(results, figure, baseline) for figure in figures}
    heads = []
    for figure in figures:
        heads += [figure.split("/", 1)[1], "difference (95 %)"]
    lines = [
        "| run | seeds | " + " | ".join(heads) + " |",
        "|---" * (len(heads) + 2) + "|",
    ]
    for name in names:
        cells = []
        for figure in figures:
            row = tables[figure][name]
            cells.append(f"{row['mean']:.1f} ± {row['std']:.1f}")
            if "difference" in row:
                cells.append(f"{row['difference']:+.1f} ± {row['interval']:.1f}")
            else:
                cells.append("")
        lines.append(f"| {name} | {tables[figures[0]][name]['seeds']} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"

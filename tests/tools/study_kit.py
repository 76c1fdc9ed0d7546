"""What the tests of studies share: a study of two runs and a stand-in for train_net.py."""

import sys

from studies import Runner, load_study

CONFIG = "configs/Demo/fcos_shapes.yaml"
STUDY = """
name: s
baseline: a
seeds: [1, 2]
common: [SOLVER.MAX_ITER, 7]
runs:
  a: {config: %s}
  b: {config: %s, overrides: [SOLVER.BASE_LR, %s]}
"""
# AP is the seed times the learning rate. FAIL_B is a file: while it is there, b fails and takes a
# letter off it. GATE is a named pipe: the training says on it that it is there, then waits.
FAKE = """
import json, os, sys
words = sys.argv[1:]
start = words.index("--resume")
assert words[start + 1] == "--config-file"
keys = dict(zip(words[start + 3::2], words[start + 4::2]))
lr = float(keys.get("SOLVER.BASE_LR", 1))
gate = os.environ.get("GATE")
if gate:
    open(gate + ".there", "w").write(str(os.getpid()))
    open(gate + ".go").read()
fail = os.environ.get("FAIL_B")
if fail and lr != 1 and os.path.getsize(fail):
    os.truncate(fail, os.path.getsize(fail) - 1)
    sys.exit(3)
with open(os.path.join(keys["OUTPUT_DIR"], "metrics.json"), "a") as f:
    f.write(json.dumps({"iteration": 3, "bbox/AP": 0.0, "bbox/AP-x": 0.0}) + "\\n")
    f.write(json.dumps({"iteration": 7, "bbox/AP": lr * int(keys["SEED"]), "lr": lr}) + "\\n")
"""


def write_study(folder, lr=2.0):
    """The study file, in ``folder``."""
    path = folder / "s.yaml"
    path.write_text(STUDY % (CONFIG, CONFIG, lr))
    return path


def fake_command(folder):
    """How the stand-in is called."""
    fake = folder / "fake.py"
    fake.write_text(FAKE)
    return [sys.executable, str(fake)]


def study_of(folder, root, lr=2.0):
    return load_study(write_study(folder, lr), root)


def runner_of(folder, root, lr=2.0, jobs=1, *, report=lambda line: None, **kwargs):
    """A runner of that study with the stand-in."""
    command = fake_command(folder)
    study = study_of(folder, root, lr)
    return Runner(study, folder / "out", command, jobs, report=report, **kwargs)


def figures(results):
    return {(r["name"], r["seed"]): r["figures"]["bbox/AP"] for r in results}


def record(name, seed, value, **more):
    return {"name": name, "seed": seed, "config": "", "figures": {"bbox/AP": value}, **more}

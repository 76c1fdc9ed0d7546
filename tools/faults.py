#!/usr/bin/env python
"""Kill runs, damage checkpoints, fill the disk, soak, give bad inputs; see docs/reliability.md.

    python tools/faults.py --kills 50 --damages 200 --disks 12 --soak 3000
    python tools/faults.py --kills 8                # a short look

Every attack is a line of ``faults.jsonl`` in the output folder. Started again, a campaign goes on
behind the lines that are there; --seed makes another one. The exit code is 1 if anything was lost.
"""

import argparse
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=0, metavar="N", help="SIGKILLs of runs")
    parser.add_argument("--damages", type=int, default=0, metavar="N", help="damaged checkpoints")
    parser.add_argument("--disks", type=int, default=0, metavar="N", help="full disks")
    parser.add_argument(
        "--soak", type=int, default=0, metavar="STEPS", help="steps of one long run"
    )
    parser.add_argument("--inputs", type=int, default=0, metavar="N", help="bad inputs of commands")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=ROOT / "output" / "faults")
    args = parser.parse_args()
    if not (args.kills or args.damages or args.disks or args.soak or args.inputs):
        parser.error("Name at least one of --kills, --damages, --disks, --soak and --inputs.")

    import torch
    from campaigns.toy import draw_tiny

    from d2ext.engine import OutputLock

    torch.set_num_threads(1)
    output = args.output.resolve()
    with OutputLock(output), tempfile.TemporaryDirectory() as folder, draw_tiny(folder) as data:
        fine = [run(data, output, args) for run in (kills, damages, disks, soak, inputs)]
    sys.exit(0 if all(fine) else 1)


def kills(data, output, args):
    from campaigns.kills import KillCampaign

    return not args.kills or campaign(KillCampaign, "kills", args.kills, data, output, args.seed)


def damages(data, output, args):
    from campaigns.damage import DamageCampaign

    count = args.damages
    return not count or campaign(DamageCampaign, "damages", count, data, output, args.seed)


def disks(data, output, args):
    from campaigns.disk import DiskCampaign

    return not args.disks or campaign(DiskCampaign, "disks", args.disks, data, output, args.seed)


def inputs(data, output, args):
    from campaigns.inputs import InputCampaign

    return not args.inputs or campaign(
        InputCampaign, "inputs", args.inputs, data, output, args.seed
    )


def campaign(kind, name, count, data, output, seed):
    """Run one campaign to its end and print its table; returns whether nothing was lost."""
    from campaigns.record import Record

    attacks = kind(data, output / name, Record(output / "faults.jsonl", name, seed), seed)
    fine = attacks.run(count, report=lambda text: print(text, flush=True))
    print(f"\n{attacks.summary()}\n", flush=True)
    return fine


def soak(data, output, args):
    from campaigns.soak import soak, soak_problems, soak_table

    if not args.soak:
        return True
    found = soak(data, output, args.soak)
    problems = soak_problems(found)
    print(f"\n{soak_table(found)}\n\nGrown: {', '.join(problems) or 'nothing'}.", flush=True)
    return not problems


if __name__ == "__main__":
    main()

#!/usr/bin/env python
"""Convert a checkpoint that DW's authors released, so that d2ext can evaluate or fine-tune it.

    python tools/convert_dw_checkpoint.py authors.pth dw_R_50_refine.pth \\
        --config-file configs/DualWeighting/dw_R_50_FPN_1x_refine.yaml
    python train_net.py --config-file configs/DualWeighting/dw_R_50_FPN_1x_refine.yaml \\
        --eval-only MODEL.WEIGHTS dw_R_50_refine.pth
"""

import argparse
from typing import Dict

import torch

from d2ext import get_cfg
from d2ext.modeling.convert_dw import check_fits, convert_dw_state_dict, load_authors_checkpoint


def model_shapes(config_file: str) -> Dict[str, torch.Size]:
    """Names and shapes of the state dict that a config's model has."""
    from detectron2.modeling import build_model

    cfg = get_cfg()
    cfg.merge_from_file(config_file)
    cfg.MODEL.DEVICE = "cpu"
    return {name: value.shape for name, value in build_model(cfg).state_dict().items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", help="the authors' .pth file")
    parser.add_argument("target", help=".pth file to write")
    parser.add_argument("--config-file", help="check names and shapes against this config's model")
    args = parser.parse_args()

    converted = convert_dw_state_dict(load_authors_checkpoint(args.source))
    if args.config_file:
        check_fits(converted, model_shapes(args.config_file))
    torch.save({"model": converted}, args.target)
    print(f"{len(converted)} tensors written to {args.target}")


if __name__ == "__main__":
    main()

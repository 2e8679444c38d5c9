"""`python -m bridges`: the commands of the library."""

import argparse
from pathlib import Path

import torch
from transformers.utils.logging import disable_progress_bar

from bridges.training.pretrain import RECIPES, small_host


def main() -> None:
    """Parse the command line and run the command."""
    parser = argparse.ArgumentParser(prog="python -m bridges")
    commands = parser.add_subparsers(dest="command", required=True)
    host = commands.add_parser("host", help="pretrain a small host, unless the cache has it whole")
    host.add_argument("family", choices=["t5", "bart"])
    host.add_argument("--size", choices=list(RECIPES), default="quick")
    host.add_argument("--cache", type=Path, required=True, help="folder that keeps pretrained hosts")
    host.add_argument("--device", default="", help="torch device; the GPU when there is one, else the CPU")
    options = parser.parse_args()
    disable_progress_bar()  # transformers' own, for files that are read in milliseconds
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    small_host(options.family, options.size, options.cache, device)
    print(f"{options.cache / f'{options.family}-{options.size}'} is ready")


if __name__ == "__main__":
    main()

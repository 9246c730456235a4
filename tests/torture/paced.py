"""Run a training script slowly: `python paced.py FOLDER SCRIPT [ARGUMENT ...]`, for torchrun.

Each step takes 0.1 s longer, so that there are moments to disturb it, and imagenet/train.py trains
a tiny network. The file FOLDER/slow-save makes the next checkpoint take 45 s; it is renamed to
`saving` meanwhile and to `saved` afterwards.
"""

import importlib
import os
import runpy
import sys
import time
from pathlib import Path

STEP_S, SAVE_S = 0.1, 45


def run(folder: Path, script: Path) -> None:
    sys.path[0] = str(script.parent)
    sys.path.append(str(Path(__file__).resolve().parent.parent))
    optimizer = importlib.import_module("torch.optim.optimizer")
    optimizer.register_optimizer_step_post_hook(lambda *_: time.sleep(STEP_S))
    if script.name == "train.py":
        importlib.import_module("resnet").build = importlib.import_module("training").TinyNetwork
    slow_down_saves(folder)
    runpy.run_path(str(script), run_name="__main__")


def slow_down_saves(folder: Path) -> None:
    """Make the replacement of a checkpoint take 45 s whenever FOLDER/slow-save is found."""
    replace = os.replace

    def slow_replace(source, target):
        request, saving = folder / "slow-save", folder / "saving"
        if Path(target).name != "checkpoint.pt" or not request.exists():
            return replace(source, target)
        request.rename(saving)
        time.sleep(SAVE_S)
        replace(source, target)
        saving.rename(folder / "saved")

    os.replace = slow_replace


if __name__ == "__main__":
    sys.argv = sys.argv[1:]
    folder = Path(sys.argv.pop(0))
    run(folder, Path(sys.argv[0]))

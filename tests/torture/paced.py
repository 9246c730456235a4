"""Run a training script slowly: `python paced.py FOLDER SCRIPT [ARGUMENT ...]`, for torchrun.

Each step takes 0.3 s longer, so that there are moments to disturb it, and imagenet/train.py trains
a tiny network. The file FOLDER/slow-save makes a checkpoint take 45 s: the one whose number it
contains, or the next. The file is renamed to `saving` meanwhile and to `saved` afterwards.
"""

import importlib
import itertools
import os
import runpy
import sys
import time
from pathlib import Path

STEP_S, SAVE_S = 0.3, 45


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
    """Make the replacement of a checkpoint take 45 s if FOLDER/slow-save asks for it."""
    request, saving, saved = (folder / name for name in ("slow-save", "saving", "saved"))
    replace, numbers = os.replace, itertools.count(1)

    def slow_replace(source, target):
        is_checkpoint = Path(target).name == "checkpoint.pt"
        number = str(next(numbers)) if is_checkpoint else ""
        if not is_checkpoint or not request.exists() or request.read_text() not in ("", number):
            return replace(source, target)
        request.rename(saving)
        time.sleep(SAVE_S)
        replace(source, target)
        saving.rename(saved)

    os.replace = slow_replace


if __name__ == "__main__":
    sys.argv = sys.argv[1:]
    folder = Path(sys.argv.pop(0))
    run(folder, Path(sys.argv[0]))

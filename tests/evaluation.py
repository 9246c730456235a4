"""A small evaluation shared by the tests of `imagenet/main.py`."""

from pathlib import Path

import torchvision
from synthetic import save_weights, set_constant_ranking, write_folders

NETWORK = ("-a", "shufflenet_v2_x0_5", "--model_path")  # the smallest of torchvision


def run_main(imagenet, capsys, *arguments) -> tuple[int, str, str]:
    """Run main.py on small images; return its exit status, output and errors."""
    small = ("--device", "cpu", "--image-size", "32", "-j", "0", "-b", "3")
    status = imagenet.main.main([*small, *map(str, arguments)])
    return status, *capsys.readouterr()


def write_validation_set(imagenet, root: Path) -> Path:
    """Write seven images: one of class 2, four of class 5, two of class 900."""
    synsets = imagenet.validation_set.imagenet_synsets()
    return write_folders(root, {synsets[2]: 1, synsets[5]: 4, synsets[900]: 2})


def write_checkpoint(path: Path) -> Path:
    """Save a `NETWORK` that ranks class 2 first, class 5 second and class 900 below the top 5."""
    model = torchvision.models.shufflenet_v2_x0_5()
    set_constant_ranking(model.fc, [2, 5, 0, 1, 3])
    state = {f"module.{name}": value for name, value in model.state_dict().items()}
    return save_weights(path, state)


def error_rate(top1: float, top5: float) -> str:
    """Return the last line that main.py prints for these errors in percent."""
    return f"[Error rate] Top-1: {top1:.4f}%, Top-5: {top5:.4f}%"

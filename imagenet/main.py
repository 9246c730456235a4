"""Test a network on ImageNet's validation set, classify images, or export a backbone.

    python main.py -a resnet152 --pretrained IMAGENET             the released weights
    python main.py --model_path runs/r152 IMAGENET                a run of train.py, or a checkpoint
    python main.py --model_path runs/r152 --predict A.jpg
    python main.py --model_path runs/r152 --export r152.pth       for torchvision and timm
    python main.py --model_path runs/r152 --export r152/          a folder with a model card
    torchrun --nproc_per_node 8 main.py …                         on eight GPUs

IMAGENET is the folder that contains val/. The paper reports a top-1 error of 20.98 % with
ResNet-152.
"""

import os
from collections.abc import Sequence
from dataclasses import replace

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch: idle threads spin only
os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # as long as pays even beside other programs

from torch import nn

from augmentation import evaluation_transform
from batches import TestBatches
from common import checkpoint
from common.command_line import Incomplete, run_script
from common.distributed import Compute, print_once, process_group, rank
from common.evaluation import evaluate, predict, report_scores
from common.images import find_readable
from common.logs import Progress, print_predictions
from data import ImageFiles, class_indices, class_titles, list_test_images
from export import export
from flags import EvaluationConfig, parse_evaluation
from weights import Weights, build_network, choose_compute, download_released, read_weights


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    config = parse_evaluation(argv)
    with process_group(config.device) as device:
        weights = read_weights(config.model_path or download_released(config.arch or "resnet18"))
        kind = f"{', averaged weights' * weights.averaged}{checkpoint.progress(weights.content)}"
        print_once(f"weights: {weights.source}{kind}")
        trained = weights.metadata
        config = replace(
            config,
            arch=config.arch or trained.get("arch", "resnet18"),
            image_size=config.image_size or trained.get("image_size") or 224,
            dtype=config.dtype if "dtype" in config.given else trained.get("dtype", config.dtype),
        )
        if config.export:
            if rank() == 0:
                export(weights, config.arch, config.image_size, config.export)
            return
        compute = choose_compute(config.image_size, device, config.dtype)
        network = compute.place(build_network(config.arch, weights, config.branches))
        print_once(f"{compute}, images of {config.image_size} pixels")
        (classify if config.predict else test)(config, weights, network, compute)


def test(config: EvaluationConfig, weights: Weights, network: nn.Module, compute: Compute) -> None:
    """Print the errors on the test images. The last line is that of the released code."""
    images = list_test_images(config.data, config.val_labels)
    labels = class_indices(images, weights.classes, weights.num_classes)
    dataset = ImageFiles(images.paths, labels, evaluation_transform(config.image_size))
    batches = TestBatches(dataset, config.batch_size, config.workers, compute)
    shown = Progress("testing", len(batches), every=config.print_freq).over(batches)
    scores = evaluate({"test": network}, shown, compute, confusion=True)["test"]
    titles = class_titles(weights.classes or images.classes)
    report_scores(scores, titles, config, weights.source)
    top1, top5 = scores.top1_errors[0], scores.top5_errors[0]
    print_once(f"[Error rate] Top-1: {top1:.4f}%, Top-5: {top5:.4f}%")


def classify(
    config: EvaluationConfig, weights: Weights, network: nn.Module, compute: Compute
) -> None:
    """Print the five most likely classes of each given image."""
    paths, errors = find_readable(config.predict)
    transform = evaluation_transform(config.image_size)
    dataset = ImageFiles(paths, [0] * len(paths), transform)  # unlabeled
    batches = TestBatches(dataset, config.batch_size, config.workers, compute)
    unnamed = [f"class {index}" for index in range(weights.num_classes)]
    titles = class_titles(weights.classes or unnamed)
    print_predictions(paths, predict(network, batches, compute), titles, config.json)
    if errors:
        raise Incomplete("; ".join(errors))


if __name__ == "__main__":
    run_script(main)

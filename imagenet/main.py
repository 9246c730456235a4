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
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch: idle threads spin only
os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # as long as pays even beside other programs

import torch
from torch import nn

import resnet
from augmentation import evaluation_transform
from batches import TestBatches
from common.command_line import Incomplete, UserError, exit_status, plural, run_script
from common.distributed import Compute, print_once, process_group, rank, world_size
from common.engine import print_costs
from common.evaluation import (
    Scores,
    class_errors,
    confused_pairs,
    evaluate,
    predict,
    print_scores,
    score_content,
)
from common.images import find_readable
from common.logs import Progress, print_predictions, write_json
from data import ImageFiles, class_indices, class_titles, list_test_images
from export import export
from flags import EvaluationConfig, parse_evaluation
from weights import (
    Weights,
    build_network,
    choose_compute,
    download_released,
    read_weights,
    sha256,
    torchvision_weights,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    return exit_status(lambda: run(parse_evaluation(argv)))


def run(config: EvaluationConfig) -> None:
    with process_group(config.device) as device:
        weights = load_weights(config)
        if config.download_only:
            return
        config = complete(config, weights)
        if config.export:
            if rank() == 0:
                export(weights, config.arch, config.image_size, config.export)
            return
        compute = choose_compute(config.image_size, device, config.dtype)
        network = prepare(config, weights, compute)
        if config.predict:
            classify(config, weights, network, compute)
        else:
            test(config, weights, network, compute)


def load_weights(config: EvaluationConfig) -> Weights:
    """Load the weights that the options name; print where they come from."""
    if config.torchvision_weights:
        arch = config.arch or "resnet18"
        return torchvision_weights(arch, config.torchvision_weights, "--torchvision-weights")
    path = config.model_path
    if path is None:
        path = download_released(config.arch or "resnet18")
    weights = read_weights(path)
    averaged = ", averaged weights" if weights.averaged else ""
    digest = sha256(Path(weights.source))
    print_once(f"weights: {weights.source}{averaged}, SHA-256 {digest}")
    return weights


def complete(config: EvaluationConfig, weights: Weights) -> EvaluationConfig:
    """Return the options with network, image size and dtype of the checkpoint filled in.

    Prints in what the test differs from training.
    """
    trained = weights.metadata
    arch = config.arch or trained.get("arch", "resnet18")
    size = config.image_size or trained.get("image_size") or 224
    dtype = config.dtype if "dtype" in config.given else trained.get("dtype", config.dtype)
    for name, value in (("image_size", size), ("dtype", dtype)):
        if trained.get(name) not in (None, value) and not config.export:
            flag = name.replace("_", "-")
            print_once(f"note: trained with --{flag} {trained[name]}, tested with {value}")
    return replace(config, arch=arch, image_size=size, dtype=dtype)


def prepare(config: EvaluationConfig, weights: Weights, compute: Compute) -> nn.Module:
    """Build the network on its device; print what it costs and how it is computed."""
    network = build_network(config.arch, weights, config.branches)
    if config.arch in resnet.NETWORKS:
        branches = len(weights.backbone) < len(weights.state)
        print_costs(
            config.arch,
            lambda with_branches: resnet.build(config.arch, with_branches, weights.num_classes),
            branches,
            config.image_size,
        )
    print_once(f"{compute}, images of {config.image_size} pixels")
    network = compute.place(network).eval()
    try:
        with torch.no_grad():
            network(torch.zeros(1, 3, config.image_size, config.image_size, device=compute.device))
    except RuntimeError as error:
        raise UserError(
            f"--image-size {config.image_size}: {config.arch} does not accept this size ({error})"
        ) from error
    return network


def test(
    config: EvaluationConfig, weights: Weights, network: nn.Module, compute: Compute
) -> Scores:
    """Print the errors on the test images. The last line is that of the released code."""
    images = list_test_images(config.data, config.val_labels)
    known = weights.metadata.get("classes")
    labels = class_indices(images.class_names, known, weights.num_classes)
    transform = evaluation_transform(config.image_size, config.resize)
    dataset = ImageFiles(images.paths, labels, transform)
    batches = TestBatches(dataset, config.batch_size, config.workers, compute)
    progress = Progress("testing", len(batches), every=config.print_freq)
    start = time.perf_counter()
    models = {"test": network}
    scores = evaluate(models, progress.over(batches), compute, confusion=True)["test"]
    seconds = time.perf_counter() - start
    rate = scores.images / seconds
    print_once(f"{plural(scores.images, 'image')} in {seconds:.1f} s, {rate:.1f} images/s")
    titles = class_titles(known, weights.num_classes)
    print_scores(scores, titles if config.per_class else None)
    top1, top5 = scores.top1_errors[0], scores.top5_errors[0]
    print_once(f"[Error rate] Top-1: {top1:.4f}%, Top-5: {top5:.4f}%")
    if config.json and rank() == 0:
        about = {
            "checkpoint": weights.source,
            "images_per_s": rate,
            "processes": world_size(),
            "options": config.to_dict(),
            "class_errors": class_errors(scores, titles),
            "confused": confused_pairs(scores, titles),
        }
        write_json(config.json, score_content(scores, **about))
    return scores


def classify(
    config: EvaluationConfig, weights: Weights, network: nn.Module, compute: Compute
) -> None:
    """Print the five most likely classes of each given image."""
    if world_size() > 1:
        raise UserError("--predict supports only one process; run it without torchrun")
    paths, errors = find_readable(config.predict)
    transform = evaluation_transform(config.image_size, config.resize)
    dataset = ImageFiles(paths, [0] * len(paths), transform)  # unlabeled
    batches = TestBatches(dataset, config.batch_size, config.workers, compute)
    titles = class_titles(weights.metadata.get("classes"), weights.num_classes)
    print_predictions(paths, predict(network, batches, compute), titles, config.json)
    if errors:
        raise Incomplete("; ".join(errors))


if __name__ == "__main__":
    run_script(lambda: run(parse_evaluation()))

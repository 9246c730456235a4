"""Evaluate a network on ImageNet's validation set, classify images, or export a backbone.

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
import sys

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch: idle threads must not spin

from common.command_line import UserError, exit_status, require_file
from options import Config, parse

if __name__ == "__main__" and {"-h", "--help"} & set(sys.argv[1:]):
    sys.exit(exit_status(parse))  # without the imports below, which take seconds

import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

import resnet
from common.distributed import (
    describe_devices,
    distributed_context,
    print_once,
    rank,
    world_size,
)
from common.gpu import describe_dtype
from common.leaving import run_script
from common.metrics import cost
from common.results import list_predictions, print_predictions, write_json
from common.run_folder import refuse_overwriting
from data import ImageFiles
from download import download_released_weights
from evaluate import Scores, check_image_size, evaluate, predict
from export_path import weights_path
from exports import export
from layout import memory_format
from loader import evaluation_loader
from presets import evaluation_transform
from pretrained import LoadedModel, load_model, load_torchvision
from progress import EvaluationProgress
from results import print_scores, write_scores
from training_run import read_run
from validation_set import LabeledImages, class_indices, class_titles, list_validation_images
from weights import sha256
from workers import WorkerSignalGuard


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    return exit_status(lambda: run(parse(argv)))


def run(config: Config) -> None:
    with distributed_context(config.device) as device, WorkerSignalGuard() as workers:
        images = list_validation_images(config.data, config.val_labels) if config.data else None
        checkpoint = find_checkpoint(config)
        if config.download_only:
            return
        loaded = load(config, checkpoint)
        if config.export:
            export_loaded(config, loaded, checkpoint)
            return
        config = complete(config, loaded)
        prepare(config, loaded, device)
        if config.predict:
            classify(config, loaded, device, workers)
            return
        start = time.perf_counter()
        scores = score(config, loaded, images, device, workers)
        seconds = time.perf_counter() - start
        if rank() == 0:
            if config.json:
                write_scores(config, checkpoint, scores, seconds)
            print_scores(config, scores, seconds)


def find_checkpoint(config: Config) -> Path | None:
    """Return the file to load, downloading released weights; None for torchvision's weights."""
    path = config.model_path and weights_path(config.model_path)
    if config.pretrained or config.download_only:
        path = download_released_weights("resnet18" if config.arch is None else config.arch)
    if path:
        require_file("--model_path", path, "a checkpoint, or the folder of a run or an export")
        if config.json:
            refuse_overwriting("--json", config.json, [path])  # one that was downloaded
        print_once(f"checkpoint: {path}, SHA-256 {sha256(path)}")
    return path


def load(config: Config, checkpoint: Path | None) -> LoadedModel:
    """Load the network from a checkpoint or, if there is none, with torchvision's weights."""
    if checkpoint is None:
        arch = "resnet18" if config.arch is None else config.arch
        return load_torchvision(arch, config.torchvision_weights)
    return load_model(config.arch, checkpoint, config.branches)


def export_loaded(config: Config, loaded: LoadedModel, checkpoint: Path | None) -> None:
    """Write the backbone to a file or folder, with the image size of the options if it has none."""
    given, trained = config.image_size, loaded.metadata.image_size
    if None not in (given, trained) and given != trained:
        raise UserError(
            f"--image-size {given}: the checkpoint is of training with {trained} pixels; leave out "
            "--image-size"
        )
    if rank() > 0:
        return
    metadata = loaded.metadata._replace(image_size=trained or given)
    run, source = None, f"torchvision's {config.torchvision_weights}"
    if checkpoint:
        run, source = read_run(checkpoint), f"`{checkpoint.name}`, SHA-256 {sha256(checkpoint)}"
    export(loaded.network, config.export, metadata, source, run)
    print(f"exported the backbone to {config.export}")


def complete(config: Config, loaded: LoadedModel) -> Config:
    """Return the options with the network and the image size of the checkpoint filled in.

    Prints in what the evaluation differs from training.
    """
    trained = loaded.metadata
    size = config.image_size or trained.image_size or 224
    if trained.image_size not in (None, size):
        print_once(
            f"note: trained on images of {trained.image_size} pixels, evaluating on {size}; "
            f"--image-size {trained.image_size} matches training"
        )
    if trained.dtype not in (None, config.dtype):
        print_once(
            f"note: trained in {trained.dtype}, evaluating in {config.dtype}; --dtype "
            f"{trained.dtype} matches training"
        )
    return replace(config, arch=trained.arch, image_size=size)


def prepare(config: Config, loaded: LoadedModel, device: torch.device) -> None:
    """Move the network to the device; print its cost and in what it computes."""
    if config.arch in resnet.NETWORKS:
        network = partial(resnet.build, config.arch, num_classes=loaded.num_classes)
        for branches in (False, True)[: 1 + loaded.has_branches]:
            purpose = "training, with branches" if branches else "inference"
            size = cost(partial(network, branches), config.image_size)
            print_once(f"{config.arch} for {purpose}: {size}")
    print_once(
        f"{describe_devices(device)}, {describe_dtype(config.dtype, device)}, images of "
        f"{config.image_size} pixels"
    )
    # In float32 the logits stay bit-identical to training's.
    if config.dtype != "float32" and isinstance(loaded.model, resnet.DKSResNet):
        resnet.fold_batch_norms(loaded.model)
    layout = memory_format(config.image_size, device, getattr(torch, config.dtype))
    loaded.model.to(device, memory_format=layout)
    check_image_size(loaded.model, config.image_size, device)


def score(
    config: Config,
    loaded: LoadedModel,
    images: LabeledImages,
    device: torch.device,
    workers: WorkerSignalGuard,
) -> Scores:
    """Evaluate the model on the validation images."""
    for note in images.notes:
        print_once(note)
    labels = class_indices(images.class_names, loaded.metadata.class_names, loaded.num_classes)
    transform = evaluation_transform(config.image_size, config.resize)
    dataset = ImageFiles(images.paths, labels, transform, config.skip_unreadable)
    loader = evaluation_loader(dataset, config.batch_size, config.workers, device, workers)
    with EvaluationProgress(len(loader), config.print_freq, shown=rank() == 0) as progress:
        return evaluate(loaded.model, loader, device, getattr(torch, config.dtype), progress)


def classify(
    config: Config, loaded: LoadedModel, device: torch.device, workers: WorkerSignalGuard
) -> None:
    """Print the five most likely classes of each given image."""
    if world_size() > 1:
        raise UserError("--predict supports only one process; run it without torchrun")
    transform = evaluation_transform(config.image_size, config.resize)
    dataset = ImageFiles(config.predict, [0] * len(config.predict), transform)  # unlabeled
    loader = evaluation_loader(dataset, config.batch_size, config.workers, device, workers)
    titles = class_titles(loaded.metadata.class_names, loaded.num_classes)
    classes = predict(loaded.model, loader, device, getattr(torch, config.dtype))
    predictions = list_predictions(config.predict, classes, titles)
    print_predictions(predictions)
    if config.json:
        write_json(config.json, predictions)


if __name__ == "__main__":
    run_script(main)

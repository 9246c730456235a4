"""Evaluate a network on ImageNet's validation set, or classify images.

    python main.py -a resnet152 --pretrained IMAGENET             the released weights
    python main.py -a resnet152 --model_path FILE IMAGENET        a checkpoint
    python main.py -a resnet152 --model_path FILE --predict A.jpg
    torchrun --nproc_per_node 8 main.py …                         on eight GPUs

IMAGENET is the folder that contains val/. The paper reports a top-1 error of 20.98 % with
ResNet-152.
"""

import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

import resnet
import results
from common.command_line import UserError, exit_status, require_file
from common.distributed import barrier, distributed_context, print_once, rank, world_size
from common.metrics import cost
from data import ImageFiles
from download import download_released_weights
from evaluate import Scores, check_image_size, evaluate, predict
from loader import WorkerSignalGuard, evaluation_loader
from options import Config, parse
from presets import evaluation_transform
from pretrained import LoadedModel, load_model, load_torchvision
from progress import EvaluationProgress
from validation_set import LabeledImages, class_indices, class_titles, list_validation_images
from weights import sha256


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
        loaded.model.to(device, memory_format=torch.channels_last)
        check_image_size(loaded.model, config.image_size, device)
        if config.predict:
            print_predictions(config, loaded, device, workers)
            return
        start = time.perf_counter()
        scores = score(config, loaded, images, device, workers)
        seconds = time.perf_counter() - start
        if rank() == 0:
            if config.json:
                results.write_json(config, checkpoint, scores, seconds)
            results.print_scores(config, scores, seconds)


def find_checkpoint(config: Config) -> Path | None:
    """Return the file to load, downloading released weights; None for torchvision's weights."""
    path = config.model_path
    if config.pretrained or config.download_only:
        # Process 0 downloads first. Processes on other machines may have a cache of their own.
        path = download_released_weights(config.arch) if rank() == 0 else None
        barrier()
        path = path or download_released_weights(config.arch)
    if path:
        require_file("--model_path", path, "a checkpoint")
        print_once(f"checkpoint: {path}, SHA-256 {sha256(path)}")
    return path


def load(config: Config, checkpoint: Path | None) -> LoadedModel:
    """Load the model; print its cost for inference and for training with branches."""
    if checkpoint is None:
        return load_torchvision(config.arch, config.torchvision_weights)
    loaded = load_model(config.arch, checkpoint, config.branches)
    if loaded.image_size not in (None, config.image_size):
        print_once(
            f"note: trained on images of {loaded.image_size} pixels, evaluating on "
            f"{config.image_size}; --image-size {loaded.image_size} matches training"
        )
    if config.arch in resnet.NETWORKS:
        network = partial(resnet.build, config.arch, num_classes=loaded.num_classes)
        for purpose, branches in (("inference", False), ("training with DKS", True)):
            size = cost(partial(network, branches), config.image_size)
            print_once(f"{config.arch} for {purpose}: {size}")
        if config.dtype != "float32":  # float32 logits stay bit-identical to training's
            resnet.fold_batch_norms(loaded.model)
    return loaded


def score(
    config: Config,
    loaded: LoadedModel,
    images: LabeledImages,
    device: torch.device,
    workers: WorkerSignalGuard,
) -> Scores:
    """Evaluate the model on the validation images."""
    for note in images.notes:
        print_once(f"{config.data / 'val'}: {note}")
    dataset = ImageFiles(
        images.paths,
        class_indices(images.class_names, loaded.class_names, loaded.num_classes),
        evaluation_transform(config.image_size, config.resize),
        config.skip_unreadable,
    )
    loader = evaluation_loader(dataset, config.batch_size, config.workers, device, workers)
    with EvaluationProgress(len(loader), config.print_freq, shown=rank() == 0) as progress:
        return evaluate(loaded.model, loader, device, getattr(torch, config.dtype), progress)


def print_predictions(
    config: Config, loaded: LoadedModel, device: torch.device, workers: WorkerSignalGuard
) -> None:
    """Print the five most likely classes of each given image."""
    if world_size() > 1:
        raise UserError("--predict supports only one process; run it without torchrun")
    transform = evaluation_transform(config.image_size, config.resize)
    dataset = ImageFiles(config.predict, [0] * len(config.predict), transform)  # unlabeled
    loader = evaluation_loader(dataset, config.batch_size, config.workers, device, workers)
    titles = class_titles(loaded.class_names, loaded.num_classes)
    predictions = predict(loaded.model, loader, device, getattr(torch, config.dtype))
    for path, classes in zip(config.predict, predictions, strict=True):
        print(path)
        for index, probability in classes:
            print(f"  {100 * probability:6.2f}%  {titles[index]}")


if __name__ == "__main__":
    sys.exit(main())

"""Evaluate a network on ImageNet's validation set, or classify images.

    python main.py -a resnet152 --pretrained IMAGENET             the released weights
    python main.py -a resnet152 --model_path FILE IMAGENET        a checkpoint
    python main.py -a resnet152 --model_path FILE --predict A.jpg
    torchrun --nproc_per_node 8 main.py …                         on eight GPUs

IMAGENET is the folder that contains val/. ResNet-152 should come to the paper's 20.98 % top-1.
"""

import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

import resnet
import results
from classifier import Classifier, load_classifier, load_torchvision
from command_line import DTYPES, Refused, exit_status, require_file
from data import ImageFiles, evaluation_loader, evaluation_transform
from distributed import barrier, print_once, processes, rank, world_size
from download import fetch
from evaluate import Bar, Scores, check_image_size, evaluate
from metrics import cost
from options import Config, parse
from predict import class_titles, predict
from validation_set import NamedImages, class_indices, find_images
from weights import sha256


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line, the process's own if `argv` is None; returns the exit status."""
    return exit_status(lambda: run(parse(argv)))


def run(config: Config) -> None:
    with processes(config.device) as device:
        images = find_images(config.data, config.val_labels) if config.data else None
        checkpoint = find_checkpoint(config)
        if config.download_only:
            return
        classifier = load(config, checkpoint)
        classifier.model.to(device, memory_format=torch.channels_last)
        check_image_size(classifier.model, config.image_size, device)
        if config.predict:
            print_predictions(config, classifier, device)
            return
        started = time.perf_counter()
        scores = score(config, classifier, images, device)
        seconds = time.perf_counter() - started
        if rank() == 0:
            if config.json:
                results.write(config, checkpoint, scores, seconds)
            results.show(config, scores, seconds)


def find_checkpoint(config: Config) -> Path | None:
    """The file to load, downloaded if it is a released one; None for torchvision's weights."""
    path = config.model_path
    if config.pretrained or config.download_only:
        # One process downloads; after it those of other machines, which have their own cache.
        path = fetch(config.arch) if rank() == 0 else None
        barrier()
        path = path or fetch(config.arch)
    if path:
        require_file("--model_path", path, "a checkpoint")
        print_once(f"checkpoint: {path}, SHA-256 {sha256(path)}")
    return path


def load(config: Config, checkpoint: Path | None) -> Classifier:
    """The network with its weights; prints what the branches cost, which are for training."""
    if checkpoint is None:
        return load_torchvision(config.arch, config.torchvision_weights)
    classifier = load_classifier(config.arch, checkpoint, config.branches)
    trained = classifier.image_size
    if trained not in (None, config.image_size):
        print_once(
            f"note: trained on images of {trained} pixels, used on {config.image_size}; "
            f"--image-size {trained} is as in training"
        )
    if config.arch in resnet.NETWORKS:
        for what, branches in (("to use", False), ("to train with DKS", True)):
            size = cost(
                lambda branches=branches: resnet.build(config.arch, branches, classifier.outputs),
                config.image_size,
            )
            print_once(f"{config.arch} {what}: {size}")
        if config.dtype != "float32":  # there every last bit stays that of training
            resnet.fold_batch_norms(classifier.model)
    return classifier


def score(
    config: Config, classifier: Classifier, images: NamedImages, device: torch.device
) -> Scores:
    """Evaluate the network on the images of the validation set."""
    for remark in images.remarks:
        print_once(f"{config.data / 'val'}: {remark}")
    dataset = ImageFiles(
        images.paths,
        class_indices(images.names, classifier.class_names, classifier.outputs),
        evaluation_transform(config.image_size, config.resize),
        config.skip_unreadable,
    )
    loader = evaluation_loader(dataset, config.batch_size, config.workers, device)
    with Bar(len(loader), config.print_freq, shown=rank() == 0) as bar:
        return evaluate(classifier.model, loader, device, DTYPES[config.dtype], bar)


def print_predictions(config: Config, classifier: Classifier, device: torch.device) -> None:
    """Print the five likeliest classes of each image that was given."""
    if world_size() > 1:
        raise Refused("--predict: start it as one process, without torchrun")
    transform = evaluation_transform(config.image_size, config.resize)
    unlabelled = ImageFiles(config.predict, [0] * len(config.predict), transform)
    loader = evaluation_loader(unlabelled, config.batch_size, config.workers, device)
    titles = class_titles(classifier.class_names, classifier.outputs)
    found = predict(classifier.model, loader, device, DTYPES[config.dtype])
    for path, classes in zip(config.predict, found, strict=True):
        print(path)
        for index, probability in classes:
            print(f"  {100 * probability:6.2f}%  {titles[index]}")


if __name__ == "__main__":
    sys.exit(main())

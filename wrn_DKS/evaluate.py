"""What a trained network is used for: it is evaluated, classifies images, or is exported."""

from pathlib import Path

import torch

import resnet
import wide_resnet
from common import checkpoint
from common.command_line import UserError, plural
from common.distributed import describe_devices, print_once, rank, world_size
from common.gpu import describe_dtype
from common.images import read_squares
from common.results import list_predictions, print_predictions, write_json
from common.stopping import PreemptionGuard
from data import IMAGE_SIZES, DatasetInfo, Split, load_dataset
from engine import EpochResult, Trainer, make_trainer
from epoch_log import print_costs, print_errors, write_results
from loader import Batches, StoppableBatches
from networks import build_network
from options import Config, check_epochs, check_given_options, use_recorded
from run_state import LoadedCheckpoint, export_backbone, load_checkpoint

MOST_LIKELY = 5  # classes that are printed for each image


def check_network(config: Config) -> None:
    """Raise `UserError` if the network or the image size is not possible."""
    native_size = IMAGE_SIZES[config.dataset]
    if config.dataset != "folder" and config.image_size != native_size:
        raise UserError(
            f"--dataset {config.dataset}: its images have {native_size} pixels, not "
            f"{config.image_size}; choose another dataset, or leave out --image-size"
        )
    if config.arch == "resnet" and (config.dropout or config.width != 1):
        given = "--dropout" if config.dropout else f"--width {config.width:g}"
        raise UserError(f"{given}: only for --arch wrn; leave it out")
    try:
        if config.arch == "resnet":
            resnet.blocks_per_group(config.depth)
        else:
            wide_resnet.blocks_per_group(config.depth)
            wide_resnet.group_channels(config.width)
    except ValueError as error:
        raise UserError(f"--{error}") from error  # begins with `depth` or `width`


def evaluate(config: Config, device: torch.device) -> None:
    """Print the error of every classifier in --resume, and of their ensemble."""
    loaded = load_checkpoint(config.checkpoint)
    config = use_recorded(config, loaded.recorded(), loaded.source)
    check_network(config)
    data = load_dataset(
        config.dataset, config.dataroot, config.image_size, config.nthread, loaded.info
    )
    num_classes = len(data.info.classes)
    print_costs(config, num_classes, loaded.has_branches)
    trainer = make_trainer(config, num_classes, device, loaded.has_branches)
    checkpoint.load_weights(trainer.model, loaded.weights, loaded.source)
    source = config.dataroot if config.dataset == "folder" else config.dataset
    images = f"{plural(len(data.test.labels), 'test image')} of {source}"
    print_computation(config, loaded, device, images)
    batches = Batches(data.test, data.info, config.batch_size, device)
    with PreemptionGuard() as guard:
        test = trainer.evaluate(StoppableBatches(batches, guard))
    report(config, trainer, data.info, test, loaded.source)


def report(
    config: Config, trainer: Trainer, info: DatasetInfo, test: EpochResult, source: Path
) -> None:
    """Print the errors of a test of `source`; write --json and --export if they are given."""
    print_errors(test)
    if config.json is not None and rank() == 0:
        write_results(config, source, trainer.device, test)
    if config.export is not None and rank() == 0:
        export_backbone(config.export, trainer.model.backbone_state_dict(), config, info)


def print_computation(
    config: Config, loaded: LoadedCheckpoint, device: torch.device, images: str
) -> None:
    """Print which checkpoint is used on which images, and what it is computed with."""
    epoch = loaded.content.get("epoch")
    trained = "" if epoch is None else f", trained for {plural(epoch, 'epoch')}"
    print_once(f"{loaded.source}: {config.network}{trained}")
    print_once(f"{describe_devices(device)}, {describe_dtype(config.dtype, device)}, {images}")
    dtype = loaded.options.get("dtype", config.dtype)
    if dtype != config.dtype:
        print_once(f"note: it was trained with --dtype {dtype}, which may give other results")


def predict(config: Config, device: torch.device) -> None:
    """Print the most likely classes of each image in --predict, by the backbone in --resume."""
    if world_size() > 1:
        raise UserError("--predict supports only one process; run it without torchrun")
    loaded = load_checkpoint(config.checkpoint)
    config = use_recorded(config, loaded.recorded(), loaded.source)
    info = loaded.info or info_of_dataset(config, loaded.source)
    trainer = make_trainer(config, len(info.classes), device, branches=False)
    checkpoint.load_weights(trainer.model, loaded.backbone, loaded.source)
    print_computation(config, loaded, device, plural(len(config.predict), "image"))
    images = read_squares(config.predict, config.image_size, config.nthread, "reading images")
    split = Split(images, torch.zeros(len(images), dtype=torch.int64))  # unlabeled
    batches = Batches(split, info, config.batch_size, device)
    with PreemptionGuard() as guard:
        probabilities = trainer.predict(StoppableBatches(batches, guard))
    best = probabilities.topk(min(MOST_LIKELY, len(info.classes)))
    classes = [
        list(zip(indices, values, strict=True))
        for indices, values in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]
    predictions = list_predictions(config.predict, classes, info.classes)
    print_predictions(predictions)
    if config.json is not None:
        write_json(config.json, predictions)


def info_of_dataset(config: Config, source: Path) -> DatasetInfo:
    """Return class names and normalization of --dataset, for a checkpoint without them.

    Raises:
        UserError: --dataset is not given, or its data is missing.
    """
    if "dataset" not in config.given:
        raise UserError(
            f"{source}: checkpoints of the released code contain no class names; give the "
            "--dataset that it was trained on, and its --dataroot"
        )
    check_network(config)
    return load_dataset(config.dataset, config.dataroot, config.image_size, config.nthread).info


def export_finished_run(config: Config) -> bool:
    """Export the backbone of --resume at once if its run has finished; return whether it has."""
    if config.export is None or config.checkpoint is None:
        return False
    loaded = load_checkpoint(config.checkpoint)
    planned = config.epochs if "epochs" in config.given else loaded.options.get("epochs")
    finished = loaded.content.get("epoch")  # an exported backbone has none
    if loaded.info is None or None in (planned, finished) or finished < planned:
        return False
    if "epochs" in config.given:
        check_epochs(finished, config, loaded.source)
    if config.json is not None:
        raise UserError("--json and --export of a finished run: add --evaluate, which tests it")
    check_given_options(loaded.options, config, loaded.source)
    config = use_recorded(config, loaded.recorded(), loaded.source)
    network = build_network(config, len(loaded.info.classes), branches=False)
    checkpoint.load_weights(network, loaded.backbone, loaded.source)
    if rank() == 0:
        export_backbone(config.export, network.state_dict(), config, loaded.info)
    return True

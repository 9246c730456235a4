"""The likeliest classes of single images, by name."""

from collections.abc import Sequence

import torch
import torchvision
from torch import nn
from torch.utils.data import DataLoader

from data import batches
from evaluate import forward, refuse_too_large_batches
from validation_set import imagenet_synsets


@refuse_too_large_batches()
@torch.no_grad()
def predict(
    model: nn.Module, loader: DataLoader, device: torch.device, dtype: torch.dtype, count: int = 5
) -> list[list[tuple[int, float]]]:
    """The `count` likeliest classes of each image, (index, probability), likeliest first.

    Args:
        model: maps images (B, 3, S, S) to a tuple of logits (B, K), of which the first counts.
        loader: gives the images; its labels are not looked at.
        device: where the model is.
        dtype: of convolutions and matrix products.
        count: how many classes to give, K at most.

    Raises:
        Refused: an image can't be read, or the device's memory is too small for a batch.
    """
    model.eval()
    found = []
    for images, _ in batches(loader, device):
        probabilities = forward(model, images, dtype)[0].float().softmax(-1)
        best = probabilities.topk(min(count, probabilities.shape[1]))
        found += [
            list(zip(indices, values, strict=True))
            for indices, values in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]
    return found


def class_titles(names: Sequence[str] | None, outputs: int) -> list[str]:
    """What to call each of the classes in front of people: `tabby (n02123045)`.

    Args:
        names: the network's class names in the order of its outputs, where they are known; a
            network of 1,000 outputs without any is taken for one of ImageNet's.
        outputs: the number of classes.
    """
    if names is None and outputs != 1000:
        return [f"class {index}" for index in range(outputs)]
    synsets = imagenet_synsets()
    words = torchvision.models.ResNet50_Weights.IMAGENET1K_V1.meta["categories"]
    word_of = dict(zip(synsets, words, strict=True))
    return [f"{word_of[n]} ({n})" if n in word_of else n for n in names or synsets]

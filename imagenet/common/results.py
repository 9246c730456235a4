"""The results of a command: predictions, and JSON files."""

import json
from collections.abc import Sequence
from pathlib import Path

from .files import write_atomically


def list_predictions(
    paths: Sequence[Path], predictions: Sequence[list[tuple[int, float]]], titles: Sequence[str]
) -> list[dict]:
    """Return the predictions of each image as plain values.

    Args:
        paths: of the images.
        predictions: index and probability of the most likely classes of each image.
        titles: of all classes.
    """
    return [
        {
            "image": str(path),
            "classes": [
                {"name": titles[index], "index": index, "probability": probability}
                for index, probability in classes
            ],
        }
        for path, classes in zip(paths, predictions, strict=True)
    ]


def print_predictions(predictions: list[dict]) -> None:
    """Print the image and the most likely classes of each prediction."""
    for prediction in predictions:
        print(prediction["image"])
        for each in prediction["classes"]:
            print(f"  {100 * each['probability']:6.2f}%  {each['name']}")


def write_json(path: Path, content: object) -> None:
    """Write plain values to a JSON file, atomically.

    Raises:
        UserError: the file can't be written.
    """
    text = json.dumps(content, indent=2, default=str) + "\n"
    write_atomically(path, lambda file: file.write(text.encode()))

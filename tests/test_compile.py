"""--compile, with a fake compiler that records which graph runs."""

from functools import partial

import pytest
import torch
from training import TinyNetwork, command_line, load_checkpoint, run_train, write_data

CPU = torch.device("cpu")


@pytest.fixture
def graphs(monkeypatch):
    """The batch sizes that the graphs were compiled for, in the order in which they ran."""
    ran = []

    def backend(graph, inputs):
        tensors = [each for each in inputs if isinstance(each, torch.Tensor)]
        (images,) = [each for each in tensors if each.dim() == 4 and not each.requires_grad]

        def run(*args):
            ran.append(int(images.shape[0]))
            return graph(*args)

        return run

    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    yield ran
    torch._dynamo.reset()


def test_each_batch_size_has_its_own_graph_in_imagenet(imagenet, graphs):
    """After a partial batch, full ones run in their first graph, not in one of any size."""
    network = TinyNetwork("", num_classes=3)
    sgd = torch.optim.SGD(network.parameters(), lr=0.1)
    trainer = imagenet.engine.Trainer(network, imagenet.synergy.SynergyLoss(), sgd)
    trainer.compile()
    for count in (4, 4, 3, 4, 3):
        batch = imagenet.loader.Batch(torch.randn(count, 3, 40, 40), torch.arange(count) % 3, 1.0)
        trainer.train_step(batch, 0.1)
    assert graphs == [4, 4, 3, 4, 3]
    imagenet.evaluate.evaluate(trainer.model, [(torch.randn(2, 3, 40, 40), torch.arange(2))], CPU)
    assert len(graphs) == 5  # evaluation is not compiled
    assert trainer.model.state_dict().keys() == TinyNetwork("", num_classes=3).state_dict().keys()


def test_train_py_compiles_training_only(imagenet, graphs, tmp_path):
    """Its checkpoint is resumed without --compile."""
    data = write_data(tmp_path / "data")
    argv = command_line(data, tmp_path / "run", "--epochs", "1")
    assert run_train(imagenet, [*argv, "--compile"]) == 0
    assert graphs == [4, 4, 4, 1]  # 13 images
    assert not any("orig_mod" in name for name in load_checkpoint(tmp_path / "run")["model"])
    assert run_train(imagenet, [*argv, "--epochs", "2", "--resume", "auto"]) == 0
    assert len(graphs) == 4


def test_cifar_main_compiles_training_only(wrn, cifar_main, graphs, tmp_path):
    argv = ("--batch_size", 800, "--save", tmp_path)  # batches of 800 and 637
    assert cifar_main(*argv, "--epochs", 2, "--compile") == 0
    assert graphs == [800, 637, 800, 637]
    assert not any("orig_mod" in name for name in load_checkpoint(tmp_path)["model"])
    assert cifar_main(*argv, "--epochs", 3, "--resume", "auto") == 0
    assert len(graphs) == 4

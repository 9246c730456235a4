"""Seeds derived from that of a run, in new runs and in those of older checkpoints."""

import itertools
import json
from dataclasses import replace

import pytest
import torch
from cifar_runs import assert_same_weights, records


def test_different_keys_give_different_seeds(wrn):
    keys = [key for length in range(4) for key in itertools.product(range(4), repeat=length)]
    assert len({wrn.seeds.derived_seed(seed, *key) for seed in (0, 1) for key in keys}) == 170


@pytest.mark.parametrize(
    ("key", "seed"),
    [
        ((1, 0), 7434755675892716031),
        ((1, 0, 0), 7434755675892716031),  # the same
        ((7, 2), 9055738794286176629),
        ((7, 2, 1), 3662515792013050659),
        ((2**62, 3), 765002834236580059),
    ],
)
def test_scheme_1_gives_the_seeds_of_older_versions(wrn, key, seed):
    assert wrn.seeds.derived_seed(*key, scheme=1) == seed


@pytest.fixture
def seeds_of_epochs(wrn, monkeypatch):
    """The seeds of the images' order and of dropout of each epoch that is trained."""
    seeds, train_epoch = [], wrn.engine.Trainer.train_epoch

    def record(trainer, batches, epoch, progress, seed):
        seeds.append((batches._batches._seed(epoch), seed))
        return train_epoch(trainer, batches, epoch, progress, seed)

    monkeypatch.setattr(wrn.engine.Trainer, "train_epoch", record)
    return seeds


def test_order_and_dropout_of_a_new_run_have_different_seeds(cifar_main, seeds_of_epochs, tmp_path):
    assert cifar_main("--epochs", 2, "--save", tmp_path) == 0
    assert len({*itertools.chain(*seeds_of_epochs)}) == 4
    assert [record["random_scheme"] for record in records(tmp_path)] == [2, 2]


def test_a_run_of_an_older_version_keeps_its_random_numbers(
    wrn, cifar_main, seeds_of_epochs, tmp_path, monkeypatch, capsys
):
    """Its checkpoint and log do not name the scheme."""
    options = ("--dropout", "--epoch_step", "[9]", "--save")
    with monkeypatch.context() as patch:
        parse = wrn.options.parse
        patch.setattr(wrn.main, "parse", lambda argv: replace(parse(argv), random_scheme=1))
        assert cifar_main(*options, tmp_path / "whole", "--epochs", 3) == 0
        assert cifar_main(*options, tmp_path / "old", "--epochs", 2) == 0
    assert all(order == dropout for order, dropout in seeds_of_epochs)  # as they were
    path = tmp_path / "old" / "checkpoint.pt"
    content = torch.load(path, weights_only=True)
    assert content["options"].pop("random_scheme") == 1
    torch.save(content, path)
    lines = (json.dumps({k: v for k, v in record.items() if k != "random_scheme"})
             for record in records(path.parent))  # fmt: skip
    (path.parent / "log.txt").write_text("".join(f"json_stats: {line}\n" for line in lines))
    assert cifar_main(*options, path.parent, "--epochs", 3, "--resume", "auto") == 0
    assert_same_weights(path.parent, tmp_path / "whole")
    assert [record.get("random_scheme") for record in records(path.parent)] == [None, None, 1]
    content["options"]["random_scheme"] = 3
    torch.save(content, path)
    assert cifar_main(*options, path.parent, "--epochs", 3, "--resume", "auto") == 2
    assert "found 3; use a newer version" in capsys.readouterr().err

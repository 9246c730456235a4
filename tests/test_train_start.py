"""The start of training: learning rate, output folder, what is printed, what a refusal leaves."""

import json
import shutil

import pytest
from training import command_line, error_of, load_checkpoint, log_records, run_train, write_data


@pytest.fixture(scope="module")
def train(imagenet):
    return lambda argv: run_train(imagenet, argv)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("images"))


def short_run(data, *more):
    """Return the arguments of a run of one epoch without --save and --lr-milestones."""
    flags = "-a resnet18 --image-size 40 -b 4 --epochs 1 --lr 0.02 -j 0 --device cpu"
    return [str(data), *flags.split(), *map(str, more)]


@pytest.mark.parametrize(
    ("epochs", "milestones"),
    [(100, (30, 60, 90)), (200, (60, 120, 180)), (15, (5, 9, 14)), (10, (3, 6, 9)), (3, (1, 2)),
     (2, (1,)), (1, ())],
)  # fmt: skip
def test_default_milestones_scale_with_the_epochs(imagenet, epochs, milestones):
    assert imagenet.schedule.default_milestones(epochs) == milestones
    config = imagenet.train_options.parse(["IMAGENET", "--epochs", str(epochs)])
    assert config.with_milestones(None).milestones == milestones


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        ("--epochs 10",
         "learning rate 0.1, decayed to 0.01 after epoch 3, 0.001 after 6, 0.0001 after 9"),
        ("--epochs 1 --lr 0.05", "learning rate 0.05, constant over 1 epoch"),
        ("--epochs 20 --lr-milestones 5,30 --lr-factor 0.5",
         "learning rate 0.1, decayed to 0.05 after epoch 5"),
        ("--lr-schedule cosine --warmup-epochs 5",
         "learning rate 0.1 after 5 epochs of linear warmup, decayed to 0 along half a cosine over "
         "100 epochs"),
    ],
)  # fmt: skip
def test_the_schedule_is_described(imagenet, flags, text):
    config = imagenet.train_options.parse(["IMAGENET", *flags.split()]).with_milestones(None)
    assert str(config.schedule(7)) == text


def test_a_resumed_run_keeps_its_milestones(train, data, tmp_path, capsys):
    """Those of the first run, unless others are given, which are refused."""
    assert train(short_run(data, "--save", tmp_path / "a", "--epochs", 2)) == 0
    assert "learning rate 0.02, decayed to 0.002 after epoch 1\n" in capsys.readouterr().out
    assert load_checkpoint(tmp_path / "a")["options"]["milestones"] == [1]
    more = ("--save", tmp_path / "a", "--epochs", 4, "--resume", "auto")
    assert train(short_run(data, *more)) == 0
    assert "learning rate 0.02, decayed to 0.002 after epoch 1\n" in capsys.readouterr().out
    assert [r["lr"] for r in log_records(tmp_path / "a")] == pytest.approx(
        [0.02, 0.002, 0.002, 0.002]
    )
    error = error_of(train, capsys, short_run(data, *more, "--lr-milestones", "2"))
    assert "--milestones [2] (was [1])" in error


def test_a_folder_is_chosen_and_printed(train, data, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("resnet18-ds-seed3", "resnet18-ds-seed3-2"):
        assert train(short_run(data, "--method", "ds", "--seed", 3)) == 0
        assert (tmp_path / "logs" / name / "checkpoint.pt").exists()
        out = capsys.readouterr().out
        assert f"device cpu, dtype float32, output folder logs/{name}\n" in out
    # The folder of a run stands for its checkpoint, and is continued.
    flags = ("--method", "ds", "--seed", 3, "--epochs", 2, "--resume", f"logs/{name}")
    assert train(short_run(data, *flags)) == 0
    assert f"resumed from logs/{name}/checkpoint.pt: 1 epoch done\n" in capsys.readouterr().out
    assert load_checkpoint(tmp_path / "logs" / name)["epoch"] == 2


def test_resuming_counts_the_steps_of_the_epoch(train, imagenet, data, tmp_path, capsys):
    argv = command_line(data, tmp_path, "--checkpoint-minutes", "0", "--resume", "auto")
    with pytest.MonkeyPatch.context() as patch:
        step, calls = imagenet.engine.Trainer.train_step, []

        def stop_at_the_eighth(trainer, *arguments):
            calls.append(1)
            if len(calls) == 8:
                raise KeyboardInterrupt
            return step(trainer, *arguments)

        patch.setattr(imagenet.engine.Trainer, "train_step", stop_at_the_eighth)
        with pytest.raises(KeyboardInterrupt):
            train(argv)
    capsys.readouterr()
    assert train(argv) == 0
    out = capsys.readouterr().out
    assert "checkpoint.pt: 1 epoch and 3 of 4 steps of epoch 2 done\n" in out
    assert "13 training images of 3 classes, 5 validation images; 4 steps per epoch\n" in out
    assert train(argv) == 0
    assert "the run of 2 epochs is already finished" in capsys.readouterr().out


def test_fewer_epochs_than_a_run_has_are_refused(train, data, tmp_path, capsys):
    argv = command_line(data, tmp_path, "--resume", "auto")
    assert train(argv) == 0
    assert error_of(train, capsys, [*argv, "--epochs", "1"]) == (
        f"error: --epochs 1: the run in {tmp_path}/checkpoint.pt has 2 epochs done; use --epochs 2 "
        "or more\n"
    )
    assert len(log_records(tmp_path)) == 2


def test_an_older_run_with_a_milestone_given_twice_keeps_it(imagenet):
    config = imagenet.train_options.parse(["IMAGENET", "--lr-milestones", "60,30,30"])
    assert config.with_milestones([30, 30, 60]).milestones == (30, 30, 60)
    assert config.with_milestones([30, 90]).milestones == (60, 30)


def test_the_averaged_weights_are_named(train, imagenet, data, tmp_path, capsys):
    """On the line of an epoch and in the report, beside the last weights."""
    for name, flags in (("average", ["--ema", "0.5"]), ("plain", [])):
        argv = command_line(data, tmp_path / name, "--epochs", "1", "--lr", "0.5", *flags)
        assert train(argv) == 0
    out = capsys.readouterr().out
    (record,) = log_records(tmp_path / "average")
    (top1, top5), (ema1, ema5) = (
        [f"{record[part][f'top{k}_errors'][0]:.2f}" for k in (1, 5)]
        for part in ("validation", "ema")
    )
    assert (
        f"validation with last weights: top-1 error {top1} %, top-5 error {top5} %, "
        f"with averaged weights: top-1 error {ema1} %, top-5 error {ema5} %, "
    ) in out
    assert imagenet.report.main([str(tmp_path / "plain"), str(tmp_path / "average")]) == 0
    table = [line.split("|") for line in capsys.readouterr().out.splitlines() if line[:1] == "|"]
    title, _, *rows = [[cell.strip() for cell in line[1:-1]] for line in table]
    assert title[3:8] == [
        "validation error, last weights", "averaged weights", "shallow", "deep", "ensemble"
    ]  # fmt: skip
    cells = {row[0]: row[3:5] for row in rows}
    assert cells["dks, ema 0.5"] == [f"{top1} / {top5}", f"{ema1} / {ema5}"]
    assert cells["dks, ema 0"][1] == "–"


def test_every_number_of_an_epoch_says_error(train, data, tmp_path, capsys):
    assert train(command_line(data, tmp_path, "--epochs", "1")) == 0
    (line,) = (x for x in capsys.readouterr().out.splitlines() if x.startswith("epoch 1/1"))
    (record,) = log_records(tmp_path)
    validation = record["validation"]
    assert (
        f"top-1 error {record['train']['top1_errors'][0]:.2f} %, validation top-1 error "
        f"{validation['top1_errors'][0]:.2f} %, top-5 error {validation['top5_errors'][0]:.2f} %, "
    ) in line
    assert {"ensemble_top1_error", "ensemble_top5_error"} <= validation.keys()
    assert not any("average" in key for key in validation)
    options = json.loads((tmp_path / "log.jsonl").read_text())["options"]
    assert (options["arch"], options["image_size"]) == ("resnet18", 40)


@pytest.mark.parametrize(
    ("method", "losses"),
    [
        ("baseline", ["backbone", "total"]),
        ("ds", ["backbone", "branches", "total"]),
        ("dks", ["backbone", "branches", "synergy", "total"]),
    ],
)
def test_tensorboard_shows_the_losses_of_the_method(imagenet, method, losses):
    zero = dict.fromkeys(imagenet.synergy.Losses._fields, 0.0)
    record = {"lr": 0.1, "method": method, "times": {}, "train": {"losses": zero}}
    tags = imagenet.epoch_log.tensorboard_scalars(record)
    assert sorted(tag for tag in tags if "loss" in tag) == [f"loss train/{x}" for x in losses]


def test_validation_images_may_be_in_a_folder_called_test(train, data, tmp_path, capsys):
    copy = shutil.copytree(data, tmp_path / "images")
    (copy / "val").rename(copy / "test")
    assert train(command_line(copy, tmp_path / "run", "--epochs", "1")) == 0
    assert log_records(tmp_path / "run")[0]["validation"]["images"] == 5
    (copy / "val").mkdir()  # is preferred; many data sets have a test set without labels
    assert "val: empty folder" in error_of(train, capsys, command_line(copy, tmp_path / "b"))


def test_a_refused_start_leaves_no_folder(train, data, tmp_path, monkeypatch, capsys):
    assert train(command_line(data, tmp_path / "other", "--epochs", "1")) == 0
    checkpoint = str(tmp_path / "other" / "checkpoint.pt")
    for source, flags, message in (
        (tmp_path / "nowhere", [], "no such folder"),
        (data, ["--resume", "nowhere.pt"], "nowhere.pt: no such file"),
        (data, ["--resume", checkpoint, "--lr", "0.3"], "--lr 0.3 (was 0.02)"),
        (data, ["--device", "cuda:99"], "cuda:99"),
    ):
        argv = command_line(source, tmp_path / "runs" / "new", *flags)
        assert message in error_of(train, capsys, argv)
        assert not (tmp_path / "runs").exists()
    monkeypatch.chdir(tmp_path)
    assert "no such folder" in error_of(train, capsys, short_run(tmp_path / "nowhere"))
    assert not (tmp_path / "logs").exists()

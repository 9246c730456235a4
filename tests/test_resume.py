"""Training stopped, killed, resumed and continued; what a run refuses to overwrite or to change."""

import os
import shutil

import pytest
import torch
from halves import Killed, assert_same_run, before_call, contents, kill, load, records, sigterm

FLAGS = {
    "mixed": "--ema 0.8 --mixup 0.5 --cutmix 1 --label-smoothing 0.1 --grad-accumulation 2",
    "bfloat16": "--dtype bfloat16 --ema 0.5 --test-every 2 --method ds --lr-schedule cosine",
    "float16": "--dtype float16 --warmup-epochs 1 --checkpoint-minutes 0",
}
AUTO = ("--resume", "auto")


@pytest.fixture(scope="module")
def done(half, tmp_path_factory):
    """A finished run; not to be changed."""
    save = tmp_path_factory.mktemp("done")
    assert half.train(save) == 0
    return save


@pytest.fixture
def copy(done, tmp_path):
    return shutil.copytree(done, tmp_path / "copy")


@pytest.mark.parametrize("flags", FLAGS.values(), ids=FLAGS)
def test_a_stopped_run_ends_as_an_uninterrupted_one(half, tmp_path, capsys, flags):
    """Stopped within an epoch, after its last step, after the first of the next, and at the end."""
    flags = [*flags.split(), *["--dropout"] * half.is_wrn]
    assert half.train(tmp_path / "whole", *flags) == 0
    for step in (1, 3, 4, 7):
        assert half.train(tmp_path / "run", *flags, *AUTO, at={step: sigterm}) == 143
        assert load(tmp_path / "run")["step"] == step + 1
        out, err = capsys.readouterr()
        stopped = "error: stopped by SIGTERM; the run is saved: to continue, run the same command"
        assert err == f"{stopped} again\n"
    assert half.train(tmp_path / "run", *flags, *AUTO) == 0
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_a_killed_run_ends_as_an_uninterrupted_one(half, tmp_path):
    """With a checkpoint after each step; killed in a step, in the test, before the last save."""
    run, flags = tmp_path / "run", (*FLAGS["mixed"].split(), "--checkpoint-minutes", 0)
    assert half.train(tmp_path / "whole", *flags) == 0
    for step in (2, 6):
        with pytest.raises(Killed):
            half.train(run, *flags, *AUTO, at={step: kill})
        assert load(run)["step"] == step
        with pytest.raises(Killed), pytest.MonkeyPatch.context() as patch:
            before_call(patch, half.scripts.engine.Trainer, "test", 1, kill)
            half.train(run, *flags, *AUTO)
    with open(run / "log.jsonl", "a") as log:
        log.write((tmp_path / "whole" / "log.jsonl").read_text().splitlines()[1] + '\n{"epoch": 3,')
    assert half.train(run, *flags, *AUTO) == 0
    assert_same_run(run, tmp_path / "whole")


@pytest.mark.parametrize(
    ("name", "function", "action"),
    [
        ("evaluation", "prediction_counts", sigterm),  # in the test
        ("checkpoint", "save", sigterm),
        ("checkpoint", "save", kill),  # one epoch is logged, and starts again
    ],
)
def test_an_end_in_the_test_or_while_saving(half, done, tmp_path, name, function, action):
    with pytest.MonkeyPatch.context() as patch:
        before_call(patch, getattr(half.scripts, name), function, 1, action)
        if action is kill:
            pytest.raises(Killed, half.train, tmp_path)
        else:
            assert half.train(tmp_path) == 143
            assert load(tmp_path)["epoch"] == (name == "checkpoint")
    assert half.train(tmp_path, *AUTO) == 0
    assert_same_run(tmp_path, done)


def test_a_run_goes_on_without_other_options(half, copy, tmp_path, capsys):
    """--resume names its folder or checkpoint; the images may have moved; milestones stay."""
    data, workers = shutil.copytree(half.data, tmp_path / "moved"), ["-j", str(int(half.is_wrn))]
    argv = ["--resume", str(copy), "--epochs", "3", *workers]
    assert half.train(None, argv=argv) == 0
    assert f"resumed from {copy}/checkpoint.pt: 2 epochs done" in capsys.readouterr().out
    argv[1:4] = str(copy / "checkpoint.pt"), "--epochs", "4"
    assert half.train(None, argv=[*argv, "--dataroot", str(data)]) == 0
    assert half.train(tmp_path / "whole", "--epochs", 4, "--milestones", 1) == 0
    for run in (copy, tmp_path / "whole"):
        assert [record["epoch"] for record in records(run)] == [1, 2, 3, 4]
    models = [load(run)["model"] for run in (copy, tmp_path / "whole")]
    assert all(torch.equal(value, models[1][name]) for name, value in models[0].items())


def test_a_run_continued_in_another_folder_has_its_own_checkpoint(half, done, tmp_path, capsys):
    """Killed, it is not started again from the first one."""
    before, words = contents(done), (tmp_path, "--epochs", 4, "--checkpoint-minutes", 0, "--resume")
    with pytest.raises(Killed):
        half.train(*words, done, at={13: kill})
    assert load(tmp_path)["step"] == 13
    assert "already contains a run" in half.error(capsys, *words, done)
    assert half.train(*words, "auto") == 0
    assert load(tmp_path)["epoch"] == 4 and len(records(tmp_path)) == 2
    assert contents(done) == before


def test_a_run_is_neither_overwritten_nor_changed(half, copy, tmp_path, capsys):
    other, lost, empty, new = (tmp_path / name for name in ("other", "lost", "empty", "new"))
    assert half.train(other, "--epochs", 1, "--seed", 2) == 0
    lost.mkdir(), empty.mkdir(), shutil.copy(copy / "log.jsonl", lost)
    data = shutil.copytree(half.data, tmp_path / "data")
    (data / "train" / "dog" / "dog_0.png").rename(data / "train" / "dog" / "dog_x.png")
    foreign = tmp_path / "foreign.pt"
    torch.save(load(copy) | {"metadata": {"program": "another"}}, foreign)
    before = contents(tmp_path)
    for words, message in (
        ((copy,), "already contains a run; resume it with --resume auto"),
        ((copy, "--resume", other), "already contains a run"),
        ((lost, *AUTO), "already contains a run, whose checkpoint.pt is missing"),
        ((lost,), "already contains a run, whose checkpoint.pt is missing"),
        ((copy, *AUTO, "--epochs", 1), "has 2 epochs done; use 2 or more"),
        ((copy, *AUTO, "--epochs", 3, "--dataroot", data), "of a run on other images"),
        ((copy, *AUTO, "--lr", 0.5, "--seed", 3), "--lr 0.5 (was 0.02); --seed 3 (was 1)"),
        ((new, "--resume", empty), f"{empty}: no checkpoint.pt in it yet"),
        ((new, "--resume", "none.pt"), "none.pt: no such file"),
        ((new, "--resume", foreign), "foreign.pt: a run of another/; resume it there"),
        ((new, "--resume", copy / "log.jsonl"), "can't be loaded as a checkpoint"),
    ):
        assert message in half.error(capsys, *words)
    assert half.train(copy, *AUTO) == 0
    assert "2 epochs is already finished" in capsys.readouterr().out
    assert {path: value for path, value in contents(tmp_path).items() if value} == {
        path: value
        for path, value in before.items()
        if value  # without the locks
    }
    assert not new.exists() and not list(empty.iterdir())


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda c: c.update(format=99), "expected checkpoint format 2, found 99"),
        (lambda c: c.pop("options"), "expected dict under the key 'options'; it has format"),
        (lambda c: c.update(epoch="1"), "expected int under the key 'epoch'"),
        (lambda c: c.update(epoch=-1), "is damaged"),
        (lambda c: c.update(step=99), "is damaged"),
        (lambda c: c.update(rng=[]), "is damaged"),
        (lambda c: c["optimizer"]["state"].popitem(), "optimizer state does not fit"),
        (lambda c: c["model"].popitem(), "missing keys"),
        (lambda c: next(iter(c["model"].values())).fill_(float("nan")), "not finite"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_one_line(half, done, tmp_path, capsys, damage, message):
    content = load(done)
    damage(content)
    torch.save(content, tmp_path / "x.pt")
    words = (tmp_path / "new", "--epochs", 3, "--resume", tmp_path / "x.pt")
    assert message in half.error(capsys, *words)
    assert not (tmp_path / "new").exists()


def test_a_folder_is_chosen_and_made_by_a_run_only(half, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    assert "can't be written" in half.error(capsys, "file/run")
    assert "nowhere" in half.error(capsys, "a/b", "--dataroot", "nowhere")
    argv = half.argv("--epochs", 1)
    argv.remove("--save")
    assert "nowhere" in half.error(capsys, None, argv=[*argv, "--dataroot", "nowhere"])
    assert os.listdir(tmp_path) == ["file"]
    for ending in ("", "-2"):
        assert half.train(None, argv=argv) == 0
        name = f"logs/{'wrn' if half.is_wrn else 'resnet18'}-dks-seed1{ending}"
        assert f"output folder {name}\n" in capsys.readouterr().out
        assert (tmp_path / name / "checkpoint.pt").exists()


def test_two_processes_never_share_a_folder(wrn, tmp_path):
    """The lock of a run ends with its process."""

    def status_of_another_process() -> int:
        child = os.fork()
        if child == 0:
            try:
                with wrn.run_folder.lock_folder(tmp_path / "run"):
                    os._exit(0)
            except wrn.run_folder.UserError as error:
                os._exit(7 if "another run is writing there" in str(error) else 1)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    with wrn.run_folder.lock_folder(tmp_path / "run"):
        assert status_of_another_process() == 7
    assert status_of_another_process() == 0


@pytest.mark.parametrize(("part", "minutes"), [("parameters", 15), ("buffers", 15), ("buffers", 0)])
def test_what_is_not_finite_stops_the_run(half, done, tmp_path, capsys, part, minutes):
    """The last good checkpoint stays: of the step before, or of the epoch before."""
    words = (tmp_path, "--checkpoint-minutes", minutes, *AUTO)

    def spoil(trainer):
        next(getattr(trainer.model, part)()).data.fill_(float("nan"))

    assert "finite" in half.error(capsys, *words, at={5: spoil})
    saved = load(tmp_path)
    assert saved["step"] == (5 if minutes == 0 else 4)
    assert all(value.isfinite().all() for value in saved["model"].values())
    assert half.train(*words) == 0
    error = half.error(capsys, tmp_path / "new", "--lr", 1e15)
    assert f"the loss is not finite at step {4 - half.is_wrn} of the run (epoch 1)" in error
    expected = load(done)["model"]
    assert all(torch.equal(value, expected[k]) for k, value in load(tmp_path)["model"].items())

"""report.py: the table, how runs are grouped, and what is refused.

Both script folders have the same; it is tested in wrn_DKS/.
"""

import json
import resource
import subprocess
import sys

import pytest


def write_log(path, method, seed, last, epochs=3, planned=3, **options):
    """Write a `log.txt` whose last test error is `last`, with the options given."""
    path.mkdir(parents=True)
    lines = []
    for epoch in range(1, epochs + 1):
        error = last + 10 * (epochs - epoch)
        record = {"method": method, "seed": seed, "epoch": epoch, "epochs": planned, "depth": 10}
        record |= {"test_acc": 100 - error, "train_acc": 99.0, "test_error_ensemble": error - 1}
        if method != "baseline":
            record |= {"test_acc_ep1": 98 - error, "test_acc_ep2": 99 - error}
        lines.append("json_stats: " + json.dumps(record | {"test_time": epoch} | options) + "\n")
    (path / "log.txt").write_text("".join(lines))


def write_jsonl(path, method, seed, last, name="ensemble", **options):
    """Write a `log.jsonl` of one epoch; older logs call the ensemble `averaged`."""
    path.mkdir(parents=True)
    count = 1 if method == "baseline" else 3
    validation = {
        "top1_errors": [last + index for index in range(count)],
        "top5_errors": [last / 10 + index for index in range(count)],
        f"{name}_top1_error": last - 1,
        f"{name}_top5_error": last / 10 - 1,
    }
    record = {"epoch": 1, "step": 9, "arch": "resnet18", "method": method, "seed": seed, "lr": 0.1}
    record |= {"train": {"top1_errors": [60.0] * count}, "validation": validation}
    own = ("data_fingerprint", "decoding")
    record |= {key: options.pop(key) for key in own if key in options}
    record |= {"options": options} if options else {}
    (path / "log.jsonl").write_text(json.dumps(record) + "\n")


def report_of(script_folder, capsys, *words):
    """Run the report; return the table's rows by label, and all lines."""
    assert script_folder.report.main([*map(str, words)]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [[c.strip() for c in line.strip("|").split("|")] for line in lines if line[:1] == "|"]
    return {first: others for first, *others in rows}, lines


def test_parents_of_any_depth_and_both_kinds_of_logs(wrn, tmp_path, capsys):
    for seed, error in ((1, 20.0), (2, 22.0), (3, 27.0)):
        write_log(tmp_path / "runs" / "deep" / f"dks{seed}", "dks", seed, error)
    write_log(tmp_path / "runs" / "baseline", "baseline", 1, 30.0)
    write_log(tmp_path / "half", "baseline", 2, 31.0, epochs=2)
    (tmp_path / "runs" / "log.txt").mkdir()  # not a log
    write_jsonl(tmp_path / "im" / "new", "dks", 0, 50.0)
    write_jsonl(tmp_path / "im" / "old", "ds", 0, 60.0, name="averaged")
    twice = tmp_path / "runs" / "baseline"  # in runs/, too: read once
    words = (tmp_path / "runs", twice, tmp_path / "half", tmp_path / "im")
    rows, lines = report_of(wrn, capsys, *words)
    assert rows["runs"] == [
        "n",
        "epochs",
        "test error",
        "shallow",
        "deep",
        "ensemble",
        "training error",
    ]
    assert rows["baseline, WRN-10, 3 epochs"] == ["1", "3", "30.00", "–", "–", "29.00", "1.00"]
    assert rows["baseline, WRN-10, 2 of 3 epochs"][:3] == ["1", "2 of 3", "31.00"]
    assert rows["dks, WRN-10, 3 epochs"] == [
        "3", "3", "23.00 ± 3.61", "25.00 ± 3.61", "24.00 ± 3.61", "22.00 ± 3.61", "1.00 ± 0.00"
    ]  # fmt: skip
    assert rows["dks, resnet18, 1 epoch"] == [
        "1", "1", "50.00 / 5.00", "51.00 / 6.00", "52.00 / 7.00", "49.00 / 4.00", "60.00"
    ]  # fmt: skip
    assert rows["ds, resnet18, 1 epoch"][-2] == "59.00 / 5.00"
    assert [label.split(",")[0] for label in rows][2:] == [*["baseline"] * 2, "ds", "dks", "dks"]
    assert lines[-1] == "--figure FILE draws the error curves"


def test_the_log_of_a_real_run(wrn, cifar_run, capsys):
    last = json.loads((cifar_run / "log.txt").read_text().splitlines()[-1].split(": ", 1)[1])
    rows, lines = report_of(wrn, capsys, cifar_run)
    accuracies = [last[key] for key in ("test_acc", "test_acc_ep1", "test_acc_ep2")]
    errors = [*(100 - accuracy for accuracy in accuracies), last["test_error_ensemble"]]
    cells = [f"{error:.2f}" for error in (*errors, 100 - last["train_acc"])]
    assert rows["dks"] == ["1", "4", *cells]
    assert lines[0] == "Errors of WRN-10-0.25 on digits after the last tested epoch, in percent"


def test_runs_that_differ_only_in_the_seed_are_averaged(wrn, tmp_path, capsys):
    """Options without effect, on the result or on the method, make no group of their own."""
    for seed, device in ((1, "cpu"), (2, "cuda")):
        write_log(tmp_path / f"a{seed}", "baseline", seed, 20.0, device=device, aux_weight=seed)
        write_log(tmp_path / f"b{seed}", "dks", seed, 20.0, lr=seed / 10, dropout=seed == 1)
    rows, _ = report_of(wrn, capsys, tmp_path)
    assert [*rows][2:] == ["baseline", "dks, lr 0.1, dropout", "dks, lr 0.2, no dropout"]
    assert rows["baseline"][0] == "2"


def test_every_option_that_affects_the_result_separates_runs(wrn, imagenet):
    options = wrn.options
    no_effect = wrn.run_groups.NO_EFFECT
    logged = set(options.parse([]).to_dict())
    assert logged - no_effect == set(options.RESUME_MUST_MATCH) - {"seed"}
    options = imagenet.train_options
    fields = set(options.Config.__dataclass_fields__) - {"seed", "epochs"}
    # A resumed run keeps its initial weights, whatever is given.
    assert fields - no_effect == fields - set(options.RESUME_MAY_CHANGE) | {"init"}


def test_runs_whose_images_were_decoded_differently_are_not_averaged(wrn, tmp_path, capsys):
    """Older logs do not name the decoding, which was 1."""
    for seed, options in enumerate(({}, {"decoding": 1}, {"decoding": 2}, {"decoding": 2})):
        write_jsonl(tmp_path / str(seed), "dks", seed, 50.0, **options)
    rows, _ = report_of(wrn, capsys, tmp_path)
    assert {label: row[0] for label, row in [*rows.items()][2:]} == {
        "dks, decoding 1": "2",
        "dks, decoding 2": "2",
    }


def test_runs_from_other_initial_weights_are_not_averaged(wrn, tmp_path, capsys):
    """Older logs have no option for them: those runs started at random."""
    for seed, options in enumerate(({}, {"init": ""}, {"init": "base"}, {"init": "base"})):
        write_log(tmp_path / str(seed), "dks", seed, 20.0, **options)
    rows, _ = report_of(wrn, capsys, tmp_path)
    assert [*rows][2:] == ["dks, no init", "dks, init base"]
    assert [rows[name][0] for name in [*rows][2:]] == ["2", "2"]


def test_labels_say_what_differs_in_the_same_network(wrn, tmp_path, capsys):
    for index, lr in enumerate((0.1, 0.2)):
        write_log(tmp_path / f"{index}", "dks", 1, 20.0, lr=lr, dtype="float32", dataset="digits")
    write_log(tmp_path / "other", "dks", 1, 20.0, lr=0.1, dtype="half", dataset="CIFAR10")
    rows, lines = report_of(wrn, capsys, tmp_path)
    labels = ["dks, digits, lr 0.1", "dks, digits, lr 0.2", "dks, CIFAR10, lr 0.1"]
    assert [*rows][2:] == labels
    assert "the runs also differ in dtype" in lines
    assert lines[0].startswith("Errors of WRN-10 after the last tested epoch")


def test_repeated_seeds_are_not_averaged(wrn, tmp_path, capsys):
    """Also where the log does not hold what differs. No label has an absolute path."""
    for name, error in (("lr-0.1", 50.0), ("lr-0.2", 51.0)):
        write_jsonl(tmp_path / name / "run", "dks", 0, error)
    write_jsonl(tmp_path / "baseline", "baseline", 0, 50.0)
    rows, lines = report_of(wrn, capsys, tmp_path)
    assert [*rows][2:] == ["baseline", "dks, lr-0.1/run", "dks, lr-0.2/run"]
    assert "dks: several runs with seed 0, so not averaged" in lines


def test_a_copy_of_a_run_counts_once(wrn, tmp_path, capsys):
    for seed in (1, 2):
        write_log(tmp_path / f"s{seed}", "dks", seed, 20.0 + seed)
    write_log(tmp_path / "copies" / "s1", "dks", 1, 21.0)
    rows, lines = report_of(wrn, capsys, tmp_path)
    assert rows["dks"][:3] == ["2", "3", "21.50 ± 0.71"]
    assert f"dks: {tmp_path.name}/s1 is a copy of copies/s1, left out" in lines


def test_runs_on_different_data_are_not_averaged(wrn, tmp_path, capsys):
    for seed, data in ((1, "aaa"), (2, "aaa"), (3, "bbb")):
        write_log(tmp_path / str(seed), "dks", seed, 20.0, data_fingerprint=data)
    rows, lines = report_of(wrn, capsys, tmp_path)
    counts = {label: row[0] for label, row in rows.items()}
    assert (counts["dks, data aaa"], counts["dks, data bbb"]) == ("2", "1")
    assert "runs on different images are not averaged: `data` tells them apart" in lines
    # Of a log without fingerprint, it is not known to which of both it belongs.
    write_log(tmp_path / "old", "dks", 4, 20.0)
    rows, _ = report_of(wrn, capsys, tmp_path)
    assert [*rows][2:] == ["dks, data aaa", "dks, data bbb", "dks"]


def test_methods_on_different_data_are_told_apart(wrn, tmp_path, capsys):
    write_jsonl(tmp_path / "a", "baseline", 1, 50.0, data_fingerprint="aaa")
    write_jsonl(tmp_path / "b", "dks", 1, 50.0, data_fingerprint="bbb")
    rows, _ = report_of(wrn, capsys, tmp_path)
    assert [*rows][2:] == ["baseline, data aaa", "dks, data bbb"]


def test_older_logs_are_averaged_with_new_ones_on_one_set_of_data(wrn, tmp_path, capsys):
    write_log(tmp_path / "old", "dks", 1, 20.0)
    write_log(tmp_path / "new", "dks", 2, 21.0, data_fingerprint="aaa")
    rows, _ = report_of(wrn, capsys, tmp_path)
    assert rows["dks"][0] == "2"


def test_logs_with_and_without_options_are_not_confused(imagenet, tmp_path, capsys):
    write_jsonl(tmp_path / "old", "dks", 0, 50.0)
    write_jsonl(tmp_path / "new", "dks", 1, 50.0, lr=0.1, data="/x/birds", save="somewhere")
    assert [*report_of(imagenet, capsys, tmp_path)[0]][2:] == ["dks, new", "dks, old"]


def test_report_uses_the_last_tested_epoch(wrn, tmp_path, capsys):
    write_log(tmp_path / "run", "dks", 1, 20.0)
    path = tmp_path / "run" / "log.txt"
    untested = {"method": "dks", "seed": 1, "epoch": 4, "epochs": 5, "train_acc": 98.0}
    path.write_text(path.read_text() + "json_stats: " + json.dumps(untested) + "\n")
    rows, _ = report_of(wrn, capsys, tmp_path)
    assert rows["dks"] == ["1", "3 of 5", "20.00", "22.00", "21.00", "19.00", "1.00"]
    (run,) = wrn.run_logs.read_runs([tmp_path])
    assert wrn.error_figure.error_curves([run.epochs], tested=True)[0] == [1, 2, 3]
    assert wrn.error_figure.error_curves([run.epochs], tested=False)[0] == [1, 2, 3, 4]
    path.write_text("json_stats: " + json.dumps(untested) + "\n")
    with pytest.raises(wrn.command_line.UserError, match="no epoch is tested yet"):
        wrn.run_logs.read_runs([tmp_path])
    write_log(tmp_path / "other", "ds", 1, 30.0)
    words = [str(tmp_path / name) for name in ("run", "other")]
    capsys.readouterr()
    assert wrn.report.main(words) == 0
    out, err = capsys.readouterr()
    assert "| ds " in out and err == f"{words[0]}: no epoch is tested yet; left out\n"
    assert wrn.report.main([str(tmp_path)]) == 0  # one of its runs is tested
    assert capsys.readouterr().err == ""


def test_report_does_not_choose_the_best_epoch(wrn, tmp_path, capsys):
    """The error falls and rises again."""
    (tmp_path / "run").mkdir()
    records = [
        {"method": "baseline", "epoch": epoch, "test_acc": 100 - error, "train_acc": 99.0}
        for epoch, error in enumerate((40.0, 20.0, 30.0), 1)
    ]
    lines = "".join(f"json_stats: {json.dumps(record)}\n" for record in records)
    (tmp_path / "run" / "log.txt").write_text(lines)
    rows, _ = report_of(wrn, capsys, tmp_path)
    assert rows["baseline"][:3] == ["1", "3", "30.00"]


@pytest.mark.parametrize("figure", ["/nonexistent/x.png", "x.nonsense", "x", "/tmp"])
def test_unsuitable_figures_are_one_line_errors(wrn, tmp_path, figure, capsys):
    write_log(tmp_path / "run", "dks", 1, 20.0)
    assert wrn.report.main([str(tmp_path), "--figure", figure]) == 2
    out, errors = capsys.readouterr()
    assert errors.startswith(f"error: --figure {figure}: ") and errors.count("\n") == 1
    assert out == ""


@pytest.mark.parametrize("log", ["log.txt", "log.jsonl"])
def test_unsuitable_logs_are_one_line_errors(wrn, tmp_path, log, capsys):
    prefix = "json_stats: " if log == "log.txt" else ""
    for content, problem in (
        (None, "no log.txt or log.jsonl"),
        ("", "no epoch is tested yet"),
        (prefix + '{"epoch": 1}\n', "not the log of a run"),
        (prefix + '{"epoch": "}\n', "not a record"),
    ):
        if content is not None:
            (tmp_path / log).write_text(content)
        assert wrn.report.main([str(tmp_path)]) == 2
        error = capsys.readouterr().err
        assert problem in error and error.count("\n") == 1
    assert wrn.report.main([str(tmp_path / "missing")]) == 2
    assert "no such folder" in capsys.readouterr().err


def test_help_and_table_need_neither_torch_nor_matplotlib(wrn, tmp_path):
    write_log(tmp_path / "run", "dks", 1, 20.0)
    for words in (["--help"], [str(tmp_path)]):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(
            [sys.executable, "-X", "importtime", wrn.path / "report.py", *words],
            cwd=tmp_path, capture_output=True, text=True, check=True,
        )  # fmt: skip
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1
        imported = {line.split("|")[-1].strip() for line in done.stderr.splitlines()}
        assert "argparse" in imported and not {"torch", "matplotlib", "numpy"} & imported
    assert [path.name for path in tmp_path.iterdir()] == ["run"]  # no figure


@pytest.mark.parametrize("extension", ["png", "svg"])
def test_figure_of_means_over_runs(wrn, tmp_path, extension, capsys):
    for seed, error in ((1, 20.0), (2, 26.0)):
        write_log(tmp_path / "logs" / str(seed), "dks", seed, error)
    path = tmp_path / f"x.{extension}"
    _, lines = report_of(wrn, capsys, tmp_path / "logs", "--figure", path)
    assert lines[-1] == f"error curves: {path}"
    assert path.read_bytes().startswith(b"\x89PNG" if extension == "png" else b"<?xml")
    runs = [run.epochs for run in wrn.run_logs.read_runs([tmp_path])]
    (axes,) = wrn.error_figure.draw_errors({"dks": runs}, "test").axes
    assert axes.lines[0].get_xydata().tolist() == [[1, 43.0], [2, 33.0], [3, 23.0]]
    assert axes.get_xlabel() == "epoch"


def test_figure_of_imagenet_is_over_epochs(imagenet, tmp_path):
    write_jsonl(tmp_path / "run", "dks", 0, 50.0)
    groups, _ = imagenet.run_groups.group_runs(imagenet.run_logs.read_runs([tmp_path]))
    figure = imagenet.error_figure.draw_errors({"dks": [groups["dks"][0].epochs]}, "validation")
    (axes,) = figure.axes
    assert axes.lines[0].get_xydata().tolist() == [[1, 50.0]]
    assert axes.get_legend().get_title().get_text() == "validation error (dashed: training)"

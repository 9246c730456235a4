"""wrn_DKS/report.py: the table and the error curves."""

import json

import pytest


def write_log(folder, method, seed, last, epochs=3, planned=3):
    folder.mkdir(parents=True)
    lines = []
    for epoch in range(1, epochs + 1):
        error = last + 10 * (epochs - epoch)
        record = {"method": method, "seed": seed, "epoch": epoch, "epochs": planned, "depth": 10}
        record |= {"test_acc": 100 - error, "train_acc": 99.0, "test_error_ensemble": error - 1}
        lines.append("json_stats: " + json.dumps(record) + "\n")
    (folder / "log.txt").write_text("".join(lines))


def test_report_prints_a_table_and_writes_a_figure(wrn, tmp_path, capsys):
    for seed, error in ((1, 20.0), (2, 22.0), (3, 27.0)):
        write_log(tmp_path / "runs" / f"dks{seed}", "dks", seed, error)
    write_log(tmp_path / "runs" / "baseline", "baseline", 1, 30.0)
    write_log(tmp_path / "half", "baseline", 2, 31.0, epochs=2)
    figure = tmp_path / "x.png"
    words = [str(tmp_path / "runs"), str(tmp_path / "half"), "--figure", str(figure)]
    assert wrn.report.main(words) == 0
    table = capsys.readouterr().out
    assert "| dks, epochs 3 | 3 | 3 | 23.00 ± 3.61 | 22.00 ± 3.61 | 1.00 ± 0.00 |" in table
    assert "| baseline, epochs 3 | 1 | 3 | 30.00 | 29.00 | 1.00 |" in table
    assert "| baseline, epochs 2 | 1 | 2 of 3 | 31.00 |" in table
    assert table.index("| baseline, epochs 2") < table.index("| dks")
    assert figure.read_bytes().startswith(b"\x89PNG")


def test_curves_are_means_over_runs(wrn, tmp_path):
    for seed, error in ((1, 20.0), (2, 26.0)):
        write_log(tmp_path / str(seed), "dks", seed, error)
    groups = wrn.report.group_runs(wrn.report.read_runs(tmp_path))
    assert list(groups) == ["dks"]
    assert wrn.report.error_curves(groups["dks"], "test") == (
        [1, 2, 3],
        [[40.0, 46.0], [30.0, 36.0], [20.0, 26.0]],
    )
    (axes,) = wrn.report.plot(groups).axes
    assert axes.lines[0].get_ydata().tolist() == [43.0, 33.0, 23.0]


def test_report_uses_the_last_tested_epoch(wrn, tmp_path):
    write_log(tmp_path / "run", "dks", 1, 20.0)
    path = tmp_path / "run" / "log.txt"
    untested = {"method": "dks", "seed": 1, "epoch": 4, "epochs": 5, "train_acc": 98.0}
    path.write_text(path.read_text() + "json_stats: " + json.dumps(untested) + "\n")
    groups = wrn.report.group_runs(wrn.report.read_runs(tmp_path))
    assert "| dks | 1 | 3 | 20.00 | 19.00 | 1.00 |" in wrn.report.format_table(groups)
    assert wrn.report.error_curves(groups["dks"], "test")[0] == [1, 2, 3]
    assert wrn.report.error_curves(groups["dks"], "train")[0] == [1, 2, 3, 4]
    path.write_text("json_stats: " + json.dumps(untested) + "\n")
    with pytest.raises(wrn.command_line.UserError, match="tested epoch"):
        wrn.report.read_runs(tmp_path)


@pytest.mark.parametrize("figure", ["/nonexistent/x.png", "x.nonsense"])
def test_missing_log_and_unwritable_figure_are_one_line_errors(wrn, tmp_path, figure, capsys):
    assert wrn.report.main([str(tmp_path)]) == 2
    write_log(tmp_path / "run", "dks", 1, 20.0)
    assert wrn.report.main([str(tmp_path), "--figure", figure]) == 2
    errors = capsys.readouterr().err
    assert "no log.txt" in errors and "--figure" in errors and errors.count("\n") == 2

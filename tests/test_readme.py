"""What README.md and docs/ say and show: commands and examples run, tables and names are right."""

import re
import shutil
import subprocess
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT
from documentation import (
    PAGES,
    README,
    Command,
    anchors,
    block_commands,
    commands,
    examples,
    links,
    marks,
    prose,
    spans,
)
from PIL import Image
from synthetic import write_cifar100, write_folders, write_image
from torch.distributed.run import parse_args as torchrun_arguments
from torchvision import datasets

TEXT = README.read_text()
EVERYTHING = "\n".join(page.read_text() for page in PAGES)
CLASSES = ("n01440764", "n01443537")  # of ImageNet, so that networks of 1,000 outputs know them

# What makes the commands of each script small, and what replaces its data where that is large.
SMALL_WRN = "--depth 10 --width 0.25 --epochs 1 --batch_size 512 --device cpu".split()
SMALL_TRAIN = "--image-size 33 --epochs 1 -b 4 -j 0 --device cpu".split()
SMALL_EVALUATION = "--image-size 33 -b 4 -j 0 --device cpu".split()
SMALL_STUDY = "--rows baseline --seeds 1 --epochs 1 --depth 10 --width 0.25".split()

TORCHRUN = "--nproc_per_node --nnodes --max-restarts --rdzv-backend --rdzv-endpoint --rdzv-id "
TORCHRUN += "--rdzv-conf"
DOCKER = "--shm-size --ipc"
SLURM = "--nodes --ntasks-per-node --gpus-per-node --cpus-per-task --time --signal --requeue"

# What looks like a path in backticks and is none of the repository's: outputs, data, a function.
ELSEWHERE = {
    "checkpoint.pt", "log.txt", "log.jsonl", "logs/demo/error.png", "model.pt7", ".safetensors",
    "ILSVRC2012_img_val.tar", "ILSVRC2012_devkit_t12.tar.gz", "LOC_val_solution.csv", "val/",
    "torch.compile", "lock.owner", ".pt", ".pth", "model.safetensors", "config.json", "own-r18/",
    "torch.save", "runs/base", "images.bin",
}  # fmt: skip


# --- The text


def test_readme_is_short_and_begins_with_what_matters():
    lines = TEXT.splitlines()
    assert len(lines) <= 220
    first = "\n".join(lines[:50])
    for what in ("images/architecture.png", "## Scaled-down study", "\nmake demo", "\nmake test"):
        assert what in first
    assert re.findall(r"^## (.*)$", TEXT, re.MULTILINE) == [
        "Scaled-down study", "Installation", "Train on CIFAR", "Evaluate on ImageNet",
        "Train on ImageNet", "DKS in your own network", "Layout", "Limits", "Citation",
    ]  # fmt: skip


def test_every_page_is_linked_from_the_readme():
    linked = {target.partition("#")[0] for target in links(README)}
    pages = [f"docs/{page.name}" for page in PAGES[1:]]
    assert len(pages) >= 7 and set(pages) <= linked
    assert sum(len(links(page)) for page in PAGES) > 40


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in links(page):
        name, _, anchor = target.partition("#")
        goal = (page.parent / name).resolve() if name else page
        assert goal.exists(), target
        assert goal.is_relative_to(ROOT), target
        assert not anchor or anchor in anchors(goal), target


def test_no_row_of_numbers_stands_twice():
    rows = re.findall(r"^\|.*\d\.\d.*\|$", EVERYTHING, re.MULTILINE)
    assert len(rows) > 60
    assert [row for row, count in Counter(rows).items() if count > 1] == []


def test_files_and_folders_in_backticks_exist():
    """Paths from the repository's folder, or the bare name of a file in one of the folders."""
    words = {word for page in PAGES for span in spans(page) for word in span.split()}
    path = re.compile(r"(?!\.venv)([\w.][\w.-]*/[\w./-]*|[\w.-]*\.[a-z]\w+)")
    names = {word for word in words if path.fullmatch(word)}
    folders = ("", "wrn_DKS", "imagenet")
    missing = {
        name for name in names if not any((ROOT / folder / name).exists() for folder in folders)
    }
    assert len(names - missing) > 25
    assert sorted(missing - set(ELSEWHERE)) == []  # a run of the demo writes some of these
    assert sorted(set(ELSEWHERE) - names) == []


def test_names_of_functions_and_tables_exist():
    words = {span for page in PAGES for span in spans(page)}
    names = {word for word in words if re.fullmatch(r"[a-z]+(_[a-z]+)+|[A-Z_]{4,}", word)}
    code = "\n".join(
        path.read_text()
        for folder in ("wrn_DKS", "imagenet")
        for path in (ROOT / folder).glob("*.py")
    )
    assert "NETWORKS" in names and len(names) > 5
    others = {
        "IMAGENET",
        "FOLDER",
        "PATH",
        "DIR",
        "CACHE",
        "LICENSE",
        "PIP_EXTRA_INDEX_URL",
        "state_dict",
    }
    others |= {"TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME"}
    others |= {"destroy_process_group", "random_scheme", "SIGBUS"}  # PyTorch's; of logs; a signal
    others |= {"crop_mode", "crop_pct"}  # timm's
    defined = {name for name in names if re.search(rf"^(def )?{name}\b( =|\()", code, re.MULTILINE)}
    assert sorted(names - defined - others) == []


def test_every_flag_exists(wrn, imagenet, study, cifar_benchmark, imagenet_benchmark, capsys):
    """In the text and in the commands, those too that are marked as not run."""
    known = set(f"{TORCHRUN} {SLURM} {DOCKER}".split()) | {"-m", "-r", "-n", "--only"}
    mains = [wrn.main, wrn.report, imagenet.main, imagenet.train, imagenet.report]
    mains += [study.run, study.report, study.architecture]
    mains += [cifar_benchmark.cifar, imagenet_benchmark.imagenet]
    for module in mains:
        with pytest.raises(SystemExit):
            module.main(["--help"])
        known |= set(re.findall(r"(?<![\w-])--?[a-zA-Z][\w-]*", capsys.readouterr().out))
    long = set(re.findall(r"(?<![\w-])--[a-z][\w-]*", EVERYTHING))
    short = {
        span.split()[0] for page in PAGES for span in spans(page) if re.match(r"-[a-z]\b", span)
    }
    spelled = {flag.replace("_", "-") for flag in known}
    assert len(long) > 50 and len(short) >= 4
    assert sorted(flag for flag in long | short if flag.replace("_", "-") not in spelled) == []


# --- The study's numbers


def read_results(study, name):
    """The study that its logs hold, and its plan."""
    preset = study.presets.PRESETS[name]
    return study.logs.read_study(ROOT / "study" / name, preset), preset


@pytest.fixture(scope="module")
def results(study):
    return read_results(study, "scaled")


@pytest.fixture(scope="module")
def follow_up(study):
    return read_results(study, "follow-up")


def test_the_study_s_tables_are_those_of_its_logs(study, results, follow_up):
    """The table of costs is not compared: what memory it counts depends on PyTorch's version."""
    page = (ROOT / "docs" / "study.md").read_text()
    for table in (
        study.report.errors(*results),
        study.report.differences(*results),
        study.report.classifiers(results[0]),
        study.report.gains(*follow_up),
        study.report.differences(*follow_up),
    ):
        assert table.count("\n") > 5 and f"\n\n{table}\n\n" in page


def cells(table):
    """The cells of a Markdown table's lines, by the first of them."""
    rows = [[cell.strip(" *") for cell in line.strip("|").split("|")] for line in table.split("\n")]
    return {first: rest for first, *rest in rows}


def test_the_readme_s_numbers_are_the_study_s_and_the_paper_s(study, results, follow_up):
    own, published = cells(study.report.errors(*results)), study.published
    (table,) = re.findall(r"^\| network, data .*?\n\n", TEXT, re.MULTILINE | re.DOTALL)
    (row,) = [rest for first, rest in cells(table).items() if first.startswith("WRN-16-1")]
    assert row[1:4] == [own[method][1] for method in ("baseline", "ds", "dks")]
    others = cells(study.report.errors(*follow_up))
    row = cells(table)["the same, 20 other classes"]
    assert row[1:4] == [others[f"{each}-21to40"][1] for each in ("baseline", "ds", "dks")]
    row = cells(table)["WRN-28-10, CIFAR-100"]
    assert row[1:4] == [published.error("baseline"), "", published.error("dks")]
    for index, network in enumerate(("ResNet-18", "ResNet-50", "ResNet-152")):
        row = cells(table)[f"{network}, ImageNet"]
        numbers = [float(cell.split(" (")[0]) for cell in row[1:4]]
        assert numbers == [
            published.IMAGENET[method][index] for method in ("baseline", "ds", "dks")
        ]
    gains = cells(study.report.differences(*results))
    words = " ".join(TEXT.split())
    for pair, says in (
        ("dks − ds", "DS by {} points (95 % interval of the paired difference: {} to {})"),
        ("dks − baseline", "the baseline by {} ({} to {})"),
    ):
        mean, interval = gains[pair][1:3]
        low, high = interval.split(" to ")
        assert says.format(*(value.removeprefix("-") for value in (mean, high, low))) in words
    found = cells(study.report.gains(*follow_up))
    for setting, says in (
        ("classes 21 to 40", "on the other classes by {} ({} to {})"),
        ("label smoothing 0.1", "with label smoothing by {} ({} to {})"),
        ("CutMix, α = 1", "with CutMix by {} ({} to {})"),
    ):
        mean, interval = found[setting][4:6]
        low, high = interval.split(" to ")
        assert says.format(*(value.removeprefix("-") for value in (mean, high, low))) in words


# --- The examples


@pytest.fixture(scope="module")
def exported(wrn, imagenet, module_path):
    """A folder with the two files that the examples load, as `--export` writes them."""
    folder = module_path
    for part in ("train", "val"):
        write_folders(folder, dict.fromkeys(CLASSES, 2), part)
    words = ["--dataset", "digits", "--save", folder / "wrn", "--export", folder / "backbone.pt"]
    assert wrn.main.main([*map(str, words), *SMALL_WRN]) == 0
    words = ["--method", "baseline", "--export", folder / "backbone.pth", folder]
    words += ["--save", folder / "resnet"]
    assert imagenet.train.main([*map(str, words), *SMALL_TRAIN]) == 0
    words = ["--model_path", folder / "resnet", "--export", folder / "own-r18"]
    assert imagenet.main.main([*map(str, words)]) == 0
    write_image(folder / "A.jpg")
    (folder / "REPO").symlink_to(ROOT)
    return folder


@pytest.mark.parametrize("example", examples(), ids=lambda block: block.page.stem)
def test_examples_run(python, example, exported, tmp_path):
    script = tmp_path / "example.py"
    script.write_text(example.text)
    done = python.run(script, path=[ROOT / "wrn_DKS"], cwd=exported)
    assert done.returncode == 0, done.stderr
    if example.page == README:  # it trains
        assert sum(bool(line.strip()) for line in example.text.splitlines()) <= 24
        totals = [float(word) for word in re.findall(r"total ([\d.]+)", done.stdout)]
        assert len(totals) == 50 and totals[-1] < 0.5 * totals[0]
    elif "mobilenet" in example.text:
        assert sum(bool(line.strip()) for line in example.text.splitlines()) <= 40
        for name in ("mobilenetv3_small_050", "convnext_atto"):
            totals = [float(x) for x in re.findall(rf"{name}: total ([\d.]+)", done.stdout)]
            assert len(totals) == 8 and totals[-1] < 0.7 * totals[0]
    elif example.page.stem == "cifar":  # the digits that two images are taken for
        assert re.fullmatch(r"\['\d', '\d'\]\n", done.stdout)


def test_there_is_an_example_in_the_readme_and_in_each_guide():
    pages = ["README", "cifar", "imagenet", *["own-images"] * 2, *["own-network"] * 2]
    assert [block.page.stem for block in examples()] == pages


# --- The commands


@pytest.fixture
def place(tmp_path, monkeypatch, imagenet, cifar_benchmark, imagenet_benchmark):
    """A folder to run a command in: data under the names of the placeholders, tiny networks."""
    data = tmp_path / "data"  # CIFAR's two sets, and a folder of images
    for part, count in (("train", 3), ("val", 1)):
        write_folders(data, dict.fromkeys(CLASSES, count), part)
    for cifar in (datasets.CIFAR100, datasets.CIFAR10):
        write_cifar(data / cifar.base_folder, cifar, monkeypatch)
    for name in ("PATH", "DIR", "IMAGENET", "FOLDER"):
        (tmp_path / name).symlink_to(data)
    for name in ("A.jpg", "B.jpg"):
        write_image(tmp_path / name)
    resnet = imagenet.resnet
    stage = resnet.Stage(1, 8)
    branches = (resnet.BranchSpec(2, (stage, stage)), resnet.BranchSpec(3, (stage,)))
    tiny = resnet.NETWORKS["resnet18"]._replace(blocks=(1, 1, 1, 1), branches=branches)
    for arch in resnet.NETWORKS:
        monkeypatch.setitem(resnet.NETWORKS, arch, tiny)
    for runner in (cifar_benchmark.runner, imagenet_benchmark.runner):
        monkeypatch.setattr(runner, "BenchmarkSetup", partial(runner.BenchmarkSetup, workers=0))
    evaluation = partial(imagenet_benchmark.imagenet_parts.evaluation, arch="resnet18")
    monkeypatch.setitem(imagenet_benchmark.imagenet.ROWS, "evaluation", evaluation)
    pipeline = imagenet_benchmark.imagenet_pipeline
    for name, value in (("IMAGES", 4), ("CACHE_BYTES", 2**20), ("COPIED_BYTES", 2**10)):
        monkeypatch.setattr(pipeline, name, value)
    monkeypatch.setattr(pipeline, "os", SimpleNamespace(cpu_count=lambda: 0))  # no processes
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_cifar(folder, cifar, monkeypatch):
    """12 random images a part in CIFAR's format, whose checksums are not looked at."""
    write_cifar100(folder, 12)
    monkeypatch.setattr(cifar, "train_list", [["train", None]])
    monkeypatch.setattr(cifar, "test_list", [["test", None]])
    monkeypatch.setattr(cifar, "meta", {"filename": "meta", "key": "fine_label_names", "md5": None})


def in_this_process(wrn):
    """Stands for `subprocess.Popen` of wrn_DKS/main.py."""

    class InThisProcess:
        def __init__(self, words, **options):
            assert Path(words[1]) == wrn.path / "main.py"
            self.returncode = wrn.main.main(words[2:])

        def poll(self):
            return self.returncode

    return InThisProcess


@pytest.fixture
def run(wrn, imagenet, study, cifar_benchmark, imagenet_benchmark, place):
    """Runs a command of the documentation in `place`; returns the exit status."""
    scripts = {
        "wrn_DKS> main.py": lambda words: run_wrn(wrn, words),
        "wrn_DKS> report.py": lambda words: report_wrn(wrn, words),
        "imagenet> main.py": lambda words: run_evaluation(imagenet, words, place),
        "imagenet> train.py": lambda words: run_training(imagenet, words),
        "imagenet> report.py": lambda words: report_training(imagenet, words),
        ".> study/run.py": lambda words: run_study(wrn, study, words),
        ".> study/report.py": study.report.main,
        ".> study/architecture.py": study.architecture.main,
        ".> benchmarks/cifar.py": lambda words: run_cifar_benchmark(cifar_benchmark, words),
        ".> benchmarks/imagenet.py": lambda words: run_imagenet_benchmark(
            imagenet_benchmark, words
        ),
    }

    def run(command: Command) -> int:
        program, *words = command.words
        if program == "make":
            return run_make(wrn, words, place)
        if program == "torchrun":  # its flags are its own parser's; one process is enough here
            arguments = torchrun_arguments(words)
            words = [arguments.training_script, *arguments.training_script_args]
        elif program != "python":
            raise KeyError(f"no test knows how to run {command}")
        return scripts[f"{command.folder}> {words[0]}"](words[1:])

    return run


@pytest.mark.parametrize("command", commands(), ids=str)
def test_commands_run(command, run, capsys):
    assert run(command) == 0, capsys.readouterr().err


def run_wrn(wrn, words):
    if "--resume" in words and "auto" not in words:  # what it reads, by a run like the one it names
        source = Path(words[words.index("--resume") + 1])
        made = ["--dataroot", "PATH", "--save", "logs/wrn-28-10"]
        made += ["--export", source] if source.name == "backbone.pt" else []
        assert wrn.main.main([*map(str, made), *SMALL_WRN]) == 0 and source.exists()
    status = wrn.main.main([*words, *SMALL_WRN])
    if "--export" in words:
        assert Path(words[words.index("--export") + 1]).exists()
    if "auto" in words:  # the second time it resumes
        return status or wrn.main.main([*words, *SMALL_WRN])
    return status


def report_wrn(wrn, words):
    for method in ("ds", "dks"):
        made = ["--dataroot", "PATH", "--save", f"{words[0]}/{method}", "--method", method]
        assert wrn.main.main([*made, *SMALL_WRN]) == 0
    return figure_drawn(wrn.report.main(words), words)


def figure_drawn(status, words):
    assert Image.open(words[words.index("--figure") + 1]).size > (100, 100)
    return status


def run_evaluation(imagenet, words, place):
    state = imagenet.resnet.build("resnet50").state_dict()
    for path in (place / "FILE", place / "hub" / "checkpoints" / "dks_resnet50.pth"):
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(state, path)
    checkpoint = words[words.index("--model_path") + 1] if "--model_path" in words else "FILE"
    if not Path(checkpoint).exists():
        assert train_at(imagenet, checkpoint) == 0  # the folder of a run
    status = imagenet.main.main([*words, *SMALL_EVALUATION])
    if "--json" in words:
        assert Path(words[words.index("--json") + 1]).exists()
    return status


def train_at(imagenet, save):
    return imagenet.train.main(["--save", str(save), *SMALL_TRAIN, "IMAGENET"])


def run_training(imagenet, words):
    if "--init" in words:
        assert train_at(imagenet, words[words.index("--init") + 1]) == 0
    status = imagenet.train.main([*words, *SMALL_TRAIN])
    if "--export" in words:
        assert Path(words[words.index("--export") + 1]).exists()
    if "auto" in words:  # the second time it resumes
        return status or imagenet.train.main([*words, *SMALL_TRAIN])
    return status


def report_training(imagenet, words):
    for folder in words[: words.index("--figure")]:
        assert train_at(imagenet, folder) == 0
    return figure_drawn(imagenet.report.main(words), words)


def run_study(wrn, study, words):
    if "--logs" not in words and "--preset" not in words:  # every run has its log
        return study.run.main(words)
    small = SMALL_STUDY if "--logs" in words else [*SMALL_STUDY, "--logs", "logs"]
    logs = Path([*words, *small][[*words, *small].index("--logs") + 1])
    with pytest.MonkeyPatch.context() as patch:
        preset = replace(study.presets.PRESETS["scaled"], split=(2, 2))  # classes, training images
        patch.setitem(study.presets.PRESETS, "scaled", preset)
        patch.setattr(study.run.subprocess, "Popen", in_this_process(wrn))
        assert study.run.main([*words, *small]) == 0
    return [path.name for path in logs.glob("*.jsonl")] != ["baseline-seed1.jsonl"]


def run_cifar_benchmark(benchmark, words):
    small = [] if "--row" in words else ["--row", "inference"]
    return benchmark.cifar.main([*words, *small, "--rounds", "1", "--device", "cpu"])


def run_imagenet_benchmark(benchmark, words):
    small = ["--row", "evaluation", "--rounds", "1", "--device", "cpu"]
    return benchmark.imagenet.main([*words, *small])


def run_make(wrn, words, place):
    """Let make call stand-ins, which note their words; then run what wrn_DKS has of that."""
    shutil.copy(ROOT / "Makefile", place)
    notes, programs = place / "notes", place / "programs"
    programs.mkdir()
    for name in ("python", "ruff"):
        program = programs / name
        program.write_text(f'#!/bin/sh\nprintf "%s\\n" {name} "$@" "" >> "{notes}"\n')
        program.chmod(0o755)
    done = [f"--old-file=.venv/{name}" for name in ("runtime", "development")]
    subprocess.run(["make", *done, *words, f"BIN={programs}"], check=True, capture_output=True)
    called = [lines.split("\n") for lines in notes.read_text().strip().split("\n\n")]
    if words == ["test"]:  # which this is a part of
        return called != [
            ["ruff", "check", "."], ["ruff", "format", "--check", "."], ["python", "-m", "pytest"]
        ]  # fmt: skip
    assert words == ["demo"] and len(called) == 4
    for _, script, *rest in called[:-1]:
        assert script == "wrn_DKS/main.py" and "digits" in rest
        assert wrn.main.main([*rest, *SMALL_WRN]) == 0
    _, script, *rest = called[-1]
    assert script == "wrn_DKS/report.py"
    return figure_drawn(wrn.report.main(rest), rest)


def test_a_command_that_no_test_knows_fails(run):
    for command in (Command(".", ("ls",)), Command("imagenet", ("python", "other.py"))):
        with pytest.raises(KeyError):
            run(command)


def test_commands_are_found_but_for_the_marked_ones():
    text = "cd x\npython a.py \\\n  --b c   # why\n\npython d.py  # not run by the tests: y\nls\n"
    assert [*block_commands(text)] == [
        Command("x", ("python", "a.py", "--b", "c")),
        Command("x", ("ls",)),
    ]
    assert [*block_commands("make a\n# not run by the tests: y\nmake b\nmake c\n")] == [
        Command(".", ("make", "a"))
    ]
    assert len(commands()) > 30 and Command(".", ("make", "demo")) in commands()
    assert len(marks()) == 6 and all(re.match(r": \w{2}", reason) for reason in marks())


def test_backticks_are_closed():
    for page in PAGES:
        assert "```" not in prose(page) and prose(page).count("`") % 2 == 0, page.name

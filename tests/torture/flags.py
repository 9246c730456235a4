"""Command lines with invalid, odd or huge values of every flag, alone and in pairs."""

import argparse
import os
import resource
import shutil
import signal
import socket
from pathlib import Path

import training

from torture.attempts import Attempt, Fault, expect, expect_user_error
from torture.readers import NETWORK, prepare_readers
from torture.runs import use_small_network
from torture.scripts import CIFAR, EVALUATION, IMAGENET, TRAINING, WRN, Script

VALUES = (
    *("", " ", "-1", "0", "-0.5", "0.5", "1", "2", "nan", "inf", "-inf", "1e400", "1e-400"),
    *("64", "1204", "9" * 10, "9" * 30, "1e9", "0x10", "٣", "word"),
    *("--", "[]", "[1]", "[3,2,1]", "[0]", "{}"),
    *("None", "true", ".", "socket", "file/x", "cpu", "cuda:9", "dks", "auto"),
    *("a\nb", "%s%n", "é" * 300),
)
MEMORY = 3 * 2**30  # bytes that a process may allocate in addition to its present size


def parser_of(script: Script) -> argparse.ArgumentParser:
    if script == CIFAR:
        return WRN.flags.build_parser()
    if script == EVALUATION:
        return IMAGENET.options.build_parser()
    return IMAGENET.train_flags.build_parser()


def valid_argv(attempt: Attempt, script: Script) -> list[str]:
    """Return valid arguments; later flags override them."""
    if script == CIFAR:
        argv = "--dataset digits --depth 10 --width 0.25 --batch_size 256 --epochs 1 --save run"
        return argv.split()
    if script == TRAINING:
        return training.command_line(attempt.shared / "images", Path("run"), "--epochs", "1")
    weights = attempt.shared / "evaluation.pt"
    argv = f"-a {NETWORK} --image-size 32 -j 0 --device cpu --model_path {weights}"
    return [*argv.split(), str(attempt.shared / "images")]


def random_flag(attempt: Attempt, action: argparse.Action) -> list[str]:
    """Return the flag with a random value: of a wrong type, out of range, odd, or valid."""
    rng = attempt.rng
    flag = rng.choice(action.option_strings) if action.option_strings else ""
    value = rng.choice(VALUES)
    if action.choices and rng.random() < 0.5:
        value = rng.choice(list(action.choices))
    elif action.type is Path and rng.random() < 0.5:
        value = rng.choice(["new", "run", "file", str(attempt.shared / "images")])
    if action.nargs == 0 and rng.random() < 0.7:
        return [flag]
    if not flag:
        return [value]
    return [f"{flag}={value}"] if rng.random() < 0.5 and flag[1] == "-" else [flag, value]


def odd_flags(attempt: Attempt) -> None:
    """Run a script with a random value for one flag, or for two random flags."""
    script = (CIFAR, EVALUATION, TRAINING)[attempt.index % 3]
    actions = [a for a in parser_of(script)._actions if a.dest != "help"]
    turn = attempt.index // 3
    if turn % 3 < 2:
        chosen = [actions[(turn - turn // 3) % len(actions)]]
    else:
        chosen = attempt.rng.sample(actions, 2)
    argv = valid_argv(attempt, script)
    for action in chosen:
        argv += random_flag(attempt, action)
    shutil.copy(attempt.shared / "evaluation.pt", attempt.folder / "file")
    result = attempt.run(script, argv, lambda: before(attempt, script), limit_s=120)
    if result.status in (0, 143):
        stopped = ["stopped by SIGTERM"] if result.status else []
        expect(result.errors == stopped, "expected nothing else on standard error", result)
    else:
        expect_user_error(result)


def before(attempt: Attempt, script: Script) -> None:
    """Stop training after one step, and limit the memory of the process."""
    os.chdir(attempt.folder)
    socket.socket(socket.AF_UNIX).bind("socket")  # neither a file nor a folder
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    if script == EVALUATION:
        return
    if script == TRAINING:
        use_small_network()
    trainer = script.folder.engine.Trainer
    train_step = trainer.train_step

    def train_step_and_stop(*arguments):
        result = train_step(*arguments)
        os.kill(os.getpid(), signal.SIGTERM)
        return result

    trainer.train_step = train_step_and_stop


FAULTS = [
    Fault(
        "flags",
        "command lines: every flag with values of a wrong type, negative, zero, huge or empty; "
        "random pairs of flags",
        300,
        "a run (stopped after its first step), or a one-line error and exit status 2",
        odd_flags,
        prepare_readers,
    ),
]

"""Command lines with a wrong, odd or huge value for every flag, alone and in pairs."""

import argparse
import os
import resource
import shutil
import signal
import socket
from pathlib import Path

import training

from torture.attempts import Attempt, Fault, expect, expect_refused
from torture.readers import NETWORK, prepare_readers
from torture.runs import use_small_network
from torture.scripts import CIFAR, EVALUATION, IMAGENET, TRAINING, WRN, Script

WORDS = (
    *("", " ", "-1", "0", "-0.5", "0.5", "1", "2", "nan", "inf", "-inf", "1e400", "1e-400"),
    *(
        "64",
        "1204",
        "9" * 10,
        "9" * 30,
        "1e9",
        "0x10",
        "٣",
        "word",
        "--",
        "[]",
        "[1]",
        "[3,2,1]",
        "[0]",
        "{}",
    ),
    *("None", "true", ".", "socket", "file/x", "cpu", "cuda:9", "dks", "auto"),
    *("a\nb", "%s%n", "é" * 300),
)
MEMORY = 3 * 2**30  # that a process may ask for in addition to what it has


def parser_of(script: Script) -> argparse.ArgumentParser:
    if script == CIFAR:
        return WRN.flags.build_parser()
    if script == EVALUATION:
        return IMAGENET.options.build_parser()
    return IMAGENET.train_flags.build_parser()


def base_words(attempt: Attempt, script: Script) -> list[str]:
    """A command line that works; flags that come later replace those here."""
    if script == CIFAR:
        words = "--dataset digits --depth 10 --width 0.25 --batch_size 256 --epochs 1 --save run"
        return words.split()
    if script == TRAINING:
        return training.command_line(attempt.shared / "images", Path("run"), "--epochs", "1")
    weights = attempt.shared / "evaluation.pt"
    words = f"-a {NETWORK} --image-size 32 -j 0 --device cpu --model_path {weights}"
    return [*words.split(), str(attempt.shared / "images")]


def drawn_flag(attempt: Attempt, action: argparse.Action) -> list[str]:
    """A flag with a value of the wrong kind, out of range, odd, or sometimes a good one."""
    draws = attempt.draws
    flag = draws.choice(action.option_strings) if action.option_strings else ""
    value = draws.choice(WORDS)
    if action.choices and draws.random() < 0.5:
        value = draws.choice(list(action.choices))
    elif action.type is Path and draws.random() < 0.5:
        value = draws.choice(["new", "run", "file", str(attempt.shared / "images")])
    if action.nargs == 0 and draws.random() < 0.7:
        return [flag]
    if not flag:
        return [value]
    return [f"{flag}={value}"] if draws.random() < 0.5 and flag[1] == "-" else [flag, value]


def odd_flags(attempt: Attempt) -> None:
    """Each flag in turn, and pairs of any two."""
    script = (CIFAR, EVALUATION, TRAINING)[attempt.index % 3]
    actions = [a for a in parser_of(script)._actions if a.dest != "help"]
    turn = attempt.index // 3
    if turn % 3 < 2:
        chosen = [actions[(turn - turn // 3) % len(actions)]]
    else:
        chosen = attempt.draws.sample(actions, 2)
    words = base_words(attempt, script)
    for action in chosen:
        words += drawn_flag(attempt, action)
    shutil.copy(attempt.shared / "evaluation.pt", attempt.folder / "file")
    ended = attempt.run(script, words, lambda: before(attempt, script), limit_s=120)
    if ended.status in (0, 143):
        stopped = ["stopped by SIGTERM"] if ended.status else []
        expect(ended.errors == stopped, "expected nothing more on standard error", ended)
    else:
        expect_refused(ended)


def before(attempt: Attempt, script: Script) -> None:
    """Let a run end after a step or two, and no process take the machine's memory."""
    os.chdir(attempt.folder)
    socket.socket(socket.AF_UNIX).bind("socket")  # something that is neither file nor folder
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + MEMORY, taken + MEMORY))
    if script == EVALUATION:
        return
    if script == TRAINING:
        use_small_network()
    trainer = script.folder.engine.Trainer
    name = "update" if script == CIFAR else "train_step"
    step = getattr(trainer, name)

    def step_and_stop(*arguments):
        result = step(*arguments)
        os.kill(os.getpid(), signal.SIGTERM)
        return result

    setattr(trainer, name, step_and_stop)


FAULTS = [
    Fault(
        "flags",
        "command lines: every flag with values of a wrong type, negative, zero, huge, empty; "
        "random pairs of flags",
        300,
        "a run (stopped after its first step), or one line and status 2",
        odd_flags,
        prepare_readers,
    ),
]

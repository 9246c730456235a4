"""Train with the script folder that is first on the path, imagenet's on `TinyNetwork`.

The environment variable FAULT may be `RANK STEP NAME`: the process of this rank has a fault before
that step of the run, counted from 0, unless torchrun has restarted it. NAME is that of a signal or
of a function below.
"""

import builtins
import os
import signal

from halves import TinyNetwork, before_call, before_steps, sigterm

from common import engine, run, run_folder
from common.command_line import exit_status, run_script  # noqa: F401

try:
    import train as script

    script.build = TinyNetwork
except ImportError:
    import main as script

script.print_costs = lambda *_: None  # takes a third of the time


def bug(trainer) -> None:
    raise ZeroDivisionError("a bug")


def sigterm_while_saving(trainer) -> None:
    """Send a signal after the processes have agreed to save."""
    before_call(builtins, run_folder, "gather", 1, sigterm)


def nan(trainer) -> None:
    """Make the images of this process not finite from the next step on."""
    step = engine.Trainer.train_step
    bad = lambda batch: batch._replace(images=batch.images * float("nan"))  # noqa: E731
    engine.Trainer.train_step = lambda self, batch: step(self, bad(batch))


def install_fault() -> None:
    """Let the processes agree at each step, and install the fault if it is of this process."""
    run.AGREE_S = 0
    rank, step, name = os.environ["FAULT"].split()
    is_first = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0"
    if rank == os.environ["RANK"] and is_first:
        send = lambda trainer: os.kill(os.getpid(), signal.Signals[name])  # noqa: E731
        before_steps(builtins, engine.Trainer, {int(step): globals().get(name, send)})


if __name__ == "__main__":
    if os.environ.get("FAULT"):
        install_fault()
    run_script(script.main)

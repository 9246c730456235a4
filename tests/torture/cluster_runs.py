"""A run of several simulated machines, and what must be true when it ends."""

import re
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from torture import paced
from torture.attempts import Attempt, expect
from torture.children import POLL_S, ProcessResult
from torture.namespaces import Machine, enter_namespaces
from torture.runs import CIFAR_RUN, TRAINING_RUN, SmallRun, expect_same_run, load, log_records

END_S = 120  # within which every machine must end
FINISH_S = 150  # within which a run must finish if nothing disturbs it
EPOCH_S = 1  # or longer
# By torchrun, when the process could not; the shell, when torchrun could not.
NAMED = r"\w(Error|Exception)\b|^Terminated"


class Cluster:
    """A run on several machines with one process each; the first machine has rank 0.

    Args:
        attempt: gives the folder, the index that selects the script, and the random numbers.
        count: number of machines.
        private: the machines do not share `--save`.
        restarts: of the processes by torchrun.
        loopback: indices of machines with names that resolve to loopback.
        small_shm: indices of machines whose `/dev/shm` has 64 MiB.
        retries: of TCP packets that are not acknowledged; 0 is the system's own number.
    """

    def __init__(
        self,
        attempt: Attempt,
        count: int = 2,
        private: bool = False,
        restarts: int = 0,
        loopback: Iterable[int] = (),
        small_shm: Iterable[int] = (),
        retries: int = 0,
    ):
        self.attempt = attempt
        self.run: SmallRun = run_of(attempt)
        self.shared = attempt.shared / self.run.script.module
        self.save = attempt.folder / "run"
        self.restarts = restarts
        self.more: list[str] = []  # arguments of the script
        self.images = self.shared / "images"  # of imagenet/'s run
        self.variables: dict[str, str] = {}  # of the environment
        self.machines = [
            Machine(
                attempt.folder,
                index,
                count,
                "64m" if index in small_shm else "1g",
                index in loopback,
                self.save if private else None,
                retries,
            )
            for index in range(count)
        ]

    def start(self, machines: Iterable[Machine] = ()) -> None:
        """Start the run on these machines, by default all."""
        for machine in machines or self.machines:
            machine.start(self._command(machine), **self.variables)

    def _command(self, machine: Machine) -> list[str]:
        attempt = Attempt(
            self.attempt.folder, self.shared, self.attempt.index // 2, self.attempt.rng
        )
        script = self.run.script
        launcher = f"-m torch.distributed.run --nnodes {len(self.machines)} --nproc_per_node 1"
        launcher += f" --max-restarts {self.restarts} --redirects 3 --rdzv-backend c10d"
        launcher += " --rdzv-endpoint node0:29400 --rdzv-id run --rdzv-conf join_timeout=60"
        launcher += " --log-dir"
        logs = str(self._logs(machine, machine.boots + 1))
        path = str(script.folder.path / f"{script.module}.py")
        argv = [*self.run.argv(attempt, self.save), *self.more]
        argv = [str(self.images) if word == str(self.shared / "images") else word for word in argv]
        worker = [paced.__file__, str(attempt.folder), path, *argv]
        return [sys.executable, *launcher.split(), logs, *worker]

    def _logs(self, machine: Machine, boot: int) -> Path:
        return self.attempt.folder / f"{machine.name}-logs{boot}"

    def processes_of(self, machine: Machine) -> list[list[str]]:
        """Return the error messages of each process that the machine has started since its boot."""
        files = sorted(self._logs(machine, machine.boots).glob("*/*/*/stderr.log"))
        results = [ProcessResult("", 0, "", path.read_text(errors="replace")) for path in files]
        return [result.errors for result in results]

    def end(self, limit_s: float) -> list[ProcessResult]:
        """Wait until every machine has ended; return the result of each."""
        deadline = time.monotonic() + limit_s
        while not all(m.has_ended() for m in self.machines) and time.monotonic() < deadline:
            time.sleep(POLL_S)
        return [machine.wait(0) for machine in self.machines]

    def restart_failed(self, limit_s: float, boots: int = 5) -> list[ProcessResult]:
        """Start machines again that fail, as a scheduler does, until all succeed."""
        deadline = time.monotonic() + limit_s
        while time.monotonic() < deadline:
            ended = [machine for machine in self.machines if machine.has_ended()]
            failed = [machine for machine in ended if machine.wait(0).status]
            if len(ended) == len(self.machines) and not failed:
                break
            for machine in failed:
                if machine.boots < boots:
                    self.start([machine])
            time.sleep(POLL_S)
        return self.end(0)

    def sleep_until_random_moment(self) -> None:
        """Wait for a moment of the start, or of one of the epochs but the last."""
        epochs = len(log_records(self.shared / "reference" / self.run.log))
        finished = self.attempt.rng.randrange(-1, epochs - 1)
        fraction = self.attempt.rng.random()
        if finished < 0:
            time.sleep(fraction * float((self.shared / "start_s").read_text()))
            return
        self.wait_for_epoch(finished)
        time.sleep(fraction * EPOCH_S)

    def wait_for_epoch(self, finished: int) -> None:
        """Wait until that many epochs are in the log; with 0, until the run has its folder."""
        folders = [machine.disk or self.save for machine in self.machines]
        log = self.run.log
        while not self.any_ended():
            counts = [count_lines(folder / log) for folder in folders]
            if max(counts) >= finished and any((f / "lock").exists() for f in folders):
                return
            time.sleep(POLL_S)

    def expect_success(self, results: list[ProcessResult]) -> None:
        """Expect that every machine has succeeded, and the result of a run without disturbance."""
        for machine, result in zip(self.machines, results, strict=True):
            expect(result.status == 0, "expected status 0", self.describe(machine, result))
        expect_same_run(self.run, self.save, self.shared / "reference")

    def expect_survival(self, results: list[ProcessResult], mention: str = "") -> None:
        """Expect success, or a reason from each machine and that the run can be resumed."""
        if any(result.status != 0 for result in results):
            self.expect_reasons(results, mention)
            self.resume()
        else:
            self.expect_success(results)

    def expect_reasons(self, results: list[ProcessResult], mention: str = "") -> None:
        """Expect that every machine has ended and named the reason, one of them with `mention`."""
        reasons = []
        for machine, result in zip(self.machines, results, strict=True):
            text = self.describe(machine, result)
            expect(result.status is not None, f"did not end within {END_S} s", text)
            processes = self.processes_of(machine)
            is_one_line = all(len(errors) <= 1 for errors in processes)
            expect(is_one_line, "expected one line from each process", text)
            own = processes[-1] if processes else []
            named = result.status == 0 or own or re.search(NAMED, result.err, re.M)
            expect(named, "expected a line that names the reason", text)
            reasons += own
        expect(mention in " ".join(reasons), f"expected {mention!r} in the reasons", text)

    def describe(self, machine: Machine, result: ProcessResult) -> str:
        """Return how a machine ended, with the last messages of each process on every machine."""
        lines = [str(result)]
        for each in self.machines:
            for errors in self.processes_of(each):
                lines.append(f"{each.name}, a process: " + "\n        ".join(errors[-4:] or ["-"]))
        return "\n    ".join(lines)

    def share_save(self) -> None:
        for machine in self.machines:
            machine.share()

    def any_ended(self) -> bool:
        return any(machine.has_ended() for machine in self.machines)

    def resume(self, **variables: str) -> None:
        """Load the last checkpoint, resume the run, and expect the undisturbed result."""
        if (self.save / "checkpoint.pt").exists():
            load(self.save / "checkpoint.pt")
        self.more, self.variables = [], variables
        self.start()
        self.expect_success(self.end(FINISH_S))


@contextmanager
def cluster(attempt: Attempt, *arguments, **options) -> Iterator[Cluster]:
    """Make a `Cluster` in this process's own network; shut its machines down at the end."""
    enter_namespaces()
    made = Cluster(attempt, *arguments, **options)
    try:
        yield made
    finally:
        for machine in made.machines:
            machine.remove()


def run_of(attempt: Attempt) -> SmallRun:
    """Return the run of wrn_DKS/ for attempts of even indices, otherwise that of imagenet/."""
    return (CIFAR_RUN, TRAINING_RUN)[attempt.index % 2]


def count_lines(path: Path) -> int:
    return path.read_text().count("\n") if path.exists() else 0

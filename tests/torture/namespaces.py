"""Machines simulated on one: each has its own network, mounts, processes and host name.

A machine is a process tree in Linux namespaces, connected by a veth pair to a bridge that exists
only in the namespaces of the process that called `enter_namespaces`. Everything disappears with
this process, however it ends: the kernel kills the machines, and removes what no process uses.
"""

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from processes import child_processes

from torture.children import POLL_S, Child, ProcessResult

CLONE_NEWNS, CLONE_NEWNET = 0x00020000, 0x40000000  # of linux/sched.h
PR_SET_PDEATHSIG = 1  # of linux/prctl.h
TOOLS = ("bash", "hostname", "ip", "mount", "nsenter", "unshare")
BRIDGE = "bridge0"

# The new network namespace is entered first, because $outside is a process ID of the old one.
CONNECT = f"""
ip link add eth0 type veth peer name "$port" netns "$outside"
nsenter --target "$outside" --net ip link set "$port" master {BRIDGE} up
ip link set lo up
ip address add "$address/24" dev eth0
ip link set eth0 up
exec unshare --mount --uts --ipc --pid --mount-proc --fork --kill-child bash -ec "$boot" bash "$@"
"""
# The last line keeps bash as the first process, which reaps orphans.
BOOT = """
hostname "$name"
if [ "$retries" ]; then echo "$retries" > /proc/sys/net/ipv4/tcp_retries2; fi
mount -t tmpfs -o "size=$shm" tmpfs /dev/shm
mount --bind "$hosts" /etc/hosts
if [ "$disk" ]; then mount --bind "$disk" "$mount_point"; fi
set +e; "$@"; exit "$?"
"""


def missing() -> str:
    """Return why machines can't be simulated here; empty if they can."""
    if not sys.platform.startswith("linux"):
        return "needs Linux"
    if os.geteuid() != 0:
        return "needs root"
    lacking = [tool for tool in TOOLS if not shutil.which(tool)]
    if lacking:
        return f"needs {', '.join(lacking)}"
    pid = os.fork()
    if not pid:
        status = 1
        with contextlib.suppress(OSError, subprocess.CalledProcessError):
            enter_namespaces()
            run("ip", "link", "add", "eth0", "type", "veth", "peer", "name", "eth1")
            status = 0
        os._exit(status)
    allowed = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    return "" if allowed else "needs permission to create namespaces, bridges and veth pairs"


def enter_namespaces() -> None:
    """Move this process to a new network with nothing but a bridge, and to its own mounts."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNET | CLONE_NEWNS):
        raise OSError(ctypes.get_errno(), "unshare")
    run("mount", "--make-rprivate", "/")
    run("ip", "link", "add", BRIDGE, "type", "bridge")
    run("ip", "link", "set", BRIDGE, "up")


def run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


class Machine:
    """A machine of the network of `enter_namespaces`.

    Args:
        folder: for its files.
        index: from 0; the name is `node0`, and so on.
        count: number of machines, whose names all of them know.
        shm: size of `/dev/shm` in the notation of mount.
        loopback: its own name is that of 127.0.1.1, as Debian's installer writes it.
        private: a folder of which this machine has its own version.
        retries: of TCP packets that are not acknowledged; 0 is the system's own number.
    """

    def __init__(
        self,
        folder: Path,
        index: int,
        count: int,
        shm: str = "1g",
        loopback: bool = False,
        private: Path | None = None,
        retries: int = 0,
    ):
        self.name = f"node{index}"
        self._folder = folder
        self._boots = 0
        self._port = ""
        self._child: Child | None = None
        addresses = [f"198.18.0.{1 + i}" for i in range(count)]
        known = ["127.0.1.1" if loopback and i == index else a for i, a in enumerate(addresses)]
        hosts = folder / f"{self.name}-hosts"
        lines = ["127.0.0.1 localhost", *(f"{a} node{i}" for i, a in enumerate(known))]
        hosts.write_text("\n".join(lines) + "\n")
        self.disk = folder / f"{self.name}-disk" if private else None
        if private:
            self.disk.mkdir()
            private.mkdir(exist_ok=True)
        self._variables = {
            "outside": str(os.getpid()),
            "address": addresses[index],
            "name": self.name,
            "shm": shm,
            "hosts": str(hosts),
            "disk": str(self.disk or ""),
            "mount_point": str(private or ""),
            "retries": str(retries or ""),
            "boot": BOOT,
        }

    def start(self, argv: Sequence[str], **variables: str) -> None:
        """Boot the machine and run a command in it; it is shut down when the command ends."""
        self.remove()
        self._boots += 1
        self._port = f"{self.name}-{self._boots}"
        environment = {**os.environ, **self._variables, "port": self._port, **variables}

        def connect() -> int:
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            shell = ["bash", "-ec", CONNECT, "bash", *argv]
            os.execvpe("unshare", ["unshare", "--net", *shell], environment)

        stem = self._folder / f"{self.name}-boot{self._boots}"
        self._child = Child(f"{self.name}: {' '.join(argv)}", connect, stem)
        while not self._is_connected() and not self.has_ended():
            time.sleep(POLL_S)

    def _is_connected(self) -> bool:
        link = subprocess.run(["ip", "link", "show", self._port], capture_output=True, text=True)
        return f"master {BRIDGE}" in link.stdout

    def share(self) -> None:
        """From the next boot on, have no folder of its own."""
        self._variables["disk"] = ""

    @property
    def boots(self) -> int:
        return self._boots

    def has_ended(self) -> bool:
        return self._child.has_ended()

    def wait(self, limit_s: float) -> ProcessResult:
        """Wait until the command ends; kill the machine after `limit_s` seconds."""
        return self._child.wait(limit_s)

    def terminate(self) -> None:
        """Send SIGTERM to the command, once it runs."""
        while not self.has_ended():
            for pid in child_processes(self.init()):
                if command_of(pid) not in ("bash", "hostname", "mount"):  # those of `BOOT`
                    os.kill(pid, signal.SIGTERM)
                    return
            time.sleep(POLL_S)

    def init(self) -> int:
        """Return the ID of the machine's first process, or 0 if it has none."""
        if self.has_ended():  # its ID may be that of another process now
            return 0
        return next(iter(child_processes(self._child.pid)), 0)

    def kill(self) -> None:
        """Kill all processes of the machine at once."""
        if init := self.init():
            with contextlib.suppress(ProcessLookupError):
                os.kill(init, signal.SIGKILL)
        self._child.wait(0)

    def disconnect(self) -> None:
        """Cut the link: packets are lost from now on, and no side is told."""
        run("ip", "link", "set", self._port, "nomaster")

    def connect(self) -> None:
        """Restore the link."""
        run("ip", "link", "set", self._port, "master", BRIDGE)

    def remove(self) -> None:
        """Kill what is left of the machine and remove its link."""
        if self._child:
            self.kill()
            # The kernel may have removed it with the machine's network already.
            subprocess.run(["ip", "link", "delete", self._port], capture_output=True)
            self._child = None


def command_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except FileNotFoundError:
        return "bash"  # it has ended

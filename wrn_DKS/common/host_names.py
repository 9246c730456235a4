"""Check that the other machines can connect to this one, before gloo tries."""

import ipaddress
import os
import socket

import torch.distributed as dist

from .command_line import UserError

INTERFACE = "GLOO_SOCKET_IFNAME"  # which makes gloo use the address of that network interface


def check_host_names(store: dist.Store, own_rank: int, count: int) -> None:
    """Check the address under which each machine offers its connections to the others.

    Without the check, a process fails with a traceback of gloo, and others may wait for it.

    Raises:
        UserError: the name of a machine resolves to a loopback address; raised by all processes.
    """
    if int(os.environ.get("LOCAL_WORLD_SIZE", count)) == count:
        return  # a single machine
    key = "unreachable machine {}"
    store.set(key.format(own_rank), "" if INTERFACE in os.environ else unreachable_machine())
    for rank in range(count):
        if machine := store.get(key.format(rank)).decode():
            raise UserError(
                f"{machine}, so other machines cannot connect to it; set {INTERFACE} on all "
                "machines to the network interface, such as eth0 (`ip address` lists them), or "
                "correct /etc/hosts"
            )


def unreachable_machine() -> str:
    """Return why others cannot reach this machine under the address that gloo uses, or nothing.

    Gloo uses the first address of the host name that it can bind, otherwise a loopback address.
    """
    name = socket.gethostname()
    try:
        found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except OSError:
        return f"the name of machine {name} does not resolve to an address"
    for family, kind, protocol, _, address in found:
        with socket.socket(family, kind, protocol) as probe:
            try:
                probe.bind(address)
            except OSError:
                continue
        if ipaddress.ip_address(address[0].split("%")[0]).is_loopback:
            return f"the name of machine {name} resolves to {address[0]}, a loopback address"
        return ""
    return f"the name of machine {name} does not resolve to an address of this machine"

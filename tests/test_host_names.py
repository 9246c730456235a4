"""Machines that others cannot connect to are refused by all processes, before gloo tries."""

import socket

import pytest
import torch.distributed as dist

LOOPBACK, OUTSIDE = "127.0.1.1", "198.51.100.7"


@pytest.fixture
def machines(wrn, monkeypatch):
    """Return a function that gives the addresses of this machine's name and checks a run of two."""
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    monkeypatch.setattr(socket, "gethostname", lambda: "node7")

    def check(addresses, other="", own_rank=1):
        def resolve(name, *args, **options):
            assert name == "node7"
            if not addresses:
                raise socket.gaierror
            kind = socket.AF_INET, socket.SOCK_STREAM, 0, ""
            return [(*kind, (address, 0)) for address in addresses]

        monkeypatch.setattr(socket, "getaddrinfo", resolve)
        store = dist.HashStore()
        store.set(f"unreachable machine {1 - own_rank}", other)
        wrn.host_names.check_host_names(store, own_rank, 2)

    return check


def test_a_loopback_address_is_refused(wrn, machines, monkeypatch):
    with pytest.raises(wrn.command_line.UserError, match=r"node7 resolves to 127.0.1.1.*IFNAME"):
        machines([LOOPBACK])
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth0")
    machines([LOOPBACK])
    monkeypatch.delenv("GLOO_SOCKET_IFNAME")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")  # the whole run is on this machine
    machines([LOOPBACK])


def test_gloo_skips_addresses_of_other_machines(wrn, machines):
    """The documentation's network is never that of a machine."""
    with pytest.raises(wrn.command_line.UserError, match=r"resolves to 127\.0\.1\.1"):
        machines([OUTSIDE, LOOPBACK])
    with pytest.raises(wrn.command_line.UserError, match="not resolve to an address of this"):
        machines([OUTSIDE])


def test_a_name_that_does_not_resolve_is_refused(wrn, machines):
    with pytest.raises(wrn.command_line.UserError, match="name of machine node7 does not resolve"):
        machines([])


@pytest.mark.parametrize("own_rank", [0, 1])
def test_all_processes_refuse_the_same_machine(wrn, machines, own_rank):
    """An address that others reach is 0.0.0.0 here: this machine's, and no loopback address."""
    machines(["0.0.0.0"], own_rank=own_rank)
    with pytest.raises(wrn.command_line.UserError, match=r"^machine 8 is odd, so other machines"):
        machines(["0.0.0.0"], "machine 8 is odd", own_rank)

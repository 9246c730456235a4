"""Processes that form groups, forked from one that has imported everything."""

import os
import traceback
from collections.abc import Callable


def compute_in_groups(compute: Callable[[int], object], ports: dict[int, str]) -> int:
    """Call `compute` with the size of the group, in a single process and in each of a group.

    Args:
        compute: calls `distributed_context`.
        ports: a free port for each size of a group.

    Returns:
        The exit status of this process: 0 if all have succeeded.
    """
    children = []
    for size in (1, *ports):
        for rank in range(size):
            child = os.fork()
            if child == 0:
                if size > 1:
                    os.environ |= {"WORLD_SIZE": str(size), "RANK": str(rank)}
                    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": ports[size]}
                try:
                    compute(size)
                except BaseException:
                    traceback.print_exc()
                    os._exit(1)
                os._exit(0)
            children.append(child)
    return int(any([os.waitpid(child, 0)[1] for child in children]))

"""Processes that are ranks of one group, one thread each, kept for many tests; a hang is a
failure."""

import contextlib
import multiprocessing
import socket
import sys
import traceback

import torch

PATIENCE = 60  # seconds for one call; they take far less than one


class Hung(Exception):
    """A rank did not answer."""


class Pool:
    """`world` processes; `run(function, *arguments)` calls `function(rank, *arguments)` in each."""

    def __init__(self, world):
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            port = s.getsockname()[1]
        context = multiprocessing.get_context("forkserver")  # torch is imported once for all
        context.set_forkserver_preload(["torch.distributed", "fused_mi", "pool"])
        self.world, self._pipes, self._processes = world, [], []
        for rank in range(world):
            ours, theirs = context.Pipe()
            process = context.Process(
                target=_serve, args=(rank, world, port, theirs, sys.path), daemon=True
            )
            process.start()
            self._pipes.append(ours)
            self._processes.append(process)

    def run(self, function, *arguments):
        """What the function returns, of each rank; an exception is raised here, of the first."""
        for pipe in self._pipes:
            pipe.send((function, arguments))
        found = []
        for rank, pipe in enumerate(self._pipes):
            if not pipe.poll(PATIENCE):
                self.close()
                raise Hung(f"rank {rank} of {self.world} in {function.__name__}")
            found.append(pipe.recv())
        for failed, value in found:
            if failed:
                raise AssertionError(value)
        return [value for _, value in found]

    def close(self):
        for process in self._processes:
            with contextlib.suppress(ValueError):
                process.kill()

    @property
    def alive(self):
        return all(process.is_alive() for process in self._processes)


_pools = {}


def pool(world):
    """One for each number of ranks, made when it is first asked for; anew after a hang."""
    if world not in _pools or not _pools[world].alive:
        _pools[world] = Pool(world)
    return _pools[world]


def _serve(rank, world, port, pipe, path):
    sys.path[:] = path
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world
    )
    while True:
        try:
            function, arguments = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send((False, function(rank, *arguments)))
        except Exception:
            pipe.send((True, f"rank {rank} of {world}:\n{traceback.format_exc()}"))

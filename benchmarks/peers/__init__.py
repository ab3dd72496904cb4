"""What one would use without this package: each peer in a file of its own, all behind `Peer`."""

from . import club, compiled, distributions, eager_lean, eager_linear, eager_pairs, gemm, keops
from ._peer import Peer

PEERS: tuple[Peer, ...] = (
    eager_pairs.PEER,
    compiled.of(eager_pairs.PEER),
    eager_linear.PEER,
    compiled.of(eager_linear.PEER),
    eager_lean.PEER,
    gemm.PEER,
    keops.PEER,
    distributions.PEER,
    club.PEER,
)

__all__ = ["PEERS", "Peer"]

"""[torch] How torchrun's agent meets itself where there is one machine alone: without opening a port.

torch's own rendezvous listens on every interface of the machine, with no password.
"""

from torch._C._distributed_c10d import HashStore
from torch.distributed.elastic.rendezvous import (
    RendezvousHandler,
    RendezvousInfo,
    RendezvousParameters,
    RendezvousStoreInfo,
)


class OneMachine(RendezvousHandler):
    """The rendezvous of a single agent: it is complete at once, and its store is in memory."""

    def __init__(self, run_id: str) -> None:
        self.run_id = run_id

    def get_backend(self) -> str:
        return "imagepipe"

    @property
    def use_agent_store(self) -> bool:
        return False

    def next_rendezvous(self) -> RendezvousInfo:
        return RendezvousInfo(HashStore(), 0, 1, RendezvousStoreInfo("localhost", 0))

    def is_closed(self) -> bool:
        return False

    def set_closed(self) -> None:
        pass

    def num_nodes_waiting(self) -> int:
        return 0

    def get_run_id(self) -> str:
        return self.run_id

    def shutdown(self) -> bool:
        return True


def make_rendezvous(parameters: RendezvousParameters) -> RendezvousHandler:
    """As torch's registry of handlers calls it."""
    return OneMachine(parameters.run_id)

"""[torch] How torchrun's agent meets itself where there is one machine alone: without opening a port.

torch's own rendezvous listens on every interface of the machine, with no password.
"""

from pathlib import Path

from torch._C._distributed_c10d import HashStore
from torch.distributed.elastic.rendezvous import (
    RendezvousClosedError,
    RendezvousHandler,
    RendezvousInfo,
    RendezvousParameters,
    RendezvousStoreInfo,
)


class OneMachine(RendezvousHandler):
    """The rendezvous of a single agent: it is complete at once, and its store is in memory.

    Once there is a file `failure`, it is closed: what is written there would be met again.
    """

    def __init__(self, run_id: str, failure: Path) -> None:
        self.run_id = run_id
        self.failure = failure

    def get_backend(self) -> str:
        return "imagepipe"

    @property
    def use_agent_store(self) -> bool:
        return False

    def next_rendezvous(self) -> RendezvousInfo:
        if self.is_closed():
            raise RendezvousClosedError(f"{self.failure}: a process has met an error that a new start would not mend.")
        return RendezvousInfo(HashStore(), 0, 1, RendezvousStoreInfo("localhost", 0))

    def is_closed(self) -> bool:
        return self.failure.is_file()

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
    return OneMachine(parameters.run_id, Path(parameters.config["failure"]))

from pathlib import Path

import psutil
import pytest
from torch.distributed.elastic.rendezvous import RendezvousClosedError, RendezvousParameters

from imagepipe.training.rendezvous import make_rendezvous


def test_one_machine_is_complete_at_once_and_listens_nowhere(tmp_path: Path) -> None:
    before = count_listening()
    handler = make_rendezvous(make_parameters(tmp_path))
    found = handler.next_rendezvous()
    assert (found.rank, found.world_size) == (0, 1)
    found.store.set("key", "value")
    assert found.store.get("key") == b"value"
    assert (handler.get_backend(), handler.get_run_id()) == ("imagepipe", "run")
    assert handler.num_nodes_waiting() == 0
    handler.set_closed()
    assert not handler.is_closed()
    assert not handler.use_agent_store
    assert handler.shutdown()
    assert count_listening() == before


def test_after_a_failure_that_a_new_start_would_not_mend_there_is_none(tmp_path: Path) -> None:
    handler = make_rendezvous(make_parameters(tmp_path))
    handler.next_rendezvous()
    (tmp_path / "failure.json").touch()
    assert handler.is_closed()
    with pytest.raises(
        RendezvousClosedError, match=r"failure\.json: a process has met an error that a new start would"
    ):
        handler.next_rendezvous()


def make_parameters(folder: Path) -> RendezvousParameters:
    return RendezvousParameters("imagepipe", "loopback", "run", 1, 1, failure=str(folder / "failure.json"))


def count_listening() -> int:
    """Ports on which this process listens."""
    return sum(connection.status == psutil.CONN_LISTEN for connection in psutil.Process().net_connections("inet"))

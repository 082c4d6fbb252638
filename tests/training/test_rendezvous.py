import psutil
from torch.distributed.elastic.rendezvous import RendezvousParameters

from imagepipe.training.rendezvous import make_rendezvous


def test_one_machine_is_complete_at_once_and_listens_nowhere() -> None:
    before = count_listening()
    handler = make_rendezvous(RendezvousParameters("imagepipe", "loopback", "run", 1, 1))
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


def count_listening() -> int:
    """Ports on which this process listens."""
    return sum(connection.status == psutil.CONN_LISTEN for connection in psutil.Process().net_connections("inet"))

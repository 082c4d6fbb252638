"""[torch] Several processes that train one model: who each of them is, and what they tell each other.

Started by `train.processes` on one machine (`launch`), or by torchrun on several; the processes themselves cannot tell
the difference. Gradients are averaged by torch's DistributedDataParallel, over gloo or, between GPUs, NCCL.
"""

import json
import os
import re
import signal
import socket
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._C._distributed_c10d import FileStore
from torch.nn.parallel import DistributedDataParallel

from imagepipe.core.errors import EnvironmentFault, ImagepipeError, InputError
from imagepipe.core.files import write_bytes, write_json

RESTARTS = 3  # of all processes together, each time that one of them has ended in an unforeseen way
STORE, FAILURE = "IMAGEPIPE_STORE", "IMAGEPIPE_FAILURE"  # files by which `launch` and its processes meet
ROOM, ROOM_BYTES = "room", 1 << 16  # a file beside FAILURE that gives way to it on a disk that has become full
PULSE, GRACE = 0.5, 5.0  # seconds between two looks at FAILURE; until a process that has not ended by itself is ended


@dataclass(frozen=True, slots=True)
class Group:
    """This process, of `size` that train together; `local_rank` counts those of this machine."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes and prints."""
        return self.rank == 0

    def add_up(self, values: Tensor) -> Tensor:
        """The sum of all processes' `values`, which are changed in place."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def find_most(self, value: int) -> int:
        """The largest of all processes' values."""
        if self.size == 1:
            return value
        found = torch.tensor(value)
        dist.all_reduce(found, dist.ReduceOp.MAX)
        return int(found)

    def take_turns(self) -> None:
        """Wait until all processes are here."""
        if self.size > 1:
            dist.barrier()

    def hand_out(self, data: bytes | None) -> bytes | None:
        """What the leading process gives, in all of them; None stays None."""
        if self.size == 1:
            return data
        length = torch.tensor([-1 if data is None else len(data)])
        dist.broadcast(length, 0)
        if length.item() < 0:
            return None
        content = torch.zeros(int(length), dtype=torch.uint8)
        if data is not None:
            content = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        dist.broadcast(content, 0)
        return content.numpy().tobytes()

    def share_buffers(self, model: nn.Module) -> None:
        """Give all processes the leading one's buffers: the running statistics of batch norm."""
        if self.size > 1:
            for buffer in model.buffers():
                dist.broadcast(buffer, 0)

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model whose backward pass averages the gradients of all processes; alone, the model itself."""
        if self.size == 1:
            return model
        return DistributedDataParallel(model, forward_sync_buffers=False)


ALONE = Group()


class ShareOfLoss(nn.Module):
    """What falls to this process of the loss of a batch that several share, so that the average of all is the loss.

    `loss` is a mean over the samples, each weighted by its class where there are `class_weights` (classes,). A share
    without samples, which the end of an epoch may bring, is one sample that counts nothing.
    """

    def __init__(self, loss: nn.Module, class_weights: Tensor | None, group: Group) -> None:
        super().__init__()
        self.loss = loss
        self.class_weights = class_weights
        self.group = group

    def forward(self, logits: Tensor, labels: Tensor, samples: int) -> Tensor:
        """`samples` is the number of samples that count: all of the labels, or none."""
        weight = torch.tensor(float(samples), device=logits.device)
        if samples and self.class_weights is not None:
            weight = self.class_weights[labels].sum()
        share = weight / self.group.add_up(weight.clone())
        return self.loss(logits, labels) * share * self.group.size


def is_launched() -> bool:
    """Whether this process is one of several that torchrun, or `launch`, has started."""
    return "TORCHELASTIC_RUN_ID" in os.environ


@contextmanager
def join_group(size: int, device: str) -> Generator[Group]:
    """This process's place among the `size` of `train.processes`; the others are waited for.

    Raises InputError where torchrun started another number.
    """
    if not is_launched():
        yield ALONE
        return
    rank, found, local_rank = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    if found != size:
        raise InputError(
            f"train.processes is {size}, but torchrun started {found} processes; figures depend on it: let them agree."
        )
    if size == 1:
        yield ALONE
        return
    if FAILURE in os.environ:
        threading.Thread(target=leave_with_failure, args=(Path(os.environ[FAILURE]),), daemon=True).start()
    on_gpus = device.startswith("cuda")
    if on_gpus:
        if local_rank >= torch.cuda.device_count():
            raise EnvironmentFault(
                f"train.processes: process {local_rank} of this machine has no GPU of its own; it has "
                f"{torch.cuda.device_count()}."
            )
        torch.cuda.set_device(local_rank)
    if rank:
        warnings.simplefilter("ignore")  # the leading process says the same
    backend = "cpu:gloo,cuda:nccl" if on_gpus else "gloo"
    if STORE in os.environ:
        store = FileStore(f"{os.environ[STORE]}.{os.environ['TORCHELASTIC_RESTART_COUNT']}", size)
        dist.init_process_group(backend, store=store, rank=rank, world_size=size)
    else:
        dist.init_process_group(backend)
    try:
        yield Group(rank, size, local_rank)
    except ImagepipeError as error:
        note_failure(error)  # before the others lose this process
        raise
    finally:
        dist.destroy_process_group()


@contextmanager
def report_failure() -> Generator[None]:
    """Hand an ImagepipeError to the process that called `launch`: to start again would not mend it.

    Without such a process, or where it cannot be handed over, it goes its way. That another process has ended is one
    line and exit code 1, on which torchrun starts all of them anew; nothing is said where that one has met an
    ImagepipeError.
    """
    try:
        yield
    except ImagepipeError as error:
        if not note_failure(error):
            raise
        sys.exit(0)
    except RuntimeError as error:  # gloo has no kind of its own
        if is_failure_noted():
            sys.exit(0)
        if not (is_launched() and re.search("by peer|DistNetworkError|NCCL", str(error))):
            raise
        sys.exit(f"train: process {os.environ['RANK']} lost another one, and ends; all are started anew.")


def note_failure(error: ImagepipeError) -> bool:
    """Write what this process met for the one that called `launch`, unless another has written already.

    False where nobody called it, or nothing can be written.
    """
    if FAILURE not in os.environ:
        return False
    if is_failure_noted():
        return True
    path = Path(os.environ[FAILURE])
    with suppress(OSError):
        path.with_name(ROOM).unlink()
    try:
        write_json(path, {"exit_code": error.exit_code, "message": str(error)}, durable=False)
    except EnvironmentFault:
        return False
    return True


def is_failure_noted() -> bool:
    """Whether one of the processes that `launch` started has met an ImagepipeError."""
    return FAILURE in os.environ and Path(os.environ[FAILURE]).is_file()


def leave_with_failure(failure: Path) -> None:
    """End this process when another has met an ImagepipeError: it may wait for that one, and hear nothing of its end.

    Where it hears of it, it ends by itself, and has some seconds for that.
    """
    while not failure.is_file():
        time.sleep(PULSE)
    time.sleep(GRACE)
    os._exit(0)


def launch(size: int, command: Sequence[str]) -> None:
    """Run `command` in `size` processes of this machine by torchrun's elastic launcher, and wait for all of them.

    Where one ends in an unforeseen way, all are started anew, up to RESTARTS times. They talk over loopback only, and
    find each other by files. Raises the ImagepipeError that one of them met, after which none is started, and
    EnvironmentFault where they kept ending, or the folder for temporary files is full.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import RendezvousClosedError, rendezvous_handler_registry
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    from imagepipe.training.rendezvous import make_rendezvous

    rendezvous_handler_registry.register("imagepipe", make_rendezvous)
    with tempfile.TemporaryDirectory() as folder:
        failure = Path(folder, "failure.json")
        write_bytes(failure.with_name(ROOM), bytes(ROOM_BYTES), durable=False)
        os.environ |= {STORE: f"{folder}/store", FAILURE: str(failure)}
        os.environ.setdefault("GLOO_SOCKET_IFNAME", name_loopback())
        os.environ.setdefault("NCCL_SOCKET_IFNAME", f"={name_loopback()}")  # without `=`, all whose names begin so
        os.environ.setdefault("OMP_NUM_THREADS", "1")  # else torchrun sets it, with a warning; threads follow params
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=size,
            run_id="imagepipe",
            rdzv_backend="imagepipe",
            rdzv_endpoint="loopback",
            rdzv_configs={"failure": str(failure)},
            max_restarts=RESTARTS,
            monitor_interval=0.2,
        )
        ended = None
        try:
            elastic_launch(config, command[0])(*command[1:])
        except RendezvousClosedError:  # a process has met an ImagepipeError, and another has ended otherwise
            pass
        except ChildFailedError as error:
            ended = error
        except SignalException as error:
            sys.exit(128 + error.sigval)
        if failure.is_file():
            raise_failure(json.loads(failure.read_text("utf-8")))
        if ended:
            _, first = ended.get_first_failure()
            raise EnvironmentFault(
                f"train.processes: process {first.local_rank} of {size} ended with exit code {first.exitcode}"
                f"{describe_signal(first.exitcode)}, {RESTARTS + 1} times; what it printed stands above. Where it was "
                "killed, memory may have been short: reduce train.processes or train.batch_size."
            ) from ended


def raise_failure(failure: dict[str, Any]) -> None:
    """Raise what a process met."""
    kinds = {kind.exit_code: kind for kind in (InputError, EnvironmentFault)}
    raise kinds[failure["exit_code"]](failure["message"])


def describe_signal(code: int) -> str:
    """`` (SIGKILL)`` for the exit code of a process that a signal ended, else nothing."""
    return f" ({signal.Signals(-code).name})" if code < 0 else ""


def name_loopback() -> str:
    """The network interface that reaches this machine only."""
    names = [name for _, name in socket.if_nameindex()]
    return next((name for name in ("lo", "lo0") if name in names), names[0])

"""Several processes that learn as one: each works on its share of every batch, and gradients are averaged.

All processes hold the same networks, transitions and generators, and run the same program. So each of them draws the same
batches and the same noise, and takes its rows of them: process k of n takes the rows k, k + n, k + 2 n, ... A mean over a batch
is the mean, over the processes, of the means over their equal shares; so n processes do what one process does on the whole batch,
but for rounding. A single process is the case n = 1, in which nothing is exchanged.
"""

from __future__ import annotations

import dataclasses
import gc
import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import Tensor
from torch import distributed as torch_distributed

from dpg_robot.errors import ConfigError, DpgError
from dpg_robot.learning.replay import Batch

_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


class PeerError(DpgError, ConnectionError):
    """Another process of the same learning ended, hangs, or does something else than this one."""


@dataclass(frozen=True)
class Processes:
    """The processes that learn together, as one of them sees them.

    Attributes:
        rank: number of this process, from 0.
        count: how many there are.
        device: where this one computes.
    """

    rank: int = 0
    count: int = 1
    device: str = "cpu"

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.count:
            raise ValueError(f"rank must be in [0, {self.count}), got {self.rank}")

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files and talks to the user."""
        return self.rank == 0

    def require_equal_shares(self, rows: int, what: str) -> None:
        """Raise ConfigError unless ``rows`` can be shared equally; unequal shares would not weigh all rows alike."""
        if rows % self.count:
            raise ConfigError(f"{what} are {rows} transitions, which {self.count} processes cannot share equally")

    def share(self, rows: Tensor) -> Tensor:
        """Return this process's rows (N / count, ...) of values (N, ...) that all processes hold."""
        return rows[self.rank :: self.count]

    def share_of_batch(self, batch: Batch) -> Batch:
        """Return this process's transitions of a batch that all processes hold.

        Raises:
            ConfigError: the batch cannot be shared equally.
        """
        if self.count == 1:
            return batch
        self.require_equal_shares(len(batch), "batches")
        return batch.select(slice(self.rank, None, self.count))

    def draw(self, function: Callable[..., Tensor], rows: int, *shape: int) -> Tensor:
        """Return this process's ``rows`` of the random numbers that ``function(rows of all, *shape)`` draws for all of them."""
        return self.share(function(rows * self.count, *shape))

    def means(self, values: Sequence[Tensor]) -> list[Tensor]:
        """Return the means over processes of several tensors, in one exchange.

        Raises:
            PeerError: another process is gone.
        """
        if self.count == 1 or not values:
            return list(values)
        flat = torch.cat([value.detach().reshape(-1) for value in values])
        with _watching(self):
            torch_distributed.all_reduce(flat)
        parts = torch.split(flat / self.count, [value.numel() for value in values])
        return [part.view(value.shape) for part, value in zip(parts, values, strict=True)]

    def mean(self, value: Tensor) -> Tensor:
        """Return the mean of a tensor over processes, without a graph; in one process the tensor itself."""
        return self.means([value])[0]

    def mean_scalars(self, scalars: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the means over processes of named scalars; all processes have the same names."""
        return dict(zip(scalars, self.means(list(scalars.values())), strict=True))

    def average_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Replace the gradients of parameters by their means over processes; parameters without one stay without."""
        if self.count == 1:
            return
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        torch._foreach_copy_(gradients, self.means(gradients))

    def gather(self, values: Sequence[Tensor]) -> list[Tensor]:
        """Return all rows of tensors (N / count,) or (N / count, ...) of which each process has its share, in one exchange."""
        if self.count == 1:
            return list(values)
        ours = torch.cat([value.detach().flatten(1) if value.ndim > 1 else value.detach()[:, None] for value in values], dim=1)
        everywhere = [torch.empty_like(ours) for _ in range(self.count)]
        with _watching(self):
            torch_distributed.all_gather(everywhere, ours)
        rows = torch.stack(everywhere, dim=1).flatten(0, 1)  # back from rank, rank + count, ... to the order of the batch
        parts = torch.split(rows, [math.prod(value.shape[1:]) for value in values], dim=1)
        return [part.reshape(-1, *value.shape[1:]) for part, value in zip(parts, values, strict=True)]

    def from_first(self, value: Tensor) -> Tensor:
        """Return the tensor of the first process, on the device of ``value``, which has the same shape and type everywhere."""
        if self.count == 1:
            return value
        carrier = value.detach().to(self.device, copy=True).contiguous()
        with _watching(self):
            torch_distributed.broadcast(carrier, src=0)
        return carrier.to(value.device)

    def bytes_from_first(self, produce: Callable[[], bytes]) -> bytes:
        """Let the first process alone produce bytes, for example a file or JSON text, and return them in all."""
        if self.count == 1:
            return produce()
        content = bytearray(produce()) if self.first else bytearray()
        size = int(self.from_first(torch.tensor(len(content))))
        carrier = torch.zeros(size, dtype=torch.uint8)
        if self.first and size:
            carrier = torch.frombuffer(content, dtype=torch.uint8)
        return self.from_first(carrier).numpy().tobytes()

    def batch_from_first(self, batch: Batch | None) -> Batch:
        """Return the transitions of the first process, on the CPU where there are several; the others give None."""
        if self.count == 1:
            assert batch is not None, "the first process has transitions"
            return batch
        ours = [] if batch is None else [getattr(batch, each.name).cpu() for each in dataclasses.fields(Batch)]
        kinds = [(str(value.dtype).removeprefix("torch."), list(value.shape)) for value in ours]
        kinds = json.loads(self.bytes_from_first(lambda: json.dumps(kinds).encode()))
        if not self.first:
            ours = [torch.empty(shape, dtype=getattr(torch, dtype)) for dtype, shape in kinds]
        return Batch(*map(self.from_first, ours))

    def wait_for_all(self) -> None:
        """Wait until all processes have come here."""
        self.mean(torch.zeros(1, device=self.device))

    def require_same(self, tensors: Mapping[str, Tensor], what: str) -> None:
        """Check that all processes hold the same tensors, bit by bit.

        Raises:
            PeerError: they do not, or another process is gone.
        """
        if self.count == 1:
            return
        ours = torch.frombuffer(bytearray(_digest(tensors)), dtype=torch.uint8).to(self.device)
        differs = not torch.equal(self.from_first(ours), ours)
        # all processes hear of it, or those that are right would wait for the others
        if float(self.mean(torch.tensor(float(differs), device=self.device))):
            raise PeerError(
                f"{what} is not the same in all {self.count} processes; "
                "start all from the same checkpoint, with the same settings and seeds"
            )


ONE_PROCESS = Processes()


@contextmanager
def process_group_from_environment(device: str = "cpu", timeout_s: float = 600.0) -> Iterator[Processes]:
    """Join the processes that torchrun started, for as long as the context lasts.

    Without torchrun, that is without its variables RANK, WORLD_SIZE, ... in the environment, this is the only process. Processes
    on the CPU talk by gloo, those on GPUs by NCCL, where ``cuda`` means the GPU with the number of the process on its machine. A
    program joins once: those who leave and join again may find each other's old addresses.

    Args:
        device: where to compute: cpu or cuda.
        timeout_s: time after which a process that does not answer counts as lost; longer than one process works alone, as in an
            evaluation.

    Raises:
        ConfigError: some of the variables are missing or wrong, or a device that several processes cannot use.
        PeerError: not all processes came together in time.
    """
    if "RANK" not in os.environ and "WORLD_SIZE" not in os.environ:
        yield Processes(device=device)
        return
    if missing := [name for name in _VARIABLES if name not in os.environ]:
        raise ConfigError(f"several processes are started by torchrun, which sets {', '.join(_VARIABLES)}; missing: {missing}")
    try:
        rank, count, local_rank = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    except ValueError as error:
        raise ConfigError(f"RANK, WORLD_SIZE and LOCAL_RANK must be whole numbers: {error}") from error
    if not 0 <= rank < count:
        raise ConfigError(f"RANK must be in [0, WORLD_SIZE), got {rank} and {count}")
    if count == 1:
        yield Processes(device=device)
        return
    if device not in ("cpu", "cuda"):
        raise ConfigError(f"with {count} processes device must be cpu, or cuda for a GPU each, got {device!r}")
    processes = Processes(rank, count, device if device == "cpu" else f"cuda:{local_rank}")
    if device == "cuda":
        if not local_rank < torch.cuda.device_count():
            raise ConfigError(f"process {rank} needs GPU {local_rank}, and there are {torch.cuda.device_count()}; start fewer")
        torch.cuda.set_device(local_rank)
    with _watching(processes):
        torch_distributed.init_process_group("nccl" if device == "cuda" else "gloo", timeout=timedelta(seconds=timeout_s))
    try:
        yield processes
        processes.wait_for_all()  # nobody takes the group down while another one still uses it
    finally:
        torch_distributed.destroy_process_group()
        gc.collect()  # what is left of the group would be taken down with the interpreter, which can end in an abort


@contextmanager
def _watching(processes: Processes) -> Iterator[None]:
    """Turn what torch raises when processes lose each other into an error that says what to do."""
    try:
        yield
    except RuntimeError as error:  # of many classes, all of them derived from it
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise PeerError(
            f"process {processes.rank} of {processes.count} lost another one ({reason}); see what that one said, and start all "
            "again, which go on from the newest checkpoint"
        ) from error


def _digest(tensors: Mapping[str, Tensor]) -> bytes:
    whole = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        whole.update(f"{name} {value.dtype} {tuple(value.shape)};".encode())
        whole.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return whole.digest()

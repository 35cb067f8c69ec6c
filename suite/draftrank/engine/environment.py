"""What the compute library says of the process and its device."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")


@dataclass(frozen=True, slots=True)
class ComputeEnvironment:
    """The compute library as it is set up in this process."""

    torch: str
    """torch's version with its build tag."""
    threads: int
    """Threads one operation may use."""
    interop_threads: int
    """Threads that run operations beside one another."""
    cpu_capability: str
    """Best instruction set that torch's own kernels use here, e.g. `AVX512`."""
    gpu: str | None
    """Name of the first CUDA device; None without one."""
    gpu_memory_bytes: int | None
    """Its memory."""
    gpu_uuid: str | None
    """Its identity, as the driver spells it; None where torch does not tell it."""


def compute_environment() -> ComputeEnvironment:
    """Reads it; imports torch."""
    import torch

    gpu = memory = uuid = None
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        gpu, memory = properties.name, int(properties.total_memory)
        uuid = f"GPU-{properties.uuid}" if hasattr(properties, "uuid") else None
    return ComputeEnvironment(
        torch=torch.__version__,
        threads=torch.get_num_threads(),
        interop_threads=torch.get_num_interop_threads(),
        cpu_capability=torch.backends.cpu.get_cpu_capability(),
        gpu=gpu,
        gpu_memory_bytes=memory,
        gpu_uuid=uuid,
    )


def reset_peak_memory(device: Literal["cpu", "cuda"]) -> None:
    """Starts a new peak at what is in use now."""
    if device == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats()
    else:
        try:
            _CLEAR_REFS.write_text("5")
        except OSError:  # not Linux, or forbidden: the peak then counts from the process's start
            pass


def memory_bytes(device: Literal["cpu", "cuda"]) -> tuple[int, int]:
    """Bytes in use now and at the peak: resident memory on CPU, allocated memory on CUDA."""
    if device == "cuda":
        import torch

        return torch.cuda.memory_allocated(), torch.cuda.max_memory_allocated()
    import psutil

    now = int(psutil.Process().memory_info().rss)
    try:
        fields = dict(line.split(":", 1) for line in _STATUS.read_text().splitlines() if ":" in line)
        return now, int(fields["VmHWM"].split()[0]) * 1024
    except (OSError, KeyError):
        return now, now

"""What NVML answers: from a library built here that behaves as the driver's does, and from a real one."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest

from draftrank.measure.machine.gpu import Gpu, GpuState

# Prototypes and numbers as in NVIDIA's nvml.h.
FAKE = """
#include <string.h>
typedef struct { int index; } *nvmlDevice_t;
typedef struct { unsigned pid; unsigned long long used; unsigned gpu, compute; } nvmlProcessInfo_t;
static struct { int index; } device = {7};
int nvmlInit_v2(void) { return INIT; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, nvmlDevice_t *found) {
  if (index != 0) return 2;
  *found = (nvmlDevice_t)&device; return 0; }
int nvmlDeviceGetHandleByUUID(const char *uuid, nvmlDevice_t *found) {
  if (strcmp(uuid, "GPU-1")) return 6;
  *found = (nvmlDevice_t)&device; return 0; }
static int known(nvmlDevice_t given) { return given->index == 7; }
int nvmlSystemGetDriverVersion(char *text, unsigned length) { strncpy(text, "550.1", length); return 0; }
int nvmlDeviceGetEnforcedPowerLimit(nvmlDevice_t d, unsigned *mw) { *mw = 700000; return known(d) ? 0 : 2; }
int nvmlDeviceGetMaxClockInfo(nvmlDevice_t d, int kind, unsigned *mhz) {
  *mhz = 1980; return known(d) && kind == 1 ? 0 : 2; }
#ifndef OLD
int nvmlDeviceGetClockInfo(nvmlDevice_t d, int kind, unsigned *mhz) {
  *mhz = 1410; return known(d) && kind == 1 ? 0 : 2; }
int nvmlDeviceGetCurrentClocksThrottleReasons(nvmlDevice_t d, unsigned long long *bits) {
  *bits = 0x1 | 0x4 | 0x40; return known(d) ? 0 : 2; }
int nvmlDeviceGetComputeRunningProcesses_v3(nvmlDevice_t d, unsigned *count, nvmlProcessInfo_t *found) {
  unsigned pids[] = {PIDS}, total = sizeof pids / sizeof *pids;
  if (!known(d) || *count < total) return 7;
  for (*count = 0; *count < total; ++*count) { found[*count].pid = pids[*count]; found[*count].gpu = ~0u; }
  return 0; }
#endif
"""
needs_compiler = pytest.mark.skipif(shutil.which("gcc") is None, reason="needs a C compiler")


@pytest.fixture
def library(tmp_path):
    """Builds a driver library that gives these answers; returns its file."""

    def make(pids="1", init="0", *flags):
        source, built = tmp_path / "nvml.c", tmp_path / f"nvml-{len(list(tmp_path.iterdir()))}.so"
        source.write_text(FAKE)
        answers = [f"-DPIDS={pids}", f"-DINIT={init}", *flags]
        subprocess.run(["gcc", "-shared", "-fPIC", *answers, "-o", built, source], check=True)
        return str(built)

    return make


@needs_compiler
@pytest.mark.parametrize("uuid", [None, "GPU-1"])
def test_limits_and_state(library, uuid):
    gpu = Gpu.open(uuid, library(f"{os.getpid()},11,12"))
    limits = gpu.limits()
    assert (limits.driver, limits.power_limit_w, limits.clock_max_hz) == ("550.1", 700.0, 1.98e9)
    assert gpu.state() == GpuState(1.41e9, ("power limit", "hardware thermal slowdown"), 2)


@needs_compiler
@pytest.mark.parametrize(("pids", "others"), [("5000001", 0), ("5000001,5000002", 1), ("", None)])
def test_a_container_sees_the_hosts_process_numbers_or_none(library, pids, others):
    assert Gpu.open(None, library(pids)).state().others == others


@needs_compiler
def test_what_a_driver_does_not_answer_is_none(library):
    assert Gpu.open("GPU-other", library()) is None
    assert Gpu.open(None, library("1", "999")) is None
    old = Gpu.open(None, library("1", "0", "-DOLD"))
    assert old.state() == GpuState(None, (), None)
    assert old.limits().driver == "550.1"


def test_a_machine_without_the_driver():
    assert Gpu.open(None, "libnothing-of-this-name.so") is None


@pytest.mark.gpu
def test_the_real_driver():
    import torch

    from draftrank.engine.environment import compute_environment

    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    torch.zeros(1, device="cuda")
    gpu = Gpu.open(compute_environment().gpu_uuid)
    assert gpu is not None
    assert gpu.limits().driver
    assert gpu.state().clock_hz > 1e8

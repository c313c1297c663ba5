"""The speed of processors enters every time that is computed, where there is no GPU."""

from dataclasses import replace

import torch

from toolkit.estimate import CPUSpeed, Machine, measure_cpu, resolve_machine


def test_a_measurement_is_of_one_thread_times_those_that_torch_uses() -> None:
    before = torch.get_num_threads()
    found = measure_cpu()
    assert torch.get_num_threads() == before
    assert found.flops > 1e8 and found.bandwidth > 1e7  # of any processor
    assert CPUSpeed(1.0, 2.0) + CPUSpeed(3.0, 4.0) == CPUSpeed(4.0, 6.0)


def test_time_follows_from_operations_and_speed() -> None:
    machine = Machine(0, 2, 0, 2**34, None)
    assert machine.seconds(6e9, 1.0) is None and machine.bandwidth is None  # not measured
    measured = replace(machine, cpu=CPUSpeed(1e10, 8e9), cpu_ranks=4)
    assert measured.seconds(6e9, 1.0) == 1.0 + 6e9 / (0.3 * 1e10 * 2)
    assert measured.seconds(None, 1.0) is None
    assert (measured.bandwidth, measured.ranks) == (2e9, 8)
    gpu = resolve_machine(gpus=2, gpu="h100")
    assert gpu.bandwidth == 3.35e12 and replace(gpu, cpu=CPUSpeed(1.0, 1.0)).seconds(1e15, 0.0) == gpu.seconds(1e15, 0.0)

"""Every CUDA kernel compiles for sm_80 and sm_90, within its budget, without a GPU."""

from __future__ import annotations

import subprocess

import pytest

from bench.kernels import (
    ARCHITECTURES,
    Kernel,
    cuda_kernels,
    parse_report,
    table,
)
from cuda_build import find_nvcc, kernel_sources

needs_nvcc = pytest.mark.skipif(
    find_nvcc() is None, reason="there is no nvcc in $CUDA_HOME/bin or in PATH"
)


@needs_nvcc
def test_no_cuda_kernel_spills_or_exceeds_its_budget():
    kernels = cuda_kernels()
    print(table(kernels))
    # Each source has kernels, for each architecture the same ones.
    assert len(kernels) >= len(ARCHITECTURES) * len(kernel_sources())
    names = [{k.name for k in kernels if k.architecture == f"sm_{a}"} for a in ARCHITECTURES]
    assert names[0] == names[1]
    complaints = [text for kernel in kernels for text in kernel.complaints()]
    assert not complaints, "\n".join(complaints)


@needs_nvcc
def test_spills_and_local_memory_are_seen(tmp_path):
    source = tmp_path / "bad.cu"
    source.write_text(
        """
        __global__ void __launch_bounds__(1024, 2) spilling(const float* in, float* out) {
          float all[96];
        #pragma unroll
          for (int i = 0; i < 96; ++i) all[i] = in[i * 1024 + threadIdx.x];
          __syncthreads();
        #pragma unroll
          for (int i = 0; i < 96; ++i) out[i * 1024 + threadIdx.x] = all[i] + all[95 - i];
        }
        __global__ void indexing(const int* in, float* out) {
          float all[64];
          for (int i = 0; i < 64; ++i) all[in[i] & 63] = float(i);
          out[threadIdx.x] = all[in[threadIdx.x] & 63];
        }
        """
    )
    command = [find_nvcc(), "-cubin", "-arch=sm_90", "-Xptxas", "-v", source.name, "-o", "bad"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    kernels = {kernel.name: kernel for kernel in parse_report(result.stdout + result.stderr)}
    assert set(kernels) == {"spilling", "indexing"}
    assert kernels["spilling"].spill_bytes > 0 and kernels["spilling"].registers <= 32
    assert kernels["indexing"].stack_bytes == 256
    assert any("no budget" in text for text in kernels["indexing"].complaints())


def test_a_kernel_within_its_budget_is_no_complaint():
    kernel = Kernel("cuda", "scan<float>", "sm_90", 64, 64, 0, 1024, 0, 0)
    assert kernel.complaints() == []
    too_many = Kernel("cuda", "scan<float>", "sm_90", 65, 64, 2048, 1024, 8, 16)
    assert len(too_many.complaints()) == 4

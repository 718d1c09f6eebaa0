// Small kernels, most of them wrong in one way, for the tests of the emulation.
#include <stdexcept>
#include <string>

#include "portable.h"

using namespace fastlif::cuda;

namespace {

constexpr int kThreads = 96;

enum Mistake : int {  // the same order as in test_emulation.py
  none,
  no_barrier_before_read,
  no_barrier_before_write,
  barrier_in_a_branch,
  two_barriers_for_one,
  lane_leaves_before_barrier,
  lane_leaves_before_ballot,
  partial_mask,
  write_past_the_end,
  write_before_the_start,
  write_far_past_the_end,
  read_past_the_end,
  read_unwritten,
  blocks_share_a_word,
  no_warp_barrier,
};

// Shifts the numbers of a block by one thread, `rounds` times.
__global__ void __launch_bounds__(kThreads) shift(int mistake, const int* __restrict__ in, int* __restrict__ out,
                                                  int rounds) {
  FASTLIF_SHARED(int, numbers);
  const int i = int(threadIdx.x), last = int(blockDim.x) - 1;
  int number = __ldg(in + int(blockIdx.x * blockDim.x) + i);
  if (mistake == lane_leaves_before_ballot && i == 40) return;
  if (__ballot_sync(mistake == partial_mask ? 0xffffu : 0xffffffffu, number >= 0) != 0xffffffffu) number = -1;
  if (mistake == lane_leaves_before_barrier && i == 40) return;
  for (int round = 0; round < rounds; ++round) {
    if (mistake != read_unwritten || i >= 4) numbers[i] = number;
    if (mistake == barrier_in_a_branch) {
      if (i < 64) __syncthreads();
    } else if (mistake == two_barriers_for_one && i < 32) {
      __syncthreads();
    } else if (mistake != no_barrier_before_read) {
      __syncthreads();
    }
    number = numbers[i < last ? i + 1 : 0];
    if (mistake != no_barrier_before_write) __syncthreads();
  }
  if (i == 5) {
    if (mistake == write_past_the_end) numbers[blockDim.x] = 1;
    if (mistake == write_before_the_start) numbers[-1] = 1;
    if (mistake == write_far_past_the_end) numbers[blockDim.x + 200] = 1;
    if (mistake == read_past_the_end) number = numbers[blockDim.x];
  }
  if (mistake == blocks_share_a_word && i == 0) out[0] = number;
  out[int(blockIdx.x * blockDim.x) + i] = number;
}

// Shifts the numbers within each warp.
__global__ void shift_in_warp(int mistake, const int* __restrict__ in, int* __restrict__ out) {
  FASTLIF_SHARED(int, numbers);
  const int i = int(threadIdx.x), first = i & ~31;
  numbers[i] = in[i];
  if (mistake != no_warp_barrier) __syncwarp();
  out[i] = numbers[first + (i + 1) % 32];
}

// A sum of all numbers by every way of talking to other threads: shuffles, atomics, a vote of the block.
__global__ void sum(const int* __restrict__ in, int n, int* __restrict__ total, int* __restrict__ any_negative) {
  const int i = int(blockIdx.x * blockDim.x + threadIdx.x);
  int number = i < n ? in[i] : 0;
  const int negative = __syncthreads_or(number < 0);
  for (int distance = 16; distance > 4; distance /= 2) number += __shfl_xor_sync(0xffffffffu, number, distance);
  for (int distance = 4; distance > 0; distance /= 2) number += __shfl_down_sync(0xffffffffu, number, distance);
  number = __shfl_sync(0xffffffffu, number, 0);
  if (threadIdx.x % 32 == 0) atomicAdd(total, number);
  if (threadIdx.x == 0 && negative) atomicOr(any_negative, 1);
}

// d (16 x 8) = a (16 x 8) b (8 x 8) in tf32, by one warp.
__global__ void multiply(const float* a, const float* b, float* d) {
  const int group = int(threadIdx.x) / 4, i = int(threadIdx.x) % 4;
  const uint32_t left[4] = {to_tf32(a[group * 8 + i]), to_tf32(a[(group + 8) * 8 + i]), to_tf32(a[group * 8 + i + 4]),
                            to_tf32(a[(group + 8) * 8 + i + 4])};
  const uint32_t right[2] = {to_tf32(b[i * 8 + group]), to_tf32(b[(i + 4) * 8 + group])};
  float product[4] = {};
  mma_m16n8k8_tf32(product, left, right);
  for (int k = 0; k < 4; ++k) d[(group + k / 2 * 8) * 8 + 2 * i + k % 2] = product[k];
}

__global__ void convert(const float* in, float* halves, uint16_t* bits, float* tf32) {
  const int i = int(blockIdx.x * blockDim.x + threadIdx.x);
  const Half half = to_half_saturated(in[i]);
  bits[i] = half.bits;
  halves[i] = to_number<float>(half);
  tf32[i] = __uint_as_float(to_tf32(in[i]));
}

std::string message;

// Runs a launch; returns what went wrong, empty if nothing.
template <class Launch>
const char* message_of(const Launch& launch) {
  message.clear();
  try {
    launch();
  } catch (const std::exception& error) {
    message = error.what();
  }
  return message.c_str();
}

}  // namespace

#pragma GCC visibility push(default)
extern "C" {

const char* run_shift(int mistake, const int* in, int* out, int n, int rounds) {
  return message_of([=] {
    FASTLIF_LAUNCH("shift of " + std::to_string(n) + " numbers", shift, unsigned(n / kThreads), kThreads,
                   kThreads * sizeof(int), nullptr, mistake, in, out, rounds);
  });
}

const char* run_shift_in_warp(int mistake, const int* in, int* out, int n) {
  return message_of([=] {
    FASTLIF_LAUNCH("shift_in_warp", shift_in_warp, 1, unsigned(n), size_t(n) * sizeof(int), nullptr, mistake, in, out);
  });
}

const char* run_sum(const int* in, int n, int* total, int* any_negative) {
  return message_of(
      [=] { FASTLIF_LAUNCH("sum", sum, unsigned(n + 63) / 64, dim3(64), 0, nullptr, in, n, total, any_negative); });
}

const char* run_multiply(const float* a, const float* b, float* d) {
  return message_of([=] { FASTLIF_LAUNCH("multiply", multiply, 1, 32, 0, nullptr, a, b, d); });
}

const char* run_convert(const float* in, int n, float* halves, uint16_t* bits, float* tf32) {
  return message_of(
      [=] { FASTLIF_LAUNCH("convert", convert, unsigned(n / 32), 32, 0, nullptr, in, halves, bits, tf32); });
}

}

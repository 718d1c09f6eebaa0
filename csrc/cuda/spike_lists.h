// Spikes of one step as a list of the neurons that fired, and sums of weights over a range of it.
//
// A step of a map is a row of mask words in shared memory, bit i of word g for neuron 32 g + i. Warps turn it into the
// ascending list of its set bits and, per word, the number of spikes before it. A neuron then finds the sources that
// fired within any range of neighbours by two look-ups, however many words the range has, and all its weights can be
// in flight at once. Sums start from what is there and take the weights one after the other, in ascending order.
#pragma once

#include "geometry.h"

namespace fastlif::cuda {

struct alignas(8) RankedWord {
  uint32_t bits;
  int rank;  // spikes in the words before this one
};

// Where the spikes of a pair of steps lie in shared memory, in bytes: two rows each. `words` is 0 when nobody reads
// them.
struct SourceLayout {
  int words = 0;     // per row of masks; a row of `ranked` has one more, whose rank is the number of spikes
  int capacity = 0;  // of a list; the spikes of a step with more are found through their words
  int masks = 0;     // uint32_t
  int ranked = 0;    // RankedWord
  int lists = 0;     // uint16_t
  int first_job = 0;
  FASTLIF_BOTH int chunks() const { return (words + 31) / 32; }  // a warp lists 32 words at a time
};

// One step of a source.
struct Spikes {
  const RankedWord* ranked;
  const uint16_t* list;

  __device__ __forceinline__ int rank(int source) const {
    const RankedWord at = ranked[source >> 5];
    return at.rank + __popc(at.bits & ((1u << (source & 31)) - 1u));
  }
};

__device__ __forceinline__ Spikes spikes_of(const SourceLayout& source, unsigned char* shared, int row) {
  return {reinterpret_cast<const RankedWord*>(shared + source.ranked) + row * (source.words + 1),
          reinterpret_cast<const uint16_t*>(shared + source.lists) + row * source.capacity};
}

__device__ __forceinline__ uint32_t* masks_of(const SourceLayout& source, unsigned char* shared, int row) {
  return reinterpret_cast<uint32_t*>(shared + source.masks) + row * source.words;
}

// One warp lists 32 words of a row. `job` counts the chunks of row 0, then those of row 1.
__device__ __forceinline__ void list_chunk(const SourceLayout& source, unsigned char* shared, int job) {
  const int lane = threadIdx.x & 31, row = job >= source.chunks(), first = (job - row * source.chunks()) * 32;
  const uint32_t* masks = masks_of(source, shared, row);
  int before = 0;
#pragma unroll 1
  for (int i = lane; i < first; i += 32) before += __popc(masks[i]);
  if (first > 0)
    for (int distance = 16; distance > 0; distance /= 2) before += __shfl_xor_sync(0xffffffffu, before, distance);
  const int index = first + lane;
  uint32_t bits = index < source.words ? masks[index] : 0;
  const int own = __popc(bits);
  int sum = own;  // of this lane and those below
  for (int distance = 1; distance < 32; distance *= 2) {
    const int below = __shfl_up_sync(0xffffffffu, sum, distance);
    if (lane >= distance) sum += below;
  }
  int rank = before + sum - own;
  RankedWord* ranked = reinterpret_cast<RankedWord*>(shared + source.ranked) + row * (source.words + 1);
  if (index < source.words) ranked[index] = {bits, rank};
  if (index == source.words - 1) ranked[source.words] = {0, rank + own};
  uint16_t* list = reinterpret_cast<uint16_t*>(shared + source.lists) + row * source.capacity;
  for (; bits != 0 && rank < source.capacity; bits &= bits - 1)
    list[rank++] = uint16_t(index * 32 + __ffs(int(bits)) - 1);
}

// The weight of source `row`; a row of packed weights has `pitch` bytes. Written out because the compiler makes it a
// product of 64 bits when it moves the widening of the pitch out of a loop.
template <class Real>
__device__ __forceinline__ Real weight_of(const Real* weights, uint32_t row, uint32_t pitch) {
#if defined(FASTLIF_EMULATED)
  const uint64_t address = reinterpret_cast<uint64_t>(weights) + uint64_t(row) * pitch;
#else
  uint64_t address;
  asm("mad.wide.u32 %0, %1, %2, %3;" : "=l"(address) : "r"(row), "r"(pitch), "l"(reinterpret_cast<uint64_t>(weights)));
#endif
  return __ldg(reinterpret_cast<const Real*>(address));
}

// Adds the weights of two lists, [i, end_i) of step a and [j, end_j) of step b: up to eight loads are in flight.
template <class Real>
__device__ __forceinline__ void add_listed(const Real* weights, uint32_t pitch, const uint16_t* list_a, int i,
                                           int end_i, const uint16_t* list_b, int j, int end_j, Real& sum_a,
                                           Real& sum_b) {
  constexpr int kInFlight = 4;
  Real a[kInFlight], b[kInFlight];
  for (; i + kInFlight <= end_i && j + kInFlight <= end_j; i += kInFlight, j += kInFlight) {
#pragma unroll
    for (int k = 0; k < kInFlight; ++k) {
      a[k] = weight_of(weights, list_a[i + k], pitch);
      b[k] = weight_of(weights, list_b[j + k], pitch);
    }
#pragma unroll
    for (int k = 0; k < kInFlight; ++k) sum_a += a[k], sum_b += b[k];
  }
  for (; i < end_i || j < end_j; i += kInFlight, j += kInFlight) {
#pragma unroll
    for (int k = 0; k < kInFlight; ++k) {
      if (i + k < end_i) a[k] = weight_of(weights, list_a[i + k], pitch);
      if (j + k < end_j) b[k] = weight_of(weights, list_b[j + k], pitch);
    }
#pragma unroll
    for (int k = 0; k < kInFlight; ++k) {
      if (i + k < end_i) sum_a += a[k];
      if (j + k < end_j) sum_b += b[k];
    }
  }
}

struct SharedWords {
  const RankedWord* ranked;
  __device__ __forceinline__ uint32_t operator()(int i) const { return ranked[i].bits; }
};
struct GlobalWords {
  const uint32_t* masks;
  int words;
  __device__ __forceinline__ uint32_t operator()(int i) const { return i < words ? __ldg(masks + i) : 0; }
};

// Adds the weights of the sources in [begin, end) whose bit is set in `words`, without a list.
template <class Real, class Words>
__device__ __forceinline__ void add_set_bits(const Real* weights, uint32_t pitch, const Words& words, int begin,
                                             int end, Real& sum) {
  int word = begin >> 5;
  uint32_t low = words(word);
  for (int window = begin; window < end; window += 32) {
    const uint32_t high = words(++word);
    uint32_t bits = __funnelshift_r(low, high, begin & 31);
    if (end - window < 32) bits &= (1u << (end - window)) - 1u;
    for (; bits != 0; bits &= bits - 1) sum += weight_of(weights, uint32_t(window + __ffs(int(bits)) - 1), pitch);
    low = high;
  }
}

// Calls add(weights, begin, end) for the runs of sources of one neuron, ascending; the weights of source s in the run
// are at weights + s * pitch bytes. Sources count from `first_source`.
template <class Real, class Add>
__device__ __forceinline__ void for_each_run(const Geometry& g, const Place& at, const Real* weights, int first_source,
                                             const Add& add) {
  for (int row = 0; row < g.kernel_h; ++row)
    for (int run = 0; run < g.runs; ++run) {
      const SourceRange r = g.range(at, row, run);
      if (r.begin == r.end) continue;
      const int begin = r.begin - first_source;
      add(weights + int64_t(r.first_row - begin) * g.out_channels, begin, r.end - first_source);
    }
}

// Adds to the currents of one neuron what the spikes of steps a and b cause, by their lists or, where one is too long,
// by their words. `weights` points at the column of the neuron's channel.
template <class Real>
__device__ __forceinline__ void gather(const Geometry& g, const SourceLayout& source, unsigned char* shared,
                                       const Place& at, const Real* weights, int first_source, Real& sum_a,
                                       Real& sum_b) {
  const Spikes a = spikes_of(source, shared, 0), b = spikes_of(source, shared, 1);
  const uint32_t pitch = uint32_t(g.out_channels) * uint32_t(sizeof(Real));
  const int n_a = a.ranked[source.words].rank, n_b = b.ranked[source.words].rank;
  if (n_a > source.capacity || n_b > source.capacity) {
    for_each_run(g, at, weights, first_source, [&](const Real* w, int begin, int end) {
      add_set_bits(w, pitch, SharedWords{a.ranked}, begin, end, sum_a);
      add_set_bits(w, pitch, SharedWords{b.ranked}, begin, end, sum_b);
    });
  } else if (g.dense) {
    add_listed(weights, pitch, a.list, 0, n_a, b.list, 0, n_b, sum_a, sum_b);
  } else {
    for_each_run(g, at, weights, first_source, [&](const Real* w, int begin, int end) {
      add_listed(w, pitch, a.list, a.rank(begin), a.rank(end), b.list, b.rank(begin), b.rank(end), sum_a, sum_b);
    });
  }
}

// The same from masks in global memory, of `words` words a step; null stands for a silent step.
template <class Real>
__device__ __forceinline__ void gather_direct(const Geometry& g, const uint32_t* masks_a, const uint32_t* masks_b,
                                              int words, const Place& at, const Real* weights, Real& sum_a,
                                              Real& sum_b) {
  const uint32_t pitch = uint32_t(g.out_channels) * uint32_t(sizeof(Real));
  for_each_run(g, at, weights, 0, [&](const Real* w, int begin, int end) {
    if (masks_a) add_set_bits(w, pitch, GlobalWords{masks_a, words}, begin, end, sum_a);
    if (masks_b) add_set_bits(w, pitch, GlobalWords{masks_b, words}, begin, end, sum_b);
  });
}

}  // namespace fastlif::cuda

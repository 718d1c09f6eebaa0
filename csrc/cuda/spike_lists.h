// Spikes of a pair of steps as lists of the neurons that fired, and sums of weights over ranges of them.
//
// A step of a map is a row of mask words in shared memory, bit i of word g for neuron 32 g + i. Warps turn it into the
// ascending list of its set bits and, per word, the number of spikes before it. The sources that fired within any range
// of neighbours are then found by two look-ups, however many words the range has, and all their weights can be in
// flight at once. Sums start from what is there and take the weights one after the other, in ascending order.
//
// Numbers of spikes of both steps are packed in one word, the first step in its low half: one scan, one look-up and one
// subtraction serve both.
#pragma once

#include "geometry.h"

namespace fastlif::cuda {

// 32 neurons: who fired at either step, and how many in the words before this one. Aligned to be read at once.
struct alignas(16) RankedWord {
  uint32_t bits[2];
  uint32_t zero;
  uint32_t ranks;
};

// Spikes of a range of sources: where they begin in the lists of both steps (bytes of shared memory), how many they are
// and what to add to a source for the row of its weights. Aligned to be read at once.
struct alignas(16) Listed {
  int begin_a, begin_b;
  uint32_t counts;
  int row;
};
constexpr uint32_t kTooMany = 0xffffffffu;  // in place of counts: the lists have no room

// Where the spikes of a pair of steps lie in shared memory, in bytes. `words` is 0 when nobody reads them.
struct SourceLayout {
  int words = 0;     // of a step
  int capacity = 0;  // of a list; the spikes of a step with more are found through their words
  int masks = 0;     // uint32_t [words][2 steps]
  int ranked = 0;    // RankedWord, one more than words, whose ranks are the number of spikes
  int lists = 0;     // uint16_t [2 steps][capacity]
  int all = 0;       // Listed, of all sources
  int first_job = 0;
  FASTLIF_BOTH int chunks() const { return (words + 31) / 32; }  // a warp lists 32 words at a time

  __device__ __forceinline__ Listed listed(uint32_t ranks, uint32_t counts, int row) const {
    return {lists + 2 * int(ranks & 0xffffu), lists + 2 * (capacity + int(ranks >> 16)), counts, row};
  }
};

template <class T>
__device__ __forceinline__ T* shared_at(unsigned char* shared, int offset) {
  return reinterpret_cast<T*>(shared + offset);
}

// Spikes of sources below `source`.
__device__ __forceinline__ uint32_t ranks_at(const RankedWord* ranked, int source) {
  const RankedWord at = ranked[source >> 5];
  const uint32_t below = (1u << (source & 31)) - 1u;
  return at.ranks + uint32_t(__popc(at.bits[0] & below)) + (uint32_t(__popc(at.bits[1] & below)) << 16);
}

// The spikes of the sources [begin, end), with the row of the weights of the first.
__device__ __forceinline__ Listed look_up(const SourceLayout& source, unsigned char* shared, int begin, int end,
                                          int first_row) {
  const RankedWord* ranked = shared_at<RankedWord>(shared, source.ranked);
  if (ranked[source.words].ranks == kTooMany) return {0, 0, kTooMany, 0};
  const uint32_t first = ranks_at(ranked, begin);
  return source.listed(first, ranks_at(ranked, end) - first, first_row - begin);
}

// One warp lists 32 words of both steps.
__device__ __forceinline__ void list_chunk(const SourceLayout& source, unsigned char* shared, int chunk) {
  const int lane = threadIdx.x & 31, first = chunk * 32;
  const uint2* masks = shared_at<uint2>(shared, source.masks);
  const auto both = [](uint2 bits) { return uint32_t(__popc(bits.x)) + (uint32_t(__popc(bits.y)) << 16); };
  uint32_t before = 0;
  if (first > 0) {
#pragma unroll 1
    for (int i = lane; i < first; i += 32) before += both(masks[i]);
    for (int distance = 16; distance > 0; distance /= 2) before += __shfl_xor_sync(0xffffffffu, before, distance);
  }
  const int index = first + lane;
  uint2 bits = make_uint2(0, 0);
  if (index < source.words) bits = masks[index];
  const uint32_t own = both(bits);
  uint32_t sum = own;  // of this lane and those below
  for (int distance = 1; distance < 32; distance *= 2) {
    const uint32_t below = __shfl_up_sync(0xffffffffu, sum, distance);
    if (lane >= distance) sum += below;
  }
  const uint32_t through = before + sum, ranks = through - own;
  RankedWord* ranked = shared_at<RankedWord>(shared, source.ranked);
  const int capacity = source.capacity;
  if (index < source.words) ranked[index] = {{bits.x, bits.y}, 0, ranks};
  if (index == source.words - 1) {
    const bool fits = int(through & 0xffffu) <= capacity && int(through >> 16) <= capacity;
    const uint32_t counts = capacity > 0 && fits ? through : kTooMany;
    ranked[source.words] = {{0, 0}, 0, counts};
    *shared_at<Listed>(shared, source.all) = source.listed(0, counts, 0);
  }
  uint16_t* list = shared_at<uint16_t>(shared, source.lists);
  const auto write = [&](uint32_t word, int rank, uint16_t* to) {
    for (; word != 0 && rank < capacity; word &= word - 1) to[rank++] = uint16_t(index * 32 + __ffs(int(word)) - 1);
  };
  write(bits.x, int(ranks & 0xffffu), list);
  write(bits.y, int(ranks >> 16), list + capacity);
}

// A column of packed weights. There are fewer than 2^31 of them where sources are listed.
template <class Real>
struct Column {
  const Real* weights;
  int channels, first;  // of a row; of the column
  __device__ __forceinline__ Real at(int row) const { return __ldg(weights + (row * channels + first)); }
};

template <int n, class Real>
__device__ __forceinline__ void add_some(const Column<Real>& column, const uint16_t* list, Real& sum) {
  Real values[n];
#pragma unroll
  for (int k = 0; k < n; ++k) values[k] = column.at(list[k]);
#pragma unroll
  for (int k = 0; k < n; ++k) sum += values[k];
}

// Adds the weights of spikes of both steps: up to eight are in flight where many are.
template <class Real>
__device__ __forceinline__ void add_listed(Column<Real> column, unsigned char* shared, const Listed& spikes,
                                           Real& sum_a, Real& sum_b) {
  constexpr int kMany = 4;
  column.first += spikes.row * column.channels;
  const uint16_t* list_a = shared_at<uint16_t>(shared, spikes.begin_a);
  const uint16_t* list_b = shared_at<uint16_t>(shared, spikes.begin_b);
  const uint32_t counts = spikes.counts;
  if (counts & 0xfffcfffcu) {  // four of either step
    int left_a = int(counts & 0xffffu), left_b = int(counts >> 16);
#pragma unroll 1
    for (; left_a >= kMany && left_b >= kMany; left_a -= kMany, left_b -= kMany) {
      Real a[kMany], b[kMany];
#pragma unroll
      for (int k = 0; k < kMany; ++k) a[k] = column.at(list_a[k]), b[k] = column.at(list_b[k]);
#pragma unroll
      for (int k = 0; k < kMany; ++k) sum_a += a[k], sum_b += b[k];
      list_a += kMany, list_b += kMany;
    }
#pragma unroll 1
    for (; left_a >= kMany; left_a -= kMany, list_a += kMany) add_some<kMany>(column, list_a, sum_a);
#pragma unroll 1
    for (; left_b >= kMany; left_b -= kMany, list_b += kMany) add_some<kMany>(column, list_b, sum_b);
  }
  // What is left, up to three of each: the low bits of the counts. Most ranges have no more than two.
  const bool one_a = counts & 0x3u, one_b = counts & 0x30000u, two_a = counts & 0x2u, two_b = counts & 0x20000u;
  Real a[2], b[2];
  if (one_a) a[0] = column.at(list_a[0]);
  if (one_b) b[0] = column.at(list_b[0]);
  if (two_a) a[1] = column.at(list_a[1]);
  if (two_b) b[1] = column.at(list_b[1]);
  if (one_a) sum_a += a[0];
  if (one_b) sum_b += b[0];
  if (two_a) sum_a += a[1];
  if (two_b) sum_b += b[1];
  const uint32_t three = counts & counts << 1;
  if (three & 0x20002u) {
    const bool three_a = three & 0x2u, three_b = three & 0x20000u;
    if (three_a) a[0] = column.at(list_a[2]);
    if (three_b) b[0] = column.at(list_b[2]);
    if (three_a) sum_a += a[0];
    if (three_b) sum_b += b[0];
  }
}

// Words of one step in shared and in global memory.
struct SharedWords {
  const RankedWord* ranked;
  int step;
  __device__ __forceinline__ uint32_t operator()(int i) const { return ranked[i].bits[step]; }
};
struct GlobalWords {
  const uint32_t* masks;
  int words;
  __device__ __forceinline__ uint32_t operator()(int i) const { return i < words ? __ldg(masks + i) : 0; }
};

// Adds the weights of the sources in [begin, end) whose bit is set in `words`, without a list; `weights` points at that
// of source 0.
template <class Real, class Words>
__device__ __forceinline__ void add_set_bits(const Real* weights, int channels, const Words& words, int begin, int end,
                                             Real& sum) {
  int word = begin >> 5;
  uint32_t low = words(word);
  for (int window = begin; window < end; window += 32) {
    const uint32_t high = words(++word);
    uint32_t bits = __funnelshift_r(low, high, begin & 31);
    if (end - window < 32) bits &= (1u << (end - window)) - 1u;
    for (; bits != 0; bits &= bits - 1)
      sum += __ldg(weights + int64_t(window + __ffs(int(bits)) - 1) * channels);
    low = high;
  }
}

// Calls add(begin, end, first_row) for the runs of sources of one neuron, ascending; `first_row` is that of the weights
// of source `begin`. Sources count from `first_source`.
template <class Add>
__device__ __forceinline__ void for_each_run(const Geometry& g, const Place& at, int first_source, const Add& add) {
#pragma unroll 1
  for (int row = 0; row < g.kernel_h; ++row)
#pragma unroll 1
    for (int run = 0; run < g.runs; ++run) {
      const SourceRange r = g.range(at, row, run);
      if (r.begin < r.end) add(r.begin - first_source, r.end - first_source, r.first_row);
    }
}

// Adds to the currents of one neuron what the spikes of steps a and b cause, looked up for it alone or, where they
// could not be listed, found in the words.
template <class Real>
__device__ __forceinline__ void gather(const Geometry& g, const SourceLayout& source, unsigned char* shared,
                                       const Place& at, const Real* weights, int first_source, Real& sum_a,
                                       Real& sum_b) {
  const RankedWord* ranked = shared_at<RankedWord>(shared, source.ranked);
  const int channels = g.out_channels;
  for_each_run(g, at, first_source, [&](int begin, int end, int first_row) {
    const Listed spikes = look_up(source, shared, begin, end, first_row);
    if (spikes.counts != kTooMany)
      return add_listed(Column<Real>{weights, channels, at.channel}, shared, spikes, sum_a, sum_b);
    const Real* first = weights + at.channel + int64_t(first_row - begin) * channels;
    add_set_bits(first, channels, SharedWords{ranked, 0}, begin, end, sum_a);
    add_set_bits(first, channels, SharedWords{ranked, 1}, begin, end, sum_b);
  });
}

// The same from masks in global memory, of `words` words a step; null stands for a silent step.
template <class Real>
__device__ __forceinline__ void gather_direct(const Geometry& g, const uint32_t* masks_a, const uint32_t* masks_b,
                                              int words, const Place& at, const Real* weights, Real& sum_a,
                                              Real& sum_b) {
  const int channels = g.out_channels;
  for_each_run(g, at, 0, [&](int begin, int end, int first_row) {
    const Real* first = weights + at.channel + int64_t(first_row - begin) * channels;
    if (masks_a) add_set_bits(first, channels, GlobalWords{masks_a, words}, begin, end, sum_a);
    if (masks_b) add_set_bits(first, channels, GlobalWords{masks_b, words}, begin, end, sum_b);
  });
}

}  // namespace fastlif::cuda

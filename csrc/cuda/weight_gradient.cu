// Weight gradients by a visit to every spike: row (kernel y, kernel x, source channel) of the gradient is the sum of
// dL/dJ over the output positions and steps at which that source had spiked. No atomics: the order of every sum is a
// function of the problem alone.
//
// A warp owns 8 rows of the gradient and holds their sums in registers. In turn it is
// - a finder: lane 8 i + r looks at the spikes of row r at item i, an item being 32 steps (a word) of one output
//   position of one sample; the steps that it finds go to a list per row in shared memory;
// - an adder: lanes own 4 output channels each, and lane groups, as many as the channels leave room for, rows of their
//   own; each walks the lists of its rows, with a few rows of dL/dJ in flight.
// The warps of a block share the items and differ in rows, so that a row of dL/dJ, which rows * density of them read,
// is found in the first-level cache. Blocks that run together share items too (grid.x: rows and columns, grid.y: splits
// of the items, grid.z: networks); a second kernel adds the splits in order.
#include <algorithm>

#include "geometry.h"
#include "launch.h"

namespace fastlif::cuda {

namespace {

constexpr int kRows = 8, kItems = 4;  // of a warp at a time: a word for each lane
constexpr int kColumns = 4;           // of a lane
// One list: all steps of the items, and 4 more so that lists that are read together lie in different banks.
constexpr int kListPitch = kItems * kWordSteps + 4;
// Of a block, as many as registers allow: the more rows of the gradient it has, the fewer blocks read the same dL/dJ.
template <class Real>
constexpr int kMostWarps = sizeof(Real) == 4 ? 24 : 12;
constexpr unsigned kAllLanes = 0xffffffffu;

// How the gradient is cut into blocks.
struct Cut {
  int rows, columns, lanes;  // lanes that own the columns of one row
  int warps, row_tiles, column_tiles;

  Cut(const Geometry& g, int most_warps)
      : rows(g.kernel_h * g.kernel_w * g.in_channels), columns(g.out_channels), lanes(4) {
    while (lanes < 32 && lanes * kColumns < columns) lanes *= 2;
    const int row_groups = (rows + kRows - 1) / kRows;
    row_tiles = (row_groups + most_warps - 1) / most_warps;
    warps = (row_groups + row_tiles - 1) / row_tiles;
    column_tiles = (columns + lanes * kColumns - 1) / (lanes * kColumns);
  }
  int64_t size() const { return int64_t(rows) * columns; }
  int64_t tiles() const { return int64_t(row_tiles) * column_tiles; }
};

// Blocks for twice what runs at once on 132 multiprocessors of 24 to 30 warps, on any device and in any precision, so
// that results do not depend on it; but each split with enough items to be worth its sums.
int splits_of(const Geometry& geometry, int64_t items) {
  const Cut cut(geometry, kMostWarps<float>);
  const int64_t at_once = 132 * std::max(1, (cut.lanes > 8 ? 24 : 30) / cut.warps);
  return int(std::max<int64_t>(1, std::min({2 * at_once / cut.tiles(), items / 64, int64_t(2048)})));
}

template <class Real>
struct Job {
  Geometry geometry;
  Divider positions, out_width, in_channels, kernel_w;
  int rows, columns, row_tiles;
  int64_t n_steps;
  int items_of_word;      // of a network: its samples * positions
  int rows_of_step;       // of dL/dJ: all samples * positions
  int64_t word_pitch;     // words of 32 steps of all samples
  int64_t network_words;  // from one network's words to the next one's: 0 where they share them
  const int32_t* words;
  const Real* grad_injected;
  Real* sums;  // (networks, splits, rows, columns)
};

// The source of one row for an output position: (y * stride_h + y_offset, x * stride_w + x_offset), channel.
struct Source {
  int y_offset, x_offset, channel;
  template <class Real>
  __device__ __forceinline__ Source(const Job<Real>& job, int row) {
    const Geometry& g = job.geometry;
    const int tap = job.in_channels.quotient(row), kernel_y = job.kernel_w.quotient(tap);
    channel = row - tap * g.in_channels;
    // Past the last row there is none: far outside the map.
    y_offset = row < job.rows ? kernel_y * g.dilation_h - g.padding_h : INT32_MIN / 2;
    x_offset = (tap - kernel_y * g.kernel_w) * g.dilation_w - g.padding_w;
  }
};

// Spikes of the source for the output position and sample that `item` stands for; `words`: of 32 steps.
template <class Real>
__device__ __forceinline__ uint32_t load_word(const Job<Real>& job, const Source& source, const int32_t* words,
                                              int item) {
  const Geometry& g = job.geometry;
  const int sample = job.positions.quotient(item), position = item - sample * job.positions.divisor;
  const int out_y = job.out_width.quotient(position), out_x = position - out_y * job.out_width.divisor;
  const int y = out_y * g.stride_h + source.y_offset, x = out_x * g.stride_w + source.x_offset;
  if (unsigned(y) >= unsigned(g.in_height) || unsigned(x) >= unsigned(g.in_width)) return 0;
  const int neuron = (y * g.in_width + x) * g.in_channels + source.channel;
  return uint32_t(__ldg(words + (int64_t(sample) * g.sources() + neuron)));
}

template <class Real>
struct Columns {
  Real of[kColumns];
};

__device__ __forceinline__ Columns<float> load_aligned(const float* from) {
  const float4 v = __ldg(reinterpret_cast<const float4*>(from));
  return {v.x, v.y, v.z, v.w};
}
__device__ __forceinline__ Columns<double> load_aligned(const double* from) {
  const double2 low = __ldg(reinterpret_cast<const double2*>(from));
  const double2 high = __ldg(reinterpret_cast<const double2*>(from) + 1);
  return {low.x, low.y, high.x, high.y};
}

// aligned: all columns of the lane are there, else the first `valid` of them.
template <bool aligned, class Real>
__device__ __forceinline__ Columns<Real> load_columns(const Real* from, int valid) {
  if constexpr (aligned) {
    return load_aligned(from);
  } else {
    Columns<Real> columns{};
#pragma unroll
    for (int k = 0; k < kColumns; ++k)
      if (k < valid) columns.of[k] = __ldg(from + k);
    return columns;
  }
}

// What lists hold: where rows of dL/dJ begin, from that of the first step and item on, in units of so many numbers.
template <bool aligned>
constexpr uint32_t kListUnit = aligned ? kColumns : 1;

__device__ __forceinline__ void load_list(const uint32_t* list, uint32_t (&rows)[2]) {
  const uint2 v = *reinterpret_cast<const uint2*>(list);
  rows[0] = v.x, rows[1] = v.y;
}
__device__ __forceinline__ void load_list(const uint32_t* list, uint32_t (&rows)[4]) {
  const uint4 v = *reinterpret_cast<const uint4*>(list);
  rows[0] = v.x, rows[1] = v.y, rows[2] = v.z, rows[3] = v.w;
}

// Adds the listed rows of dL/dJ in their order; as many at a time in flight as registers allow.
template <bool aligned, int in_flight, class Real>
__device__ __forceinline__ void add_listed(const Real* grad_injected, int valid, const uint32_t* list, int length,
                                           Columns<Real>& sum) {
#pragma unroll 1
  for (int i = 0; i < length; i += in_flight) {
    uint32_t rows[in_flight];
    load_list(list + i, rows);  // past the end of the list there is room but nothing of use
    Columns<Real> values[in_flight];
#pragma unroll
    for (int j = 0; j < in_flight; ++j)
      if (i + j < length)
        values[j] = load_columns<aligned>(grad_injected + uint64_t(rows[j]) * kListUnit<aligned>, valid);
#pragma unroll
    for (int j = 0; j < in_flight; ++j)
#pragma unroll
      for (int k = 0; k < kColumns; ++k)
        if (i + j < length) sum.of[k] += values[j].of[k];
  }
}

// lanes: how many own the columns of one row.
template <class Real, int lanes, bool aligned>
__global__ void __launch_bounds__(32 * kMostWarps<Real>, 1) weight_gradient_kernel(const Job<Real> job) {
  constexpr int kOwnRows = kRows * lanes / 32;  // of each group of lanes
  constexpr int kInFlight = kOwnRows * sizeof(Real) < 32 ? 4 : 2;
  FASTLIF_SHARED(uint32_t, shared);
  const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32, warps = int(blockDim.x) / 32;
  const int row_tile = int(blockIdx.x) % job.row_tiles, column_tile = int(blockIdx.x) / job.row_tiles;
  const int first_row = (row_tile * warps + warp) * kRows;
  uint32_t* const lists = shared + warp * kRows * kListPitch;

  const Source source(job, first_row + lane % kRows);  // as a finder
  const int own_item = lane / kRows;
  uint32_t* const found = lists + lane % kRows * kListPitch;

  const int column = (column_tile * lanes + lane % lanes) * kColumns, valid = job.columns - column;  // as an adder
  const int own_row = lane / lanes * kOwnRows;
  const uint32_t* const own_lists = lists + own_row * kListPitch;
  const uint32_t unit_pitch = uint32_t(job.columns) / kListUnit<aligned>;
  Columns<Real> sum[kOwnRows]{};

  const int64_t items = (job.n_steps + kWordSteps - 1) / kWordSteps * job.items_of_word;
  const int64_t last = items * (blockIdx.y + 1) / gridDim.y;
  int64_t next = items * blockIdx.y / gridDim.y;
#pragma unroll 1
  while (next < last) {  // the items of one word
    const int64_t word = next / job.items_of_word, steps = job.n_steps - word * kWordSteps;
    const uint32_t mask = steps < kWordSteps ? (uint32_t(1) << steps) - 1 : kAllLanes;
    const int32_t* const words = job.words + (word * job.word_pitch + blockIdx.z * job.network_words);
    int item = int(next - word * job.items_of_word);
    const int64_t first = word * kWordSteps * job.rows_of_step + int64_t(blockIdx.z) * job.items_of_word + item;
    const Real* grad_injected = job.grad_injected + first * job.columns + column;
    const int end = int(last - next < job.items_of_word - item ? item + (last - next) : job.items_of_word);
    next += end - item;
    item += own_item;
    uint32_t coming = item < end ? load_word(job, source, words, item) : 0;
#pragma unroll 1
    for (; item - own_item < end; grad_injected += kItems * int64_t(job.columns)) {
      const uint32_t spikes = coming & mask;
      item += kItems;
      coming = item < end ? load_word(job, source, words, item) : 0;
      if (!__any_sync(kAllLanes, spikes != 0)) continue;
      // A row's list: its items one after the other, the steps of each ascending.
      int through = __popc(spikes);
#pragma unroll
      for (int distance = kRows; distance < 32; distance *= 2) {
        const int before = __shfl_up_sync(kAllLanes, through, unsigned(distance));
        if (lane >= distance) through += before;
      }
      uint32_t* to = found + through - __popc(spikes);
      for (uint32_t left = spikes; left; left &= left - 1)
        *to++ = (uint32_t(__ffs(int(left)) - 1) * uint32_t(job.rows_of_step) + uint32_t(own_item)) * unit_pitch;
      __syncwarp();
#pragma unroll
      for (int r = 0; r < kOwnRows; ++r) {
        const int length = __shfl_sync(kAllLanes, through, 32 - kRows + own_row + r);
        add_listed<aligned, kInFlight>(grad_injected, valid, own_lists + r * kListPitch, valid > 0 ? length : 0,
                                       sum[r]);
      }
      __syncwarp();  // the lists are written again
    }
  }

  const int64_t split = int64_t(blockIdx.z) * gridDim.y + blockIdx.y;
  Real* const sums = job.sums + (split * job.rows + first_row + own_row) * job.columns + column;
#pragma unroll
  for (int r = 0; r < kOwnRows; ++r)
#pragma unroll
    for (int k = 0; k < kColumns; ++k)
      if (first_row + own_row + r < job.rows && k < valid) sums[int64_t(r) * job.columns + k] = sum[r].of[k];
}

// Blocks of 32 numbers times slices: each slice sums its range of the splits, the first then sums the slices. grid.y
// counts networks.
constexpr int kMostSlices = 32;

template <class Real>
__global__ void __launch_bounds__(32 * kMostSlices)
    sum_splits_kernel(const Real* partials, int splits, int64_t size, Real* grad) {
  FASTLIF_SHARED(Real, slice_sums);
  const int lane = int(threadIdx.x) % 32, slice = int(threadIdx.x) / 32, slices = int(blockDim.x) / 32;
  const int64_t at = int64_t(blockIdx.x) * 32 + lane;
  partials += blockIdx.y * splits * size, grad += blockIdx.y * size;
  Real sum = 0;
  if (at < size) {
    const int last = splits * (slice + 1) / slices;
#pragma unroll 4
    for (int s = splits * slice / slices; s < last; ++s) sum += partials[s * size + at];
  }
  slice_sums[slice * 32 + lane] = sum;
  __syncthreads();
  if (slice > 0 || at >= size) return;
  for (int s = 1; s < slices; ++s) sum += slice_sums[s * 32 + lane];
  grad[at] = sum;
}

int64_t items_of(const Connection& connection, int64_t n_steps, int64_t batch) {
  return (n_steps + kWordSteps - 1) / kWordSteps * batch * connection.out.positions();
}

std::string named(const Connection& c, int64_t n_steps, int64_t batch) {
  return "weight_gradient (" + std::to_string(n_steps) + " steps, " + std::to_string(batch) + " samples, kernel " +
         std::to_string(c.kernel_h) + " x " + std::to_string(c.kernel_w) + ", channels " +
         std::to_string(c.in.channels) + " to " + std::to_string(c.out.channels) + ", " +
         std::to_string(c.out.positions()) + " positions)";
}

template <class Real, int lanes>
void launch_sums(const std::string& name, const Job<Real>& job, const Cut& cut, int splits, int networks,
                 bool aligned, cudaStream_t stream) {
  const dim3 grid(unsigned(cut.tiles()), unsigned(splits), unsigned(networks));
  const size_t shared_bytes = size_t(cut.warps) * kRows * kListPitch * sizeof(uint32_t);
  const auto kernel = aligned ? weight_gradient_kernel<Real, lanes, true> : weight_gradient_kernel<Real, lanes, false>;
  FASTLIF_LAUNCH(name, kernel, grid, unsigned(cut.warps) * 32, shared_bytes, stream, job);
}

template <class Real>
void weight_gradient_of(const Connection& connection, const int32_t* words, const Real* grad_injected, int64_t n_steps,
                        int64_t batch, Networks networks, Real* partials, Real* grad, cudaStream_t stream) {
  const Geometry geometry(connection);
  const Cut cut(geometry, kMostWarps<Real>);
  const int count = networks.count;
  const int64_t samples = batch / count;  // of a network
  const int splits = splits_of(geometry, items_of(connection, n_steps, samples));
  const std::string name = named(connection, n_steps, batch) + networks.text();
  const int64_t items_of_word = samples * connection.out.positions(), rows = batch * connection.out.positions();
  const int64_t words_of_network = samples * geometry.sources();
  const bool aligned = cut.columns % kColumns == 0 && reinterpret_cast<uintptr_t>(grad_injected) % 16 == 0;
  // Lists hold 32-bit offsets in the dL/dJ of 32 steps.
  const int64_t most = UINT32_MAX * int64_t(aligned ? kListUnit<true> : kListUnit<false>);
  if ((rows + kItems) * kWordSteps * cut.columns > most || rows > INT32_MAX - 2 * kItems)
    throw std::runtime_error(name + ": 32 steps of the batch are too large, run a smaller one");
  const Job<Real> job{geometry, Divider(connection.out.positions()), Divider(connection.out.width),
                      Divider(geometry.in_channels), Divider(geometry.kernel_w), cut.rows, cut.columns, cut.row_tiles,
                      n_steps, int(items_of_word), int(rows),
                      networks.shared_input ? words_of_network : words_of_network * count,
                      networks.shared_input ? 0 : words_of_network, words, grad_injected,
                      splits > 1 ? partials : grad};
  switch (cut.lanes) {
    case 4: launch_sums<Real, 4>(name, job, cut, splits, count, aligned, stream); break;
    case 8: launch_sums<Real, 8>(name, job, cut, splits, count, aligned, stream); break;
    case 16: launch_sums<Real, 16>(name, job, cut, splits, count, aligned, stream); break;
    default: launch_sums<Real, 32>(name, job, cut, splits, count, aligned, stream);
  }
  if (splits == 1) return;
  const unsigned threads = 32 * unsigned(std::clamp((splits + 15) / 16, 1, kMostSlices));
  const dim3 blocks(unsigned((cut.size() + 31) / 32), unsigned(count));
  FASTLIF_LAUNCH("sum of the splits of " + name, sum_splits_kernel<Real>, blocks, threads, threads * sizeof(Real),
                 stream, partials, splits, cut.size(), grad);
}

}  // namespace

int weight_gradient_splits(const Connection& connection, int64_t n_steps, int64_t samples_of_network) {
  return splits_of(Geometry(connection), items_of(connection, n_steps, samples_of_network));
}

void weight_gradient(const Connection& connection, const int32_t* words, const void* grad_injected, int64_t n_steps,
                     int64_t batch, Networks networks, bool is_double, void* partials, void* grad,
                     cudaStream_t stream) {
  if (is_double)
    weight_gradient_of(connection, words, static_cast<const double*>(grad_injected), n_steps, batch, networks,
                       static_cast<double*>(partials), static_cast<double*>(grad), stream);
  else
    weight_gradient_of(connection, words, static_cast<const float*>(grad_injected), n_steps, batch, networks,
                       static_cast<float*>(partials), static_cast<float*>(grad), stream);
}

}  // namespace fastlif::cuda

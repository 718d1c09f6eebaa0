#include "plan.h"

#include <algorithm>
#include <stdexcept>

namespace fastlif {

namespace {

// Targets of source position (y, x) that lie in output rows, one run per (kernel row, group of taps).
struct Run {
  int first_out, length, slot;
};

std::vector<Run> horizontal_runs(const Connection& c, int x) {
  std::vector<Run> runs;
  const int padded_x = x + c.padding_w;
  if (c.dilation_w == 1) {
    const int phase = padded_x % c.stride_w, last_out = padded_x / c.stride_w;
    const int taps = (c.kernel_w - phase + c.stride_w - 1) / c.stride_w;  // taps of this phase
    if (phase < c.kernel_w && taps > 0) {
      const int first_out = last_out - taps + 1;
      const int lo = first_out > 0 ? first_out : 0;
      const int hi = last_out < c.out.width - 1 ? last_out : c.out.width - 1;
      if (lo <= hi) runs.push_back({lo, hi - lo + 1, c.slot_of_tap[phase + c.stride_w * (taps - 1)] + lo - first_out});
    }
    return runs;
  }
  for (int tap = 0; tap < c.kernel_w; ++tap) {
    const int offset = padded_x - tap * c.dilation_w;
    if (offset >= 0 && offset % c.stride_w == 0 && offset / c.stride_w < c.out.width)
      runs.push_back({offset / c.stride_w, 1, c.slot_of_tap[tap]});
  }
  return runs;
}

std::vector<std::pair<int, int>> vertical_pairs(const Connection& c, int y) {  // (output row, kernel row)
  std::vector<std::pair<int, int>> pairs;
  for (int tap = c.kernel_h - 1; tap >= 0; --tap) {
    const int offset = y + c.padding_h - tap * c.dilation_h;
    if (offset >= 0 && offset % c.stride_h == 0 && offset / c.stride_h < c.out.height)
      pairs.push_back({offset / c.stride_h, tap});
  }
  return pairs;
}

}  // namespace

void Connection::build() {
  slot_of_tap.assign(kernel_w, 0);
  int slot = 0;
  for (int phase = 0; phase < (dilation_w == 1 ? stride_w : 1); ++phase) {
    const int step = dilation_w == 1 ? stride_w : 1;
    if (phase >= kernel_w) break;
    for (int tap = phase + (kernel_w - 1 - phase) / step * step; tap >= phase; tap -= step) slot_of_tap[tap] = slot++;
  }
  const int channels = out.padded_channels();
  first_target.assign(1, 0);
  targets.clear();
  for (int y = 0; y < in.height; ++y)
    for (int x = 0; x < in.width; ++x) {
      for (auto [out_y, tap_y] : vertical_pairs(*this, y))
        for (const Run& run : horizontal_runs(*this, x))
          targets.push_back({(out_y * out.width + run.first_out) * channels,
                             out_y * halo_row() + (run.first_out + halo) * channels,
                             (tap_y * kernel_w + run.slot) * channels, run.length * channels});
      first_target.push_back(int(targets.size()));
    }
  exact_targets = targets;
  for (Target& target : exact_targets)
    if (target.length == channels) target.length = out.channels;
  first_row_target.assign(1, 0);
  row_targets.clear();
  for (int y = 0; y < in.height; ++y) {
    for (auto [out_y, tap_y] : vertical_pairs(*this, y))
      row_targets.push_back({0, out_y * halo_row(), tap_y * kernel_w * channels, kernel_w * channels});
    first_row_target.push_back(int(row_targets.size()));
  }
}

// Synapses inside a layer: stride 1, "same" padding.
static void set_lateral(Connection& c, const Shape& in, const Shape& out, int kernel_h, int kernel_w) {
  c.in = in, c.out = out;
  c.kernel_h = kernel_h, c.kernel_w = kernel_w;
  c.padding_h = (kernel_h - 1) / 2, c.padding_w = (kernel_w - 1) / 2;
  c.halo = c.padding_w;
}

// Synapses from every neuron of `in` to every one of `out`.
static Connection all_to_all(const Shape& in, const Shape& out) {
  Connection c;
  c.in = in, c.out = out;
  c.kernel_h = in.height, c.kernel_w = in.width;
  c.build();
  return c;
}

Plan Plan::decode(const std::vector<int64_t>& ints, const std::vector<double>& floats) {
  Plan plan;
  const size_t n = ints.empty() ? 0 : size_t(ints[0]);
  if (n == 0 || ints.size() != 1 + n * kInts || floats.size() != n * kFloats)
    throw std::invalid_argument("malformed plan: " + std::to_string(ints.size()) + " ints, " +
                                std::to_string(floats.size()) + " floats");
  for (size_t l = 0; l < n; ++l) {
    const int64_t* i = ints.data() + 1 + l * kInts;
    const double* f = floats.data() + l * kFloats;
    Layer layer;
    layer.kind = Kind(i[0]);
    layer.shape = {int(i[2]), int(i[3]), int(i[4])};
    layer.has_feedforward = i[5] != 0;
    if (layer.has_feedforward) {
      Connection& c = layer.feedforward;
      c.in = {int(i[6]), int(i[7]), int(i[8])};
      c.out = layer.shape;
      c.kernel_h = int(i[9]), c.kernel_w = int(i[10]), c.stride_h = int(i[11]), c.stride_w = int(i[12]);
      c.padding_h = int(i[13]), c.padding_w = int(i[14]), c.dilation_h = int(i[15]), c.dilation_w = int(i[16]);
    }
    layer.n_inhibitory = int(i[22]);
    layer.recurrent = i[17] != 0;
    if (layer.recurrent) {
      Connection& c = layer.recurrence;
      set_lateral(c, layer.emitted(), layer.shape, int(i[18]), int(i[19]));
    }
    if (layer.n_inhibitory) {
      const Shape own{layer.n_inhibitory, layer.shape.height, layer.shape.width};
      set_lateral(layer.inhibition, own, layer.shape, int(i[23]), int(i[24]));
    }
    for (int bit = 0; bit < 63; ++bit)
      if (i[25] >> bit & 1) layer.skips.push_back(bit);
    layer.detach_reset = i[20] != 0;
    layer.delay = int(i[21]);
    layer.decay_mem = f[0], layer.decay_syn = f[1], layer.threshold = f[2];
    layer.surrogate_slope = f[3], layer.surrogate_scale = f[4];
    layer.decay_inhibitory = f[5];
    layer.inhibitory_neurons = {f[6], f[7], f[8]};
    // Offsets into one map and into the weights of one source channel are 32-bit.
    const int64_t channels = layer.shape.padded_channels();
    const int64_t halo = std::max(layer.halo(), layer.inhibition.halo);
    const int64_t halo_size = (layer.shape.width + 2 * halo) * layer.shape.height * channels;
    int64_t taps = std::max({layer.feedforward.taps(), layer.recurrence.taps(), layer.inhibition.taps()});
    for (int source : layer.skips) taps = std::max<int64_t>(taps, plan.layers.at(source).shape.positions());
    if (halo_size > INT32_MAX || taps * channels > INT32_MAX)
      throw std::invalid_argument("layer " + std::to_string(l) + ": a map of " + std::to_string(halo_size) +
                                  " neurons or kernels of " + std::to_string(taps * channels) +
                                  " weights per input channel are too large, at most 2147483647 are supported");
    layer.feedforward.halo = layer.halo();  // the gradient of the layer's current is stored with this halo
    if (layer.has_feedforward) layer.feedforward.build();
    if (layer.recurrent) layer.recurrence.build();
    if (layer.n_inhibitory) layer.inhibition.build();
    for (int source : layer.skips)
      layer.skip_connections.push_back(all_to_all(plan.layers.at(source).emitted(), layer.shape));
    plan.layers.push_back(std::move(layer));
  }
  return plan;
}

Shape Plan::input_shape() const {
  const Layer& first = layers.front();
  return first.has_feedforward ? first.feedforward.in : first.shape;
}

}  // namespace fastlif

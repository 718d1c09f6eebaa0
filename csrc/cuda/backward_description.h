// What a launch of the backward pass is told about its layers, and where they stand in a block's shared memory.
#pragma once

#include <algorithm>
#include <numeric>

#include "../lif_step.h"
#include "launch.h"
#include "products.h"

namespace fastlif::cuda {

constexpr int kMostLayers = 8;  // of a launch: their descriptions are kernel parameters
constexpr int kMostParts = 8;  // of a product
// Products are parted in layers of fewer neurons, for enough threads, and where a neuron's sum is longer, for tasks of
// about one size. On tensor cores each part has sums of its own in shared memory.
constexpr int kPartedNeurons = 1536, kPartedDepth = 96, kPartedTensorNeurons = 512;
constexpr int kEnoughTasks = 16;  // warps of a block

// Samples that a thread takes back together.
FASTLIF_BOTH constexpr int together(int samples) { return samples == 1 ? 1 : 2; }

template <class Real>
struct DeviceLayer {
  NeuronConstants<Real> constants{Layer()};
  LayerProduct<Real> product;
  Map map;
  Kind kind = Kind::lif;
  bool delay = false, detach_reset = true;
  // Offsets in shared memory, in numbers: dL/dJ at two steps (products.h); per neuron and sample dL/dU[n+1] and the
  // earlier of the two dL/dJ; dL/dcount or dL/dscore, -1 where there is none. The latter have planes of a few samples.
  int columns = 0, pitch = 0, state = 0, grad_counts = -1;
  BackwardLayer tensors;
};

template <class Real>
struct Parameters {
  int64_t n_steps = 0, batch = 0;
  int64_t samples = 0;  // of a network
  int n_layers = 0, n_chunks = 0, n_tasks = 0;
  int tasks_taken = 0;  // offset in shared memory, an int
  int columns_end = 0;  // shared memory before it starts as zero
  bool half_kept = false;
  int8_t order[kMostLayers] = {};  // layers, most expensive products first
  int last_chunk[kMostLayers] = {};  // chunks, of 32 neurons of the samples of a plane, up to that layer's last
  int last_task[kMostLayers] = {};  // warp tasks up to that layer's last, in this order
  DeviceLayer<Real> layers[kMostLayers];
};

inline int ceil_div(int64_t a, int64_t b) { return int((a + b - 1) / b); }

inline AdjointAxis axis(int outputs, int stride, int padding, int dilation, int taps) {
  const int common = std::gcd(stride, dilation);
  return {outputs, stride, padding, dilation, taps, stride / common, dilation / common};
}

// The connection's output has its columns as `to` says.
template <class Real>
Adjoint<Real> adjoint(const Connection& c, const void* weight, const DeviceLayer<Real>& to, int part_channels) {
  Adjoint<Real> a;
  a.weight = static_cast<const Real*>(weight);
  a.y = axis(c.out.height, c.stride_h, c.padding_h, c.dilation_h, c.kernel_h);
  a.x = axis(c.out.width, c.stride_w, c.padding_w, c.dilation_w, c.kernel_w);
  a.in_channels = c.in.channels, a.out_channels = c.out.channels;
  a.part_channels = part_channels;
  a.columns = to.columns, a.pitch = to.pitch;
  return a;
}

template <class Real>
FASTLIF_BOTH int tile_positions(const LayerProduct<Real>& product, int columns, bool tensor_cores) {
  if (product.single) return 1;
  return tensor_cores ? product.fragments * kFragmentColumns / columns : exact_positions(columns);
}

template <class Real>
class Description {
 public:
  Parameters<Real> p;
  int64_t shared_numbers = 0;

  // With all_counts there is room for dL/dcount and dL/dscore whether or not the problem has them.
  Description(const BackwardProblem& problem, int samples, bool all_counts)
      : samples_(samples), columns_(2 * samples), tensor_cores_(problem.products == Products::tf32) {
    p.n_steps = problem.n_steps, p.batch = problem.batch, p.samples = problem.batch / problem.networks.count;
    p.n_layers = problem.last - problem.first;
    p.half_kept = problem.precision == Precision::float32_half;
    const Layer* const layers = problem.plan->layers.data() + problem.first;
    int zeros = 0;
    for (int l = 0; l < p.n_layers; ++l) zeros = std::max(zeros, pitch(layers[l].shape));
    reserve(int64_t(zeros) * columns_);
    p.tasks_taken = reserve(1);
    for (int l = 0; l < p.n_layers; ++l) {
      DeviceLayer<Real>& layer = p.layers[l];
      const Shape& shape = layers[l].shape;
      layer.constants = NeuronConstants<Real>(layers[l]);
      layer.map = Map(shape);
      layer.kind = layers[l].kind, layer.delay = layers[l].delay != 0, layer.detach_reset = layers[l].detach_reset;
      layer.tensors = problem.layers[size_t(l)];
      layer.pitch = pitch(shape);
      layer.columns = reserve(int64_t(shape.positions()) * layer.pitch * columns_);
      p.n_chunks += samples / together(samples) * ceil_div(shape.size(), 32);
      p.last_chunk[l] = p.n_chunks;
    }
    p.columns_end = int(std::min<int64_t>(shared_numbers, INT32_MAX));
    for (int l = 0; l < p.n_layers; ++l) {
      DeviceLayer<Real>& layer = p.layers[l];
      const int64_t neurons = layers[l].shape.size();
      divide(layers[l], l + 1 < p.n_layers ? &layers[l + 1] : nullptr, l);
      layer.state = reserve(2 * samples * neurons);
      const BackwardLayer& t = layer.tensors;
      if (all_counts || (layer.kind == Kind::readout_max ? t.grad_score : t.grad_counts))
        layer.grad_counts = reserve(samples * neurons);
    }
    schedule();
  }

  int64_t shared_bytes() const { return shared_numbers * int64_t(sizeof(Real)); }

 private:
  int samples_, columns_;
  bool tensor_cores_;
  int64_t cost_[kMostLayers] = {}, tasks_[kMostLayers] = {};

  int reserve(int64_t numbers) {
    const int64_t at = shared_numbers, whole = 16 / int64_t(sizeof(Real));
    shared_numbers += (numbers + whole - 1) / whole * whole;
    return int(std::min<int64_t>(at, INT32_MAX));
  }

  // Exact: neighbouring positions stand in different banks.
  int pitch(const Shape& shape) const {
    if (tensor_cores_) return (shape.channels + kDepth - 1) / kDepth * kDepth;
    return shape.positions() == 1 ? shape.channels : shape.channels | 1;
  }

  // Divides the products of layer l among parts and warps.
  void divide(const Layer& layer, const Layer* next, int l) {
    if (!layer.recurrent && !next) return;
    LayerProduct<Real>& product = p.layers[l].product;
    Adjoint<Real>& recurrence = product.links[0];
    Adjoint<Real>& above = product.links[1];
    const int channels = layer.shape.channels, neurons = int(layer.shape.size());
    const int longest = std::max(layer.recurrent ? channels : 0, next ? next->shape.channels : 0);
    const int64_t depth = (layer.recurrent ? taps(layer.recurrence) * channels : 0) +
                          (next ? taps(next->feedforward) * next->shape.channels : 0);
    product.parts = 1;
    const auto long_sums = [&] {
      return tensor_cores_ ? product.parts * 2 * neurons <= kPartedTensorNeurons
                           : product.parts * neurons < kPartedNeurons || product.parts * kPartedDepth < depth;
    };
    while (product.parts < kMostParts && product.parts * 8 < longest && long_sums()) {
      product.parts *= 2;
      --product.item_bits;
    }
    if (tensor_cores_) product.item_bits = 0;
    const auto part_channels = [&](const Connection& c) {
      const int whole = tensor_cores_ ? kDepth : 4;
      return ceil_div(ceil_div(c.out.channels, product.parts), whole) * whole;
    };
    if (layer.recurrent)
      recurrence = adjoint(layer.recurrence, p.layers[l].tensors.recurrent_weight, p.layers[l],
                           part_channels(layer.recurrence));
    if (next)
      above = adjoint(next->feedforward, p.layers[l + 1].tensors.weight, p.layers[l + 1],
                      part_channels(next->feedforward));
    const int vector = tensor_cores_ ? kFragmentRows : exact_channels<Real>;
    const auto aligned = [](const Real* weight) { return reinterpret_cast<uintptr_t>(weight) % 16 == 0; };
    product.vectors = channels % vector == 0 && aligned(recurrence.weight) && aligned(above.weight);
    product.single = layer.shape.positions() == 1;
    product.height = layer.shape.height, product.width = layer.shape.width, product.channels = channels;
    product.spacing = recurrence.spread = next ? next->feedforward.stride_w : 1;
    const int groups = ceil_div(channels, tensor_cores_ ? vector : product.vectors ? vector : 1);
    product.fragments = int8_t(product.single ? 1 : 4);
    tile(product, groups);
    if (tensor_cores_ && !product.single && product.parts * product.items < kEnoughTasks) {
      product.fragments = 2;
      tile(product, groups);
    }
    if (tensor_cores_) {
      product.plane = ceil_div(neurons, 16) * 16 + 4;  // sums of neighbouring columns stand in different banks
      product.product = reserve(int64_t(product.parts) * columns_ * product.plane);
      tasks_[l] = int64_t(product.parts) * product.items;
    } else {
      product.plane = neurons * column_unit(columns_);
      product.product = reserve(int64_t(neurons) * columns_);
      tasks_[l] = ceil_div(product.items, 1 << product.item_bits);
    }
    for (Adjoint<Real>& link : product.links)
      link.reach = reserve(int64_t(product.height + product.width) * int64_t(sizeof(Reach) / sizeof(Real)));
    cost_[l] = depth / product.parts * product.fragments;
  }

  // That lead from a neuron onwards, about.
  static int64_t taps(const Connection& c) {
    return int64_t(std::max(1, std::min(c.kernel_h, c.out.height * c.stride_h) / c.stride_h)) *
           std::max(1, std::min(c.kernel_w, c.out.width * c.stride_w) / c.stride_w);
  }

  void tile(LayerProduct<Real>& product, int channel_groups) const {
    const int positions = tile_positions(product, columns_, tensor_cores_);
    const int runs = ceil_div(product.width, int64_t(product.spacing) * positions);
    product.by_tiles_x = Divider(runs * product.spacing);
    product.items = runs * product.spacing * product.height * channel_groups;
    product.by_channel_groups = Divider(channel_groups);
    product.by_runs = Divider(runs);
  }

  void schedule() {
    int count = 0;
    for (int l = 0; l < p.n_layers; ++l)
      if (tasks_[l]) p.order[count++] = int8_t(l);
    std::stable_sort(p.order, p.order + count, [&](int8_t a, int8_t b) { return cost_[a] > cost_[b]; });
    for (int i = 0; i < count; ++i) p.last_task[i] = p.n_tasks += int(tasks_[p.order[i]]);
  }
};

}  // namespace fastlif::cuda

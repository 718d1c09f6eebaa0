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
constexpr int kPartedNeurons = 1536;  // layers with fewer have their products parted

template <class Real>
struct DeviceLayer {
  NeuronConstants<Real> constants{Layer()};
  LayerProduct<Real> product;
  Map map;
  Kind kind = Kind::lif;
  int delay = 0;
  bool detach_reset = true;
  // Offsets in shared memory, in numbers: dL/dJ at two steps; dL/dU; dL/dcount or dL/dscore, -1 where there is none.
  int columns = 0, pitch = 0, grad_membrane = 0, grad_counts = -1;
  int last_chunk = 0;  // chunks, of 32 neurons of one sample, up to this layer's last
  BackwardLayer tensors;
};

template <class Real>
struct Parameters {
  int64_t n_steps = 0, batch = 0;
  int n_layers = 0, n_chunks = 0, n_tasks = 0;
  int columns_end = 0;  // shared memory before it starts as zero
  bool half_kept = false;
  int8_t order[kMostLayers] = {};  // layers, most expensive products first
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
Adjoint<Real> adjoint(const Connection& c, const void* weight, const DeviceLayer<Real>& to, int parts) {
  Adjoint<Real> a;
  a.weight = static_cast<const Real*>(weight);
  a.y = axis(c.out.height, c.stride_h, c.padding_h, c.dilation_h, c.kernel_h);
  a.x = axis(c.out.width, c.stride_w, c.padding_w, c.dilation_w, c.kernel_w);
  a.in_channels = c.in.channels, a.out_channels = c.out.channels;
  a.part_channels = ceil_div(ceil_div(c.out.channels, parts), 8) * 8;
  a.columns = to.columns, a.pitch = to.pitch;
  return a;
}

template <class Real>
class Description {
 public:
  Parameters<Real> p;
  int64_t shared_numbers = 0;

  // With all_counts there is room for dL/dcount and dL/dscore whether or not the problem has them.
  Description(const BackwardProblem& problem, int samples, bool all_counts)
      : samples_(samples), columns_(2 * samples), tensor_cores_(problem.products == Products::tf32) {
    p.n_steps = problem.n_steps, p.batch = problem.batch, p.n_layers = problem.last - problem.first;
    p.half_kept = problem.precision == Precision::float32_half;
    const Layer* const layers = problem.plan->layers.data() + problem.first;
    int zeros = 0;
    for (int l = 0; l < p.n_layers; ++l) zeros = std::max(zeros, layers[l].shape.channels);
    reserve(int64_t(zeros) * columns_);
    for (int l = 0; l < p.n_layers; ++l) {
      DeviceLayer<Real>& layer = p.layers[l];
      const Shape& shape = layers[l].shape;
      layer.constants = NeuronConstants<Real>(layers[l]);
      layer.map = Map(shape);
      layer.kind = layers[l].kind, layer.delay = layers[l].delay, layer.detach_reset = layers[l].detach_reset;
      layer.tensors = problem.layers[size_t(l)];
      layer.pitch = pitch(shape);
      layer.columns = reserve(int64_t(shape.positions()) * layer.pitch * columns_);
      p.n_chunks += samples * ceil_div(shape.size(), 32);
      layer.last_chunk = p.n_chunks;
    }
    p.columns_end = int(std::min<int64_t>(shared_numbers, INT32_MAX));
    for (int l = 0; l < p.n_layers; ++l) {
      DeviceLayer<Real>& layer = p.layers[l];
      const int64_t neurons = layers[l].shape.size();
      divide(layers[l], l + 1 < p.n_layers ? &layers[l + 1] : nullptr, l);
      layer.product.product = reserve(layer.product.parts * neurons * columns_);
      layer.grad_membrane = reserve(samples * neurons);
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

  // Neighbouring positions stand in different banks.
  int pitch(const Shape& shape) const {
    if (shape.positions() == 1) return shape.channels;
    return tensor_cores_ ? (shape.channels + 3) / 8 * 8 + 4 : shape.channels | 1;
  }

  // Divides the products of layer l among parts and warps. Small layers have few sums: theirs are parted.
  void divide(const Layer& layer, const Layer* next, int l) {
    if (!layer.recurrent && !next) return;
    LayerProduct<Real>& product = p.layers[l].product;
    Adjoint<Real>& recurrence = product.links[0];
    Adjoint<Real>& above = product.links[1];
    const int channels = layer.shape.channels;
    const int longest = std::max(layer.recurrent ? channels : 0, next ? next->shape.channels : 0);
    product.parts = 1;
    while (product.parts < kMostParts && product.parts * layer.shape.size() < kPartedNeurons &&
           product.parts * 8 < longest)
      product.parts *= 2;
    if (layer.recurrent)
      recurrence = adjoint(layer.recurrence, p.layers[l].tensors.recurrent_weight, p.layers[l], product.parts);
    if (next) above = adjoint(next->feedforward, p.layers[l + 1].tensors.weight, p.layers[l + 1], product.parts);
    const auto aligned = [](const Real* weight) { return reinterpret_cast<uintptr_t>(weight) % 16 == 0; };
    product.vectors = channels % exact_channels<Real> == 0 && aligned(recurrence.weight) && aligned(above.weight);
    product.single = layer.shape.positions() == 1;
    int positions = product.single ? 1 : exact_positions(columns_);
    if (tensor_cores_) positions = (product.single ? 1 : tf32_fragments(columns_)) * kFragmentColumns / columns_;
    product.neurons = int(layer.shape.size()), product.width = layer.shape.width;
    product.channels = channels;
    product.spacing = recurrence.spread = next ? next->feedforward.stride_w : 1;
    product.tiles_x = ceil_div(product.width, int64_t(product.spacing) * positions) * product.spacing;
    product.tiles = product.tiles_x * layer.shape.height;
    int together = product.vectors ? exact_channels<Real> : 1;
    if (tensor_cores_) together = kFragmentRows * tf32_rows(channels);
    product.channel_groups = ceil_div(channels, together);
    const int64_t items = int64_t(product.parts) * product.tiles * product.channel_groups;
    tasks_[l] = tensor_cores_ ? items : ceil_div(items, 32);
    const auto depth = [](const Adjoint<Real>& a) {
      return int64_t(a.part_channels) * std::min(a.y.taps, a.y.outputs * a.y.stride) / a.y.stride *
             std::min(a.x.taps, a.x.outputs * a.x.stride) / a.x.stride;
    };
    cost_[l] = (layer.recurrent ? depth(recurrence) : 0) + (next ? depth(above) : 0);
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

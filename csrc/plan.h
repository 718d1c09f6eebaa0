// What a stack of layers is: geometry and constants, independent of the processor and of torch.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace fastlif {

// Neurons are handled in blocks of 16 along the channels; a feature map is stored channels last with the channels
// padded to whole blocks. Padded lanes have zero weights and never spike (the threshold is positive).
constexpr int kBlock = 16;
constexpr int kWordSteps = 32;  // time steps in one word of packed spikes

inline int padded(int channels) { return (channels + kBlock - 1) / kBlock * kBlock; }

// Where a matrix stores the columns from `column` on. Columns lie in panels of 64, one panel after the other and each row
// by row: a product that takes a few columns of all rows then reads memory in order, whatever the number of columns.
struct Panel {
  static constexpr int64_t kColumns = 64;
  int64_t at;     // of the column in row 0
  int64_t pitch;  // from one row to the next
  Panel(int64_t column, int64_t n_columns, int64_t n_rows) {
    const int64_t first = column / kColumns * kColumns;
    at = first * n_rows + column - first, pitch = n_columns - first < kColumns ? n_columns - first : kColumns;
  }
};

struct Shape {
  int channels = 0, height = 0, width = 0;
  int positions() const { return height * width; }
  int64_t size() const { return int64_t(channels) * positions(); }
  int padded_channels() const { return padded(channels); }
  int64_t padded_size() const { return int64_t(padded_channels()) * positions(); }
};

// The neurons that one source position reaches in one row of the output: `length` values that are contiguous both
// in a channels-last output and in the packed weights of one source channel.
struct Target {
  int32_t out;       // offset into an output map
  int32_t out_halo;  // the same in a map whose rows have `halo` extra positions at both ends
  int32_t tap;       // offset into the packed weights of a source channel: (kernel row, slot) * padded out channels
  int32_t length;    // multiple of the padded out channels
};

// A convolution; a dense synapse is one whose kernel covers the whole input.
//
// The horizontal taps of the kernel are stored in `slots`: taps of equal (position modulo stride) stand together, the
// last tap first, so that the outputs one spike reaches are contiguous in memory. Forward, weight gradient and input
// gradient then walk the same targets.
struct Connection {
  Shape in, out;
  int kernel_h = 1, kernel_w = 1, stride_h = 1, stride_w = 1, padding_h = 0, padding_w = 0, dilation_h = 1, dilation_w = 1;
  int halo = 0;
  std::vector<int> slot_of_tap;       // kernel_w
  std::vector<int> first_target;      // in.positions() + 1
  std::vector<Target> targets;
  std::vector<Target> exact_targets;  // the same for input gradients: single positions end at their last real channel
  // Rows of a recurrent (stride 1, "same") connection seen from a source row: the kernel rows that reach it.
  std::vector<int> first_row_target;  // in.height + 1
  std::vector<Target> row_targets;

  int64_t taps() const { return int64_t(kernel_h) * kernel_w; }
  int64_t packed_size() const { return int64_t(in.channels) * taps() * out.padded_channels(); }
  int64_t weight_size() const { return int64_t(out.channels) * in.channels * taps(); }  // as torch stores it
  int halo_row() const { return (out.width + 2 * halo) * out.padded_channels(); }  // elements in a row with halo
  void build();  // fills the tables; halo must be set
};

enum class Kind : int { lif = 0, readout_max = 1, readout_trace = 2, current = 3, max_pool = 4 };

// Factors per step of one population of neurons.
struct Decays {
  double mem = 0, syn = 0, inhibitory = 0;
};

struct Layer {
  Kind kind = Kind::lif;
  Shape shape;
  bool has_feedforward = false, recurrent = false, detach_reset = true;
  int delay = 0;
  double decay_mem = 0, decay_syn = 0, threshold = 1, surrogate_slope = 20, surrogate_scale = 1;
  // Dale's law: the last n_inhibitory channels of `shape` are inhibitory, reach the layer itself through `inhibition`,
  // and have decays of their own. Recurrence then comes from the other channels, which alone leave the layer.
  int n_inhibitory = 0;
  double decay_inhibitory = 0;  // of the inhibitory current of excitatory neurons
  Decays inhibitory_neurons;
  std::vector<int> skips;  // earlier layers that a readout hears too
  Connection feedforward, recurrence, inhibition;
  std::vector<Connection> skip_connections;  // all-to-all, one per skip
  bool emits_spikes() const { return kind == Kind::lif || kind == Kind::max_pool; }
  bool has_weight() const { return has_feedforward && kind != Kind::max_pool; }
  // Columns of the weight: those of the layer before, then those of the skips in order.
  int64_t weight_columns() const {
    int64_t columns = feedforward.in.channels * feedforward.taps();
    for (const Connection& skip : skip_connections) columns += skip.in.size();
    return columns;
  }
  int64_t weight_size() const { return shape.channels * weight_columns(); }  // as torch stores it
  Shape emitted() const { return {shape.channels - n_inhibitory, shape.height, shape.width}; }
  int halo() const { return recurrent ? recurrence.halo : 0; }
  // Size of a map of this layer whose rows carry the halo that the recurrent input gradient reads.
  int halo_row() const { return (shape.width + 2 * halo()) * shape.padded_channels(); }
  int64_t halo_size() const { return int64_t(shape.height) * halo_row(); }
};

struct Plan {
  std::vector<Layer> layers;
  // Number of ints and floats per layer in the encoding; fastlif/ops/encoding.py writes it.
  static constexpr int kInts = 28, kFloats = 9;
  static Plan decode(const std::vector<int64_t>& ints, const std::vector<double>& floats);
  Shape input_shape() const;
};

}  // namespace fastlif

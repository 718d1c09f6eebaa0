// Forward of a segment of layers in one launch. A block is one sample of one network, or a tile of one layer whose
// neurons do not meet; it advances all layers in lockstep, two steps at a time.
//
// What spikes at step n inject enters I[n+1] and is first seen by S[n+2]. Iteration m = 0, 2, 4, ... therefore takes
// J[m-2] and J[m-1] from the spikes of the iteration before and emits S[m] and S[m+1], of every layer. It has three
// phases with a barrier after each: warps list the spikes of all sources (spike_lists.h), they look up which of them
// reach each position of a convolution, once for all its channels (forward_tables.h; left out where all layers are
// dense), then every neuron gathers its weights and advances. Iterations go on after the last spike until J[T-1] has
// entered the final state.
//
// A warp owns groups of 32 neurons, lane = bit of the group's mask, and their state in shared memory for the whole
// launch. Sums and roundings are those of the CPU kernels: compile without contraction into fused multiply-adds.
#include <stdexcept>
#include <string>

#include "forward_worker.h"
#include "launch.h"

namespace fastlif::cuda {
namespace {

// Threads of a block at most: of 64 registers, or of the 128 that numbers in pairs of registers take.
template <class Real>
constexpr int most_threads() {
  return sizeof(Real) == 4 ? 1024 : 512;
}

template <class Real, class Kept>
__global__ void __launch_bounds__(sizeof(Real) == 4 ? 1024 : 512, 1)
    stack_forward_kernel(const forward::Arguments<Real, Kept> arguments) {
  FASTLIF_SHARED(unsigned char, shared);
  const int network = int(blockIdx.z), first_group = int(blockIdx.y) * arguments.layout.tile_groups;
  const int64_t sample = int64_t(network) * arguments.samples + blockIdx.x;
  forward::Worker<Real, Kept>{arguments, shared, network, sample, first_group}.run();
}

template <class Real, class Kept>
void launch_forward(const ForwardProblem& problem, int shared_bytes, cudaStream_t stream) {
  const Plan& plan = *problem.plan;
  forward::Arguments<Real, Kept> arguments;
  static_assert(sizeof(arguments) <= 4096, "arguments of a kernel");
  const bool injected = problem.layers.front().injected != nullptr;
  arguments.layout = forward::choose_layout(plan, problem.first, problem.last, sizeof(Real), injected, problem.batch,
                                            shared_bytes);
  arguments.input = {problem.input_masks, problem.batch, problem.networks};
  arguments.n_steps = int(problem.n_steps);
  arguments.batch = problem.batch;
  arguments.samples = int(problem.batch / problem.networks.count);
  const Layer& front = plan.layers[problem.first];
  if (front.has_feedforward) arguments.input.words = Map(front.feedforward.in).groups();
  for (int l = problem.first; l < problem.last; ++l) {
    const Layer& layer = plan.layers[l];
    const ForwardLayer& from = problem.layers[l - problem.first];
    forward::LayerArguments<Real, Kept>& to = arguments.layers[l - problem.first];
    const auto number = [](const void* pointer) { return static_cast<const Real*>(pointer); };
    const auto result = [](void* pointer) { return static_cast<Real*>(pointer); };
    to.bias = number(from.bias), to.injected = number(from.injected);
    if (layer.has_feedforward && !from.injected) to.synapses[0] = {number(from.weight), layer.feedforward};
    if (layer.recurrent) to.synapses[1] = {number(from.recurrent_weight), layer.recurrence};
    to.membrane0 = number(from.membrane0), to.current0 = number(from.current0), to.pending0 = number(from.pending0);
    to.kept = static_cast<Kept*>(from.kept), to.words = from.words;
    to.counts = result(from.counts), to.membrane = result(from.membrane), to.current = result(from.current);
    to.pending = result(from.pending), to.output = result(from.output), to.best_step = from.best_step;
    to.constants = forward::ForwardConstants<Real>(NeuronConstants<Real>(layer));
    to.map = Map(layer.shape);
    to.kind = layer.kind, to.delay = layer.delay != 0;
    to.keep_unreset = !layer.detach_reset;
    to.has_bias = to.bias != nullptr;
    to.plain = to.kind == Kind::lif && !to.delay && !to.keep_unreset && !to.injected &&
               problem.batch * to.map.neurons <= INT32_MAX;
    for (int s = 0; s < 2; ++s)
      if (to.synapses[s].weight && arguments.layout.layers[l - problem.first].tables[s].entries < 0) to.plain = false;
  }
  const int tile_groups = arguments.layout.tile_groups;
  const int tiles = (arguments.layers[0].map.groups() + tile_groups - 1) / tile_groups;
  const int64_t blocks = problem.batch * tiles;
  const int threads = std::min(forward::threads_of(arguments.layout, blocks, shared_bytes), most_threads<Real>());
  const auto name = [&] {
    return "stack_forward of layers " + std::to_string(problem.first) + " to " + std::to_string(problem.last - 1) +
           ", " + std::to_string(problem.n_steps) + " steps, " + std::to_string(problem.batch) + " samples" +
           problem.networks.text() + ", " +
           std::to_string(arguments.layout.items * 32) + " neurons and " + std::to_string(arguments.layout.bytes) +
           " bytes of shared memory a block";
  };
  FASTLIF_LAUNCH(name(), (stack_forward_kernel<Real, Kept>),
                 dim3(unsigned(arguments.samples), unsigned(tiles), unsigned(problem.networks.count)),
                 dim3(unsigned(threads)), size_t(arguments.layout.bytes), stream, arguments);
}

int bytes_of_real(Precision precision) { return precision == Precision::float64 ? 8 : 4; }

// Shared memory of a segment, whether its input is spikes or a given current.
int segment_bytes(const Plan& plan, int first, int last, int real_bytes, int shared_bytes) {
  int most = forward::choose_layout(plan, first, last, real_bytes, true, 1, shared_bytes).bytes;
  if (plan.layers[first].has_feedforward)
    most = std::max(most, forward::choose_layout(plan, first, last, real_bytes, false, 1, shared_bytes).bytes);
  return most;
}

}  // namespace

std::vector<std::pair<int, int>> forward_segments(const Plan& plan, Precision precision, int shared_bytes) {
  std::vector<std::pair<int, int>> segments;
  const int n_layers = int(plan.layers.size()), real_bytes = bytes_of_real(precision);
  for (int first = 0, last = 0; first < n_layers; first = last) {
    int64_t neurons = plan.layers[first].shape.size();
    last = first + 1;
    const Layer& layer = plan.layers[first];
    const int64_t bytes = layer.kind == Kind::max_pool ? 0
                          : layer.n_inhibitory         ? dale_forward_bytes(layer, precision)
                                                       : segment_bytes(plan, first, last, real_bytes, shared_bytes);
    if (bytes > shared_bytes)
      throw std::invalid_argument("layer " + std::to_string(first) + " has " + std::to_string(neurons) +
                                  " neurons that need " + std::to_string(bytes) +
                                  " bytes of shared memory per block, " + std::to_string(shared_bytes) +
                                  " are available");
    while (last < n_layers && last - first < forward::kMostLayers && !stands_alone(layer) &&
           !stands_alone(plan.layers[last]) &&
           neurons + plan.layers[last].shape.size() <= forward::kMostNeurons &&
           segment_bytes(plan, first, last + 1, real_bytes, shared_bytes) <= shared_bytes)
      neurons += plan.layers[last++].shape.size();
    segments.push_back({first, last});
  }
  return segments;
}

void stack_forward(const ForwardProblem& problem, int shared_bytes, cudaStream_t stream) {
  if (problem.n_steps > INT32_MAX - 32)
    throw std::invalid_argument("at most 2147483615 steps, got " + std::to_string(problem.n_steps));
  switch (problem.precision) {
    case Precision::float32_half: return launch_forward<float, Half>(problem, shared_bytes, stream);
    case Precision::float32_exact: return launch_forward<float, float>(problem, shared_bytes, stream);
    case Precision::float64: return launch_forward<double, double>(problem, shared_bytes, stream);
  }
}

}  // namespace fastlif::cuda

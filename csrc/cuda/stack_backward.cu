// The backward pass of some layers of a stack, all steps in one launch. A block owns a few samples of one network and
// takes all layers back in lockstep, two steps at a time: dL/dJ[n] first enters dL/dU[n] and that first enters
// dL/dJ[n-2], so the products with dL/dJ[n+1] and dL/dJ[n] (products.h) need nothing that is still to come.
#include "backward_neurons.h"
#include "busiest.h"
#include "launch.h"

#if defined(FASTLIF_EMULATED)
#define FASTLIF_GRID_CONSTANT
#else
#define FASTLIF_GRID_CONSTANT __grid_constant__
#endif

namespace fastlif::cuda {

namespace {

template <class Real, int samples>
using Columns = Pack<Real, 2 * samples>;

// Counts up for the whole warp.
__device__ __forceinline__ int take(int* count) {
  int before = 0;
  if (threadIdx.x % 32 == 0) before = atomicAdd(count, 1);
  return __shfl_sync(0xffffffffu, before, 0);
}

template <int samples>
constexpr int kThreads = samples == 1 ? 256 : 512;

template <class Real, int samples, bool tensor_cores>
__global__ void __launch_bounds__(kThreads<samples>, 512 / kThreads<samples>) stack_backward_kernel(
    const FASTLIF_GRID_CONSTANT Parameters<Real> p) {
  FASTLIF_SHARED(Real, shared_memory);
  Real* const shared = base_of_shared(shared_memory);
  const auto* const zeros = reinterpret_cast<const Columns<Real, samples>*>(shared);
  for (int i = int(threadIdx.x); i < p.columns_end; i += int(blockDim.x)) shared[i] = Real(0);
  __syncthreads();
  for (int l = 0; l < p.n_layers; ++l)
    if (p.layers[l].product.parts > 0)
      tabulate_reach(p.layers[l].product, shared, tile_positions(p.layers[l].product, 2 * samples, tensor_cores));
  for_each_layer(p, [&](const DeviceLayer<Real>& layer, int begin, int end) {
    start_chunks<Real, samples, tensor_cores>(p, layer, shared, begin, end);
  });
  __syncthreads();
  const bool whole = samples_left<samples>(p) >= samples;
  int* const tasks_taken = reinterpret_cast<int*>(shared + p.tasks_taken);
  for (int64_t n = p.n_steps - 1; n >= 0; n -= 2) {
    // A warp that is done takes the next task: who does it changes nothing in the sums.
    for (int task = int(threadIdx.x / 32); task < p.n_tasks; task = int(blockDim.x / 32) + take(tasks_taken)) {
      int next = 0, first = 0;
      while (task >= p.last_task[next]) first = p.last_task[next++];
      const LayerProduct<Real>& product = p.layers[p.order[next]].product;
      if constexpr (tensor_cores)
        tf32_product<2 * samples>(product, shared, zeros, task - first);
      else
        exact_product<Real, 2 * samples>(product, shared, zeros, task - first);
    }
    __syncthreads();
    if (threadIdx.x == 0) *tasks_taken = 0;
    for_each_layer(p, [&](const DeviceLayer<Real>& layer, int begin, int end) {
      bool plain = false;
      if constexpr (sizeof(Real) == 4)
        plain = whole && n >= 3 && p.half_kept && layer.kind == Kind::lif && layer.detach_reset && !layer.delay;
      if (plain)
        retreat_chunks<sizeof(Real) == 4, Real, samples, tensor_cores>(p, layer, shared, n, begin, end);
      else
        retreat_chunks<false, Real, samples, tensor_cores>(p, layer, shared, n, begin, end);
      prefetch_chunks<Real, samples>(p, layer, n, begin, end);
    });
    __syncthreads();
  }
}

// ---- host

int64_t bytes_of(const BackwardProblem& problem, int samples, bool all_counts) {
  return problem.precision == Precision::float64 ? Description<double>(problem, samples, all_counts).shared_bytes()
                                                 : Description<float>(problem, samples, all_counts).shared_bytes();
}

int samples_of_block(const BackwardProblem& problem, int most, int shared_bytes) {
  const int networks = problem.networks.count, processors = multiprocessors();
  const int64_t available = problem.batch / networks;
  const auto load = [&](int samples) { return busiest(available, networks, samples, processors); };
  int best = 1;
  for (int samples = 2; samples <= most; samples *= 2)
    if (samples <= available && load(samples) <= load(best) && bytes_of(problem, samples, false) <= shared_bytes)
      best = samples;
  return best;
}

std::string text(const BackwardProblem& problem) {
  std::string shape = "stack_backward of layers " + std::to_string(problem.first) + " to " +
                      std::to_string(problem.last - 1) + ", neurons";
  for (int l = problem.first; l < problem.last; ++l)
    shape += " " + std::to_string(problem.plan->layers[size_t(l)].shape.size());
  return shape + ", steps " + std::to_string(problem.n_steps) + ", batch " + std::to_string(problem.batch) +
         problem.networks.text();
}

template <class Real, int samples, bool tensor_cores>
void run(const BackwardProblem& problem, int shared_bytes, cudaStream_t stream) {
  const Description<Real> description(problem, samples, false);
  static_assert(sizeof(description.p) <= 4096, "more than a kernel takes as parameters");
  if (description.shared_bytes() > shared_bytes)
    throw std::invalid_argument(text(problem) + ": needs " + std::to_string(description.shared_bytes()) +
                                " bytes of shared memory per block, " + std::to_string(shared_bytes) +
                                " are available");
  FASTLIF_LAUNCH(text(problem), (stack_backward_kernel<Real, samples, tensor_cores>),
                 dim3(unsigned(ceil_div(description.p.samples, samples)), unsigned(problem.networks.count)),
                 dim3(kThreads<samples>),
                 size_t(description.shared_bytes()), stream, description.p);
}

template <class Real, bool tensor_cores>
void run(const BackwardProblem& problem, int samples, int shared_bytes, cudaStream_t stream) {
  if constexpr (sizeof(Real) == 4)
    if (samples == 4) return run<Real, 4, tensor_cores>(problem, shared_bytes, stream);
  samples == 2 ? run<Real, 2, tensor_cores>(problem, shared_bytes, stream)
               : run<Real, 1, tensor_cores>(problem, shared_bytes, stream);
}

// Shared memory for any one sample, whatever the products: which of them takes more depends on the channels.
int64_t segment_bytes(const Plan& plan, Precision precision, int first, int last) {
  BackwardProblem part;
  part.plan = &plan, part.first = first, part.last = last;
  part.n_steps = part.batch = 1, part.precision = precision;
  part.layers.resize(size_t(last - first));
  const int64_t exact = bytes_of(part, 1, true);
  if (precision == Precision::float64) return exact;
  part.products = Products::tf32;
  return std::max(exact, bytes_of(part, 1, true));
}

std::invalid_argument too_large(int index, const Layer& layer, int64_t bytes, int shared_bytes) {
  return std::invalid_argument("layer " + std::to_string(index) + " of " + std::to_string(layer.shape.size()) +
                               " neurons needs " + std::to_string(bytes) +
                               " bytes of shared memory per block in the backward pass, " +
                               std::to_string(shared_bytes) + " are available");
}

}  // namespace

std::vector<std::pair<int, int>> backward_segments(const Plan& plan, Precision precision, int shared_bytes) {
  const int n_layers = int(plan.layers.size());
  const std::vector<int>& skips = plan.layers.back().skips;
  // Whether a layer can share a launch with the one before it.
  const auto joins = [&](int l) {
    const Layer& layer = plan.layers[size_t(l)];
    return layer.kind != Kind::current && !stands_alone(layer) && std::count(skips.begin(), skips.end(), l - 1) == 0;
  };
  std::vector<std::pair<int, int>> segments;
  for (int first = 0, last; first < n_layers; first = last) {
    const Layer& layer = plan.layers[size_t(first)];
    const auto runs = [&](int end) { return segment_bytes(plan, precision, first, end) <= shared_bytes; };
    last = first + 1;
    if (layer.n_inhibitory && dale_backward_bytes(layer, precision) > shared_bytes)
      throw too_large(first, layer, dale_backward_bytes(layer, precision), shared_bytes);
    if (layer.kind == Kind::max_pool || layer.n_inhibitory) {
      segments.emplace_back(first, last);
      continue;
    }
    const bool fits = layer.kind == Kind::current || runs(last);
    if (!fits && (layer.kind != Kind::lif || layer.recurrent))
      throw too_large(first, layer, segment_bytes(plan, precision, first, last), shared_bytes);
    while (fits && last < n_layers && last - first < kMostLayers && joins(last) && runs(last + 1))
      ++last;
    segments.emplace_back(first, last);
  }
  return segments;
}

void stack_backward(const BackwardProblem& problem, int shared_bytes, cudaStream_t stream) {
  if (problem.n_steps == 0 || problem.batch == 0) return;
  const bool is_double = problem.precision == Precision::float64;
  const int samples = samples_of_block(problem, is_double ? 2 : 4, shared_bytes);
  if (is_double)
    run<double, false>(problem, samples, shared_bytes, stream);
  else if (problem.products == Products::tf32)
    run<float, true>(problem, samples, shared_bytes, stream);
  else
    run<float, false>(problem, samples, shared_bytes, stream);
}

}  // namespace fastlif::cuda

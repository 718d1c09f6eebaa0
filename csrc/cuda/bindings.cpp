// The Python module fastlif._cuda. Tensors arrive as addresses of device memory and streams as numbers; fastlif/ops
// checks shapes, dtypes and devices before. The emulated build gives the same module another name.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <optional>
#include <stdexcept>

#include "launch.h"

namespace py = pybind11;
using namespace fastlif;
using namespace fastlif::cuda;

#ifndef FASTLIF_CUDA_MODULE
#define FASTLIF_CUDA_MODULE _cuda
#endif

namespace {

template <class T>
T* pointer(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

cudaStream_t stream_of(uintptr_t address) { return reinterpret_cast<cudaStream_t>(address); }

template <auto member, class Struct, class... Bases>
void address_property(py::class_<Struct, Bases...>& type, const char* name) {
  type.def_property(
      name, [](const Struct& p) { return reinterpret_cast<uintptr_t>(p.*member); },
      [](Struct& p, uintptr_t address) {
        p.*member = reinterpret_cast<std::remove_reference_t<decltype(p.*member)>>(address);
      });
}

// Synapses of a layer, by the name of their sources: "input", "layer" (of its excitatory neurons, if it has others) or
// "inhibitory" (neurons of the layer).
const Connection& connection(const Plan& plan, int layer, const std::string& sources) {
  const Layer& l = plan.layers.at(size_t(layer));
  if (sources == "input" && l.has_feedforward) return l.feedforward;
  if (sources == "layer" && l.recurrent) return l.recurrence;
  if (sources == "inhibitory" && l.n_inhibitory) return l.inhibition;
  throw std::invalid_argument("layer " + std::to_string(layer) + " has no synapses from '" + sources + "'");
}

Shape shape_of(std::array<int, 3> shape) { return {shape[0], shape[1], shape[2]}; }

}  // namespace

PYBIND11_MODULE(FASTLIF_CUDA_MODULE, m) {
  m.doc() = "CUDA kernels of fastlif; addresses of tensors in, nothing checked here.";
  py::class_<Plan>(m, "Plan", py::module_local()).def(py::init(&Plan::decode), py::arg("ints"), py::arg("floats"));

  py::class_<ForwardLayer> forward(m, "ForwardLayer", py::module_local());
  forward.def(py::init<>());
#define FASTLIF_ADDRESS(name) address_property<&ForwardLayer::name>(forward, #name)
  FASTLIF_ADDRESS(weight);
  FASTLIF_ADDRESS(recurrent_weight);
  FASTLIF_ADDRESS(bias);
  FASTLIF_ADDRESS(injected);
  FASTLIF_ADDRESS(membrane0);
  FASTLIF_ADDRESS(current0);
  FASTLIF_ADDRESS(pending0);
  FASTLIF_ADDRESS(kept);
  FASTLIF_ADDRESS(words);
  FASTLIF_ADDRESS(counts);
  FASTLIF_ADDRESS(membrane);
  FASTLIF_ADDRESS(current);
  FASTLIF_ADDRESS(pending);
  FASTLIF_ADDRESS(output);
  FASTLIF_ADDRESS(best_step);
  FASTLIF_ADDRESS(inhibitory_weight);
  FASTLIF_ADDRESS(inhibitory0);
  FASTLIF_ADDRESS(pending_inhibitory0);
  FASTLIF_ADDRESS(inhibitory);
  FASTLIF_ADDRESS(pending_inhibitory);
#undef FASTLIF_ADDRESS

  py::class_<BackwardLayer> backward(m, "BackwardLayer", py::module_local());
  backward.def(py::init<>());
#define FASTLIF_ADDRESS(name) address_property<&BackwardLayer::name>(backward, #name)
  FASTLIF_ADDRESS(weight);
  FASTLIF_ADDRESS(recurrent_weight);
  FASTLIF_ADDRESS(grad_spikes);
  FASTLIF_ADDRESS(kept);
  FASTLIF_ADDRESS(words);
  FASTLIF_ADDRESS(grad_score);
  FASTLIF_ADDRESS(best_step);
  FASTLIF_ADDRESS(grad_counts);
  FASTLIF_ADDRESS(grad_membrane);
  FASTLIF_ADDRESS(grad_current);
  FASTLIF_ADDRESS(grad_pending);
  FASTLIF_ADDRESS(grad_injected);
  FASTLIF_ADDRESS(grad_membrane0);
  FASTLIF_ADDRESS(grad_current0);
  FASTLIF_ADDRESS(grad_pending0);
#undef FASTLIF_ADDRESS

  py::class_<DaleBackwardLayer, BackwardLayer> dale(m, "DaleBackwardLayer", py::module_local());
  dale.def(py::init<>());
#define FASTLIF_ADDRESS(name) address_property<&DaleBackwardLayer::name>(dale, #name)
  FASTLIF_ADDRESS(inhibitory_weight);
  FASTLIF_ADDRESS(grad_inhibitory);
  FASTLIF_ADDRESS(grad_pending_inhibitory);
  FASTLIF_ADDRESS(grad_inhibitory_injected);
  FASTLIF_ADDRESS(grad_inhibitory0);
  FASTLIF_ADDRESS(grad_pending_inhibitory0);
#undef FASTLIF_ADDRESS

  m.def("unusable", &unusable);
  m.def("forward_segments", [](const Plan& plan, int precision, int shared_bytes) {
    return forward_segments(plan, Precision(precision), shared_bytes);
  });
  m.def("backward_segments", [](const Plan& plan, int precision, int shared_bytes) {
    return backward_segments(plan, Precision(precision), shared_bytes);
  });
  m.def(
      "stack_forward",
      [](const Plan& plan, std::pair<int, int> range, int64_t n_steps, int64_t batch, int networks,
         bool shared_input, int precision, uintptr_t input_masks, const std::vector<ForwardLayer>& layers,
         int shared_bytes, uintptr_t stream) {
        const py::gil_scoped_release release;
        ForwardProblem p{&plan, range.first, range.second, n_steps, batch, Precision(precision),
                         {networks, shared_input}, pointer<const uint32_t>(input_masks), layers};
        stack_forward(p, shared_bytes, stream_of(stream));
      },
      py::arg("plan"), py::arg("segment"), py::kw_only(), py::arg("n_steps"), py::arg("batch"), py::arg("networks"),
      py::arg("shared_input"), py::arg("precision"), py::arg("input_masks"), py::arg("layers"),
      py::arg("shared_bytes"), py::arg("stream"));
  m.def(
      "stack_backward",
      [](const Plan& plan, std::pair<int, int> range, int64_t n_steps, int64_t batch, int networks, int precision,
         int products, const std::vector<BackwardLayer>& layers, int shared_bytes, uintptr_t stream) {
        const py::gil_scoped_release release;
        BackwardProblem p{&plan, range.first, range.second, n_steps, batch, Precision(precision), Products(products),
                          {networks}, layers};
        stack_backward(p, shared_bytes, stream_of(stream));
      },
      py::arg("plan"), py::arg("segment"), py::kw_only(), py::arg("n_steps"), py::arg("batch"), py::arg("networks"),
      py::arg("precision"), py::arg("products"), py::arg("layers"), py::arg("shared_bytes"), py::arg("stream"));
  m.def(
      "scan_forward",
      [](const Plan& plan, int layer, const ForwardLayer& pointers, int64_t n_steps, int64_t batch, int precision,
         uintptr_t stream) {
        const py::gil_scoped_release release;
        scan_forward(plan.layers.at(size_t(layer)), pointers, n_steps, batch, Precision(precision), stream_of(stream));
      },
      py::arg("plan"), py::arg("layer"), py::arg("pointers"), py::kw_only(), py::arg("n_steps"), py::arg("batch"),
      py::arg("precision"), py::arg("stream"));
  m.def(
      "scan_backward",
      [](const Plan& plan, int layer, const BackwardLayer& pointers, int64_t n_steps, int64_t batch, int precision,
         uintptr_t stream) {
        const py::gil_scoped_release release;
        scan_backward(plan.layers.at(size_t(layer)), pointers, n_steps, batch, Precision(precision), stream_of(stream));
      },
      py::arg("plan"), py::arg("layer"), py::arg("pointers"), py::kw_only(), py::arg("n_steps"), py::arg("batch"),
      py::arg("precision"), py::arg("stream"));
  m.def(
      "dale_forward",
      [](const Plan& plan, int layer, const ForwardLayer& pointers, uintptr_t input_masks, int64_t n_steps,
         int64_t batch, int networks, bool shared_input, int precision, int shared_bytes, uintptr_t stream) {
        const py::gil_scoped_release release;
        dale_forward(plan.layers.at(size_t(layer)), pointers, pointer<const uint32_t>(input_masks), n_steps, batch,
                     {networks, shared_input}, Precision(precision), shared_bytes, stream_of(stream));
      },
      py::arg("plan"), py::arg("layer"), py::arg("pointers"), py::kw_only(), py::arg("input_masks"), py::arg("n_steps"),
      py::arg("batch"), py::arg("networks"), py::arg("shared_input"), py::arg("precision"), py::arg("shared_bytes"),
      py::arg("stream"));
  m.def(
      "dale_backward",
      [](const Plan& plan, int layer, const DaleBackwardLayer& pointers, int64_t n_steps, int64_t batch, int networks,
         int precision, int shared_bytes, uintptr_t stream) {
        const py::gil_scoped_release release;
        dale_backward(plan.layers.at(size_t(layer)), pointers, n_steps, batch, {networks}, Precision(precision),
                      shared_bytes, stream_of(stream));
      },
      py::arg("plan"), py::arg("layer"), py::arg("pointers"), py::kw_only(), py::arg("n_steps"), py::arg("batch"),
      py::arg("networks"), py::arg("precision"), py::arg("shared_bytes"), py::arg("stream"));
  m.def(
      "pool_words",
      [](const Plan& plan, int layer, uintptr_t words, int64_t n_steps, int64_t batch, uintptr_t pooled,
         uintptr_t stream) {
        const py::gil_scoped_release release;
        pool_words(connection(plan, layer, "input"), pointer<const int32_t>(words), n_steps, batch,
                   pointer<int32_t>(pooled), stream_of(stream));
      },
      py::arg("plan"), py::arg("layer"), py::kw_only(), py::arg("words"), py::arg("n_steps"), py::arg("batch"),
      py::arg("pooled"), py::arg("stream"));
  m.def(
      "pool_gradient",
      [](const Plan& plan, int layer, uintptr_t words, uintptr_t grad_pooled, int64_t n_steps, int64_t batch,
         bool is_double, uintptr_t grad_spikes, uintptr_t stream) {
        const py::gil_scoped_release release;
        pool_gradient(connection(plan, layer, "input"), pointer<const int32_t>(words), pointer<const void>(grad_pooled),
                      n_steps, batch, is_double, pointer<void>(grad_spikes), stream_of(stream));
      },
      py::arg("plan"), py::arg("layer"), py::kw_only(), py::arg("words"), py::arg("grad_pooled"), py::arg("n_steps"),
      py::arg("batch"), py::arg("is_double"), py::arg("grad_spikes"), py::arg("stream"));
  m.def("weight_gradient_splits",
        [](const Plan& plan, int layer, const std::string& sources, int64_t n_steps, int64_t samples_of_network) {
          return weight_gradient_splits(connection(plan, layer, sources), n_steps, samples_of_network);
        });
  m.def(
      "weight_gradient",
      [](const Plan& plan, int layer, const std::string& sources, uintptr_t words, uintptr_t grad_injected,
         int64_t n_steps, int64_t batch, int networks, bool shared_input, bool is_double, uintptr_t partials,
         uintptr_t grad, uintptr_t stream) {
        const py::gil_scoped_release release;
        weight_gradient(connection(plan, layer, sources), pointer<const int32_t>(words),
                        pointer<const void>(grad_injected), n_steps, batch, {networks, shared_input}, is_double,
                        pointer<void>(partials), pointer<void>(grad), stream_of(stream));
      },
      py::arg("plan"), py::arg("layer"), py::arg("sources"), py::kw_only(), py::arg("words"),
      py::arg("grad_injected"), py::arg("n_steps"), py::arg("batch"), py::arg("networks"), py::arg("shared_input"),
      py::arg("is_double"), py::arg("partials"), py::arg("grad"), py::arg("stream"));
  m.def(
      "row_means",
      [](uintptr_t values, int64_t rows, int64_t columns, bool is_double, uintptr_t means, uintptr_t stream) {
        const py::gil_scoped_release release;
        row_means(pointer<const void>(values), rows, columns, is_double, pointer<void>(means), stream_of(stream));
      },
      py::arg("values"), py::kw_only(), py::arg("rows"), py::arg("columns"), py::arg("is_double"), py::arg("means"),
      py::arg("stream"));
  m.def(
      "smorms3",
      [](const std::vector<std::array<uintptr_t, 5>>& addresses, const std::vector<int64_t>& sizes,
         const std::vector<double>& rates, const std::vector<uintptr_t>& rates_at,
         const std::vector<bool>& rates_are_double, bool is_double, double eps, bool maximize,
         std::optional<double> minimum, uintptr_t stream) {
        const py::gil_scoped_release release;
        std::vector<DeviceOptimizedTensor> tensors(addresses.size());
        for (size_t i = 0; i < tensors.size(); ++i) {
          const auto [parameter, gradient, mean, mean_square, window] = addresses[i];
          DeviceOptimizedTensor& t = tensors[i];
          t.parameter = pointer<void>(parameter), t.gradient = pointer<const void>(gradient);
          t.mean = pointer<void>(mean), t.mean_square = pointer<void>(mean_square), t.window = pointer<void>(window);
          t.size = sizes.at(i), t.lr = rates.at(i);
          t.lr_at = pointer<const void>(rates_at.at(i)), t.lr_at_is_double = rates_are_double.at(i);
        }
        Smorms3Options options{eps, maximize};
        if (minimum) options.minimum = *minimum;
        smorms3(tensors, is_double, options, stream_of(stream));
      },
      py::arg("addresses"), py::kw_only(), py::arg("sizes"), py::arg("rates"), py::arg("rates_at"),
      py::arg("rates_are_double"), py::arg("is_double"), py::arg("eps"), py::arg("maximize"), py::arg("minimum"),
      py::arg("stream"));
  m.def(
      "pack_words",
      [](uintptr_t dense, bool is_double, int64_t time_stride, int64_t batch_stride, int64_t n_steps, int64_t batch,
         std::array<int, 3> shape, uintptr_t words, uintptr_t not_binary, uintptr_t stream) {
        const py::gil_scoped_release release;
        pack_words(pointer<const void>(dense), is_double, time_stride, batch_stride, n_steps, batch, shape_of(shape),
                   pointer<int32_t>(words), pointer<int32_t>(not_binary), stream_of(stream));
      },
      py::arg("dense"), py::kw_only(), py::arg("is_double"), py::arg("time_stride"), py::arg("batch_stride"),
      py::arg("n_steps"), py::arg("batch"), py::arg("shape"), py::arg("words"), py::arg("not_binary"),
      py::arg("stream"));
  m.def(
      "unpack_words",
      [](uintptr_t words, int64_t n_steps, int64_t batch, std::array<int, 3> shape, uintptr_t dense, bool is_double,
         uintptr_t stream) {
        const py::gil_scoped_release release;
        unpack_words(pointer<const int32_t>(words), n_steps, batch, shape_of(shape), pointer<void>(dense), is_double,
                     stream_of(stream));
      },
      py::arg("words"), py::kw_only(), py::arg("n_steps"), py::arg("batch"), py::arg("shape"), py::arg("dense"),
      py::arg("is_double"), py::arg("stream"));
  m.def(
      "words_to_masks",
      [](uintptr_t words, int64_t n_steps, int64_t batch, int64_t neurons, uintptr_t masks, uintptr_t stream) {
        const py::gil_scoped_release release;
        words_to_masks(pointer<const int32_t>(words), n_steps, batch, neurons, pointer<uint32_t>(masks),
                       stream_of(stream));
      },
      py::arg("words"), py::kw_only(), py::arg("n_steps"), py::arg("batch"), py::arg("neurons"), py::arg("masks"),
      py::arg("stream"));
}

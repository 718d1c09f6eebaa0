// The Python module fastlif._C. Tensors arrive as addresses; fastlif/ops checks shapes, dtypes and devices before.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <optional>
#include <stdexcept>

#include "engine.h"
#include "memory_pool.h"

namespace py = pybind11;
using namespace fastlif;

namespace {

std::vector<Kernels> kernels = available_kernels();
size_t selected = 0;

template <class T>
T* pointer(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

// A block of the pool as a Python buffer: a tensor made from it gives it back when it dies.
class PooledBlock {
 public:
  explicit PooledBlock(size_t bytes) : bytes_(bytes), data_(MemoryPool::instance().take(bytes)) {}
  PooledBlock(const PooledBlock&) = delete;
  ~PooledBlock() { MemoryPool::instance().give_back(data_, bytes_); }
  py::buffer_info info() { return py::buffer_info(static_cast<uint8_t*>(data_), py::ssize_t(bytes_)); }

 private:
  size_t bytes_;
  void* data_;
};

void select_isa(const std::string& name) {
  for (size_t i = 0; i < kernels.size(); ++i)
    if (kernels[i].name == name) {
      selected = i;
      return;
    }
  throw std::invalid_argument("instruction set '" + name + "' is not available on this processor");
}

std::vector<std::string> isa_names() {
  std::vector<std::string> names;
  for (const Kernels& k : kernels) names.push_back(k.name);
  return names;
}

bool pack(uintptr_t dense, bool is_double, int64_t time_stride, int64_t batch_stride, int64_t n_steps, int64_t batch,
          std::array<int, 3> shape, int threads, uintptr_t words) {
  const py::gil_scoped_release release;
  const Shape s{shape[0], shape[1], shape[2]};
  return is_double ? pack_dense(pointer<const double>(dense), time_stride, batch_stride, n_steps, batch, s, threads,
                                pointer<int32_t>(words))
                   : pack_dense(pointer<const float>(dense), time_stride, batch_stride, n_steps, batch, s, threads,
                                pointer<int32_t>(words));
}

void unpack(uintptr_t words, int64_t n_steps, int64_t batch, std::array<int, 3> shape, int threads, uintptr_t dense,
            bool is_double) {
  const py::gil_scoped_release release;
  const Shape s{shape[0], shape[1], shape[2]};
  is_double ? unpack_dense(pointer<const int32_t>(words), n_steps, batch, s, threads, pointer<double>(dense))
            : unpack_dense(pointer<const int32_t>(words), n_steps, batch, s, threads, pointer<float>(dense));
}

template <auto member>
void address_property(py::class_<LayerPointers>& layer, const char* name) {
  layer.def_property(
      name, [](const LayerPointers& p) { return reinterpret_cast<uintptr_t>(p.*member); },
      [](LayerPointers& p, uintptr_t address) {
        p.*member = reinterpret_cast<std::remove_reference_t<decltype(p.*member)>>(address);
      });
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Kernels of fastlif; addresses of tensors in, nothing checked here.";
  m.def("isa_names", &isa_names, "Instruction sets this processor can run, the best first.");
  m.def("isa", [] { return kernels[selected].name; }, "The instruction set in use.");
  m.def("select_isa", &select_isa, py::arg("name"));
  m.def("pack", &pack);
  m.def("unpack", &unpack);
  m.def("pack_events",
        [](uintptr_t step, uintptr_t feature, uintptr_t offsets, int64_t n_steps, int64_t batch, int64_t features,
           int threads, uintptr_t words) {
          const py::gil_scoped_release release;
          pack_events(pointer<const int32_t>(step), pointer<const int32_t>(feature), pointer<const int64_t>(offsets),
                      n_steps, batch, features, threads, pointer<int32_t>(words));
        });
  m.def("advise_huge_pages", [](uintptr_t data, int64_t bytes) { advise_huge_pages(pointer<void>(data), bytes); });

  m.def("smorms3",
        [](const std::vector<std::array<uintptr_t, 5>>& addresses, const std::vector<int64_t>& sizes,
           const std::vector<double>& rates, bool is_double, double eps, bool maximize, std::optional<double> minimum,
           int threads) {
          const py::gil_scoped_release release;
          std::vector<OptimizedTensor> tensors;
          for (size_t i = 0; i < addresses.size(); ++i) {
            const auto [parameter, gradient, mean, mean_square, window] = addresses[i];
            tensors.push_back({pointer<void>(parameter), pointer<const void>(gradient), pointer<void>(mean),
                               pointer<void>(mean_square), pointer<void>(window), sizes.at(i), rates.at(i)});
          }
          Smorms3Options options{eps, maximize};
          if (minimum) options.minimum = *minimum;
          smorms3(tensors, is_double, options, threads);
        });

  py::class_<PooledBlock>(m, "PooledBlock", py::buffer_protocol())
      .def(py::init<size_t>(), py::arg("bytes"))
      .def_buffer(&PooledBlock::info);
  m.def("pooled_bytes", [] { return MemoryPool::instance().unused_bytes(); }, "Bytes kept for the next step.");
  m.def("release_pool", [] { MemoryPool::instance().release_unused(); }, "Gives unused blocks back to the system.");

  py::class_<Plan>(m, "Plan").def(py::init(&Plan::decode), py::arg("ints"), py::arg("floats"));

  py::class_<LayerPointers> layer(m, "LayerPointers");
  layer.def(py::init<>());
#define FASTLIF_ADDRESS(name) address_property<&LayerPointers::name>(layer, #name)
  FASTLIF_ADDRESS(weight);
  FASTLIF_ADDRESS(bias);
  FASTLIF_ADDRESS(recurrent_weight);
  FASTLIF_ADDRESS(membrane0);
  FASTLIF_ADDRESS(current0);
  FASTLIF_ADDRESS(pending0);
  FASTLIF_ADDRESS(kept);
  FASTLIF_ADDRESS(words);
  FASTLIF_ADDRESS(counts);
  FASTLIF_ADDRESS(membrane);
  FASTLIF_ADDRESS(current);
  FASTLIF_ADDRESS(pending);
  FASTLIF_ADDRESS(grad_counts);
  FASTLIF_ADDRESS(grad_membrane);
  FASTLIF_ADDRESS(grad_current);
  FASTLIF_ADDRESS(grad_pending);
  FASTLIF_ADDRESS(grad_weight);
  FASTLIF_ADDRESS(grad_bias);
  FASTLIF_ADDRESS(grad_recurrent_weight);
  FASTLIF_ADDRESS(grad_membrane0);
  FASTLIF_ADDRESS(grad_current0);
  FASTLIF_ADDRESS(grad_pending0);
  FASTLIF_ADDRESS(inhibitory_weight);
  FASTLIF_ADDRESS(inhibitory0);
  FASTLIF_ADDRESS(pending_inhibitory0);
  FASTLIF_ADDRESS(inhibitory);
  FASTLIF_ADDRESS(pending_inhibitory);
  FASTLIF_ADDRESS(grad_inhibitory);
  FASTLIF_ADDRESS(grad_pending_inhibitory);
  FASTLIF_ADDRESS(grad_inhibitory_weight);
  FASTLIF_ADDRESS(grad_inhibitory0);
  FASTLIF_ADDRESS(grad_pending_inhibitory0);
#undef FASTLIF_ADDRESS

  py::class_<Problem>(m, "Problem")
      .def(py::init([](const Plan& plan, int64_t n_steps, int64_t batch, int threads, int input_kind, uintptr_t input,
                       int64_t time_stride, int64_t batch_stride, const std::vector<LayerPointers>& layers,
                       uintptr_t output, uintptr_t best_step, uintptr_t grad_output, uintptr_t grad_input,
                       int64_t networks, int64_t input_batch) {
             Problem p;
             p.plan = &plan, p.n_steps = n_steps, p.batch = batch, p.threads = threads;
             p.networks = networks, p.input_batch = input_batch;
             p.input = {InputKind(input_kind), pointer<const void>(input), time_stride, batch_stride};
             p.layers = layers;
             p.output = pointer<void>(output), p.best_step = pointer<int32_t>(best_step);
             p.grad_output = pointer<const void>(grad_output), p.grad_input = pointer<void>(grad_input);
             if (layers.size() != plan.layers.size()) throw std::invalid_argument("one LayerPointers per layer expected");
             return p;
           }),
           py::keep_alive<1, 2>(), py::kw_only(), py::arg("plan"), py::arg("n_steps"), py::arg("batch"),
           py::arg("threads"), py::arg("input_kind"), py::arg("input"), py::arg("time_stride"), py::arg("batch_stride"),
           py::arg("layers"), py::arg("output") = 0, py::arg("best_step") = 0, py::arg("grad_output") = 0,
           py::arg("grad_input") = 0, py::arg("networks"), py::arg("input_batch"))
      .def("forward",
           [](const Problem& p, int precision) {
             const py::gil_scoped_release release;
             kernels[selected].forward(p, Precision(precision));
           })
      .def("backward", [](const Problem& p, int precision) {
        const py::gil_scoped_release release;
        kernels[selected].backward(p, Precision(precision));
      });
}

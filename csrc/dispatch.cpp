// Which compiled kernels this processor can run.
#include "engine.h"

namespace fastlif {

#define FASTLIF_DECLARE(isa)                         \
  namespace isa {                                    \
  void forward(const Problem&, Precision);           \
  void backward(const Problem&, Precision);          \
  }
FASTLIF_DECLARE(baseline)
#if defined(FASTLIF_X86_KERNELS)
FASTLIF_DECLARE(avx2)
FASTLIF_DECLARE(avx512)
#endif
#undef FASTLIF_DECLARE

std::vector<Kernels> available_kernels() {  // the best first
  std::vector<Kernels> kernels;
#if defined(FASTLIF_X86_KERNELS)
  __builtin_cpu_init();
  const bool has_avx2 =
      __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  if (has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
    kernels.push_back({"avx512", avx512::forward, avx512::backward});
  if (has_avx2) kernels.push_back({"avx2", avx2::forward, avx2::backward});
#endif
  kernels.push_back({"baseline", baseline::forward, baseline::backward});
  return kernels;
}

}  // namespace fastlif

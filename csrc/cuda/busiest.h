// How the samples of a batch spread over a GPU's multiprocessors.
#pragma once

#include "backward_description.h"
#include "portable.h"

namespace fastlif::cuda {

inline int multiprocessors() {
#if defined(FASTLIF_EMULATED)
  return 4;
#else
  int device = 0, count = 0;
  check(cudaGetDevice(&device), "the current device");
  check(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device), "its multiprocessors");
  return count;
#endif
}

// Samples on the busiest multiprocessor where every block has so many, all of one network. Blocks with more of them
// share each weight that is loaded, which gains as long as no multiprocessor gets more samples for it. Results are the
// same.
inline int64_t busiest(int64_t samples_of_network, int networks, int samples_of_block, int processors) {
  const int64_t blocks = int64_t(networks) * ceil_div(samples_of_network, samples_of_block);
  return int64_t(samples_of_block) * ceil_div(blocks, processors);
}

}  // namespace fastlif::cuda

// What marks a function that both processors run.
#pragma once

#if defined(__CUDACC__)
#define FASTLIF_BOTH __host__ __device__
#else
#define FASTLIF_BOTH
#endif

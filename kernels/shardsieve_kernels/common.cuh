// What kernels and host twins share. A function marked SS_HD is arithmetic alone: nvcc and NVRTC
// compile it for the device, g++ for the tests, so that a machine without a GPU checks the very
// arithmetic of the kernels.
#pragma once

#ifdef __CUDACC__
#define SS_HD __host__ __device__ __forceinline__
#else
#include <cmath>
#define SS_HD inline
#endif

namespace shardsieve {

constexpr int WARP = 32;

SS_HD float infinity_of(float) { return __builtin_huge_valf(); }
SS_HD double infinity_of(double) { return __builtin_huge_val(); }
SS_HD float not_a_number() { return __builtin_nanf(""); }

SS_HD float exp_of(float x) { return expf(x); }
SS_HD double exp_of(double x) { return exp(x); }
SS_HD float log1p_of(float x) { return log1pf(x); }
SS_HD double log1p_of(double x) { return log1p(x); }
SS_HD float expm1_of(float x) { return expm1f(x); }
SS_HD double expm1_of(double x) { return expm1(x); }

template <typename T>
SS_HD T larger_of(T a, T b) { return a > b ? a : b; }

// Neither NaN nor infinite.
template <typename T>
SS_HD bool is_finite(T x) { return x - x == T(0); }

}  // namespace shardsieve

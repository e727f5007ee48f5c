// What kernels and host twins share. A function marked SS_HD is arithmetic alone: nvcc and NVRTC
// compile it for the device, g++ for the tests, so that a machine without a GPU checks the very
// arithmetic of the kernels.
#pragma once

#ifdef __CUDACC__
#define SS_HD __host__ __device__ __forceinline__
#else
#define SS_HD inline
#endif
#ifndef __CUDACC_RTC__  // NVRTC has the functions built in and the headers not at all.
#include <cmath>
#include <limits>
#endif

namespace shardsieve {

constexpr int WARP = 32;

#ifdef __CUDA_ARCH__
SS_HD float infinity_of(float) { return __int_as_float(0x7f800000); }
SS_HD double infinity_of(double) { return __longlong_as_double(0x7ff0000000000000LL); }
SS_HD float not_a_number() { return __int_as_float(0x7fc00000); }
#else
SS_HD float infinity_of(float) { return std::numeric_limits<float>::infinity(); }
SS_HD double infinity_of(double) { return std::numeric_limits<double>::infinity(); }
SS_HD float not_a_number() { return std::numeric_limits<float>::quiet_NaN(); }
#endif

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

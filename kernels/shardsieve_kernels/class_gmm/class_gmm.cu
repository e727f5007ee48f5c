// class_gmm on a GPU: keys that sort by class and loss, one block per class for its whole fit, and
// the posteriors. No host decides anything in between.
#include "class_gmm/class_gmm.cuh"
#include "class_gmm/classes.cuh"

namespace shardsieve {

// The threads of a block.
struct BlockTeam {
    double (*grid)[SLOTS];  // MOST_SUMS rows, shared
    double* results;        // MOST_SUMS, shared
    double* one_word;       // shared

    __device__ double* slots() { return grid[0]; }
    __device__ double* word() { return one_word; }

    template <typename F>
    __device__ void each_slot(const F& f) {
        __syncthreads();
        for (int slot = threadIdx.x; slot < SLOTS; slot += blockDim.x) f(slot);
        __syncthreads();
    }

    template <typename F>
    __device__ void lead(const F& f) {
        __syncthreads();
        if (threadIdx.x == 0) f();
        __syncthreads();
    }

    // Warp w joins the sums w, w + warps, ...: each in the same tree, whoever does it.
    template <int N, typename Op, typename F>
    __device__ void reduce(const Op& op, double (&out)[N], const F& f) {
        reduce_slots(op, out, f);
        __syncthreads();
        const int lane = threadIdx.x % WARP;
        for (int k = threadIdx.x / WARP; k < N; k += blockDim.x / WARP) {
            double value = lane_of_tree(op, grid[k + 1], lane);
#pragma unroll
            for (int width = WARP / 2; width > 0; width /= 2)
                value = op(value, __shfl_down_sync(0xffffffff, value, width));
            if (lane == 0) results[k] = value;
        }
        __syncthreads();
#pragma unroll
        for (int k = 0; k < N; ++k) out[k] = results[k];
    }

    template <int N, typename Op, typename F>
    __device__ void reduce_slots(const Op&, double (&)[N], const F& f) {
        for (int slot = threadIdx.x; slot < SLOTS; slot += blockDim.x) {
            double part[N] = {};
            f(slot, part);
#pragma unroll
            for (int k = 0; k < N; ++k) grid[k + 1][slot] = part[k];
        }
    }
};

template <typename T>
__device__ void posteriors(const T* losses_N, const int* labels_N, long long n_samples,
                           const double* curves_K7, double* p_clean_N) {
    const long long step = (long long)gridDim.x * blockDim.x;
    for (long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x; i < n_samples; i += step)
        p_clean_N[i] = posterior(double(losses_N[i]), curves_K7 + 7 * labels_N[i]);
}

}  // namespace shardsieve

// losses_N: (N,) f32.  labels_N: (N,) i32.  keys_N: (N,) u64, every element written.
// Launch: any number of blocks and threads.
extern "C" __global__ void class_gmm_keys(const float* losses_N, const int* labels_N,
                                          long long n_samples, unsigned long long* keys_N) {
    const long long step = (long long)gridDim.x * blockDim.x;
    for (long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x; i < n_samples; i += step)
        keys_N[i] = shardsieve::key_of(shardsieve::bits_of(losses_N[i]), labels_N[i]);
}

// keys_N: (N,) u64, sorted.  sorted_N: (N,) f64, every element written.
// Launch: any number of blocks and threads.
extern "C" __global__ void class_gmm_losses(const unsigned long long* keys_N, long long n_samples,
                                            double* sorted_N) {
    const long long step = (long long)gridDim.x * blockDim.x;
    for (long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x; i < n_samples; i += step)
        sorted_N[i] = shardsieve::loss_of(shardsieve::loss_bits(keys_N[i]));
}

// sorted_N: (N,) f64, losses by class, then by size.  starts_K1: (K + 1,) i64, first row of each.
// turn_K: (K,) i32, classes in the order of their blocks.  scratch_N, groups_N: room for (N,) f64
// and i32.  Outputs: mixture_K6, scores_K3, curves_K7 f64; n_iter_K i32; converged_K, status_K u8;
// every element written, by thread 0 of the class's block.
// Launch: K blocks of 32 to 512 threads, a multiple of 32, which moves no bit.
extern "C" __global__ void __launch_bounds__(512) class_gmm_fit(
    const double* sorted_N, const long long* starts_K1, const int* turn_K, int standardise,
    int accelerate, int monotone, int min_samples, int max_iter, double variance_added,
    double variance_floor, double likelihood_stop, double step_stop, double* scratch_N,
    int* groups_N, double* mixture_K6, double* scores_K3, double* curves_K7, int* n_iter_K,
    unsigned char* converged_K, unsigned char* status_K) {
    using namespace shardsieve;
    // Row 0 is for prefix sums, which are read while the other rows are summed.
    __shared__ double grid[1 + MOST_SUMS][SLOTS];
    __shared__ double results[MOST_SUMS], one_word;
    __shared__ Fit fit;
    BlockTeam team = {grid, results, &one_word};
    const EmSettings settings = {standardise,    accelerate,     monotone,        min_samples, max_iter,
                                 variance_added, variance_floor, likelihood_stop, step_stop};
    fit_class(team, sorted_N, starts_K1, turn_K[blockIdx.x], settings, scratch_N, groups_N, fit,
              {mixture_K6, scores_K3, curves_K7, n_iter_K, converged_K, status_K});
}

// losses_N: (N,), labels_N: (N,) i32, in the caller's order.  curves_K7: of class_gmm_fit.
// p_clean_N: (N,) f64, every element written.  Launch: any number of blocks and threads.
#define POSTERIOR(TYPE, T)                                                                   \
    extern "C" __global__ void class_gmm_posterior_##TYPE(                                   \
        const T* losses_N, const int* labels_N, long long n_samples, const double* curves_K7, \
        double* p_clean_N) {                                                                 \
        shardsieve::posteriors(losses_N, labels_N, n_samples, curves_K7, p_clean_N);         \
    }

POSTERIOR(float32, float)
POSTERIOR(float64, double)

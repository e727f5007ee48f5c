// class_gmm.cu on the CPU, whole: one thread plays all threads of a block, and all blocks.
#include <cstring>

#include "class_gmm/classes.cuh"

namespace shardsieve {

struct HostTeam {
    int n_threads;
    double (*grid)[SLOTS];
    double one_word;

    double* slots() { return grid[0]; }
    double* word() { return &one_word; }

    template <typename F>
    void each_slot(const F& f) {
        for (int thread = 0; thread < n_threads; ++thread)
            for (int slot = thread; slot < SLOTS; slot += n_threads) f(slot);
    }

    template <typename F>
    void lead(const F& f) { f(); }

    template <int N, typename Op, typename F>
    void reduce(const Op& op, double (&out)[N], const F& f) {
        each_slot([&](int slot) {
            double part[N] = {};
            f(slot, part);
            for (int k = 0; k < N; ++k) grid[k + 1][slot] = part[k];
        });
        for (int k = 0; k < N; ++k) {
            double lanes[WARP];
            for (int lane = 0; lane < WARP; ++lane) lanes[lane] = lane_of_tree(op, grid[k + 1], lane);
            for (int width = WARP / 2; width > 0; width /= 2)
                for (int lane = 0; lane < width; ++lane)
                    lanes[lane] = op(lanes[lane], lanes[lane + width]);
            out[k] = lanes[0];
        }
    }
};

void fit_all(const double* sorted_N, const long long* starts_K1, int n_classes,
             const EmSettings& settings, int n_threads, double* scratch_N, int* groups_N,
             const FitOutputs& out) {
    static thread_local double grid[1 + MOST_SUMS][SLOTS];
    HostTeam team = {n_threads, grid, 0.0};
    for (int label = 0; label < n_classes; ++label) {
        Fit fit;
        fit_class(team, sorted_N, starts_K1, label, settings, scratch_N, groups_N, fit, out);
    }
}

}  // namespace shardsieve

extern "C" void class_gmm_fit(const double* sorted_N, const long long* starts_K1, int n_classes,
                              int n_threads, int standardise, int accelerate, int monotone,
                              int min_samples, int max_iter, double variance_added,
                              double variance_floor, double likelihood_stop, double step_stop,
                              double* scratch_N, int* groups_N, double* mixture_K6,
                              double* scores_K3, double* curves_K7, int* n_iter_K,
                              unsigned char* converged_K, unsigned char* status_K) {
    shardsieve::fit_all(sorted_N, starts_K1, n_classes,
                        {standardise, accelerate, monotone, min_samples, max_iter, variance_added,
                         variance_floor, likelihood_stop, step_stop},
                        n_threads, scratch_N, groups_N,
                        {mixture_K6, scores_K3, curves_K7, n_iter_K, converged_K, status_K});
}

#define HOST_TWIN(TYPE, T)                                                                 \
    extern "C" void class_gmm_posterior_##TYPE(const T* losses_N, const int* labels_N,     \
                                               long long n_samples, const double* curves_K7, \
                                               double* p_clean_N) {                        \
        for (long long i = 0; i < n_samples; ++i)                                          \
            p_clean_N[i] =                                                                 \
                shardsieve::posterior(double(losses_N[i]), curves_K7 + 7 * labels_N[i]);   \
    }

HOST_TWIN(float32, float)
HOST_TWIN(float64, double)

extern "C" void class_gmm_keys(const float* losses_N, const int* labels_N, long long n_samples,
                               unsigned long long* keys_N) {
    for (long long i = 0; i < n_samples; ++i) {
        unsigned int bits;
        std::memcpy(&bits, losses_N + i, sizeof bits);
        keys_N[i] = shardsieve::key_of(bits, labels_N[i]);
    }
}

extern "C" void class_gmm_losses(const unsigned long long* keys_N, long long n_samples,
                                 double* sorted_N) {
    for (long long i = 0; i < n_samples; ++i) {
        const unsigned int bits = shardsieve::loss_bits(keys_N[i]);
        float loss;
        std::memcpy(&loss, &bits, sizeof bits);
        sorted_N[i] = loss;
    }
}

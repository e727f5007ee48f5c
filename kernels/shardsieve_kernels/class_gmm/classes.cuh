// class_gmm: from the sorted losses of a class to its rows of the results, and the posterior.
#pragma once
#include "class_gmm/class_gmm.cuh"

namespace shardsieve {

// One row per class of GmmFit, and what the posterior needs of it (K, 7): bounds of x, constant,
// means, 1 / 2v.
struct FitOutputs {
    double *mixture_K6, *scores_K3, *curves_K7;
    int* n_iter_K;
    unsigned char *converged_K, *status_K;
};

// Keys that sort by class, then by loss: the bits of a float as a whole number that grows with it.
SS_HD unsigned long long key_of(unsigned int bits, int label) {
    const unsigned int ordered = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
    return (unsigned long long)(unsigned int)label << 32 | ordered;
}

SS_HD unsigned int loss_bits(unsigned long long key) {
    const unsigned int ordered = (unsigned int)key;
    return ordered & 0x80000000u ? ordered & 0x7fffffffu : ~ordered;
}

#ifdef __CUDACC__
SS_TEAM unsigned int bits_of(float loss) { return __float_as_uint(loss); }
SS_TEAM float loss_of(unsigned int bits) { return __uint_as_float(bits); }
#endif

SS_HD double posterior(double loss, const double* curve_7) {
    const double x = loss < curve_7[0] ? curve_7[0] : loss > curve_7[1] ? curve_7[1] : loss;
    const double d0 = x - curve_7[3], d1 = x - curve_7[4];
    const double odds = curve_7[2] - curve_7[5] * d0 * d0 + curve_7[6] * d1 * d1;
    const double small = exp_of(odds >= 0 ? -odds : odds);
    return (odds >= 0 ? 1.0 : small) / (1.0 + small);
}

// The rows of a class that has no mixture: NaN, and a curve that makes every posterior 1.
SS_TEAM void write_unfitted(int label, Status status, const Fit& fit, const FitOutputs& out) {
    const double lost = not_a_number(), infinite = infinity_of(0.0);
    for (int k = 0; k < 6; ++k) out.mixture_K6[6 * label + k] = lost;
    for (int k = 0; k < 3; ++k) out.scores_K3[3 * label + k] = lost;
    for (int k = 0; k < 7; ++k) out.curves_K7[7 * label + k] = 0.0;
    out.curves_K7[7 * label] = -infinite;
    out.curves_K7[7 * label + 1] = out.curves_K7[7 * label + 2] = infinite;
    out.n_iter_K[label] = status == COLLAPSED ? fit.n_iter : 0;
    out.converged_K[label] = status == COLLAPSED && fit.converged;
    out.status_K[label] = status;
}

SS_TEAM void write_fitted(int label, int n, const EmSettings& settings, const Fit& fit,
                                 const FitOutputs& out) {
    double* mixture_6 = out.mixture_K6 + 6 * label;
    for (int k = 0; k < 2; ++k) {
        mixture_6[k] = fit.now.weight[k];
        mixture_6[2 + k] = fit.centre + fit.unit * fit.now.mean[k];
        mixture_6[4 + k] = fit.unit * fit.unit * fit.now.variance[k];
    }
    const double one_variance = fit.deviation * fit.deviation;
    const double one_kept = larger_of(one_variance + fit.variance_added, settings.variance_floor);
    const double one_likelihood = -0.5 * (LOG_2PI + log(one_kept) + one_variance / one_kept);
    const double apart = fabs(fit.now.mean[1] - fit.now.mean[0]);
    double* scores_3 = out.scores_K3 + 3 * label;
    scores_3[0] = fit.likelihood - log(fit.unit);
    scores_3[1] = 2.0 * n * (fit.likelihood - one_likelihood) - 3 * log(double(n));
    scores_3[2] = apart * sqrt(2 / (fit.now.variance[0] + fit.now.variance[1]));

    const double m0 = mixture_6[2], m1 = mixture_6[3], v0 = mixture_6[4], v1 = mixture_6[5];
    const double vertex = v0 == v1 ? 0.0 : (m0 * v1 - m1 * v0) / (v1 - v0);
    double* curve_7 = out.curves_K7 + 7 * label;
    curve_7[0] = settings.monotone && v1 > v0 ? vertex : -infinity_of(0.0);
    curve_7[1] = settings.monotone && v1 < v0 ? vertex : infinity_of(0.0);
    curve_7[2] = log(mixture_6[0] / mixture_6[1]) - 0.5 * log(v0 / v1);
    curve_7[3] = m0;
    curve_7[4] = m1;
    curve_7[5] = 0.5 / v0;
    curve_7[6] = 0.5 / v1;
    out.n_iter_K[label] = fit.n_iter;
    out.converged_K[label] = fit.converged != 0;
    out.status_K[label] = FITTED;
}

// Centre and unit of a class's fit.
template <typename Team>
SS_TEAM void measure(Team& team, const Samples& raw, const EmSettings& settings, double extent,
                     Fit& fit) {
    double sum_1[1], square_1[1];
    team.reduce(Add(), sum_1, [&](int slot, double (&part_1)[1]) {
        for (int i = slot; i < raw.n; i += SLOTS) part_1[0] += raw.value(i);
    });
    const double centre = sum_1[0] / raw.n;
    // In units of the range, whose square cannot overflow.
    team.reduce(Add(), square_1, [&](int slot, double (&part_1)[1]) {
        for (int i = slot; i < raw.n; i += SLOTS) {
            const double d = (raw.value(i) - centre) / extent;
            part_1[0] += d * d;
        }
    });
    team.lead([&]() {
        fit.centre = centre;
        fit.scale = extent * sqrt(square_1[0] / raw.n);
        fit.unit = settings.standardise ? fit.scale : 1.0;
        fit.deviation = fit.scale / fit.unit;
        const double range = settings.standardise ? extent / fit.unit : 1.0;
        fit.variance_added = settings.variance_added * range * range;
    });
}

// Fits a class and writes its rows.
template <typename Team>
SS_TEAM void fit_class(Team& team, const double* sorted_N, const long long* starts_K1, int label,
                       const EmSettings& settings, double* scratch_N, int* groups_N, Fit& fit,
                       const FitOutputs& out) {
    const long long first = starts_K1[label];
    const int n = int(starts_K1[label + 1] - first);
    const double* losses_N = sorted_N + first;
    Status status = n == 0 ? EMPTY : n < settings.min_samples ? TOO_FEW : FITTED;
    if (status == FITTED) {
        const double low = losses_N[0], high = losses_N[n - 1];
        const double largest = larger_of(fabs(low), fabs(high));
        if (high - low <= larger_of(EQUAL_RANGE * largest, TINY_RANGE)) status = EQUAL;
    }
    if (status != FITTED) {
        team.lead([&]() { write_unfitted(label, status, fit, out); });
        return;
    }
    const Samples raw = {losses_N, n, 0.0, 1.0};
    measure(team, raw, settings, losses_N[n - 1] - losses_N[0], fit);
    const Samples samples = {losses_N, n, fit.centre, 1 / fit.unit};
    run_em(team, samples, settings, scratch_N + first, groups_N + first, fit);
    team.lead([&]() {
        const double smallest = Smallest()(fit.now.weight[0], fit.now.weight[1]) * n;
        if (smallest < larger_of(2.0, 0.005 * n) * (1 - WEIGHT_TIE)) {
            write_unfitted(label, COLLAPSED, fit, out);
        } else {
            clean_first(fit.now, fit.deviation);
            write_fitted(label, n, settings, fit, out);
        }
    });
}

}  // namespace shardsieve

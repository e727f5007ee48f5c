// class_gmm: the mixture of one class, fitted by a team: the threads of a block, or one thread of the
// CPU that plays them all. In float64, for two reasons: the stop rules compare likelihoods to 1e-10,
// and both presets then decide as the reference does. The algorithm is that of reference.py.
#pragma once
#include "class_gmm/condense.cuh"
#include "class_gmm/team.cuh"

namespace shardsieve {

enum Status { FITTED = 0, EMPTY = 1, TOO_FEW = 2, EQUAL = 3, COLLAPSED = 4 };

// As in reference.py, which says what they are for.
constexpr double EQUAL_RANGE = 1e-6;
constexpr double TINY_RANGE = 1e-100;
constexpr double EMPTY_GUARD = 10 * 2.220446049250313e-16;
constexpr double MEAN_TIE = 1e-9;
constexpr double SPLIT_TIE = 1e-10;
constexpr double WEIGHT_TIE = 1e-6;
constexpr double JUMP_LIMIT = 1.0;
constexpr double LOG_2PI = 1.8378770664093454836;
// Factors of the likelihood lie in (1, 2]: one logarithm does for this many.
constexpr int PRODUCT_LENGTH = 512;

struct EmSettings {
    int standardise, accelerate, monotone, min_samples, max_iter;
    double variance_added, variance_floor, likelihood_stop, step_stop;
};

struct Mixture {
    double weight[2], mean[2], variance[2], log_weight[2], log_variance[2];
};

// What the team shares about its class; written by the leader alone.
struct Fit {
    Mixture now, one, two, landed;
    double likelihood, likelihood_one, likelihood_jump;
    double centre, scale, unit, deviation;
    double variance_added;  // in squares of the unit
    int n_iter, converged, done;
};

SS_TEAM void write_free(const Mixture& a, double (&free_5)[5]) {
    free_5[0] = a.log_weight[0] - a.log_weight[1];
    for (int k = 0; k < 2; ++k) {
        free_5[1 + k] = a.mean[k];
        free_5[3 + k] = a.log_variance[k];
    }
}

SS_TEAM double largest_step(const Mixture& a, const Mixture& b) {
    double from_5[5], to_5[5], largest = 0;
    write_free(a, from_5);
    write_free(b, to_5);
    for (int k = 0; k < 5; ++k) largest = larger_of(largest, fabs(to_5[k] - from_5[k]));
    return largest;
}

// From n, the sum of d and the sum of d^2 of each component, d = z - about.
SS_TEAM void m_step(const double (&sums_6)[6], const double (&about_2)[2],
                           const EmSettings& settings, double variance_added, Mixture& to) {
    const double counts_2[2] = {sums_6[0] + EMPTY_GUARD, sums_6[1] + EMPTY_GUARD};
    for (int k = 0; k < 2; ++k) {
        const double shift = sums_6[2 + k] / counts_2[k];
        const double variance = larger_of(sums_6[4 + k] / counts_2[k] - shift * shift, 0.0);
        to.weight[k] = counts_2[k] / (counts_2[0] + counts_2[1]);
        to.mean[k] = about_2[k] + shift;
        to.variance[k] = larger_of(variance + variance_added, settings.variance_floor);
        to.log_weight[k] = log(to.weight[k]);
        to.log_variance[k] = log(to.variance[k]);
    }
}

// One EM step, and the mean log-likelihood of the mixture it started from.
template <typename Team, typename Data>
SS_CALL void em_map(Team team, Data data, const EmSettings& settings, const Fit& fit,
                    const Mixture& from, Mixture& to, double& likelihood) {
    const double mean_2[2] = {from.mean[0], from.mean[1]};
    const double c0 = from.log_weight[0] - 0.5 * (LOG_2PI + from.log_variance[0]);
    const double c1 = from.log_weight[1] - 0.5 * (LOG_2PI + from.log_variance[1]);
    const double h0 = 0.5 / from.variance[0], h1 = 0.5 / from.variance[1];
    double sums_7[7];
    team.reduce(Add(), sums_7, [&](int slot, double (&part_7)[7]) {
        double product = 1.0;
        int n_factors = 0;
        for (int i = slot; i < data.n; i += SLOTS) {
            const double z = data.value(i), w = data.weight(i);
            // Sums are taken about the old means: near the new ones, so that no digits are lost.
            const double d0 = z - mean_2[0], d1 = z - mean_2[1];
            const double q0 = d0 * d0, q1 = d1 * d1;
            const double j0 = c0 - h0 * q0, j1 = c1 - h1 * q1;
            const double small = exp(-fabs(j0 - j1));
            const double larger = w / (1.0 + small), smaller = small * larger;
            const double r0 = j0 >= j1 ? larger : smaller, r1 = j0 >= j1 ? smaller : larger;
            if (Data::WEIGHTED) {
                part_7[6] += w * (larger_of(j0, j1) + log1p(small));
            } else {
                part_7[6] += larger_of(j0, j1);
                product *= 1.0 + small;
                if (++n_factors == PRODUCT_LENGTH) {
                    part_7[6] += log(product);
                    product = 1.0;
                    n_factors = 0;
                }
            }
            part_7[0] += r0;
            part_7[1] += r1;
            part_7[2] += r0 * d0;
            part_7[3] += r1 * d1;
            part_7[4] += r0 * q0;
            part_7[5] += r1 * q1;
        }
        if (!Data::WEIGHTED) part_7[6] += log(product);
    });
    team.lead([&]() {
        const double sums_6[6] = {sums_7[0], sums_7[1], sums_7[2], sums_7[3], sums_7[4], sums_7[5]};
        m_step(sums_6, mean_2, settings, fit.variance_added, to);
        likelihood = sums_7[6] / (sums_7[0] + sums_7[1]);
    });
}

// The first of the best two-means splits: how many of the sorted values lie below it.
template <typename Team, typename Data>
SS_TEAM int two_means(Team& team, const Data& data) {
    // A slot has neighbours here, so that it can go on with the sum of all before them.
    const int length = (data.n + SLOTS - 1) / SLOTS;
    double* below_S = team.slots();
    team.each_slot([&](int slot) {
        double total = 0;
        for (int i = slot * length; i < (slot + 1) * length && i < data.n; ++i)
            total += data.value(i);
        below_S[slot] = total;
    });
    team.lead([&]() { sums_before(below_S); });
    // Calls use(size, gain) for every cut of a slot; the slot stops where it says so.
    const auto each_cut = [&](int slot, const auto& use) {
        double total = below_S[slot];
        for (int i = slot * length; i < (slot + 1) * length && i < data.n - 1; ++i) {
            const double z = data.value(i);
            total += z;
            const double size = i + 1;
            if (z != data.value(i + 1) && use(i + 1, total * total / (size * (data.n - size))))
                return;
        }
    };
    double best_1[1], first_1[1];
    team.reduce(Largest(), best_1, [&](int slot, double (&part_1)[1]) {
        part_1[0] = -1.0;
        each_cut(slot, [&](int, double gain) {
            part_1[0] = larger_of(part_1[0], gain);
            return false;
        });
    });
    const double enough = best_1[0] * (1 - SPLIT_TIE);
    team.reduce(Smallest(), first_1, [&](int slot, double (&part_1)[1]) {
        part_1[0] = data.n;
        each_cut(slot, [&](int size, double gain) {
            if (gain < enough) return false;
            part_1[0] = size;
            return true;
        });
    });
    return int(first_1[0]);
}

// The M step of the two-means split.
template <typename Team, typename Data>
SS_TEAM void start(Team& team, const Data& data, const EmSettings& settings, Fit& fit) {
    const int cut = two_means(team, data);
    double sums_2[2], squares_2[2];
    team.reduce(Add(), sums_2, [&](int slot, double (&part_2)[2]) {
        for (int i = slot; i < data.n; i += SLOTS) part_2[i < cut ? 0 : 1] += data.value(i);
    });
    const double count_2[2] = {double(cut), double(data.n - cut)};
    const double mean_2[2] = {sums_2[0] / (count_2[0] + EMPTY_GUARD),
                              sums_2[1] / (count_2[1] + EMPTY_GUARD)};
    team.reduce(Add(), squares_2, [&](int slot, double (&part_2)[2]) {
        for (int i = slot; i < data.n; i += SLOTS) {
            const int part = i < cut ? 0 : 1;
            const double d = data.value(i) - mean_2[part];
            part_2[part] += d * d;
        }
    });
    team.lead([&]() {
        const double sums_6[6] = {count_2[0], count_2[1], 0, 0, squares_2[0], squares_2[1]};
        m_step(sums_6, mean_2, settings, fit.variance_added, fit.now);
        fit.n_iter = fit.converged = 0;
    });
}

// Extrapolates two EM steps, not further than JUMP_LIMIT from where they led.
SS_TEAM void jump(const Mixture& from, const Mixture& one, const Mixture& two,
                         double variance_floor, Mixture& landed) {
    double start_5[5], middle_5[5], end_5[5], beyond_5[5];
    write_free(from, start_5);
    write_free(one, middle_5);
    write_free(two, end_5);
    double steps = 0, bends = 0, furthest = 1e-300;
    for (int k = 0; k < 5; ++k) {
        const double step = middle_5[k] - start_5[k], bend = end_5[k] - middle_5[k] - step;
        steps += step * step;
        bends += bend * bend;
    }
    const double length = bends > 0 ? larger_of(sqrt(steps) / sqrt(bends), 1.0) : 1.0;
    for (int k = 0; k < 5; ++k) {
        const double step = middle_5[k] - start_5[k], bend = end_5[k] - middle_5[k] - step;
        beyond_5[k] = start_5[k] + 2 * length * step + length * length * bend - end_5[k];
        furthest = larger_of(furthest, fabs(beyond_5[k]));
    }
    const double kept = furthest > JUMP_LIMIT ? JUMP_LIMIT / furthest : 1.0;
    const double odds = end_5[0] + kept * beyond_5[0];
    for (int k = 0; k < 2; ++k) {
        landed.weight[k] = 1 / (1 + exp(k == 0 ? -odds : odds));
        landed.mean[k] = end_5[1 + k] + kept * beyond_5[1 + k];
        landed.variance[k] =
            larger_of(exp(end_5[3 + k] + kept * beyond_5[3 + k]), variance_floor);
        landed.log_weight[k] = log(landed.weight[k]);
        landed.log_variance[k] = log(landed.variance[k]);
    }
}

// SQUAREM from where the fit is; a jump to a lower likelihood than EM has is undone.
template <typename Team, typename Data>
SS_TEAM void accelerated(Team& team, const Data& data, const EmSettings& settings, Fit& fit) {
    while (fit.n_iter + 3 <= settings.max_iter) {
        em_map(team, data, settings, fit, fit.now, fit.one, fit.likelihood);
        em_map(team, data, settings, fit, fit.one, fit.two, fit.likelihood_one);
        team.lead([&]() {
            fit.n_iter += 2;
            fit.converged = fit.likelihood_one - fit.likelihood <= settings.likelihood_stop &&
                            largest_step(fit.now, fit.one) <= settings.step_stop;
            if (!fit.converged)
                jump(fit.now, fit.one, fit.two, settings.variance_floor, fit.landed);
            fit.now = fit.two;
        });
        if (fit.converged) return;
        em_map(team, data, settings, fit, fit.landed, fit.landed, fit.likelihood_jump);
        team.lead([&]() {
            fit.n_iter += 1;
            if (fit.likelihood_jump >= fit.likelihood_one) fit.now = fit.landed;
        });
    }
}

// EM as scikit-learn runs it.
template <typename Team, typename Data>
SS_TEAM void plain(Team& team, const Data& data, const EmSettings& settings, Fit& fit) {
    team.lead([&]() { fit.likelihood_one = -infinity_of(0.0); });
    while (fit.n_iter < settings.max_iter && !fit.converged) {
        em_map(team, data, settings, fit, fit.now, fit.now, fit.likelihood);
        team.lead([&]() {
            fit.n_iter += 1;
            fit.converged = fabs(fit.likelihood - fit.likelihood_one) < settings.likelihood_stop;
            fit.likelihood_one = fit.likelihood;
        });
    }
}

// Fits fit.now to the class and leaves its mean log-likelihood in fit.likelihood.
template <typename Team, typename Data>
SS_TEAM void run_em(Team& team, const Data& data, const EmSettings& settings, double* scratch_N,
                    int* groups_N, Fit& fit) {
    start(team, data, settings, fit);
    if (!settings.accelerate) {
        plain(team, data, settings, fit);
    } else {
        const Points points = condense(team, data, fit.deviation, scratch_N, groups_N);
        if (points.n > 0) {
            accelerated(team, points, settings, fit);
            em_map(team, data, settings, fit, fit.now, fit.one, fit.likelihood);
            // All samples have the last word: where one more map moves nothing, the points were
            // right.
            team.lead([&]() {
                fit.done = !fit.converged || largest_step(fit.now, fit.one) <= settings.step_stop;
                if (!fit.converged) return;
                fit.n_iter += 1;
                fit.converged = fit.done;
                fit.now = fit.one;
            });
            if (fit.done) return;
        }
        accelerated(team, data, settings, fit);
    }
    em_map(team, data, settings, fit, fit.now, fit.one, fit.likelihood);
}

// Component 0 gets the lower mean; of equal means the smaller variance, then the larger weight.
SS_TEAM void clean_first(Mixture& a, double deviation) {
    bool swap = a.weight[0] < a.weight[1];
    if (fabs(a.mean[0] - a.mean[1]) > MEAN_TIE * deviation) swap = a.mean[0] > a.mean[1];
    else if (a.variance[0] != a.variance[1]) swap = a.variance[0] > a.variance[1];
    if (!swap) return;
    const Mixture b = a;
    for (int k = 0; k < 2; ++k) {
        a.weight[k] = b.weight[1 - k];
        a.mean[k] = b.mean[1 - k];
        a.variance[k] = b.variance[1 - k];
    }
}

}  // namespace shardsieve

// class_gmm: a class of many samples as few weighted points; cpu_condense.py says why and how good.
#pragma once
#include "class_gmm/team.cuh"

namespace shardsieve {

// As in cpu_condense.py.
constexpr int CONDENSED_FROM = 512;
constexpr int LARGE_CLASS = 16384;
constexpr int GROUPS_PER_DEVIATION = 16;
constexpr int GROUPS_AT_LEAST = 128;
constexpr double SAME_NODE = 1e-12;
constexpr double TWO_PI = 6.283185307179586477;

// The sorted losses of a class, each counted once, in the unit of the fit.
struct Samples {
    static constexpr bool WEIGHTED = false;
    const double* losses_N;
    int n;
    double centre, per_unit;
    SS_TEAM double value(int i) const { return (losses_N[i] - centre) * per_unit; }
    SS_TEAM double weight(int) const { return 1.0; }
};

struct Points {
    static constexpr bool WEIGHTED = true;
    const double* values_M;
    const double* weights_M;
    int n;
    SS_TEAM double value(int i) const { return values_M[i]; }
    SS_TEAM double weight(int i) const { return weights_M[i]; }
};

// Nodes t of the Gauss quadrature, and the norms of the polynomials that weigh them.
struct Quadrature {
    int n;
    double node[3], a1, b1, b2;
    SS_TEAM double share(int i) const {
        const double t = node[i], quadratic = (t - a1) * t - b1;
        const double cubic = n == 3 ? quadratic * quadratic / (b1 * b2) : 0.0;
        return 1 / (1 + t * t / b1 + cubic);
    }
};

// From the central moments, in units of the group's half width.
SS_TEAM Quadrature quadrature(double second, double third, double fourth, double fifth) {
    Quadrature q = {1, {0, 0, 0}, 0, second, 0};
    if (second <= SAME_NODE) return q;
    // The recurrence of the orthogonal polynomials 1, t, (t - a1) t - b1 and its cubic successor.
    const double a1 = q.a1 = third / second, b1 = second;
    const double b2 = q.b2 = (fourth - a1 * third) / second - second;
    if (b2 <= SAME_NODE) {
        const double root = sqrt(a1 * a1 + 4 * b1);
        q.n = 2;
        q.node[0] = 0.5 * (a1 - root);
        q.node[1] = 0.5 * (a1 + root);
        return q;
    }
    const double a2 =
        (fifth - 2 * a1 * fourth + (a1 * a1 - 2 * b1) * third) / (second * b2) + 2 * a1 * b1 / b2;
    // The roots of t^3 + c2 t^2 + c1 t + c0, which are real, by Viete's formula.
    const double c2 = -(a1 + a2), c1 = a1 * a2 - b1 - b2, c0 = a2 * b1;
    const double reach = sqrt(larger_of(c2 * c2 / 3 - c1, 0.0) / 3);
    const double cosine = -(c2 * (2 * c2 * c2 - 9 * c1) / 27 + c0) / (2 * reach * reach * reach);
    const double angle = acos(cosine > 1 ? 1.0 : cosine < -1 ? -1.0 : cosine) / 3;
    q.n = 3;
    for (int i = 0; i < 3; ++i) q.node[i] = 2 * reach * cos(angle - i * (TWO_PI / 3)) - c2 / 3;
    return q;
}

// Writes three points for the samples first .. end - 1; those that are not needed weigh nothing.
template <typename Data>
SS_TEAM void write_points(const Data& data, int first, int end, double* values_3,
                          double* weights_3) {
    const int n = end - first;
    const double lowest = data.value(first);
    if (n <= 3) {
        for (int i = 0; i < 3; ++i) {
            values_3[i] = i < n ? data.value(first + i) : lowest;
            weights_3[i] = i < n ? 1.0 : 0.0;
        }
        return;
    }
    const double half = 0.5 * (data.value(end - 1) - lowest);
    const double per_half = half > 0 ? 1 / half : 0.0;
    double total = 0, second = 0, third = 0, fourth = 0, fifth = 0;
    for (int i = first; i < end; ++i) total += data.value(i) - lowest;
    const double mean = lowest + total / n;
    for (int i = first; i < end; ++i) {
        const double d = (data.value(i) - mean) * per_half, q = d * d;
        second += q;
        third += q * d;
        fourth += q * q;
        fifth += q * q * d;
    }
    const Quadrature rule = quadrature(second / n, third / n, fourth / n, fifth / n);
    for (int i = 0; i < 3; ++i) {
        const bool used = i < rule.n;
        values_3[i] = mean + (used ? half * rule.node[i] : 0.0);
        weights_3[i] = !used ? 0.0 : rule.n == 1 ? double(n) : n * rule.share(i);
    }
}

// Gathers neighbours of one cell of a grid into groups, and each group into three points. No points
// if they would not be half as many as the samples.
// scratch_N takes the points, groups_N where the groups start; both have room for each sample.
template <typename Team, typename Data>
SS_TEAM Points condense(Team& team, const Data& data, double deviation, double* scratch_N,
                        int* groups_N) {
    const Points none = {scratch_N, scratch_N, 0};
    if (data.n < CONDENSED_FROM) return none;
    const int finer = data.n >= LARGE_CLASS ? 2 : 1;
    const double per_width = finer * GROUPS_PER_DEVIATION / deviation;
    const int most = data.n / (finer * GROUPS_AT_LEAST);
    const double lowest = data.value(0);
    const int length = (data.n + SLOTS - 1) / SLOTS;
    // Calls use(i) for every sample of a slot that starts a group.
    const auto each_start = [&](int slot, const auto& use) {
        double before = -1.0;
        const int first = slot * length;
        if (first > 0 && first < data.n) before = floor((data.value(first - 1) - lowest) * per_width);
        for (int i = first; i < first + length && i < data.n; ++i) {
            const double cell = floor((data.value(i) - lowest) * per_width);
            if (cell != before || i % most == 0) use(i);
            before = cell;
        }
    };
    double* count_S = team.slots();
    team.each_slot([&](int slot) {
        int count = 0;
        each_start(slot, [&](int) { ++count; });
        count_S[slot] = count;
    });
    double* total = team.word();
    team.lead([&]() { *total = sums_before(count_S); });
    const int n_groups = int(*total);
    const int room = data.n / 2;
    if (3 * n_groups > room) return none;
    team.each_slot([&](int slot) {
        int group = int(count_S[slot]);
        each_start(slot, [&](int i) { groups_N[group++] = i; });
    });
    double* weights_M = scratch_N + room;
    team.each_slot([&](int slot) {
        for (int group = slot; group < n_groups; group += SLOTS) {
            const int end = group + 1 < n_groups ? groups_N[group + 1] : data.n;
            write_points(data, groups_N[group], end, scratch_N + 3 * group, weights_M + 3 * group);
        }
    });
    return {scratch_N, weights_M, 3 * n_groups};
}

}  // namespace shardsieve

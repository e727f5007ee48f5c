// probe_step: what is known of a part of a row, how parts are joined, and what follows from all.
#pragma once
#include "common.cuh"

namespace shardsieve {

// Some columns of a row. Terms are exp(logit - top), that of the label left out of the sum.
template <typename A>
struct StepPart {
    A top;       // largest logit, the label's included; minus infinity if there is no column yet
    A others;    // sum of the terms of the other columns
    A label;     // the label's logit, once it was met
    bool usable; // all logits are finite
};

template <typename A>
SS_HD StepPart<A> no_part() {
    return {-infinity_of(A()), A(0), A(0), true};
}

// exp of a difference that is not positive; what overflowed to minus infinity is 0.
template <typename A>
SS_HD A term_of(A logit, A top) { return exp_of(larger_of(logit - top, A(-1000))); }

// Joins two disjoint parts; same bits in either order.
template <typename A>
SS_HD StepPart<A> join(const StepPart<A>& a, const StepPart<A>& b) {
    const bool a_high = a.top >= b.top;
    const StepPart<A>& high = a_high ? a : b;
    const StepPart<A>& low = a_high ? b : a;
    // At most one has met the label; the other holds 0. Where low is empty, its sum is 0.
    const A factor = low.others == A(0) ? A(0) : term_of(low.top, high.top);
    return {high.top, high.others + factor * low.others, a.label + b.label, a.usable && b.usable};
}

// Up to ITEMS columns: VEC beside each other, then `step` further on, while below n_classes.
template <int ITEMS, int VEC, typename A>
SS_HD StepPart<A> step_part_of(const A (&logits)[ITEMS], int first, int step, int n_classes,
                               int label) {
    StepPart<A> part = no_part<A>();
#pragma unroll
    for (int i = 0; i < ITEMS; ++i) {
        const int column = first + i / VEC * step + i % VEC;
        if (column >= n_classes) continue;
        part.usable = part.usable && is_finite(logits[i]);
        part.top = larger_of(part.top, logits[i]);
        if (column == label) part.label = logits[i];
    }
#pragma unroll
    for (int i = 0; i < ITEMS; ++i) {
        const int column = first + i / VEC * step + i % VEC;
        if (column < n_classes && column != label) part.others += term_of(logits[i], part.top);
    }
    return part;
}

// What the columns of a row are multiplied by, and the label's own gradient.
template <typename A>
struct StepScale {
    A others;    // gradient of another column is this times its term
    A label;     // gradient of the label's column
    float loss;  // NaN if the row has no answer; both factors are 0 then
};

template <typename A>
SS_HD StepScale<A> scale_of(const StepPart<A>& row, A q, A weight) {
    const A below = row.label - row.top;
    const A term_label = term_of(row.label, row.top);
    const A sum = row.others + term_label;
    // The label's term is 1 if it is the largest; given back by log1p it does not round a small
    // loss away.
    const A loss = log1p_of(below == A(0) ? row.others : sum - A(1)) - below;
    if (!(row.usable && float(loss) <= 3.4028234663852886e38f))
        return {A(0), A(0), not_a_number()};
    const bool is_ce = q < A(1e-30);
    const A factor = weight * (is_ce ? A(1) : exp_of(-q * loss));
    const A gce = is_ce ? loss : -expm1_of(-q * loss) / q;
    const A share = factor / sum;
    return {share, -share * row.others, float(gce)};
}

template <typename A>
SS_HD A gradient_of(const StepScale<A>& scale, A logit, A top, bool is_label) {
    if (is_label) return scale.label;
    // Also where the logit is NaN: what has no answer does not reach the gradient.
    return scale.others == A(0) ? A(0) : scale.others * term_of(logit, top);
}

}  // namespace shardsieve

// softmax_stats: what is known of a part of a row, how parts are joined, and what follows from all.
#pragma once
#include "common.cuh"

namespace shardsieve {

// Some columns of a row. Terms are exp(logit - top), the top's own term (exactly 1) left out.
template <typename A>
struct RowPart {
    A top;        // largest logit
    int pred;     // its column, the first of equals; -1 if there is no column yet
    A others;     // sum of the other terms
    A weighted;   // sum of term * (logit - top)
    A rival;      // largest logit of another column than the label's
    bool usable;  // all logits are finite
};

template <typename A>
SS_HD RowPart<A> no_columns() {
    return {-infinity_of(A()), -1, A(0), A(0), -infinity_of(A()), true};
}

// Joins two disjoint parts. Which of two equal tops is first is decided by the column, so that
// neither order nor grouping moves the prediction.
template <typename A>
SS_HD RowPart<A> join(const RowPart<A>& a, const RowPart<A>& b) {
    if (b.pred < 0) return a;
    if (a.pred < 0) return b;
    const bool a_first = a.top > b.top || (a.top == b.top && a.pred < b.pred);
    const RowPart<A>& high = a_first ? a : b;
    const RowPart<A>& low = a_first ? b : a;
    // exp is 0 long before -1000; the bound keeps 0 times minus infinity out of the sum.
    const A down = larger_of(low.top - high.top, A(-1000));
    const A factor = exp_of(down);
    return {high.top,
            high.pred,
            high.others + factor * (low.others + A(1)),
            high.weighted + factor * (low.weighted + down * (low.others + A(1))),
            larger_of(a.rival, b.rival),
            a.usable && b.usable};
}

// Up to ITEMS columns: first, first + step, ... while below n_classes.
template <int ITEMS, typename A>
SS_HD RowPart<A> part_of(const A (&logits)[ITEMS], int first, int step, int n_classes, int label) {
    RowPart<A> part = no_columns<A>();
#pragma unroll
    for (int i = 0; i < ITEMS; ++i) {
        const int column = first + i * step;
        if (column >= n_classes) continue;
        part.usable = part.usable && is_finite(logits[i]);
        if (part.pred < 0 || logits[i] > part.top) {
            part.top = logits[i];
            part.pred = column;
        }
        if (column != label) part.rival = larger_of(part.rival, logits[i]);
    }
#pragma unroll
    for (int i = 0; i < ITEMS; ++i) {
        const int column = first + i * step;
        if (column >= n_classes || column == part.pred) continue;
        const A shifted = larger_of(logits[i] - part.top, A(-1000));
        const A term = exp_of(shifted);
        part.others += term;
        part.weighted += term * shifted;
    }
    return part;
}

// Writes the five float fields of a row (stride n_samples, in the order loss, gce, margin, p_label,
// entropy) and its prediction.
template <typename A>
SS_HD void finish_row(const RowPart<A>& row, A label_logit, A q, long long n_samples, long long i,
                      float* fields_5N, int* pred_N) {
    const A log_sum = log1p_of(row.others);
    const A loss = log_sum - (label_logit - row.top);
    const bool usable = row.usable && float(loss) <= 3.4028234663852886e38f;
    const A all = A(1) + row.others;
    const A p_label = exp_of(label_logit - row.top) / all;
    const A p_rival = exp_of(row.rival - row.top) / all;
    const float lost = not_a_number();
    fields_5N[i] = usable ? float(loss) : lost;
    fields_5N[n_samples + i] =
        !usable ? lost : float(q == A(0) ? loss : -expm1_of(-q * loss) / q);
    fields_5N[2 * n_samples + i] = usable ? float(p_label - p_rival) : lost;
    fields_5N[3 * n_samples + i] = usable ? float(p_label) : lost;
    fields_5N[4 * n_samples + i] = usable ? float(log_sum - row.weighted / all) : lost;
    pred_N[i] = usable ? row.pred : -1;
}

}  // namespace shardsieve

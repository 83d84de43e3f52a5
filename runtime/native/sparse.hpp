// The sparse matrix in the order in which the kernel reads it, and the kernel's loops.
//
// Activations are feature-major: a tile holds a row of T tokens for each feature. A weight is broadcast,
// a row of the tile is one or two vector loads, and nothing is gathered. The inputs are split into blocks whose
// rows fit the first cache. Within a block, outputs that are computed alike form a part, where they are sorted by
// their number of steps and run-length coded, so that the inner loop's trip count is constant over a run and its branch is
// predicted.
#pragma once
#include <cstdint>
#include <vector>

#include "buffer.hpp"

namespace fp {

constexpr int kQuad = 4;  // outputs that share their inputs

// How the elements of a part are stored.
enum class Form {
    kRows,    // outputs one by one; a step has Kernel::kStep elements: two, or four for int8
    kQuads,   // four outputs at once; a step has Kernel::kGroup inputs, whichever they are
    kAligned  // four outputs at once; a step has Kernel::kGroup neighboring inputs, which were interleaved before
};

struct Run {
    uint32_t steps, units;  // a unit: an output, or four
};

struct Part {
    int64_t input = 0;  // the first one of its block
    Form form = Form::kRows;
    bool first = false, last = false;  // whether it sets its outputs' sums, and whether they are then complete
    std::vector<Run> runs;
    std::vector<uint32_t> rows;     // outputs, in the order of the runs
    std::vector<uint16_t> offsets;  // of inputs' rows from the first one's, in units of kOffsetUnit bytes
    std::vector<uint32_t> weights;
    size_t bytes() const { return runs.size() * sizeof(Run) + (rows.size() + weights.size()) * 4 + offsets.size() * 2; }
};

struct Sparse {
    std::vector<Part> parts;
    bool aligned = false;  // whether any part is
    size_t bytes() const {
        size_t sum = 0;
        for (const Part &part : parts) sum += part.bytes();
        return sum;
    }
};

constexpr int kOffsetUnit = 8;  // so that 16 bits reach every row of a block

// The sums of one of four outputs, as Kernel::Sums has them.
template <class Sum>
struct Finished {
    const Sum *sums;
    Sum sum(int j) const { return sums[j]; }
};

// Adds a part's products to its outputs' sums. Between parts, sums are stored in `partial`, a row of kPartial bytes for
// each output; a finished sum is passed to out(output, sums).
template <class Kernel, int Width, bool First, bool Last, class Out>
void run_rows(const Part &part, const char *base, Span<char> partial, Out &out) {
    const uint16_t *offset = part.offsets.data();
    const uint32_t *weight = part.weights.data();
    const uint32_t *row = part.rows.data();
    for (const Run &run : part.runs) {
        for (uint32_t i = 0; i < run.units; i++) {
            const uint32_t n = *row++;
            typename Kernel::template Sums<Width> sums;
            char *at = partial.at(size_t(n) * Kernel::kPartial, Kernel::kPartial);
            if (First) sums.clear();
            else sums.load(at);
            for (uint32_t step = 0; step < run.steps; step++) {
                sums.step(base, offset, weight);
                offset += Kernel::kStep;
                weight += Kernel::kWords;
            }
            if (Last) out(n, sums);
            else sums.store(at);
        }
    }
    FP_CHECK(row == part.rows.data() + part.rows.size());
    FP_CHECK(offset == part.offsets.data() + part.offsets.size());
    FP_CHECK(weight == part.weights.data() + part.weights.size());
}

// The same of a part of four outputs at once: what a step loads is multiplied four times.
template <class Kernel, int Width, bool Aligned, class Out>
void run_quads(const Part &part, const char *base, Span<char> partial, Out &out) {
    typedef typename Kernel::template Shared<Width, Aligned> Shared;
    typedef typename Shared::Sum Sum;
    constexpr int B = Shared::B, kVectors = Shared::kVectors;
    // As many sums as there are registers for: with 16 of them, two vectors of tokens after another two.
    constexpr int kAtOnce = kBytes == 64 || kVectors < 2 ? kVectors : 2;
    const uint16_t *offset = part.offsets.data();
    const uint32_t *weight = part.weights.data();
    const uint32_t *row = part.rows.data();
    for (const Run &run : part.runs) {
        for (uint32_t i = 0; i < run.units; i++, row += kQuad) {
            char *at[kQuad];
            for (int r = 0; r < kQuad; r++) at[r] = partial.at(size_t(row[r]) * Kernel::kPartial, Kernel::kPartial);
            Sum finished[kQuad][kVectors];
#pragma GCC unroll 4
            for (int from = 0; from < kVectors; from += kAtOnce) {
                Sum sum[kQuad][kAtOnce];
#pragma GCC unroll 4
                for (int r = 0; r < kQuad; r++)
#pragma GCC unroll 4
                    for (int j = 0; j < kAtOnce; j++)
                        sum[r][j] = part.first ? Sum{} : load<Sum>(at[r] + (from + j) * B);
                const uint16_t *o = offset;
                const uint32_t *w = weight;
#pragma GCC unroll 2
                for (uint32_t step = 0; step < run.steps; step++, o += Shared::kOffsets, w += kQuad) {
                    Words<B> words[kVectors];
                    Shared::words(base, o, words);  // those that are not used are not computed
#pragma GCC unroll 4
                    for (int r = 0; r < kQuad; r++)
#pragma GCC unroll 4
                        for (int j = 0; j < kAtOnce; j++) sum[r][j] = Shared::dot(sum[r][j], words[from + j], w[r]);
                }
#pragma GCC unroll 4
                for (int r = 0; r < kQuad; r++)
#pragma GCC unroll 4
                    for (int j = 0; j < kAtOnce; j++)
                        if (part.last) finished[r][from + j] = sum[r][j];
                        else put(at[r] + (from + j) * B, sum[r][j]);
            }
            offset += size_t(run.steps) * Shared::kOffsets;
            weight += size_t(run.steps) * kQuad;
            if (part.last)
                for (int r = 0; r < kQuad; r++) out(row[r], Finished<Sum>{finished[r]});
        }
    }
    FP_CHECK(row == part.rows.data() + part.rows.size());
    FP_CHECK(offset == part.offsets.data() + part.offsets.size());
    FP_CHECK(weight == part.weights.data() + part.weights.size());
}

// `grouped`: the rows of x interleaved, for parts that are aligned (Linear::group_rows). A group has Width words there.
template <class Kernel, int Width, class Out>
void run_sparse(const Sparse &sparse, Span<const char> x, Span<const char> grouped, Span<char> partial, Out &&out) {
    for (const Part &part : sparse.parts) {
        const char *base = x.from(part.input * Kernel::kRow).data();
        if (part.form == Form::kQuads) {
            run_quads<Kernel, Width, false>(part, base, partial, out);
        } else if (part.form == Form::kAligned) {
            if constexpr (Kernel::kGroup > 1)
                run_quads<Kernel, Width, true>(part, grouped.from(part.input / Kernel::kGroup * Width * 4).data(),
                                               partial, out);
        } else if (part.first) {
            if (part.last) run_rows<Kernel, Width, true, true>(part, base, partial, out);
            else run_rows<Kernel, Width, true, false>(part, base, partial, out);
        } else {
            if (part.last) run_rows<Kernel, Width, false, true>(part, base, partial, out);
            else run_rows<Kernel, Width, false, false>(part, base, partial, out);
        }
    }
}

}  // namespace fp

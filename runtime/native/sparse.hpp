// The sparse matrix in the order in which the kernel reads it, and the kernel's loops.
//
// Activations are feature-major: a tile holds a row of T tokens for each feature. A weight is broadcast,
// a row of the tile is one or two vector loads, and nothing is gathered. The inputs are split into blocks whose
// rows fit the first cache; within a block, the outputs are sorted by their number of steps and run-length
// coded, so that the inner loop's trip count is constant over a run and its branch is predicted.
// A step is a group of stored elements of one output: two, or four for int8.
#pragma once
#include <algorithm>
#include <cstdint>
#include <vector>

#include "buffer.hpp"
#include "matrix.hpp"

namespace fp {

struct Run {
    uint32_t steps, rows;
};

struct Block {
    int64_t first = 0;  // its first input
    std::vector<Run> runs;
    std::vector<uint32_t> rows;     // outputs, in the order of the runs
    std::vector<uint16_t> offsets;  // of inputs' rows from the first one's, in units of kOffsetUnit bytes
    std::vector<uint32_t> weights;
    size_t bytes() const { return runs.size() * sizeof(Run) + (rows.size() + weights.size()) * 4 + offsets.size() * 2; }
};

struct Sparse {
    std::vector<Block> blocks;
    size_t bytes() const {
        size_t sum = 0;
        for (const Block &block : blocks) sum += block.bytes();
        return sum;
    }
};

constexpr int kOffsetUnit = 8;  // so that 16 bits reach every row of a block

// A row's elements from `begin` to `end` to steps of a block. `Kernel` defines how many elements a step has (kStep), how
// many bytes a row of its tile has (kRow), and encodes the weights of a step (encode).
template <class Kernel>
void append_steps(const Rows &m, uint32_t row, int64_t begin, int64_t end, float scale, Block &block) {
    for (int64_t i = begin; i < end;) {
        float values[Kernel::kStep] = {};
        uint16_t offset = 0;
        for (int lane = 0; lane < Kernel::kStep; lane++) {
            if (i < end) {
                const Element element = m.element(row, i++);
                values[lane] = element.value;
                offset = uint16_t((element.column - block.first) * (Kernel::kRow / kOffsetUnit));
            }
            block.offsets.push_back(offset);  // after the last element: the same input again, with weight 0
        }
        Kernel::encode(values, scale, block.weights);
    }
}

// What run_block relies on, for a block of `inputs` inputs and `outputs` outputs.
template <class Kernel>
void check_block([[maybe_unused]] const Block &block, [[maybe_unused]] int64_t inputs,
                 [[maybe_unused]] int64_t outputs) {
    if constexpr (kChecks) {
        size_t rows = 0, steps = 0;
        for (size_t i = 0; i < block.runs.size(); i++) {
            const Run &run = block.runs[i];
            FP_CHECK(run.rows > 0 && (i == 0 || run.steps < block.runs[i - 1].steps));
            rows += run.rows;
            steps += size_t(run.rows) * run.steps;
        }
        FP_CHECK(block.rows.size() == rows);
        FP_CHECK(block.offsets.size() == steps * Kernel::kStep);
        FP_CHECK(block.weights.size() == steps * Kernel::kWords);
        for (const uint32_t row : block.rows) FP_CHECK(row < outputs);
        for (const uint16_t offset : block.offsets) {
            FP_CHECK(offset * kOffsetUnit % Kernel::kRow == 0);
            FP_CHECK(offset * kOffsetUnit / Kernel::kRow < inputs);
        }
    }
}

// Blocks of at most Kernel::kBlock inputs each. Rows that are `elsewhere` are omitted; `scales` is for int8, or empty.
template <class Kernel>
Sparse pack_sparse(const Rows &m, const std::vector<float> &scales, const std::vector<bool> &elsewhere) {
    static_assert(Kernel::kRow % kOffsetUnit == 0 && (Kernel::kBlock - 1) * (Kernel::kRow / kOffsetUnit) <= UINT16_MAX);
    Sparse sparse;
    const int64_t blocks = std::max<int64_t>(1, (m.columns() + Kernel::kBlock - 1) / Kernel::kBlock);
    const int64_t width = (m.columns() + blocks - 1) / blocks;
    std::vector<int64_t> begins(m.count(), 0), ends(m.count(), 0);  // of each row, the elements that a block takes
    std::vector<uint32_t> steps(m.count()), order;
    for (int64_t row = 0; row < m.count(); row++)
        if (!elsewhere[row]) order.push_back(uint32_t(row));
    const std::vector<uint32_t> ascending = order;
    for (int64_t b = 0; b < blocks; b++) {
        Block block;
        block.first = b * width;
        const int64_t end = std::min(m.columns(), block.first + width);
        for (const uint32_t row : ascending) {
            begins[row] = ends[row];
            while (ends[row] < m.size(row) && m.element(row, ends[row]).column < end) ends[row]++;
            steps[row] = uint32_t((ends[row] - begins[row] + Kernel::kStep - 1) / Kernel::kStep);
        }
        order = ascending;
        std::stable_sort(order.begin(), order.end(), [&](uint32_t x, uint32_t y) { return steps[x] > steps[y]; });
        for (const uint32_t row : order) {
            // The first block sets every sum and the last one passes it on; an empty row of a block between is skipped.
            if (!steps[row] && b > 0 && b < blocks - 1) continue;
            if (block.runs.empty() || block.runs.back().steps != steps[row]) block.runs.push_back({steps[row], 0});
            block.runs.back().rows++;
            block.rows.push_back(row);
            append_steps<Kernel>(m, row, begins[row], ends[row], scales.empty() ? 1.0f : scales[row], block);
        }
        check_block<Kernel>(block, end - block.first, m.count());
        sparse.blocks.push_back(std::move(block));
    }
    return sparse;
}

// Adds one block's products to all sums. Between blocks, sums are stored in `partial`, a row of kPartial bytes for each
// output; a finished sum is passed to out(output, sums).
template <class Kernel, int Width, bool First, bool Last, class Out>
void run_block(const Block &block, Span<const char> x, Span<char> partial, Out &&out) {
    const uint16_t *offset = block.offsets.data();
    const uint32_t *weight = block.weights.data();
    const uint32_t *row = block.rows.data();
    const char *base = x.from(block.first * Kernel::kRow).data();
    for (const Run &run : block.runs) {
        for (uint32_t i = 0; i < run.rows; i++) {
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
    FP_CHECK(row == block.rows.data() + block.rows.size());
    FP_CHECK(offset == block.offsets.data() + block.offsets.size());
    FP_CHECK(weight == block.weights.data() + block.weights.size());
}

template <class Kernel, int Width, class Out>
void run_sparse(const Sparse &sparse, Span<const char> x, Span<char> partial, Out &&out) {
    const size_t last = sparse.blocks.size() - 1;
    for (size_t b = 0; b <= last; b++) {
        const Block &block = sparse.blocks[b];
        if (b == 0 && b == last) run_block<Kernel, Width, true, true>(block, x, partial, out);
        else if (b == 0) run_block<Kernel, Width, true, false>(block, x, partial, out);
        else if (b == last) run_block<Kernel, Width, false, true>(block, x, partial, out);
        else run_block<Kernel, Width, false, false>(block, x, partial, out);
    }
}

}  // namespace fp

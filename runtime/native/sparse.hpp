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
    int64_t first = 0;               // its first input
    std::vector<Run> runs;
    std::vector<uint32_t> rows;      // outputs, in the order of the runs
    std::vector<uint16_t> offsets;   // of an input's row of the tile, in units of 8 bytes from the block's first
    std::vector<uint32_t> weights;
    size_t bytes() const {
        return runs.size() * sizeof(Run) + (rows.size() + weights.size()) * 4 + offsets.size() * 2;
    }
};

struct Sparse {
    std::vector<Block> blocks;
    size_t bytes() const {
        size_t sum = 0;
        for (const Block &block : blocks) sum += block.bytes();
        return sum;
    }
};

// `Kernel` says how many elements a step has (kStep), how many bytes a row of its tile has (kRow), how
// many inputs a block may have (kBlock), and encodes the weights of a step (encode). Rows that are
// `elsewhere` are left out.
template <class Kernel>
Sparse pack_sparse(const Rows &m, const std::vector<float> &scales, const std::vector<bool> &elsewhere) {
    Sparse sparse;
    const int64_t blocks = std::max<int64_t>(1, (m.columns() + Kernel::kBlock - 1) / Kernel::kBlock);
    const int64_t width = (m.columns() + blocks - 1) / blocks;
    std::vector<int64_t> next(m.count(), 0);  // of each row, the first element not yet packed
    for (int64_t b = 0; b < blocks; b++) {
        Block block;
        block.first = b * width;
        const int64_t end = std::min(m.columns(), block.first + width);
        std::vector<int64_t> until(m.count());
        std::vector<uint32_t> steps(m.count()), order;
        for (int64_t row = 0; row < m.count(); row++) {
            if (elsewhere[row]) continue;
            order.push_back(uint32_t(row));
            int64_t i = next[row];
            while (i < m.size(row) && m.element(row, i).column < end) i++;
            until[row] = i;
            steps[row] = uint32_t((i - next[row] + Kernel::kStep - 1) / Kernel::kStep);
        }
        std::stable_sort(order.begin(), order.end(), [&](uint32_t x, uint32_t y) { return steps[x] > steps[y]; });
        for (const uint32_t row : order) {
            // The first block sets every sum, the last one hands it on; between them an empty row has nothing to do.
            if (!steps[row] && b > 0 && b < blocks - 1) continue;
            if (block.runs.empty() || block.runs.back().steps != steps[row]) block.runs.push_back({steps[row], 0});
            block.runs.back().rows++;
            block.rows.push_back(row);
            for (int64_t i = next[row]; i < until[row];) {
                float values[Kernel::kStep] = {};
                uint16_t offset = 0;
                for (int lane = 0; lane < Kernel::kStep; lane++) {
                    if (i < until[row]) {
                        const Element element = m.element(row, i++);
                        values[lane] = element.value;
                        offset = uint16_t((element.column - block.first) * (Kernel::kRow / 8));
                    }
                    block.offsets.push_back(offset);  // past the last element: the same row, times zero
                }
                Kernel::encode(values, scales.empty() ? 1.0f : scales[row], block.weights);
            }
            next[row] = until[row];
        }
        sparse.blocks.push_back(std::move(block));
    }
    return sparse;
}

// One block's part of all sums. Between blocks they lie in `partial`, a row of kPartial bytes for each output; a
// finished one goes to out(output, sums).
template <class Kernel, int Width, bool First, bool Last, class Out>
void run_block(const Block &block, const char *x, char *partial, Out &&out) {
    const uint16_t *offset = block.offsets.data();
    const uint32_t *weight = block.weights.data();
    const uint32_t *row = block.rows.data();
    const char *base = x + block.first * Kernel::kRow;
    for (const Run &run : block.runs) {
        for (uint32_t i = 0; i < run.rows; i++) {
            const uint32_t n = *row++;
            typename Kernel::template Sums<Width> sums;
            char *at = partial + size_t(n) * Kernel::kPartial;
            if (First) sums.clear(); else sums.load(at);
            for (uint32_t step = 0; step < run.steps; step++) {
                sums.step(base, offset, weight);
                offset += Kernel::kStep;
                weight += Kernel::kWords;
            }
            if (Last) out(n, sums); else sums.store(at);
        }
    }
}

template <class Kernel, int Width, class Out>
void run_sparse(const Sparse &sparse, const char *x, char *partial, Out &&out) {
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

// From the caller's matrix to parts: which outputs run dense, and which elements are computed for four outputs at once.
//
// Masks that were pruned in blocks of 4 x 1 (for bfloat16 also 4 x 2, for int8 4 x 4) have outputs 4 i to 4 i + 3 keep the
// same inputs. What four such outputs share is found here, element by element, and is computed together where that is
// cheaper by Kernel::kCosts; places that only some of the four keep are filled with zeros, or stay alone.
#pragma once
#include <algorithm>
#include <numeric>
#include <tuple>

#include "forms.hpp"
#include "matrix.hpp"

namespace fp {

template <class Kernel>
class Packer {
  public:
    // `scales` is for int8, or empty.
    Packer(const Rows &m, const std::vector<float> &scales) : m_(m), scales_(scales) {
        static_assert(Kernel::kRow % kOffsetUnit == 0 && Kernel::kPartial % kOffsetUnit == 0 &&
                      (Kernel::kBlock - 1) * (Kernel::kRow / kOffsetUnit) <= UINT16_MAX &&
                      Kernel::kBlock % Kernel::kGroup == 0);
        blocks_ = std::max<int64_t>(1, (m.columns() + Kernel::kBlock - 1) / Kernel::kBlock);
        width_ = (m.columns() + blocks_ - 1) / blocks_;
        width_ = (width_ + Kernel::kGroup - 1) / Kernel::kGroup * Kernel::kGroup;
        dense_.resize(m.count());
        plan();
    }

    std::vector<uint32_t> dense_rows() const {
        std::vector<uint32_t> rows;
        for (int64_t row = 0; row < m_.count(); row++)
            if (dense_[row]) rows.push_back(uint32_t(row));
        return rows;
    }

    Sparse pack() {
        first_.assign(m_.count(), -1);
        last_.assign(m_.count(), -1);
        for (int64_t row = 0; row < m_.count(); row++) {
            const bool four = row % kQuad == 0 && joined_[row / kQuad];
            if (four) add_four(uint32_t(row));
            else if (!dense_[row]) add_row(uint32_t(row));
            if (four) row += kQuad - 1;
        }
        return parts();
    }

  private:
    static constexpr int64_t kFewest = Kernel::kGroup > 1 ? 8 : 1;  // fewer dense rows are not worth interleaving

    // An input of four outputs, of which `count` keep it.
    struct Column {
        int64_t at;
        int count;
        float values[kQuad];
    };
    // What one of them, or four, have in one block in one form; its steps begin at these places in offsets_ and weights_.
    struct Unit {
        int64_t stage;  // the order in which parts run: 3 block + form
        uint32_t row, steps;
        size_t offset, weight;
    };
    // The cheapest forms of a block of four outputs.
    struct Split {
        std::vector<Column> aligned, columns, alone;
    };

    int64_t begin(int64_t block) const { return std::min(m_.columns(), block * width_); }
    float scale(int64_t row) const { return scales_.empty() ? 1.0f : scales_[row]; }

    // -- what runs how ------------------------------------------------------------------------------

    // Chooses the dense rows, the fours of outputs that share enough, and whether inputs are interleaved beforehand.
    void plan() {
        const float dense = kQuad * Kernel::kDense * float(m_.columns());
        int64_t count = 0;
        for (int64_t row = 0; row < m_.count(); row++) {
            dense_[row] = float(m_.size(row)) > Kernel::kDense * float(m_.columns());
            count += dense_[row];
        }
        if (count < kFewest) dense_.assign(m_.count(), false);
        const int64_t fours = m_.count() / kQuad;
        std::vector<typename Forms<Kernel>::Cost> costs(fours);
        float total[2] = {0, 0};
        total[1] = Kernel::kCosts.group * float(m_.columns()) / Kernel::kGroup;
        forms_ = Forms<Kernel>(width_);
        for (int64_t four = 0; four < fours; four++) {
            if (is_mixed(four)) continue;
            costs[four] = cost(four * kQuad);
            for (const int aligned : {0, 1})
                total[aligned] += dense_[four * kQuad] ? std::min(dense, costs[four][aligned]) : costs[four][aligned];
        }
        aligned_ = Kernel::kGroup > 1 && total[1] < total[0];
        joined_.assign((m_.count() + kQuad - 1) / kQuad, false);
        for (int64_t four = 0; four < fours; four++) {
            if (is_mixed(four)) continue;
            const float best = costs[four][aligned_];
            const bool was_dense = dense_[four * kQuad];
            joined_[four] = best < (was_dense ? dense : float(elements(four * kQuad)));
            if (joined_[four]) std::fill_n(dense_.begin() + four * kQuad, kQuad, false);
        }
    }

    // Whether of four outputs some are dense and others not.
    bool is_mixed(int64_t four) const {
        const auto from = dense_.begin() + four * kQuad;
        return std::count(from, from + kQuad, true) % kQuad != 0;
    }

    int64_t elements(int64_t row) const {
        int64_t sum = 0;
        for (int r = 0; r < kQuad; r++) sum += m_.size(row + r);
        return sum;
    }

    typename Forms<Kernel>::Cost cost(int64_t row) {
        typename Forms<Kernel>::Cost sum = {0, 0};
        for (int64_t block = 0; block < blocks_; block++) {
            for (int r = 0; r < kQuad; r++) {
                const int64_t to = m_.lower_bound(row + r, begin(block + 1));
                for (int64_t i = m_.lower_bound(row + r, begin(block)); i < to; i++)
                    forms_.count(m_.element(row + r, i).column - begin(block));
            }
            const auto found = forms_.take();
            sum[0] += found[0], sum[1] += found[1];
        }
        return sum;
    }

    // Forms for the elements of outputs `row` to `row` + 3 in a block.
    const Split &split(int64_t row, int64_t block) {
        constexpr Costs costs = Kernel::kCosts;
        Split &s = split_;
        s.aligned.clear(), s.columns.clear(), s.alone.clear();
        merge(row, block);
        float together = 0, all = 0;
        for (size_t i = 0, end = 0; i < merged_.size(); i = end) {
            const int64_t group = merged_[i].at / Kernel::kGroup;
            float sum = 0;
            for (; end < merged_.size() && merged_[end].at / Kernel::kGroup == group; end++)
                sum += Forms<Kernel>::shared(merged_[end].count);
            const bool aligned = aligned_ && costs.aligned < sum;
            for (size_t k = i; k < end; k++) {
                const Column &column = merged_[k];
                (aligned ? s.aligned : Forms<Kernel>::is_column(column.count) ? s.columns : s.alone).push_back(column);
                all += float(column.count);
            }
            together += aligned ? costs.aligned : sum;
        }
        together += s.alone.empty() ? costs.four : costs.again;
        if (together >= all) s.aligned.clear(), s.columns.clear(), s.alone = merged_;
        return s;
    }

    // The inputs that any of four outputs keeps in a block, in ascending order.
    void merge(int64_t row, int64_t block) {
        int64_t at[kQuad], end[kQuad];
        Element next[kQuad];
        constexpr Element kNone = {INT32_MAX, 0};
        for (int r = 0; r < kQuad; r++) {
            at[r] = m_.lower_bound(row + r, begin(block)), end[r] = m_.lower_bound(row + r, begin(block + 1));
            next[r] = at[r] < end[r] ? m_.element(row + r, at[r]) : kNone;
        }
        merged_.clear();
        for (;;) {
            const int32_t least =
                std::min(std::min(next[0].column, next[1].column), std::min(next[2].column, next[3].column));
            if (least == kNone.column) return;
            Column column = {least, 0, {}};
            for (int r = 0; r < kQuad; r++)
                if (next[r].column == least) {
                    column.count++;
                    column.values[r] = next[r].value;
                    next[r] = ++at[r] < end[r] ? m_.element(row + r, at[r]) : kNone;
                }
            merged_.push_back(column);
        }
    }

    // -- units --------------------------------------------------------------------------------------

    void add_row(uint32_t row) {
        for (int64_t block = 0; block < blocks_; block++) {
            const int64_t from = m_.lower_bound(row, begin(block)), to = m_.lower_bound(row, begin(block + 1));
            // A row without elements is still passed on.
            if (from == to && (block < blocks_ - 1 || first_[row] >= 0)) continue;
            begin_unit(block, Form::kRows, row);
            for (int64_t i = from; i < to; i++) add_element(m_.element(row, i), block, i == to - 1, row);
        }
    }

    // All four have units in the same stages, so that they begin and end together.
    void add_four(uint32_t row) {
        for (int64_t block = 0; block < blocks_; block++) {
            const Split &s = split(row, block);
            if (!s.columns.empty()) add_columns(row, block);
            if (!s.aligned.empty()) add_aligned(row, block);
            if (s.alone.empty()) continue;
            for (int r = 0; r < kQuad; r++) {
                begin_unit(block, Form::kRows, row + r);
                const int64_t from = m_.lower_bound(row + r, begin(block)),
                              to = m_.lower_bound(row + r, begin(block + 1));
                int64_t left = 0;
                for (const Column &column : s.alone) left += keeps(row + r, from, to, column.at);
                for (const Column &column : s.alone)
                    if (keeps(row + r, from, to, column.at))
                        add_element({int32_t(column.at), column.values[r]}, block, --left == 0, row + r);
            }
        }
    }

    bool keeps(int64_t row, int64_t from, int64_t to, int64_t column) const {
        const int64_t i = m_.lower_bound(row, column);
        return i >= from && i < to && m_.element(row, i).column == column;
    }

    void add_columns(uint32_t row, int64_t block) {
        begin_unit(block, Form::kQuads, row);
        const std::vector<Column> &columns = split_.columns;
        for (size_t i = 0; i < columns.size(); i += Kernel::kGroup) {
            float values[kQuad][Kernel::kGroup] = {};
            for (size_t k = 0; k < Kernel::kGroup; k++) {
                // After the last one: the same input again, with weight 0.
                const Column &column = columns[std::min(i + k, columns.size() - 1)];
                add_offset((column.at - begin(block)) * Kernel::kRow);
                for (int r = 0; r < kQuad && i + k < columns.size(); r++) values[r][k] = column.values[r];
            }
            add_four_weights(row, values);
        }
    }

    void add_aligned(uint32_t row, int64_t block) {
        begin_unit(block, Form::kAligned, row);
        const std::vector<Column> &columns = split_.aligned;
        for (size_t i = 0; i < columns.size();) {
            const int64_t group = columns[i].at / Kernel::kGroup;
            float values[kQuad][Kernel::kGroup] = {};
            for (; i < columns.size() && columns[i].at / Kernel::kGroup == group; i++)
                for (int r = 0; r < kQuad; r++) values[r][columns[i].at % Kernel::kGroup] = columns[i].values[r];
            add_offset((group - begin(block) / Kernel::kGroup) * Kernel::kPartial);
            add_four_weights(row, values);
        }
    }

    void add_four_weights(uint32_t row, const float (*values)[Kernel::kGroup]) {
        for (int r = 0; r < kQuad; r++) weights_.push_back(Kernel::group(values[r], scale(row + r)));
        units_.back().steps++;
    }

    // An element of an output alone; after the last one its step is filled up with the same input, and weight 0.
    void add_element(Element element, int64_t block, bool is_last, uint32_t row) {
        step_[filled_++] = element.value;
        add_offset((element.column - begin(block)) * Kernel::kRow);
        if (filled_ < Kernel::kStep && !is_last) return;
        for (; filled_ < Kernel::kStep; filled_++) step_[filled_] = 0, offsets_.push_back(offsets_.back());
        Kernel::encode(step_, scale(row), weights_);
        units_.back().steps++;
        filled_ = 0;
    }

    void add_offset(int64_t bytes) {
        FP_CHECK(bytes >= 0 && bytes % kOffsetUnit == 0 && bytes / kOffsetUnit <= UINT16_MAX);
        offsets_.push_back(uint16_t(bytes / kOffsetUnit));
    }

    void begin_unit(int64_t block, Form form, uint32_t row) {
        // Quads come first, what its outputs have alone comes last.
        const int64_t stage = 3 * block + (form == Form::kQuads ? 0 : form == Form::kAligned ? 1 : 2);
        units_.push_back({stage, row, 0, offsets_.size(), weights_.size()});
        for (uint32_t r = row; r < row + (form == Form::kRows ? 1 : kQuad); r++) {
            if (first_[r] < 0) first_[r] = stage;
            last_[r] = stage;
        }
    }

    // -- parts --------------------------------------------------------------------------------------

    Sparse parts() {
        Sparse sparse;
        const auto key = [&](const Unit &u) {
            return std::make_tuple(u.stage, u.stage != first_[u.row], u.stage != last_[u.row]);
        };
        std::stable_sort(units_.begin(), units_.end(), [&](const Unit &a, const Unit &b) {
            return std::make_tuple(key(a), b.steps) < std::make_tuple(key(b), a.steps);
        });
        for (size_t i = 0; i < units_.size(); i++) {
            const Unit &u = units_[i];
            if (i == 0 || key(u) != key(units_[i - 1])) {
                sparse.parts.push_back({});
                Part &part = sparse.parts.back();
                part.input = begin(u.stage / 3);
                part.form = u.stage % 3 == 0 ? Form::kQuads : u.stage % 3 == 1 ? Form::kAligned : Form::kRows;
                part.first = u.stage == first_[u.row], part.last = u.stage == last_[u.row];
                sparse.aligned = sparse.aligned || part.form == Form::kAligned;
            }
            add_to(sparse.parts.back(), u);
        }
        for (const Part &part : sparse.parts) check_part(part);
        return sparse;
    }

    static constexpr size_t offsets_of(Form form) {
        return form == Form::kRows ? Kernel::kStep : form == Form::kQuads ? Kernel::kGroup : 1;
    }
    static constexpr size_t weights_of(Form form) { return form == Form::kRows ? Kernel::kWords : kQuad; }

    void add_to(Part &part, const Unit &u) const {
        if (part.runs.empty() || part.runs.back().steps != u.steps) part.runs.push_back({u.steps, 0});
        part.runs.back().units++;
        for (uint32_t r = 0; r < (part.form == Form::kRows ? 1 : kQuad); r++) part.rows.push_back(u.row + r);
        const auto offset = offsets_.begin() + u.offset;
        const auto weight = weights_.begin() + u.weight;
        part.offsets.insert(part.offsets.end(), offset, offset + u.steps * offsets_of(part.form));
        part.weights.insert(part.weights.end(), weight, weight + u.steps * weights_of(part.form));
    }

    // What the loops rely on.
    void check_part([[maybe_unused]] const Part &part) const {
        if constexpr (kChecks) {
            const size_t outputs = part.form == Form::kRows ? 1 : kQuad;
            size_t rows = 0, steps = 0;
            for (size_t i = 0; i < part.runs.size(); i++) {
                const Run &run = part.runs[i];
                FP_CHECK(run.units > 0 && (i == 0 || run.steps < part.runs[i - 1].steps));
                rows += run.units * outputs;
                steps += size_t(run.units) * run.steps;
            }
            FP_CHECK(part.rows.size() == rows);
            FP_CHECK(part.offsets.size() == steps * offsets_of(part.form));
            FP_CHECK(part.weights.size() == steps * weights_of(part.form));
            for (const uint32_t row : part.rows) FP_CHECK(row < m_.count() && !dense_[row]);
            const int64_t inputs = std::min(m_.columns() - part.input, width_);
            const int64_t bytes = part.form == Form::kAligned ? Kernel::kPartial : Kernel::kRow;
            const int64_t count = part.form == Form::kAligned ? (inputs + Kernel::kGroup - 1) / Kernel::kGroup : inputs;
            FP_CHECK(part.form != Form::kAligned || part.input % Kernel::kGroup == 0);
            for (const uint16_t offset : part.offsets)
                FP_CHECK(offset * kOffsetUnit % bytes == 0 && offset * kOffsetUnit / bytes < count);
        }
    }

    const Rows &m_;
    const std::vector<float> &scales_;
    int64_t blocks_, width_;
    bool aligned_ = false;
    std::vector<bool> dense_, joined_;   // of each output; of each four
    std::vector<int64_t> first_, last_;  // stages of each output
    Forms<Kernel> forms_;
    std::vector<Column> merged_;
    Split split_;
    std::vector<Unit> units_;
    std::vector<uint16_t> offsets_;
    std::vector<uint32_t> weights_;
    float step_[Kernel::kStep] = {};
    int filled_ = 0;
};

}  // namespace fp

// The caller's weight matrix: validated once, then read row by row.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "check.hpp"
#include "engine.h"
#include "vec.hpp"

namespace fp {

struct Error : std::runtime_error {
    using std::runtime_error::runtime_error;
};

inline void check_finite(const float *values, int64_t count, const std::string &what) {
    for (int64_t i = 0; i < count; i++)
        if (!std::isfinite(values[i])) throw Error(what + " " + std::to_string(i) + " is not finite");
}

// Validates a matrix and returns where the stored elements of each row begin; one more entry ends the last row.
inline std::vector<int64_t> check(const fp_matrix &m, const std::string &name) {
    if (m.rows < 0 || m.rows > FP_MOST_ROWS || m.columns < 0 || m.columns > FP_MOST_COLUMNS)
        throw Error(name + ": is " + std::to_string(m.rows) + " x " + std::to_string(m.columns) + "; at most " +
                    std::to_string(FP_MOST_ROWS) + " x " + std::to_string(FP_MOST_COLUMNS) + " can be run");
    const int64_t size = m.rows * m.columns;
    if (m.kept < 0 || m.kept > size || (!m.positions && m.kept != size) || (m.kept && !m.values))
        throw Error(name + ": stores " + std::to_string(m.kept) + " of " + std::to_string(size) + " elements");
    std::vector<int64_t> begins(m.rows + 1, m.kept);
    if (!m.positions) {
        for (int64_t row = 0; row < m.rows; row++) begins[row] = row * m.columns;
    } else {
        int64_t row = 0, last = -1;
        for (int64_t i = 0; i < m.kept; i++) {
            const int64_t at = m.positions[i];
            if (at <= last || at >= size)
                throw Error(name + ": position " + std::to_string(i) + " is " + std::to_string(at) + " after " +
                            std::to_string(last) + "; they rise, and end below " + std::to_string(size));
            for (; row * m.columns <= at; row++) begins[row] = i;
            last = at;
        }
    }
    check_finite(m.values, m.kept, name + ": value");
    if (m.bias) check_finite(m.bias, m.rows, name + ": bias");
    if (m.scales) check_finite(m.scales, m.rows, name + ": scale");
    return begins;
}

// One stored element of a row.
struct Element {
    int32_t column;
    float value;
};

// 255 times 127 for each input: an int8 sum of all columns is exact in 32 bits.
static_assert(int64_t(FP_MOST_COLUMNS) * 255 * 127 <= INT32_MAX);

class Rows {
  public:
    Rows(const fp_matrix &m, const std::string &name) : begins_(check(m, name)), m_(m) {}
    int64_t count() const { return m_.rows; }
    int64_t columns() const { return m_.columns; }
    int64_t kept() const { return m_.kept; }
    float bias(int64_t row) const { return m_.bias ? m_.bias[row] : 0.0f; }
    int64_t size(int64_t row) const {
        FP_CHECK(row >= 0 && row < m_.rows);
        return begins_[row + 1] - begins_[row];
    }
    Element element(int64_t row, int64_t i) const {
        FP_CHECK(i >= 0 && i < size(row));
        const int64_t at = begins_[row] + i;
        const int64_t column = m_.positions ? m_.positions[at] - row * m_.columns : i;
        FP_CHECK(column >= 0 && column < m_.columns);
        return {int32_t(column), m_.values[at]};
    }
    // The number of the row's first element from a column on.
    int64_t lower_bound(int64_t row, int64_t column) const {
        if (!m_.positions) return std::min(column, size(row));
        const int64_t *from = m_.positions + begins_[row], *to = m_.positions + begins_[row + 1];
        return std::lower_bound(from, to, row * m_.columns + column) - from;
    }
    // The value of one int8 level in a row: the stored scale if kMostLevel of them reach the row's largest magnitude, or
    // else 1/kMostLevel of that. Values that a stored scale does not reach were not made with it.
    float scale(int64_t row) const {
        float largest = 0;
        for (int64_t i = begins_[row]; i < begins_[row + 1]; i++) largest = std::fmax(largest, std::fabs(m_.values[i]));
        const float given = m_.scales ? m_.scales[row] : 0;
        return given > 0 && largest <= given * (kMostLevel + 0.5f) ? given : largest / float(kMostLevel);
    }

  private:
    std::vector<int64_t> begins_;
    const fp_matrix &m_;
};

}  // namespace fp

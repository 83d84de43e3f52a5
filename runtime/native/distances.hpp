// A learned bias of attention scores by the distance from query to key (Raffel et al., 2020, arXiv:1910.10683), as in MPNet.
#pragma once
#include <algorithm>
#include <vector>

#include "buffer.hpp"

namespace fp {

// What one head adds to the scores of one sequence.
struct HeadBias {
    Span<const float> row;       // by query - key; empty: it adds nothing
    int64_t middle = 0;          // the index in `row` of distance 0
    Span<const int64_t> places;  // of the sequence's tokens in their text; empty: one after another

    bool given() const { return row.size() != 0; }
    // For kLanes queries from number `query` on, and one key.
    Floats<> of(int64_t query, int64_t key) const {
        if (!places.size()) return load<Floats<>>(row.at(middle + query - key, kLanes));
        Floats<> result;
        const int64_t last = int64_t(places.size()) - 1, from = *places.at(key, 1);
        for (int i = 0; i < kLanes; i++)  // lanes behind the last query are not used
            result[i] = *row.at(middle + *places.at(std::min(query + i, last), 1) - from, 1);
        return result;
    }
};

// The rows of all heads. They are stored by query - key, so that the lanes of a vector, which are queries, load one
// after another.
class DistanceBias {
  public:
    DistanceBias() = default;
    // `values`: [rows][2 reach + 1] by key - query.
    DistanceBias(int64_t rows, int64_t reach, const float *values)
        : rows_(rows), reach_(reach), given_(values, values + rows * (2 * reach + 1)) {}

    int64_t rows() const { return rows_; }
    size_t bytes() const { return given_.size() * sizeof(float); }

    // Writes the rows out for texts of up to `length` tokens. Behind a row there is room for lanes without a query.
    void cover(int64_t length) {
        if (length <= length_ || !rows_) return;
        length_ = length;
        stride_ = 2 * length - 1 + kMostVectors * kLanes;
        expanded_.grow(size_t(rows_) * stride_);
        for (int64_t r = 0; r < rows_; r++) {
            float *to = expanded_.span().at(r * stride_, stride_);
            const float *zero = given_.data() + r * (2 * reach_ + 1) + reach_;
            for (int64_t i = 0; i < stride_; i++) to[i] = zero[std::clamp(length - 1 - i, -reach_, reach_)];
        }
    }

    HeadBias of(int64_t row, Span<const int64_t> places) const {
        return {expanded_.span().part(row * stride_, stride_), length_ - 1, places};
    }

  private:
    int64_t rows_ = 0, reach_ = 0, length_ = 0, stride_ = 0;
    std::vector<float> given_;
    Buffer<float> expanded_;
};

}  // namespace fp

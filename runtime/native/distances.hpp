// What a head does with the distance from query to key: a learned bias of scores (Raffel et al., 2020, arXiv:1910.10683),
// as in MPNet, and a window beyond which tokens do not see each other (Beltagy et al., 2020, arXiv:2004.05150).
#pragma once
#include <algorithm>
#include <utility>
#include <vector>

#include "buffer.hpp"

namespace fp {

constexpr float kUnseen = -1e30f;  // a score whose weight is next to nothing beside that of any other

// Some of a sequence's keys, one after another.
struct Keys {
    int64_t first, count;
};

// What one head adds to the scores of one sequence.
struct HeadBias {
    Span<const float> row;       // by query - key; empty: it adds nothing
    int64_t middle = 0;          // the index in `row` of distance 0
    int64_t window = -1;         // the largest distance at which tokens see each other; -1: any
    Span<const int64_t> places;  // of the sequence's tokens in their text
    bool adjacent = true;        // whether these come one after another

    bool given() const { return row.size() != 0 || window >= 0; }

    // For kLanes queries from number `query` on, and one key.
    Floats<> of(int64_t query, int64_t key) const {
        Floats<> result{};
        if (row.size() && adjacent) result = load<Floats<>>(row.at(middle + query - key, kLanes));
        const int64_t low = query - key, high = low + kLanes - 1;
        if (adjacent && (window < 0 || (low >= -window && high <= window))) return result;
        const Ints<> distance = distances(query, key);
        if (row.size() && !adjacent)
            for (int i = 0; i < kLanes; i++) result[i] = *row.at(middle + distance[i], 1);
        if (window < 0) return result;
        const Ints<> reach = int32_t(window) - Ints<>{};
        return ((distance <= reach) & (distance >= -reach)) ? result : splat<kBytes>(kUnseen);
    }

    // Those of a sequence's first `keys` tokens that one of the queries from `begin` to `end` sees. The queries rise.
    Keys seen(int64_t begin, int64_t end, int64_t keys) const {
        if (window < 0) return {0, keys};
        const int64_t *all = places.at(0, keys);
        const int64_t low = *places.at(begin, 1) - window, high = *places.at(end - 1, 1) + window;
        const int64_t first = std::lower_bound(all, all + keys, low) - all;
        return {first, std::upper_bound(all + first, all + keys, high) - all - first};
    }

    // From kLanes queries to one key.
    Ints<> distances(int64_t query, int64_t key) const {
        Ints<> result;
        for (int i = 0; i < kLanes; i++) result[i] = i;
        if (adjacent) return result + int32_t(query - key);
        const int64_t last = int64_t(places.size()) - 1, from = *places.at(key, 1);
        for (int i = 0; i < kLanes; i++)  // lanes behind the last query are not used
            result[i] = int32_t(*places.at(std::min(query + i, last), 1) - from);
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
        const int64_t stride = 2 * length - 1 + kMostVectors * kLanes;
        expanded_.grow(size_t(rows_) * stride);  // before length_: a call after one without memory begins anew
        length_ = length, stride_ = stride;
        for (int64_t r = 0; r < rows_; r++) {
            float *to = expanded_.span().at(r * stride_, stride_);
            const float *zero = given_.data() + r * (2 * reach_ + 1) + reach_;
            for (int64_t i = 0; i < stride_; i++) to[i] = zero[std::clamp(length - 1 - i, -reach_, reach_)];
        }
    }

    Span<const float> row(int64_t number) const { return expanded_.span().part(number * stride_, stride_); }
    int64_t middle() const { return length_ - 1; }

  private:
    int64_t rows_ = 0, reach_ = 0, length_ = 0, stride_ = 0;
    std::vector<float> given_;
    Buffer<float> expanded_;
};

}  // namespace fp

// Attention by content and by position apart (He et al., 2021, arXiv:2006.03654): a score is q k + q P[i] + k R[i], where i
// is the row of the distance from query to key, and P and R are a head's projections of the embeddings of distances.
#pragma once
#include <vector>

#include "dense.hpp"
#include "distances.hpp"
#include "kernels.hpp"

namespace fp {

// The row of each distance, query - key, from -reach to reach; farther ones have those at the ends.
struct DistanceRows {
    std::vector<int64_t> rows;
    int64_t count = 0;  // of the embeddings
    int64_t of(int64_t distance) const {
        const int64_t reach = int64_t(rows.size()) / 2;
        return rows[std::clamp(distance, -reach, reach) + reach];
    }
};

// One of a layer's two projections, as the words that the product takes: [heads][groups of features][distances' rows].
class Projected {
  public:
    Projected() = default;
    // `values`: [heads x head_dim][count].
    Projected(const float *values, int64_t heads, int64_t head_dim, int64_t count, bool pairs)
        : groups_(pairs ? (head_dim + 1) / 2 : head_dim), count_(count) {
        for (int64_t head = 0; head < heads; head++, values += head_dim * count)
            for (int64_t g = 0; g < groups_; g++)
                for (int64_t i = 0; i < count; i++) {
                    const int64_t d = pairs ? 2 * g : g;
                    const float both[2] = {values[d * count + i],
                                           pairs && d + 1 < head_dim ? values[(d + 1) * count + i] : 0.0f};
                    words_.push_back(pairs ? BFloat16::group(both, 1) : Float32::group(both, 1));
                }
    }
    bool given() const { return count_ > 0; }
    size_t bytes() const { return words_.size() * sizeof(uint32_t); }
    const uint32_t *row(int64_t head, int64_t group) const { return words_.data() + (head * groups_ + group) * count_; }

  private:
    int64_t groups_ = 0, count_ = 0;
    std::vector<uint32_t> words_;
};

struct Positions {
    Projected keys, queries;
    bool given() const { return keys.given() || queries.given(); }
    size_t bytes() const { return keys.bytes() + queries.bytes(); }
};

// A head's projections in the order of distances, and what they add to scores.
template <class Dot>
class Between {
  public:
    // Room for tokens whose places differ by less than `span`.
    void grow(int64_t span, int64_t groups) {
        index_.reserve(2 * span);
        for (Buffer<uint32_t> *each : {&keys_, &queries_}) each->grow(groups * stride_of(span));
    }

    // For tokens whose places differ by less than `span`.
    void set(const Positions &positions, const DistanceRows &rows, int64_t head, int64_t groups, int64_t span,
             const HeadBias &places) {
        groups_ = groups, middle_ = span - 1, stride_ = stride_of(span), places_ = &places;
        index_.clear();
        for (int64_t distance = 1 - span; distance < span; distance++) index_.push_back(rows.of(distance));
        has_keys_ = positions.keys.given(), has_queries_ = positions.queries.given();
        if (has_keys_) copy(positions.keys, head, keys_);
        if (has_queries_) copy(positions.queries, head, queries_);
    }
    void clear() { has_keys_ = has_queries_ = false; }
    bool given() const { return has_keys_ || has_queries_; }
    int products() const { return 1 + has_keys_ + has_queries_; }

    // Adds to the scores of N vectors of queries from number `query` on. `query_words` are of the first of these, and
    // `key_words` of the first of the keys; groups are `line` bytes apart.
    template <int N>
    void add(char *scores, Keys keys, int64_t query, const char *query_words, const char *key_words,
             int64_t line) const {
        for (int64_t m = 0; m < keys.count; m++, key_words += 4, scores += N * kBytes) {
            Floats<> by_query[N] = {}, by_key[N] = {};
            int64_t at[N];
            for (int n = 0; n < N; n++) at[n] = middle_ + query + n * kLanes - keys.first - m;
            for (int64_t g = 0; g < groups_; g++) {
                uint32_t word;
                std::memcpy(&word, key_words + g * line, sizeof(word));
                const Words<> key = splat_word<kBytes>(word);
                for (int n = 0; n < N; n++) {
                    if (has_keys_)
                        by_query[n] = dot(by_query[n], words(keys_, g, at[n], query + n * kLanes, keys.first + m),
                                          load<Words<>>(query_words + g * line + n * kBytes));
                    if (has_queries_)
                        by_key[n] = dot(by_key[n], words(queries_, g, at[n], query + n * kLanes, keys.first + m), key);
                }
            }
            for (int n = 0; n < N; n++)
                store<kBytes>(scores + n * kBytes, load<Floats<>>(scores + n * kBytes) + by_query[n] + by_key[n]);
        }
    }

  private:
    static int64_t stride_of(int64_t span) { return 2 * span - 1 + kMostVectors * kLanes; }

    static Floats<> dot(Floats<> sum, Words<> a, Words<> b) {
        if constexpr (std::is_same_v<Dot, FloatDot>) return sum + (Floats<>)a * (Floats<>)b;
        else return dot2<kBytes>(sum, a, b);
    }

    void copy(const Projected &from, int64_t head, Buffer<uint32_t> &to) {
        for (int64_t g = 0; g < groups_; g++) {
            const uint32_t *row = from.row(head, g);
            uint32_t *line = to.span().at(g * stride_, stride_);
            for (size_t i = 0; i < index_.size(); i++) line[i] = row[index_[i]];
        }
    }

    // A group's words of kLanes queries and one key, which begin at `at` if the tokens are adjacent.
    Words<> words(const Buffer<uint32_t> &from, int64_t group, int64_t at, int64_t query, int64_t key) const {
        const Span<const uint32_t> line = from.span().part(group * stride_, stride_);
        if (places_->adjacent) return load<Words<>>(line.at(at, kLanes));
        Words<> result;
        const Ints<> distance = places_->distances(query, key);
        for (int i = 0; i < kLanes; i++) result[i] = *line.at(middle_ + distance[i], 1);
        return result;
    }

    int64_t groups_ = 0, middle_ = 0, stride_ = 0;
    bool has_keys_ = false, has_queries_ = false;
    const HeadBias *places_ = nullptr;
    std::vector<int64_t> index_;
    Buffer<uint32_t> keys_, queries_;
};

}  // namespace fp

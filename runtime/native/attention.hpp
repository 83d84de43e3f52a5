// Softmax(Q K' / sqrt(head_dim) + bias) V of one head over the tokens of one sequence; most models have no bias.
//
// Tiles hold the tokens of one sequence after another without padding, so no mask is needed: keys are the first tokens of
// the sequence, or of a head with a window those near the queries. Queries are vector lanes; the softmax then runs down
// the rows, and the result is feature-major again.
#pragma once
#include "disentangled.hpp"
#include "distances.hpp"
#include "elementwise.hpp"
#include "shorts.hpp"

namespace fp {

// Query, key and value of all tokens: a tile has `features` rows of kTile tokens.
struct Heads {
    Span<const char> qkv;
    int64_t features;     // rows of a tile of qkv: 3 x heads x head_dim
    Span<float> context;  // the result; rows of a tile: heads x head_dim
    int64_t heads, head_dim;
    int64_t width;   // tokens in a tile; the last one may have fewer
    int64_t tokens;  // of all sequences
};

// Tokens of one text. The first `keys` of them are seen by all; any others see these, and are seen by none.
struct Sequence {
    int64_t first, count, keys;
    bool adjacent;  // whether each token is the next one of the text
};

// Query, key and value are bfloat16 rows in packed order, or floats. They are multiplied as bfloat16 where the
// processor does; if not, by int8 encoders on x86 as 16-bit integers, which take half the time of floats.
template <class Kernel>
class Attention {
    static constexpr bool kFloats = Kernel::kDtype == FP_FLOAT32;
    static constexpr int kQueries = kMostVectors * kLanes;  // at once
    static constexpr bool kShorts = Kernel::kDtype == FP_INT8 && kAddsShorts && !kHasBf16;
    // Levels of weights and values: the products of so many keys are added in 32 bits.
    static constexpr int64_t kMostKeys = 256;
    static constexpr int kWeightLevels = 32767, kValueLevels = 255;
    static constexpr int64_t kFewestKeys = 24;  // for fewer, levels take longer to make than they save
    static_assert(kMostKeys * kWeightLevels * kValueLevels <= std::numeric_limits<int32_t>::max());

  public:
    static constexpr bool kPairs = !kFloats && kHasBf16;
    static constexpr int kRow = kFloats ? 4 * Kernel::kTile : 2 * Kernel::kTile;  // bytes of a row of qkv

    // `span`: of the texts' places, if a layer has positions; else 0.
    void grow(int64_t longest, int64_t head_dim, int64_t span) {
        const int64_t line = (longest + 2 * Kernel::kTile) * 4;
        query_.grow(head_dim * line);
        key_.grow(head_dim * line);
        value_.grow(head_dim * line);
        scores_.grow(longest * kQueries * 4);
        result_.grow((kShorts ? 2 : 1) * head_dim * kQueries);
        value_scale_.grow(kShorts ? head_dim : 0);
        if (span) between_.grow(span, head_dim);
    }

    // `positions` are of the layer, if it has them.
    void run(const Heads &h, int64_t head, Sequence s, const HeadBias &bias, const Positions &positions,
             const DistanceRows &rows) {
        const int64_t begin = s.first / h.width, end = (s.first + s.count - 1) / h.width + 1;
        const int64_t line = (end - begin) * h.width * 4;  // bytes of a copied row: a word for each token
        const int64_t at = s.first - begin * h.width;
        copy(h, head, begin, end, line);
        between_.clear();
        if (positions.given()) {
            const auto [low, high] = std::minmax_element(bias.places.data(), bias.places.data() + s.count);
            between_.set(positions, rows, head, kPairs ? (h.head_dim + 1) / 2 : h.head_dim, *high - *low + 1, bias);
        }
        // The last pair's second key has weight 0, and must not be NaN. A window may begin at any key.
        if (kPairs && (s.keys % 2 || bias.window >= 0))
            for (int64_t d = 0; d < h.head_dim; d++)
                std::memset(value_.span().at(d * line + (at + s.keys) * 2, 2), 0, 2);
        // A query that is no key is a hidden first token: its window is not that of the queries before it, and it has no
        // part in their scale.
        const Part own{0, s.keys}, hidden{s.keys, s.count};
        queries<Dot>(h, head, s, bias, hidden, at, line);
        if constexpr (kShorts)
            if (s.keys >= kFewestKeys && !between_.given() && to_shorts(h.head_dim, s, at, line))
                return queries<ShortDot>(h, head, s, bias, own, at, line);
        queries<Dot>(h, head, s, bias, own, at, line);
    }

  private:
    typedef std::conditional_t<kPairs, Bf16Dot, FloatDot> Dot;
    template <class D>
    static constexpr bool kTwo = !std::is_same_v<D, FloatDot>;  // whether a word has two numbers

    // Queries of a sequence, from number `begin` to `end`.
    struct Part {
        int64_t begin, end;
    };

    template <class D>
    void queries(const Heads &h, int64_t head, Sequence s, const HeadBias &bias, Part part, int64_t at, int64_t line) {
        while (part.begin < part.end) {
            const int64_t remaining = part.end - part.begin;
            // With 16 registers, two vectors and six rows have more sums in flight than four and two.
            if (kBytes == 64 && remaining > 2 * kLanes) part.begin += block<D, 4>(h, head, s, bias, part, at, line);
            else if (remaining > kLanes) part.begin += block<D, 2>(h, head, s, bias, part, at, line);
            else part.begin += block<D, 1>(h, head, s, bias, part, at, line);
        }
    }

    // Turns the floats that `copy` wrote into levels of integers: words of two features of query and key, values in
    // natural order. Returns false, and leaves them, if one that counts is not finite.
    bool to_shorts(int64_t head_dim, Sequence s, int64_t at, int64_t line) {
        Magnitude query, key;
        bool finite = true;
        for (int64_t d = 0; d < head_dim; d++) {
            Magnitude value;
            query.take(query_.span().at(d * line + at * 4, s.keys * 4), s.keys);
            key.take(key_.span().at(d * line + at * 4, s.keys * 4), s.keys);
            value.take(value_.span().at(d * line + at * 4, s.keys * 4), s.keys);
            value_scale_[d] = value.value();
            finite = finite && std::isfinite(value_scale_[d]);
        }
        if (!finite || !std::isfinite(query.value()) || !std::isfinite(key.value())) return false;
        const int most = levels_of_products(head_dim);
        const Levels of_query(query.value(), most), of_key(key.value(), most);
        score_scale_ = of_query.scale * of_key.scale;
        for (auto [rows, levels] : {std::pair(query_.span(), of_query), std::pair(key_.span(), of_key)})
            for (int64_t d = 0; d < head_dim; d += 2)
                pairs_of(rows.at(d * line, line), d + 1 < head_dim ? rows.at((d + 1) * line, line) : nullptr, levels,
                         line, rows.at(d / 2 * line, line));
        for (int64_t d = 0; d < head_dim; d++) {
            const Levels of_value(value_scale_[d], kValueLevels);
            char *row = value_.span().at(d * line, line);
            shorts_of(row, of_value, line, row);
            value_scale_[d] = of_value.scale / kWeightLevels;
        }
        return true;
    }

    // Gathers the head's rows from the tiles: query and key as words (a float, or a pair of features),
    // value as floats or as bfloat16 in natural order.
    void copy(const Heads &h, int64_t head, int64_t begin, int64_t end, int64_t line) {
        const int64_t inner = h.heads * h.head_dim, row = head * h.head_dim;
        for (int64_t t = begin; t < end; t++) {
            const char *tile = h.qkv.at(t * h.features * kRow, h.features * kRow);
            FP_CHECK(row + h.head_dim <= inner && 3 * inner <= h.features);
            const int64_t to = (t - begin) * h.width * 4;
            const char *q = tile + row * kRow, *k = q + inner * kRow, *v = k + inner * kRow;
            const size_t used = (h.head_dim - 1) * line + h.width * 4;  // of each copy, from `to` on
            char *query = query_.span().at(to, used), *key = key_.span().at(to, used);
            char *value = value_.span().at(kPairs ? to / 2 : to, used);
            // A narrow tile's rows are packed in narrower vectors.
            const int64_t tokens = std::min<int64_t>(h.width, h.tokens - t * h.width);
            if constexpr (kFloats) {
                copy_floats(q, query, h.head_dim, line, h.width * 4);
                copy_floats(k, key, h.head_dim, line, h.width * 4);
                copy_floats(v, value, h.head_dim, line, h.width * 4);
            } else {
                with_width<Kernel>(tokens, [&](auto width) {
                    constexpr int B = Kernel::template kVector<decltype(width)::value>;
                    constexpr int kParts = 2 * decltype(width)::value / B;
                    copy_words<B>(q, query, h.head_dim, line, kParts);
                    copy_words<B>(k, key, h.head_dim, line, kParts);
                    if constexpr (kPairs) copy_halves<B>(v, value, h.head_dim, line, kParts);
                    else copy_words<B>(v, value, h.head_dim, line, kParts);
                });
            }
        }
    }
    static void copy_floats(const char *from, char *to, int64_t rows, int64_t line, int64_t bytes) {
        for (int64_t d = 0; d < rows; d++) std::memcpy(to + d * line, from + d * kRow, bytes);
    }
    template <int B>
    static void copy_words(const char *from, char *to, int64_t rows, int64_t line, int parts) {
        for (int part = 0; part < parts; part++, from += B, to += 2 * B)
            for (int64_t d = 0; d < rows; d += kPairs ? 2 : 1) {
                const Words<B> x = load<Words<B>>(from + d * kRow);
                // Beside a row of zeros, a bfloat16 in the upper half of a word is a float.
                const Words<B> y = kPairs && d + 1 < rows ? load<Words<B>>(from + (d + 1) * kRow) : Words<B>{};
                char *line_of = to + (kPairs ? d / 2 : d) * line;
                put(line_of, kPairs ? low16<B>(x, y) : low16<B>(y, x));
                put(line_of + B, kPairs ? high16<B>(x, y) : high16<B>(y, x));
            }
    }
    template <int B>
    static void copy_halves(const char *from, char *to, int64_t rows, int64_t line, int parts) {
        typedef typename VecOf<uint16_t, B / 2>::type Halves;
        for (int part = 0; part < parts; part++, from += B, to += B)
            for (int64_t d = 0; d < rows; d++) {
                const Words<B> x = load<Words<B>>(from + d * kRow), zero = {};
                store_as<uint16_t, B / 2>(to + d * line, __builtin_convertvector(low16<B>(x, zero), Halves));
                store_as<uint16_t, B / 2>(to + d * line + B / 2, __builtin_convertvector(high16<B>(x, zero), Halves));
            }
    }

    // The first N vectors of the queries of a part; returns how many queries those are.
    template <class D, int N>
    int64_t block(const Heads &h, int64_t head, Sequence s, const HeadBias &bias, Part part, int64_t at, int64_t line) {
        constexpr int64_t kRowBytes = N * kBytes;
        constexpr bool kLevels = kShorts && kTwo<D>;
        const int64_t q = part.begin, finished = std::min<int64_t>(N * kLanes, part.end - q);
        const Keys seen = bias.seen(q, q + finished, s.keys);
        const int64_t first = at + seen.first;
        const Span<char> score_rows = scores_.span().part(0, seen.count * kRowBytes);
        char *scores = score_rows.data();
        const int64_t groups = kTwo<D> ? (h.head_dim + 1) / 2 : h.head_dim;
        // The last vector of queries may begin with the sequence's last one: this reads past the end of the last line.
        static_assert(N * kBytes <= kOverread);
        const Left keys{key_.span().from(first * 4), 4, size_t(line)};
        const Right queries{query_.overread_from((at + q) * 4), size_t(line)};
        product<D, N>(keys, seen.count, queries, groups, [&](int64_t m, const auto *sums) {
            for (int n = 0; n < N; n++) store<kBytes>(scores + m * kRowBytes + n * kBytes, floats(sums[n]));
        });
        if (between_.given())
            between_.template add<N>(scores, seen, q, query_.overread_from((at + q) * 4).data(),
                                     key_.span().from(first * 4).data(), line);
        float scale = 1.0f / std::sqrt(float(h.head_dim * between_.products()));
        if constexpr (kLevels) scale *= score_scale_;
        if (bias.given()) add_bias<N>(scores, seen, q, bias, std::exchange(scale, 1.0f));
        Floats<> total[N];
        softmax<D, N>(scores, seen.count, scale, bias.window >= 0, total);
        // Who sees nothing gets zeros, as from torch's scaled_dot_product_attention.
        for (int n = 0; n < N; n++) total[n] = seen.count ? 1.0f / total[n] : Floats<>{};
        // Sums of levels are added as floats after some keys, from one half of the results to the other: a product may
        // hand on a row twice.
        const int64_t half = h.head_dim * N * kLanes, most = kLevels ? kMostKeys : std::max<int64_t>(seen.count, 1);
        float *result = result_.span().at(0, half), *before = result;
        for (int64_t key = 0; key == 0 || key < seen.count; key += most) {
            const int64_t count = std::min(most, seen.count - key);
            const bool last = key + count == seen.count;
            if (key)
                before = std::exchange(result, result_.span().at(result == result_.span().data() ? half : 0, half));
            const Left value{value_.span().from((first + key) * (kTwo<D> ? 2 : 4)), size_t(line), 4};
            const Right weights{score_rows.from(key / (kTwo<D> ? 2 : 1) * kRowBytes), kRowBytes};
            product<D, N>(value, h.head_dim, weights, kTwo<D> ? (count + 1) / 2 : count,
                          [&](int64_t d, const auto *sums) {
                              for (int n = 0; n < N; n++) {
                                  const int64_t to = (d * N + n) * kLanes;
                                  Floats<> sum = floats(sums[n]);
                                  if (key) sum += load<Floats<>>(before + to);
                                  if constexpr (kLevels) sum *= last ? value_scale_[d] : 1.0f;
                                  store<kBytes>(result + to, last ? sum * total[n] : sum);
                              }
                          });
        }
        write(h, head, result, s.first + q, finished, N * kLanes);
        return finished;
    }
    static Floats<> floats(Floats<> x) { return x; }
    static Floats<> floats(Ints<> x) { return __builtin_convertvector(x, Floats<>); }

    // scale score + bias in place.
    template <int N>
    static void add_bias(char *scores, Keys keys, int64_t q, const HeadBias &bias, float scale) {
        for (int64_t m = 0; m < keys.count; m++)
            for (int n = 0; n < N; n++) {
                char *at = scores + (m * N + n) * kBytes;
                store<kBytes>(at, load<Floats<>>(at) * scale + bias.of(q + n * kLanes, keys.first + m));
            }
    }

    // exp(scale (score - largest)) in place, as floats or as pairs of keys; and its sum.
    template <class D, int N>
    static void softmax(char *scores, int64_t keys, float scale, bool has_window, Floats<> *total) {
        Floats<> most[N];
        for (int n = 0; n < N; n++) most[n] = load<Floats<>>(scores + n * kBytes), total[n] = Floats<>{};
        for (int64_t m = 1; m < keys; m++)
            for (int n = 0; n < N; n++)
                most[n] = larger<kBytes>(most[n], load<Floats<>>(scores + (m * N + n) * kBytes));
        const float factor = scale * 1.44269504f;  // weights are powers of two
        auto weight = [&](int64_t m, int n) {
            const Floats<> below = load<Floats<>>(scores + (m * N + n) * kBytes) - most[n];
            Floats<> e = power_of_two<kBytes, kTwo<D>>(below * factor);
            // Else the smallest weight, whose products are denormal: sums of these are several times slower.
            if (has_window) e = below > splat<kBytes>(0.5f * kUnseen) ? e : Floats<>{};
            total[n] += e;
            return e;
        };
        if constexpr (!kTwo<D>) {
            for (int64_t m = 0; m < keys; m++)
                for (int n = 0; n < N; n++) store<kBytes>(scores + (m * N + n) * kBytes, weight(m, n));
        } else {  // pair m / 2 overwrites row m / 2, which has been read
            for (int64_t m = 0; m < keys; m += 2)
                for (int n = 0; n < N; n++) {
                    const Floats<> even = weight(m, n), odd = m + 1 < keys ? weight(m + 1, n) : Floats<>{};
                    put(scores + (m / 2 * N + n) * kBytes, kPairs ? pair<kBytes>(even, odd) : levels(even, odd));
                }
        }
    }

    // Levels of two weights in a word.
    static Words<> levels(Floats<> even, Floats<> odd) {
        const auto level = [](Floats<> x) {  // nearest: conversion cuts off, and weights are not negative
            return (Words<>)__builtin_convertvector(x * float(kWeightLevels) + 0.5f, Ints<>);
        };
        return level(even) | level(odd) << 16;
    }

    // The result's queries to their places in the tiles of the context.
    void write(const Heads &h, int64_t head, const float *result, int64_t token, int64_t queries, int64_t line) {
        const int64_t inner = h.heads * h.head_dim;
        for (int64_t done = 0; done < queries;) {
            const int64_t t = (token + done) / h.width, at = (token + done) % h.width;
            const int64_t count = std::min(queries - done, h.width - at);
            const size_t used = (h.head_dim - 1) * Kernel::kTile + count;
            float *to = h.context.at((t * inner + head * h.head_dim) * Kernel::kTile + at, used);
            for (int64_t d = 0; d < h.head_dim; d++)
                std::memcpy(to + d * Kernel::kTile, result + d * line + done, count * 4);
            done += count;
        }
    }

    Buffer<char> query_, key_, value_, scores_;
    Buffer<float> result_, value_scale_;
    float score_scale_ = 0;  // of levels of query and key
    Between<Dot> between_;
};

}  // namespace fp

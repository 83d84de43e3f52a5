// Softmax(Q K' / sqrt(head_dim) + bias) V of one head over the tokens of one sequence; most models have no bias.
//
// Tiles hold the tokens of one sequence after another without padding, so no mask is needed: keys are the first tokens of
// the sequence, or of a head with a window those near the queries. Queries are vector lanes; the softmax then runs down
// the rows, and the result is feature-major again.
#pragma once
#include "bytes.hpp"
#include "disentangled.hpp"
#include "distances.hpp"
#include "elementwise.hpp"

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
// processor does, else as floats; those of int8 encoders as integers, where x86 or dot4 takes less time for these.
template <class Kernel>
class Attention {
    static constexpr bool kFloats = Kernel::kDtype == FP_FLOAT32;
    static constexpr int kQueries = kMostVectors * kLanes;  // at once
    static constexpr bool kIntegers = Kernel::kDtype == FP_INT8 && (kHasDot4 || (kAddsShorts && !kHasBf16));
    typedef std::conditional_t<kHasDot4, HeadBytes<kHasBf16>, HeadShorts> Integers;
    // For fewer, integers take longer to make than they save. Processors with tiles are slow at bfloat16 without them.
    static constexpr int64_t kFewestKeys = !kHasBf16 ? 24 : kHasTiles ? 64 : 112;

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
        result_.grow((kIntegers ? 2 : 1) * head_dim * kQueries);
        if (kIntegers) integers_.grow(longest + 2 * Kernel::kTile, head_dim);
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
        if constexpr (kIntegers)
            if (s.keys >= kFewestKeys && !between_.given() &&
                integers_.convert({query_.span(), key_.span(), value_.span(), h.head_dim, line, at, s.keys}))
                return queries<IntegerDot>(h, head, s, bias, own, at, line);
        queries<Dot>(h, head, s, bias, own, at, line);
    }

  private:
    typedef std::conditional_t<kPairs, Bf16Dot, FloatDot> Dot;
    typedef typename Integers::Dot IntegerDot;

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
        constexpr bool kLevels = kIntegers && std::is_same_v<D, IntegerDot>;
        constexpr int kNumbers = D::kNumbers;
        const int64_t q = part.begin, finished = std::min<int64_t>(N * kLanes, part.end - q);
        const Keys seen = bias.seen(q, q + finished, s.keys);
        const int64_t first = at + seen.first;
        const Span<char> score_rows = scores_.span().part(0, seen.count * kRowBytes);
        char *scores = score_rows.data();
        // The last vector of queries may begin with the sequence's last one: this reads past the end of the last line.
        static_assert(N * kBytes <= kOverread);
        const Left keys{key_.span().from(first * 4), 4, size_t(line)};
        const Right queries{query_.overread_from((at + q) * 4), size_t(line)};
        product<D, N>(keys, seen.count, queries, words(h.head_dim, kNumbers), [&](int64_t m, const auto *sums) {
            for (int n = 0; n < N; n++) {
                char *to = scores + m * kRowBytes + n * kBytes;
                if constexpr (kLevels) store<kBytes>(to, integers_.score(sums[n], first + m));
                else store<kBytes>(to, sums[n]);
            }
        });
        if (between_.given())
            between_.template add<N>(scores, seen, q, query_.overread_from((at + q) * 4).data(),
                                     key_.span().from(first * 4).data(), line);
        Floats<> scale[N], total[N];
        for (int n = 0; n < N; n++) {
            scale[n] = splat<kBytes>(1.0f / std::sqrt(float(h.head_dim * between_.products())));
            if constexpr (kLevels) scale[n] *= integers_.query_scale(at + q + n * kLanes);
        }
        if (bias.given()) add_bias<N>(scores, seen, q, bias, scale);
        softmax<D, N>(scores, seen.count, scale, bias.window >= 0, total);
        // Who sees nothing gets zeros, as from torch's scaled_dot_product_attention.
        for (int n = 0; n < N; n++) total[n] = seen.count ? 1.0f / total[n] : Floats<>{};
        // Sums of levels are added as floats after some keys, from one half of the results to the other: a product may
        // hand on a row twice.
        const int64_t half = h.head_dim * N * kLanes;
        const int64_t most = kLevels ? Integers::kMostKeys : std::max<int64_t>(seen.count, 1);
        float *result = result_.span().at(0, half), *before = result;
        for (int64_t key = 0; key == 0 || key < seen.count; key += most) {
            const int64_t count = std::min(most, seen.count - key);
            const bool last = key + count == seen.count;
            if (key)
                before = std::exchange(result, result_.span().at(result == result_.span().data() ? half : 0, half));
            const Left value{value_.span().from((first + key) * (4 / kNumbers)), size_t(line), 4};
            const Right weights{score_rows.from(key / kNumbers * kRowBytes), kRowBytes};
            product<D, N>(value, h.head_dim, weights, words(count, kNumbers), [&](int64_t d, const auto *sums) {
                for (int n = 0; n < N; n++) {
                    const int64_t to = (d * N + n) * kLanes;
                    Floats<> sum;
                    if constexpr (kLevels) sum = __builtin_convertvector(sums[n], Floats<>);
                    else sum = sums[n];
                    if (key) sum += load<Floats<>>(before + to);
                    if constexpr (kLevels) sum *= last ? integers_.value_scale(d) : 1.0f;
                    store<kBytes>(result + to, last ? sum * total[n] : sum);
                }
            });
        }
        write(h, head, result, s.first + q, finished, N * kLanes);
        return finished;
    }
    static int64_t words(int64_t numbers, int64_t of) { return (numbers + of - 1) / of; }

    // scale score + bias in place; the scale is then 1.
    template <int N>
    static void add_bias(char *scores, Keys keys, int64_t q, const HeadBias &bias, Floats<> *scale) {
        for (int64_t m = 0; m < keys.count; m++)
            for (int n = 0; n < N; n++) {
                char *at = scores + (m * N + n) * kBytes;
                store<kBytes>(at, load<Floats<>>(at) * scale[n] + bias.of(q + n * kLanes, keys.first + m));
            }
        for (int n = 0; n < N; n++) scale[n] = splat<kBytes>(1);
    }

    // exp(scale (score - largest)) in place, as floats or as words of some keys; and its sum.
    template <class D, int N>
    static void softmax(char *scores, int64_t keys, const Floats<> *scale, bool has_window, Floats<> *total) {
        constexpr int kNumbers = D::kNumbers;
        Floats<> most[N], factor[N], error[N];
        for (int n = 0; n < N; n++) {
            most[n] = load<Floats<>>(scores + n * kBytes);
            factor[n] = scale[n] * 1.44269504f;  // weights are powers of two
            total[n] = error[n] = Floats<>{};
        }
        for (int64_t m = 1; m < keys; m++)
            for (int n = 0; n < N; n++)
                most[n] = larger<kBytes>(most[n], load<Floats<>>(scores + (m * N + n) * kBytes));
        for (int64_t m = 0; m < keys; m += kNumbers)  // row m / kNumbers has been read when it is overwritten
            for (int n = 0; n < N; n++) {
                Floats<> weight[kNumbers];
                for (int i = 0; i < kNumbers; i++) {
                    weight[i] = Floats<>{};
                    if (m + i >= keys) continue;
                    const Floats<> below = load<Floats<>>(scores + ((m + i) * N + n) * kBytes) - most[n];
                    weight[i] = power_of_two<kBytes, (kNumbers > 1)>(below * factor[n]);
                    // Else the smallest weight, whose products are denormal: sums of these are several times slower.
                    if (has_window) weight[i] = below > splat<kBytes>(0.5f * kUnseen) ? weight[i] : Floats<>{};
                    total[n] += weight[i];
                }
                char *to = scores + (m / kNumbers * N + n) * kBytes;
                if constexpr (kNumbers == 1) store<kBytes>(to, weight[0]);
                else if constexpr (std::is_same_v<D, Bf16Dot>) put(to, pair<kBytes>(weight[0], weight[1]));
                else put(to, Integers::weights(weight, error[n]));
            }
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
    Buffer<float> result_;
    Integers integers_;
    Between<Dot> between_;
};

}  // namespace fp

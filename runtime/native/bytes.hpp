// Query, key and value of a head as bytes. Four products of these are one instruction, where a float or a pair of bfloat16
// takes one for each. Every query and key has a scale of its own, and so has every feature of the values.
#pragma once
#include "shorts.hpp"

namespace fp {

// `Pairs`: a word of query and key has two features as bfloat16, and value is bfloat16; else all are floats.
template <bool Pairs>
class HeadBytes {
    static constexpr int kMost = 127;

  public:
    typedef Int8Dot Dot;
    // Levels of a weight: one less than fit, since the rounding error of the key before is added.
    static constexpr int kWeightLevels = kMostByte - 1;
    static constexpr int64_t kMostKeys = 1 << 16;  // whose products are added in 32 bits
    static_assert(kMostKeys * kMostByte * kMost <= std::numeric_limits<int32_t>::max());

    void grow(int64_t tokens, int64_t head_dim) {
        const int64_t vectors = tokens + kMostVectors * kLanes;  // the last queries may be fewer than a vector
        query_scale_.grow(vectors), key_scale_.grow(vectors), key_offset_.grow(vectors);
        value_scale_.grow(head_dim);
    }

    // Writes bytes over the rows; returns false, and leaves them, if a number of the text is not finite.
    bool convert(const HeadRows &h) {
        const int64_t begin = h.at / kLanes * kLanes, end = h.at + h.tokens;
        bool finite = tokens_finite(h, h.query, query_scale_) && tokens_finite(h, h.key, key_scale_);
        for (int64_t d = 0; d < h.head_dim; d++) {
            Magnitude most;
            for (int64_t t = begin; t < end; t += kLanes) most.take(only(value(h, d, t), t, h));
            value_scale_[d] = most.value();
            finite = finite && std::isfinite(value_scale_[d]);
        }
        if (!finite) return false;
        for (int64_t t = begin; t < end; t += kLanes) {
            words_of(h, h.query, t, kOffset == 0, query_scale_);
            const Ints<> sum = words_of(h, h.key, t, true, key_scale_);
            store<kBytes>(key_offset_.span().at(t, kLanes),
                          __builtin_convertvector(sum * -kOffset, Floats<>) * load<Floats<>>(&key_scale_[t]));
        }
        typedef typename VecOf<uint8_t, kLanes>::type LaneBytes;
        for (int64_t d = 0; d < h.head_dim; d++) {
            const Levels levels(value_scale_[d], kMost);
            for (int64_t t = begin; t < end; t += kLanes)
                store_as<uint8_t, kLanes>(h.value.at(d * h.line + t, kLanes),
                                          __builtin_convertvector(whole(value(h, d, t) * levels.inverse), LaneBytes));
            value_scale_[d] = levels.scale / kWeightLevels;
        }
        return true;
    }

    // The score of a key without the query's scale.
    Floats<> score(Ints<> sum, int64_t key) const {
        return __builtin_convertvector(sum, Floats<>) * key_scale_[key] + key_offset_[key];
    }
    Floats<> query_scale(int64_t query) const { return load<Floats<>>(query_scale_.span().at(query, kLanes)); }
    float value_scale(int64_t d) const { return value_scale_[d]; }

    // Four keys' weights as a word. `error` is what rounding left of the keys before: without it, many small weights
    // would be lost together.
    static Words<> weights(const Floats<> *of, Floats<> &error) {
        Words<> level[4];
        for (int i = 0; i < 4; i++) {
            const Floats<> exact = of[i] * float(kWeightLevels) + error;
            level[i] = whole(exact);
            error = exact - ((Floats<>)level[i] - kMagic);
        }
        return bytes(level);
    }

  private:
    // What is added to a query: dot4 takes signed or unsigned bytes there.
    static constexpr int kOffset = kLeastByte + 128;
    // As in `nearest`: the bits of the sum are those of kMagic plus the nearest whole number.
    static constexpr float kMagic = 12582912.0f;
    static constexpr uint32_t kMagicBits = 0x4b400000u, kOnes = 0x01010101u;
    static Words<> whole(Floats<> x) { return (Words<>)(x + kMagic); }
    // Four of these, of numbers from 0 to 255, as the bytes of a word.
    static Words<> bytes(const Words<> *x) {
        return x[0] + (x[1] << 8) + (x[2] << 16) + (x[3] << 24) - kMagicBits * kOnes;
    }

    static Floats<> value(const HeadRows &h, int64_t d, int64_t token) {
        if constexpr (!Pairs) return load<Floats<>>(h.value.at(d * h.line + token * 4, kBytes));
        typedef typename VecOf<uint16_t, kBytes / 2>::loose Halves;
        const char *at = h.value.at(d * h.line + token * 2, kBytes / 2);
        return (Floats<>)(__builtin_convertvector(*(const Halves *)at, Words<>) << 16);
    }
    // Four features of kLanes tokens, 0 behind the last one.
    static void four(const HeadRows &h, Span<const char> rows, int64_t d, int64_t token, Floats<> *to) {
        for (int i = 0; i < 4; i += Pairs ? 2 : 1) {
            if (d + i >= h.head_dim) {
                to[i] = Floats<>{}, to[i + Pairs] = Floats<>{};
                continue;
            }
            const Words<> word = load<Words<>>(rows.at((Pairs ? (d + i) / 2 : d + i) * h.line + token * 4, kBytes));
            to[i] = (Floats<>)(Pairs ? word << 16 : word);
            if constexpr (Pairs) to[i + 1] = (Floats<>)(word & 0xffff0000u);
        }
    }
    // x where lanes are tokens of the text, else 0.
    static Floats<> only(Floats<> x, int64_t token, const HeadRows &h) {
        if (token >= h.at && token + kLanes <= h.at + h.tokens) return x;
        for (int i = 0; i < kLanes; i++)
            if (token + i < h.at || token + i >= h.at + h.tokens) x[i] = 0;
        return x;
    }

    // Sets the magnitude of each token; returns whether all of the text are finite.
    static bool tokens_finite(const HeadRows &h, Span<const char> rows, Buffer<float> &magnitudes) {
        Magnitude all;
        for (int64_t t = h.at / kLanes * kLanes; t < h.at + h.tokens; t += kLanes) {
            Magnitude most;
            for (int64_t d = 0; d < h.head_dim; d += 4) {
                Floats<> x[4];
                four(h, rows, d, t, x);
                for (const Floats<> &each : x) most.take(each);
            }
            store<kBytes>(magnitudes.span().at(t, kLanes), most.lanes());
            all.take(only(most.lanes(), t, h));
        }
        return std::isfinite(all.value());
    }
    // Levels of kLanes tokens, `as_signed` or plus 128, as words of four features, in place of the rows, and scales in
    // place of magnitudes; returns each token's sum of levels.
    static Ints<> words_of(const HeadRows &h, Span<char> rows, int64_t token, bool as_signed, Buffer<float> &scales) {
        float *scale = scales.span().at(token, kLanes);
        const Floats<> most = load<Floats<>>(scale), least = splat<kBytes>(1e-30f);  // as in Levels
        const Floats<> inverse = most > least ? float(kMost) / most : Floats<>{};
        store<kBytes>(scale, most > least ? most * (1.0f / kMost) : Floats<>{});
        Ints<> sum{};
        for (int64_t d = 0; d < h.head_dim; d += 4) {
            Floats<> x[4];
            four(h, rows, d, token, x);
            Words<> level[4];
            for (int i = 0; i < 4; i++) level[i] = whole(x[i] * inverse) + 128u;
            const Words<> unsigned_ones = bytes(level), signed_ones = unsigned_ones ^ (128u * kOnes);
            sum = dot4<kBytes>(sum, splat_word<kBytes>(kOnes), signed_ones);
            put(rows.at(d / 4 * h.line + token * 4, kBytes), as_signed ? signed_ones : unsigned_ones);
        }
        return sum;
    }

    Buffer<float> query_scale_, key_scale_, key_offset_, value_scale_;
};

}  // namespace fp

// Rotary position embedding (Su et al., 2021, arXiv:2104.09864): feature d of a query or a key and feature
// d + head_dim / 2 are a point, which is rotated by the token's place in its text x the frequency of d.
#pragma once
#include <cmath>
#include <vector>

#include "attention.hpp"

namespace fp {

// The cosines and sines of one set of frequencies. A row holds those of one feature.
class Rotary {
  public:
    // `frequencies`: [half].
    Rotary(const float *frequencies, int64_t half) : frequencies_(frequencies, frequencies + half) {}

    bool has(const float *frequencies) const {
        return std::equal(frequencies_.begin(), frequencies_.end(), frequencies);
    }
    size_t bytes() const { return frequencies_.size() * sizeof(float); }

    // Makes the table for texts of up to `length` tokens, and room for a call's `tiles` of `width` tokens.
    void cover(int64_t length, int64_t tiles, int64_t width) {
        tokens_.grow(tiles * 2 * half() * width);
        if (length <= length_) return;
        table_.grow(size_t(2 * half() * length));  // before length_: a call after one without memory begins anew
        length_ = length;
        for (int64_t d = 0; d < half(); d++)
            for (int64_t i = 0; i < length; i++) {
                const float angle = float(i) * frequencies_[d];
                table_[d * length + i] = std::cos(angle);
                table_[(half() + d) * length + i] = std::sin(angle);
            }
    }

    // Writes the rows of a tile, `width` apart, for the tokens at these places of their texts.
    void fill(int64_t tile, int64_t width, Span<const int64_t> places) {
        float *to = tokens_.span().at(tile * 2 * half() * width, 2 * half() * width);
        const float *from = table_.span().data();
        for (int64_t row = 0; row < 2 * half(); row++, to += width, from += length_)
            for (size_t i = 0; i < places.size(); i++) to[i] = from[places.data()[i]];
    }

    // Rotates `heads` heads of a tile, whose rows attention reads, in place.
    template <class Kernel, int Width>
    void turn(Span<char> rows, int64_t heads, int64_t tile, int64_t width) const {
        constexpr int64_t kRow = Attention<Kernel>::kRow;
        constexpr int B = Kernel::template kVector<Width>;
        const float *cosines = tokens_.span().at(tile * 2 * half() * width, 2 * half() * width);
        const float *sines = cosines + half() * width;
        for (int64_t head = 0; head < heads; head++) {
            char *row = rows.at(head * 2 * half() * kRow, 2 * half() * kRow);
            for (int64_t d = 0; d < half(); d++, row += kRow)
                rows_of<Kernel, Width, B>(row, row + half() * kRow, cosines + d * width, sines + d * width);
        }
    }

  private:
    int64_t half() const { return int64_t(frequencies_.size()); }

    // (x, y) to (x cos - y sin, y cos + x sin), for the tokens of two rows.
    template <class Kernel, int Width, int B>
    static void rows_of(char *x, char *y, const float *cosines, const float *sines) {
        if constexpr (Kernel::kDtype == FP_FLOAT32) {
            for (int j = 0; j < Width * 4 / B; j++) {
                Floats<B> a = load<Floats<B>>(x + j * B), b = load<Floats<B>>(y + j * B);
                point<B>(a, b, cosines + j * (B / 4), sines + j * (B / 4));
                store<B>(x + j * B, a), store<B>(y + j * B, b);
            }
        } else {
            for (int j = 0; j < Width * 2 / B; j++) {
                Floats<B> a[2], b[2];
                unpack16<B>(load<Words<B>>(x + j * B), a[0], a[1]);
                unpack16<B>(load<Words<B>>(y + j * B), b[0], b[1]);
                for (int i = 0; i < 2; i++)
                    point<B>(a[i], b[i], cosines + (2 * j + i) * (B / 4), sines + (2 * j + i) * (B / 4));
                put(x + j * B, pack16<B>(a[0], a[1])), put(y + j * B, pack16<B>(b[0], b[1]));
            }
        }
    }
    template <int B>
    static void point(Floats<B> &a, Floats<B> &b, const float *cosine, const float *sine) {
        const Floats<B> c = load<Floats<B>>(cosine), s = load<Floats<B>>(sine), x = a;
        a = x * c - b * s;
        b = b * c + x * s;
    }

    std::vector<float> frequencies_;
    int64_t length_ = 0;
    Buffer<float> table_, tokens_;
};

}  // namespace fp

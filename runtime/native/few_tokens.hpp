// A dense layer over a few tokens, as a head runs it on one text: its outputs are the lanes of the vectors. A tile of
// tokens would be almost empty. The sums are those of a tile to the bit: both add the inputs one after another.
#pragma once
#include <algorithm>
#include <cstring>

#include "dense.hpp"
#include "matrix.hpp"

namespace fp {

class FewTokens {
  public:
    static constexpr int kMost = 4;                      // tokens
    static constexpr int64_t kMostElements = 1ll << 20;  // the weights are here a second time

    FewTokens() = default;
    explicit FewTokens(const Rows &m) : rows_(m.count()), columns_(m.columns()) {
        weights_.grow(blocks() * columns_ * kWidth);
        biases_.grow(blocks() * kWidth);
        for (int64_t row = 0; row < rows_; row++) {
            biases_[row] = m.bias(row);
            for (int64_t i = 0; i < m.size(row); i++) {
                const Element e = m.element(row, i);
                weights_[((row / kWidth) * columns_ + e.column) * kWidth + row % kWidth] = e.value;
            }
        }
    }

    bool takes(int64_t tokens) const { return rows_ > 0 && tokens >= 1 && tokens <= kMost; }
    size_t bytes() const { return weights_.bytes() + biases_.bytes(); }

    // x: [tokens][columns], out: [tokens][rows].
    void run(const float *x, int64_t tokens, float *out) const {
        FP_CHECK(takes(tokens));
        if (tokens == 1) return blocks_of<1>(x, out);
        if (tokens == 2) return blocks_of<2>(x, out);
        if (tokens == 3) return blocks_of<3>(x, out);
        blocks_of<4>(x, out);
    }

  private:
    static constexpr int kVectors = kBytes == 64 ? 4 : 2;
    static constexpr int kWidth = kVectors * kLanes;  // outputs of a block

    int64_t blocks() const { return (rows_ + kWidth - 1) / kWidth; }

    template <int M>
    void blocks_of(const float *x, float *out) const {
        const size_t row = size_t(columns_) * 4;
        const Left tokens{{reinterpret_cast<const char *>(x), M * row}, row, 4};
        for (int64_t block = 0; block < blocks(); block++) {
            const Span<const float> part = weights_.span().part(block * columns_ * kWidth, columns_ * kWidth);
            const Right weights{{reinterpret_cast<const char *>(part.data()), part.size() * 4}, kWidth * 4};
            const int64_t first = block * kWidth, count = std::min<int64_t>(kWidth, rows_ - first);
            const float *bias = biases_.span().at(first, kWidth);
            auto put_row = [&](int64_t token, const Floats<> *sums) {
                alignas(kAlign) float y[kWidth];
                for (int j = 0; j < kVectors; j++)
                    store<kBytes>(y + j * kLanes, sums[j] + load<Floats<>>(bias + j * kLanes));
                std::memcpy(out + token * rows_ + first, y, count * 4);
            };
            product_block<FloatDot, M, kVectors>(tokens, weights, columns_, 0, put_row);
        }
    }

    int64_t rows_ = 0, columns_ = 0;
    Buffer<float> weights_, biases_;  // [block of outputs][input][output], [output]
};

}  // namespace fp

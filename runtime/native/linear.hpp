// A linear layer over one tile: sparse rows, and those too dense for it by a dense product.
#pragma once
#include "kernels.hpp"
#include "packing.hpp"

namespace fp {

template <class Kernel>
class Linear {
  public:
    Linear() = default;
    // Validates and packs a matrix; `name` begins the messages of its errors.
    Linear(const fp_matrix &matrix, const std::string &name) : Linear(Rows(matrix, name)) {}

    int64_t rows() const { return rows_; }
    int64_t columns() const { return columns_; }
    bool is_dense() const { return int64_t(dense_rows_.size()) == rows_; }
    size_t bytes() const {
        return sparse_.bytes() + dense_.bytes() +
               4 * (bias_.size() + scales_.size() + totals_.size() + dense_rows_.size());
    }
    // Sizes of the memory that run() needs beside the tile, in bytes.
    size_t partial_bytes() const { return rows_ * Kernel::kPartial; }
    size_t grouped_bytes() const { return needs_groups() ? filled_groups() * Kernel::kTile * 4 : 0; }

    // `partial` has a row of kPartial bytes for each output; `out` may write that output's result there.
    // out(output, y): y holds the tile's `Width` tokens in natural order, in vectors of kVector<Width> bytes.
    template <int Width, class Out>
    void run(const Tile &x, Span<char> partial, Span<char> grouped, Out &&out) const {
        FP_CHECK(x.rows.size() >= size_t(columns_) * Kernel::kRow);
        constexpr int B = Kernel::template kVector<Width>;
        constexpr int kVectors = Width * 4 / B;
        typedef typename Kernel::template Scale<B> Scale;
        auto scale = [&](int j) { return Scale(x, j * (B / 4)); };
        if (needs_groups()) group_rows<Width>(x.rows, grouped);
        run_sparse<Kernel, Width>(sparse_, x.rows, grouped, partial, [&](uint32_t n, const auto &sums) {
            Floats<B> y[kVectors];
#pragma GCC unroll 8
            for (int j = 0; j < kVectors; j++)
                y[j] = scale(j).apply(sums.sum(j), row_scale(n), row_total(n)) + bias_[n];
            out(n, y);
        });
        if (!dense_rows_.empty()) run_dense<Width>(x, grouped, out);
    }

  private:
    static constexpr bool kTiles = kHasTiles && Kernel::kGroup > 1;

    explicit Linear(const Rows &m)
        : rows_(m.count()), columns_(m.columns()), groups_((columns_ + Kernel::kGroup - 1) / Kernel::kGroup) {
        copy_biases(m);
        if constexpr (Kernel::kDtype == FP_INT8) find_scales(m);
        Packer<Kernel> packer(m, scales_);
        dense_rows_ = packer.dense_rows();
        sparse_ = packer.pack();
        pack_dense_rows(m);
    }

    void copy_biases(const Rows &m) {
        for (int64_t row = 0; row < rows_; row++) bias_.push_back(m.bias(row));
    }

    // Of each output, the value of a level, and the sum of its levels: see Int8::Scale.
    void find_scales(const Rows &m) {
        for (int64_t row = 0; row < rows_; row++) {
            scales_.push_back(m.scale(row));
            float total = 0;
            for (int64_t i = 0; i < m.size(row); i++)
                total += float(Int8::level(m.element(row, i).value, scales_[row]));
            totals_.push_back(total);
        }
    }

    // A word for each group of inputs, output after output, or in tiles.
    void pack_dense_rows(const Rows &m) {
        const int64_t count = int64_t(dense_rows_.size());
        dense_.grow((kTiles ? whole_tiles(count) : count) * filled_groups());
        for (size_t i = 0; i < dense_rows_.size(); i++) {
            const uint32_t row = dense_rows_[i];
            std::vector<float> values(groups_ * Kernel::kGroup, 0.0f);
            for (int64_t k = 0; k < m.size(row); k++) values[m.element(row, k).column] = m.element(row, k).value;
            for (int64_t g = 0; g < groups_; g++)
                dense_[kTiles ? word_in_tiles(i, g, groups_) : i * groups_ + g] =
                    Kernel::group(&values[g * Kernel::kGroup], row_scale(row));
        }
    }

    // Tiles have whole numbers of groups.
    int64_t filled_groups() const { return kTiles ? whole_tiles(groups_) : groups_; }
    bool needs_groups() const { return Kernel::kGroup > 1 && (sparse_.aligned || !dense_rows_.empty()); }
    float row_scale(uint32_t n) const { return Kernel::kDtype == FP_INT8 ? scales_[n] : 1.0f; }
    float row_total(uint32_t n) const { return Kernel::kDtype == FP_INT8 ? totals_[n] : 0.0f; }

    template <int Width, class Out>
    void run_dense(const Tile &x, Span<char> grouped, Out &out) const {
        constexpr int B = Kernel::template kVector<Width>;
        constexpr int N = Width > kLanes ? Width / kLanes : 1;
        constexpr size_t kStride = (Kernel::kGroup > 1 ? Width : Kernel::kTile) * 4;
        const Span<const char> right = Kernel::kGroup > 1 ? Span<const char>(grouped) : Span<const char>(x.rows);
        typedef typename Kernel::template Scale<kBytes> Scale;
        const auto finish = [&](int64_t i, const auto *sums) {
            const uint32_t n = dense_rows_[i];
            alignas(kAlign) float y[N * kLanes];
            for (int j = 0; j < N; j++)
                store<kBytes>(y + j * kLanes,
                              Scale(x, j * kLanes).apply(sums[j], row_scale(n), row_total(n)) + bias_[n]);
            Floats<B> row[Width * 4 / B];
            for (int j = 0; j < Width * 4 / B; j++) row[j] = load<Floats<B>>(y + j * (B / 4));
            out(n, row);
        };
        typedef typename Kernel::Dot Dot;
        const Span<const uint32_t> words = dense_.span();
        const int64_t count = int64_t(dense_rows_.size());
        if constexpr (kTiles) {
            tile_product<Dot, N>(words, count, Right{right, kStride}, groups_, finish);
        } else {
            const Left left{{reinterpret_cast<const char *>(words.data()), words.size() * 4}, size_t(groups_) * 4, 4};
            product<Dot, N>(left, count, Right{right, kStride}, groups_, finish);
        }
    }

    // Rows in packed order to words that hold the rows of a group, in natural order.
    template <int Width>
    void group_rows(Span<const char> from, Span<char> to_words) const {
        constexpr int B = Kernel::template kVector<Width>;
        const char *rows = from.at(0, columns_ * Kernel::kRow);
        char *grouped = to_words.at(0, grouped_bytes());
        for (int64_t g = 0; g < groups_; g++) {
            Words<B> row[4] = {};
            for (int i = 0; i < Kernel::kGroup && g * Kernel::kGroup + i < columns_; i++)
                row[i] = load<Words<B>>(rows + (g * Kernel::kGroup + i) * Kernel::kRow);
            char *to = grouped + g * Width * 4;
            if constexpr (Kernel::kDtype == FP_BFLOAT16) {
                put(to, low16<B>(row[0], row[1]));
                put(to + B, high16<B>(row[0], row[1]));
            } else if constexpr (Kernel::kDtype == FP_INT8) {
                Words<B> words[4];
                interleave4<B>(row, words);
                for (int j = 0; j < 4; j++) put(to + j * B, words[j]);
            }
        }
        std::memset(grouped + groups_ * Width * 4, 0, (filled_groups() - groups_) * Width * 4);
    }

    int64_t rows_ = 0, columns_ = 0, groups_ = 0;
    std::vector<float> bias_, scales_, totals_;
    Sparse sparse_;
    std::vector<uint32_t> dense_rows_;
    Buffer<uint32_t> dense_;
};

}  // namespace fp

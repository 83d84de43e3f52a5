// A whole encoder over packed tokens: padding is left out before the first layer, and put back as zeros.
#pragma once
#include <atomic>
#include <memory>
#include <mutex>
#include <string>

#include "attention.hpp"
#include "linear.hpp"
#include "pool.hpp"

namespace fp {

struct EncoderBase {
    virtual ~EncoderBase() = default;
    virtual void add(const fp_layer &) = 0;
    virtual void run(const float *hidden, const uint8_t *mask, int64_t batch, int64_t length, float *out) = 0;
    virtual size_t bytes() const = 0;
};

// How many tokens go into a tile: as many as it takes, unless other threads would then have none.
template <class Kernel>
int64_t tile_width(int64_t tokens, int threads) {
    int64_t width = Kernel::kTile;
    while (width / 2 >= Kernel::kNarrowest && width / 2 >= 16 && (tokens + width - 1) / width < threads &&
           (tokens + width / 2 - 1) / (width / 2) > (tokens + width - 1) / width)
        width /= 2;
    return width;
}

template <class Kernel>
class Encoder : public EncoderBase {
    static constexpr int T = Kernel::kTile;
    static constexpr bool kFloats = Kernel::kGroup == 1;
    typedef Attention<Kernel> Attend;

  public:
    explicit Encoder(const fp_settings &settings) : s_(settings), pool_(settings.threads), workers_(settings.threads) {}

    void add(const fp_layer &given) override {
        const std::string name = "layer " + std::to_string(layers_.size()) + ", ";
        Layer layer{{given.qkv, name + "query, key and value"},
                    {given.attention_output, name + "attention output"},
                    {given.ffn_in, name + "feed-forward in"},
                    {given.ffn_out, name + "feed-forward out"}, {}};
        const int64_t inner = layer.output.columns(), d = s_.hidden;
        expect(name + "query, key and value", layer.qkv, 3 * inner, d);
        expect(name + "attention output", layer.output, d, inner);
        expect(name + "feed-forward in", layer.in, layer.out.columns(), d);
        expect(name + "feed-forward out", layer.out, d, layer.out.columns());
        if (inner % s_.head_dim)
            throw Error(name + "attention output: has " + std::to_string(inner) + " inputs, which are not whole heads of " +
                        std::to_string(s_.head_dim));
        const float *norms[] = {given.attention_norm_weight, given.attention_norm_bias, given.output_norm_weight,
                                given.output_norm_bias};
        for (int i = 0; i < 4; i++) {
            check_finite(norms[i], d, name + "norm: value");
            layer.norms[i].assign(norms[i], norms[i] + d);
        }
        layers_.push_back(std::move(layer));
    }

    size_t bytes() const override {
        size_t sum = 0;
        for (const Layer &l : layers_) {
            sum += l.qkv.bytes() + l.output.bytes() + l.in.bytes() + l.out.bytes();
            for (const auto &norm : l.norms) sum += norm.size() * 4;
        }
        return sum;
    }

    void run(const float *hidden, const uint8_t *mask, int64_t batch, int64_t length, float *out) override {
        const std::lock_guard<std::mutex> hold(lock_);
        pack_tokens(hidden, mask, batch, length, out);
        if (!count_) return;
        grow();
        // A counter for each phase: whoever is free takes the next tile, or the next head.
        phases_ = std::vector<std::atomic<int64_t>>(2 * layers_.size() + 1);
        const int workers = int(std::min<int64_t>(s_.threads, std::max(tiles_, most_heads_ * int64_t(sequences_.size()))));
        pool_.run(workers, [&](int worker) { work(workers_[worker]); });
    }

  private:
    struct Layer {
        Linear<Kernel> qkv, output, in, out;
        std::vector<float> norms[4];  // weight and bias of attention's, then of the output's
        int64_t inner() const { return output.columns(); }
    };
    struct Worker {
        Attend attend;
        Buffer<char> rows, inner, partial, grouped, packed;
        Buffer<float> y;
        alignas(kAlign) float scale[T + 4 * kLanes] = {}, zero[T + 4 * kLanes] = {};
        alignas(kAlign) float low[T + 4 * kLanes] = {}, high[T + 4 * kLanes] = {};
    };

    static void expect(const std::string &name, const Linear<Kernel> &m, int64_t rows, int64_t columns) {
        if (m.rows() != rows || m.columns() != columns)
            throw Error(name + ": is " + std::to_string(m.rows()) + " x " + std::to_string(m.columns()) + ", expected " +
                        std::to_string(rows) + " x " + std::to_string(columns));
    }

    // The tokens that the mask keeps, in order, and where each sequence begins among them.
    void pack_tokens(const float *hidden, const uint8_t *mask, int64_t batch, int64_t length, float *out) {
        const int64_t d = s_.hidden;
        from_.clear(), to_.clear(), sequences_.clear();
        for (int64_t b = 0; b < batch && length > 0; b++) {
            const int64_t first = int64_t(from_.size());
            for (int64_t i = b * length; i < (b + 1) * length; i++) {
                if (mask && !mask[i]) {
                    std::memset(out + i * d, 0, d * sizeof(float));
                } else {
                    from_.push_back(hidden + i * d);
                    to_.push_back(out + i * d);
                }
            }
            const int64_t count = int64_t(from_.size()) - first;
            if (count) sequences_.push_back({first, count});
        }
        count_ = int64_t(from_.size());
        width_ = tile_width<Kernel>(count_, s_.threads);
        tiles_ = (count_ + width_ - 1) / width_;
        most_heads_ = 0;
        for (const Layer &l : layers_) most_heads_ = std::max(most_heads_, l.inner() / s_.head_dim);
    }

    void grow() {
        int64_t inner = 0, ffn = 0, longest = 0;
        size_t partial = 0, grouped = 0;
        for (const Layer &l : layers_) {
            inner = std::max(inner, l.inner());
            ffn = std::max(ffn, l.in.rows());
            for (const Linear<Kernel> *m : {&l.qkv, &l.output, &l.in, &l.out}) {
                partial = std::max(partial, m->partial_bytes());
                grouped = std::max(grouped, m->grouped_bytes());
            }
        }
        for (const Sequence &s : sequences_) longest = std::max(longest, s.count);
        x_.grow(tiles_ * s_.hidden * T);
        qkv_.grow(tiles_ * 3 * inner * Attend::kRow);
        context_.grow(tiles_ * inner * T);
        for (Worker &w : workers_) {
            w.attend.grow(longest, s_.head_dim);
            w.rows.grow(kFloats ? 0 : std::max(inner, s_.hidden) * Kernel::kRow);
            w.inner.grow(ffn * Kernel::kRow);
            w.partial.grow(kFloats ? 0 : partial);
            w.grouped.grow(grouped);
            w.packed.grow(Kernel::kGroup == 4 ? ffn * 2 * T : 0);
            w.y.grow(s_.hidden * T);
        }
    }

    // Every worker runs this; the counters share the tiles and heads out.
    void work(Worker &w) {
        each(0, tiles_, [&](int64_t t) {
            const int64_t first = t * width_;
            const int tokens = int(std::min(width_, count_ - first));
            gather_tokens<Kernel>(from_.data() + first, tokens, s_.hidden, tile(t));
            with_width<Kernel>(tokens, [&](auto width) {
                constexpr int W = decltype(width)::value;
                Range range{w.low, w.high};
                if (Kernel::kGroup == 4) find_range<Kernel, W>(tile(t), s_.hidden, range);
                if (!layers_.empty()) heads_of<W>(w, layers_[0], t, take<W>(w, tile(t), s_.hidden));
                else scatter_tokens<Kernel>(tile(t), tokens, s_.hidden, to_.data() + first);
            });
        });
        pool_.barrier();
        for (size_t i = 0; i < layers_.size(); i++) {
            const Layer &l = layers_[i];
            const int64_t heads = l.inner() / s_.head_dim;
            const Heads where{qkv_.data(), 3 * l.inner(), context_.data(), heads, s_.head_dim, width_, count_};
            each(2 * i + 1, heads * int64_t(sequences_.size()), [&](int64_t item) {
                w.attend.run(where, item % heads, sequences_[item / heads]);
            });
            pool_.barrier();
            each(2 * i + 2, tiles_, [&](int64_t t) {
                const int tokens = int(std::min(width_, count_ - t * width_));
                with_width<Kernel>(tokens, [&](auto width) { rest_of<decltype(width)::value>(w, i, t); });
            });
            if (i + 1 < layers_.size()) pool_.barrier();
        }
    }

    template <class F>
    void each(size_t phase, int64_t count, F &&f) {
        for (int64_t i; (i = phases_[phase].fetch_add(1, std::memory_order_relaxed)) < count;) f(i);
    }

    float *tile(int64_t t) { return x_.data() + t * s_.hidden * T; }

    // Floats as the kernel's own rows; the worker's range has been found already.
    template <int W>
    Tile take(Worker &w, float *x, int64_t features) {
        if (kFloats) return {reinterpret_cast<char *>(x), nullptr, nullptr};
        const Tile tile{w.rows.data(), w.scale, w.zero};
        take_floats<Kernel, W>(x, features, tile, {w.low, w.high});
        return tile;
    }

    // Here and below, unfinished sums lie where the finished rows go, if those are as large: less to keep in the cache.
    template <int W>
    void heads_of(Worker &w, const Layer &l, int64_t t, const Tile &x) {
        constexpr int B = Kernel::template kVector<W>;
        char *to = qkv_.data() + t * 3 * l.inner() * Attend::kRow;
        l.qkv.template run<W>(x, kFloats ? to : w.partial.data(), w.grouped.data(), [&](uint32_t n, const auto *y) {
            char *row = to + n * Attend::kRow;
            for (int j = 0; j < W * 4 / B; j += kFloats ? 1 : 2) {
                if constexpr (kFloats) store<B>(row + j * B, y[j]);
                else put(row + j / 2 * B, pack16<B>(y[j], y[j + 1]));
            }
        });
    }

    template <int W>
    void floats_of(Worker &w, const Linear<Kernel> &m, const Tile &x) {
        constexpr int B = Kernel::template kVector<W>;
        char *to = reinterpret_cast<char *>(w.y.data());
        m.template run<W>(x, to, w.grouped.data(), [&](uint32_t n, const auto *y) {
            for (int j = 0; j < W * 4 / B; j++) store<B>(to + n * Kernel::kPartial + j * B, y[j]);
        });
    }

    // After attention: its output, the feed-forward part, both norms, and what the next layer attends to.
    template <int W>
    void rest_of(Worker &w, size_t i, int64_t t) {
        const Layer &l = layers_[i];
        float *x = tile(t), *context = context_.data() + t * l.inner() * T;
        Range range{w.low, w.high};
        if (Kernel::kGroup == 4) find_range<Kernel, W>(context, l.inner(), range);
        floats_of<W>(w, l.output, take<W>(w, context, l.inner()));
        add_and_normalize<Kernel, W>(x, w.y.data(), s_.hidden, l.norms[0].data(), l.norms[1].data(), s_.epsilon, range);
        floats_of<W>(w, l.out, inner_rows<W>(w, l, take<W>(w, x, s_.hidden)));
        add_and_normalize<Kernel, W>(x, w.y.data(), s_.hidden, l.norms[2].data(), l.norms[3].data(), s_.epsilon, range);
        if (i + 1 < layers_.size()) {
            heads_of<W>(w, layers_[i + 1], t, take<W>(w, x, s_.hidden));
        } else {
            const int64_t first = t * width_;
            scatter_tokens<Kernel>(x, int(std::min(width_, count_ - first)), s_.hidden, to_.data() + first);
        }
    }

    // The feed-forward part's inner activations, as the kernel's rows. Bytes need the range of all of them first: until
    // then they are kept as bfloat16.
    template <int W>
    Tile inner_rows(Worker &w, const Layer &l, const Tile &x) {
        constexpr int B = Kernel::template kVector<W>;
        constexpr int kVectors = W * 4 / B;
        const Tile inner{w.inner.data(), w.scale, w.zero};
        Range range{w.low, w.high};
        range.clear(T);
        char *partial = kFloats ? inner.rows : w.partial.data();
        l.in.template run<W>(x, partial, w.grouped.data(), [&](uint32_t n, const auto *y) {
            Floats<B> a[kVectors];
            for (int j = 0; j < kVectors; j++) a[j] = activate<B>(s_.activation, y[j]);
            if constexpr (kFloats) {
                for (int j = 0; j < kVectors; j++) store<B>(inner.rows + n * Kernel::kRow + j * B, a[j]);
            } else if constexpr (Kernel::kGroup == 2) {
                put(inner.rows + n * Kernel::kRow, pack16<B>(a[0], a[1]));
            } else {
                for (int j = 0; j < 4; j++) range.take<B>(j * (B / 4), a[j]);
                put(w.packed.data() + n * 2 * T, pack16<B>(a[0], a[1]));
                put(w.packed.data() + n * 2 * T + B, pack16<B>(a[2], a[3]));
            }
        });
        if constexpr (Kernel::kGroup == 4) {
            set_scales(range, inner, W);
            const ToBytes<B> bytes[4] = {{inner, 0}, {inner, B / 4}, {inner, B / 2}, {inner, 3 * B / 4}};
            for (int64_t n = 0; n < l.in.rows(); n++) {
                Floats<B> a[4];
                unpack16<B>(load<Words<B>>(w.packed.data() + n * 2 * T), a[0], a[1]);
                unpack16<B>(load<Words<B>>(w.packed.data() + n * 2 * T + B), a[2], a[3]);
                for (int j = 0; j < 4; j++) a[j] = bytes[j](a[j]);
                put(inner.rows + n * Kernel::kRow, pack8<B>(a));
            }
        }
        return inner;
    }

    const fp_settings s_;
    Pool pool_;
    std::vector<Worker> workers_;
    std::vector<Layer> layers_;
    std::mutex lock_;

    // Of the call that is running.
    std::vector<const float *> from_;
    std::vector<float *> to_;
    std::vector<Sequence> sequences_;
    std::vector<std::atomic<int64_t>> phases_;
    int64_t count_ = 0, width_ = 0, tiles_ = 0, most_heads_ = 0;
    Buffer<float> x_, context_;
    Buffer<char> qkv_;
};

}  // namespace fp

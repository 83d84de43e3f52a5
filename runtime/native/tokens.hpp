// The tokens of a call that are computed, text after text: padding is left out, and answered with zeros at once.
#pragma once
#include <cstring>
#include <limits>
#include <vector>

#include "attention.hpp"
#include "elementwise.hpp"

namespace fp {

class PackedTokens {
  public:
    explicit PackedTokens(int64_t hidden) : hidden_(hidden) {}

    int64_t count() const { return int64_t(from_.size()); }
    const std::vector<Sequence> &sequences() const { return sequences_; }
    // Of tokens from number `first` on.
    const float *const *from(int64_t first) const { return from_.data() + first; }
    float *const *to(int64_t first) const { return to_.data() + first; }
    Span<const int64_t> places(int64_t first, int64_t count) const { return {places_.data() + first, size_t(count)}; }

    // Takes the tokens of `hidden`, [batch][length][hidden], that `mask` shows, all without one; results go to `out`.
    // Behind those of a text comes its first token if the mask hides it: heads read it wherever the padding is.
    void pack(const float *hidden, const uint8_t *mask, int64_t batch, int64_t length, float *out) {
        const int64_t d = hidden_;
        from_.clear(), to_.clear(), places_.clear(), sequences_.clear();
        for (int64_t b = 0; b < batch && length > 0; b++) {
            const int64_t begin = b * length, first = count();
            bool finite = true;
            for (int64_t i = begin; i < begin + length; i++) {
                if (!mask || mask[i]) finite = add(hidden + i * d, out + i * d, i - begin) && finite;
                else if (i > begin) std::memset(out + i * d, 0, d * sizeof(float));
            }
            const int64_t keys = count() - first;
            if (mask && !mask[begin] && !add(hidden + begin * d, out + begin * d, 0)) drop(first + keys);
            if (!finite) drop(first);
            const int64_t own = count() - first;
            if (own) sequences_.push_back({first, own, keys, places_.back() - places_[first] == own - 1});
        }
    }

  private:
    // Returns whether its values are finite.
    bool add(const float *from, float *to, int64_t place) {
        from_.push_back(from);
        to_.push_back(to);
        places_.push_back(place);
        return all_finite(from, hidden_);
    }

    // Answers NaN to the tokens from number `first` on, which see a value that is not finite. Computing it would not
    // always give that: sparse rows leave out its products with zero.
    void drop(int64_t first) {
        for (size_t i = first; i < to_.size(); i++)
            std::fill_n(to_[i], hidden_, std::numeric_limits<float>::quiet_NaN());
        from_.resize(first);
        to_.resize(first);
        places_.resize(first);
    }

    int64_t hidden_;
    std::vector<const float *> from_;
    std::vector<float *> to_;
    std::vector<int64_t> places_;  // in their texts
    std::vector<Sequence> sequences_;
};

}  // namespace fp

// What the elements of four outputs cost in each form, by counting alone. Nearly all masks are not of blocks, and to merge
// the inputs of four outputs for nothing took most of the time in which a model was packed.
#pragma once
#include <algorithm>
#include <array>
#include <vector>

#include "kernels.hpp"

namespace fp {

template <class Kernel>
class Forms {
  public:
    typedef std::array<float, 2> Cost;  // without and with aligned groups

    // What an input costs that so many of the outputs keep, and whether it is then computed for all four.
    static float shared(int kept) { return std::min(float(kept), Kernel::kCosts.column); }
    static bool is_column(int kept) { return float(kept) > Kernel::kCosts.column; }

    Forms() = default;
    // `width`: inputs of a block, whole groups.
    explicit Forms(int64_t width) : keep_(width), group_(width / Kernel::kGroup) {}

    // An output keeps the input at this place of the block.
    void count(int64_t at) {
        FP_CHECK(at >= 0 && size_t(at) < keep_.size() && keep_[at] < kQuad);
        const int kept = keep_[at]++;
        more_[kept]++;
        if constexpr (Kernel::kGroup > 1) {  // there are no aligned groups of one
            float &group = group_[at / Kernel::kGroup];
            group += shared(kept + 1) - shared(kept);
            any_aligned_ = any_aligned_ || group > Kernel::kCosts.aligned;
        }
    }

    // The cost of what was counted, which is forgotten.
    Cost take() {
        int64_t elements = 0;
        Inputs plain = {0, false};
        for (int kept = 1; kept <= kQuad; kept++) {
            const int64_t inputs = more_[kept - 1] - (kept < kQuad ? more_[kept] : 0);
            elements += inputs * kept;
            plain.cost += float(inputs) * shared(kept);
            plain.alone = plain.alone || (inputs && !is_column(kept));
        }
        const Cost cost = {plain.total(elements), (any_aligned_ ? beside_aligned() : plain).total(elements)};
        std::fill(keep_.begin(), keep_.end(), 0);
        std::fill(group_.begin(), group_.end(), 0.0f);
        more_ = {};
        any_aligned_ = false;
        return cost;
    }

  private:
    // What the inputs cost, and whether some of them stay alone.
    struct Inputs {
        float cost;
        bool alone;
        float total(int64_t elements) const {
            return std::min(cost + (alone ? Kernel::kCosts.again : Kernel::kCosts.four), float(elements));
        }
    };

    Inputs beside_aligned() const {
        Inputs inputs = {0, false};
        for (size_t group = 0; group < group_.size(); group++) {
            inputs.cost += std::min(group_[group], Kernel::kCosts.aligned);
            if (group_[group] > Kernel::kCosts.aligned) continue;
            for (int k = 0; k < Kernel::kGroup; k++) {
                const int kept = keep_[group * Kernel::kGroup + k];
                inputs.alone = inputs.alone || (kept && !is_column(kept));
            }
        }
        return inputs;
    }

    std::vector<uint8_t> keep_;             // how many of the outputs keep each input
    std::vector<float> group_;              // what each kGroup inputs cost, unaligned
    std::array<int64_t, kQuad> more_ = {};  // how many inputs are kept by more than 0, 1, 2 and 3 of the outputs
    bool any_aligned_ = false;
};

}  // namespace fp

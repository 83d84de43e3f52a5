// Assertions about the engine's own code. Errors of a caller are exceptions (matrix.hpp) and checked in every build.
#pragma once
#include <cstdio>
#include <cstdlib>

namespace fp {

#if defined(FP_CHECKS)
constexpr bool kChecks = true;

[[noreturn]] inline void check_failed(const char *file, int line, const char *condition) {
    std::fprintf(stderr, "%s:%d: FP_CHECK(%s) failed\n", file, line, condition);
    std::abort();
}
// Aborts with file, line and expression unless the condition holds.
#define FP_CHECK(...) ((__VA_ARGS__) ? void() : ::fp::check_failed(__FILE__, __LINE__, #__VA_ARGS__))
#else
constexpr bool kChecks = false;

// Compiled, so that it stays correct, and never evaluated.
#define FP_CHECK(...) void(sizeof((__VA_ARGS__) ? 1 : 0))
#endif

}  // namespace fp

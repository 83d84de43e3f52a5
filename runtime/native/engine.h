// The plain C interface of the sparse engine; fineprune_runtime/native.py calls it through ctypes.
//
// Every function that can fail returns 0, or 1 with a message (UTF-8, cut to `size` bytes) that names
// the bad value. Nothing is kept of the pointers that are passed in. An encoder or a linear layer may be
// used from several threads; two of them share nothing. A fork waits until running calls have ended, and its child
// can use them.
#pragma once
#include <stddef.h>
#include <stdint.h>

#define FP_API __attribute__((visibility("default")))
#define FP_VERSION 3  // raised when a function's arguments or meaning change

// Limits; larger values are refused.
#define FP_MOST_ROWS (1 << 20)     // outputs of a matrix
#define FP_MOST_COLUMNS (1 << 16)  // inputs of a matrix, hidden, head_dim: int8 sums of more would overflow
#define FP_MOST_THREADS 1024

#ifdef __cplusplus
extern "C" {
#endif

enum fp_dtype { FP_FLOAT32 = 0, FP_BFLOAT16 = 1, FP_INT8 = 2 };
enum fp_activation { FP_GELU = 0, FP_GELU_TANH = 1, FP_RELU = 2 };

// A weight matrix of a linear layer, y = W x + bias: its stored elements in row-major order.
typedef struct {
    int64_t rows, columns;     // outputs, inputs
    int64_t kept;              // stored elements
    const int64_t *positions;  // [kept] flat, strictly ascending; null: every element is stored
    const float *values;       // [kept]
    const float *bias;         // [rows]; null: zeros
    const float *scales;       // [rows], values are whole multiples of them, at most 127; null: none known
} fp_matrix;

// An encoder layer: attention, a sum, a norm; a feed-forward part, a sum, a norm. `qkv` has the rows of query, key and
// value below one another, heads x head_dim each; heads and the inner size of the feed-forward part may differ by layer,
// and be 0. In a pre-norm encoder the norms after a layer's sums are those before the next matrices.
typedef struct {
    fp_matrix qkv, attention_output, ffn_in, ffn_out;
    const float *attention_norm_weight, *attention_norm_bias;  // [hidden] each
    const float *output_norm_weight, *output_norm_bias;
    const int64_t *bias_rows;   // [heads] the row of the encoder's bias that each head adds; null: they add none
    const fp_matrix *ffn_gate;  // its outputs multiply the activated ones of ffn_in; null: none
    const float *rotary;  // [head_dim / 2] queries and keys are rotated by position x these angles; null: they are not
    int64_t window;       // tokens farther apart than this do not see each other; -1: all do
    // [heads x head_dim][count] projections of the embeddings of distances (fp_encoder_set_distances); null: none. Scores
    // are then q k + q position_keys[row] + k position_queries[row], over the root of head_dim x their number of terms.
    const float *position_keys, *position_queries;
} fp_layer;

typedef struct {
    int64_t hidden, head_dim;
    float epsilon;       // of the layer norms
    int32_t activation;  // fp_activation
    int32_t dtype;       // fp_dtype
    int32_t threads;
    int32_t pre_norm;  // not 0: the sums go on as they are, and only their norms go into the next matrices
} fp_settings;

typedef struct fp_encoder fp_encoder;
typedef struct fp_linear fp_linear;

FP_API int32_t fp_version(void);
// A number that this library was compiled with, so that callers can compare it with their own declarations: the size of
// a structure ("fp_matrix"), the offset of a field ("fp_matrix.bias"), a limit ("FP_MOST_ROWS"), a member of an enum
// ("FP_INT8"). -1 for unknown names.
FP_API int64_t fp_constant(const char *name);
FP_API int32_t
fp_runs(const char *level);  // whether this processor has what a level's library needs; ask the portable one
FP_API int32_t fp_offers(int32_t dtype);  // whether this library has kernels for it

FP_API int fp_encoder_new(const fp_settings *, fp_encoder **, char *message, size_t size);
// A bias of attention scores by the distance from query to key: values [rows][2 reach + 1], for key - query from -reach to
// reach; beyond, those at the ends. It is added to q k / sqrt(head_dim), and is set before layers whose heads add its rows.
FP_API int fp_encoder_set_bias(fp_encoder *, int64_t rows, int64_t reach, const float *values, char *message,
                               size_t size);
// The row, of `count`, of each distance from -reach to reach, query - key, in a layer's position_keys and position_queries;
// beyond, those at the ends. To be set before layers that have these.
FP_API int fp_encoder_set_distances(fp_encoder *, int64_t count, int64_t reach, const int64_t *rows, char *message,
                                    size_t size);
FP_API int fp_encoder_add(fp_encoder *, const fp_layer *, char *message, size_t size);
// hidden and out: [batch][length][hidden]. mask: [batch][length], null or non-zero where a token is. Both may be the same
// memory. `out` is zero where the mask is, except at the first place of a text: heads read it, so it is computed as torch
// does, from the tokens that the mask keeps. A token whose input is not finite makes the text's whole output NaN.
FP_API int fp_encoder_run(fp_encoder *, const float *hidden, const uint8_t *mask, int64_t batch, int64_t length,
                          float *out, char *message, size_t size);
FP_API int64_t fp_encoder_bytes(const fp_encoder *);  // memory of the packed weights
FP_API void fp_encoder_free(fp_encoder *);

FP_API int fp_linear_new(const fp_matrix *, int32_t dtype, int32_t threads, fp_linear **, char *message, size_t size);
// x: [tokens][columns], out: [tokens][rows]; a token that is not finite has NaN in all its outputs
FP_API int fp_linear_run(fp_linear *, const float *x, int64_t tokens, float *out, char *message, size_t size);
// For benchmarks: the seconds that the kernel takes for `repeats` full tiles one after another, on this thread, without
// the tokens' way into a tile and out of it; and how many tokens a tile holds.
FP_API int fp_linear_time(fp_linear *, int64_t repeats, double *seconds, int64_t *tokens, char *message, size_t size);
FP_API int64_t fp_linear_bytes(const fp_linear *);
FP_API void fp_linear_free(fp_linear *);

#ifdef __cplusplus
}
#endif

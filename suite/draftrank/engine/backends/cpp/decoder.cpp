// The layers of a small decoder over a few tokens, in one call.
//
// A forward of a few tokens is bound by reading the weights, so they are read once for all tokens together, and packed
// beforehand in the order in which they are read. Every sum is made in the same order however many tokens a forward has: a
// token's results do not depend on how many others came with it, to the last bit.
//
// Threads divide rows of matrices and queries of attention among themselves. Each has the residual stream of all
// tokens for itself: adding to it and norming it twice costs less than waiting for each other.

#include <omp.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <new>
#include <type_traits>
#include <utility>
#include <vector>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

// Whether one instruction adds the products of two pairs of bf16 numbers, in each of sixteen lanes, to a sum in fp32.
#if defined(__AVX512BF16__)
#define DRAFTRANK_PAIRS
#endif

// Whether one instruction multiplies two matrices of bf16 numbers (AMX), and this process may use it: `library.py` asks.
#if defined(MAY_TILE) && defined(__AMX_TILE__) && defined(__AMX_BF16__) && defined(DRAFTRANK_PAIRS)
#define DRAFTRANK_TILES
#endif

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__)
#define DRAFTRANK_WIDE
#endif

// Sums stay in registers only where the loops over them are written out.
#define DRAFTRANK_UNROLL _Pragma("GCC unroll 16")

namespace {

#if defined(DRAFTRANK_WIDE)
constexpr int LANES = 16, REGISTERS = 32;
#else
constexpr int LANES = 8, REGISTERS = 16;
#endif
constexpr int BLOCK = 2 * LANES;
constexpr int AHEAD = 8192;  // bytes
constexpr std::align_val_t BOUNDARY{64};
constexpr int MAX_SUMS = REGISTERS / 2 - 2;  // tokens or queries whose sums, two vectors each, stay in registers
constexpr int MAX_HEAD_SIZE = 512;

typedef float Lanes __attribute__((vector_size(4 * LANES)));
typedef int32_t Whole __attribute__((vector_size(4 * LANES)));
typedef uint32_t Bits __attribute__((vector_size(4 * LANES)));

inline Lanes load(const float* from) {
    Lanes found;
    std::memcpy(&found, from, sizeof found);
    return found;
}

// x - 0 is x, which compilers know; x + 0 is not where x is -0, and is calculated.
inline Lanes everywhere(float x) { return x - Lanes{}; }

inline void store(float* to, Lanes values) { std::memcpy(to, &values, sizeof values); }

// a · b + c, said and not left to the compiler: it decides for each loop anew whether the two are one rounding or two.
inline Lanes fused(Lanes a, Lanes b, Lanes c) {
#if defined(DRAFTRANK_WIDE)
    return (Lanes)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__AVX2__) && defined(__FMA__)
    return (Lanes)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__FP_FAST_FMAF)
    for (int lane = 0; lane < LANES; ++lane) c[lane] = std::fma(a[lane], b[lane], c[lane]);
    return c;
#else
    return a * b + c;
#endif
}

inline float fused(float a, float b, float c) {
#if defined(__FP_FAST_FMAF)
    return std::fma(a, b, c);
#else
    return a * b + c;
#endif
}

typedef std::make_integer_sequence<int, LANES> Numbered;

template <int HALF, int... LANE>
inline float folded(Lanes v, std::integer_sequence<int, LANE...> lanes) {
    if constexpr (HALF == 1) return v[0] + v[1];
    else return folded<HALF / 2>(v + __builtin_shufflevector(v, v, (LANE ^ HALF)...), lanes);
}

inline float total(Lanes v) { return folded<LANES / 2>(v, Numbered()); }

// Of two vectors in turn, from this lane on.
template <int FROM, int... LANE>
inline Lanes interleaved(Lanes even, Lanes odd, std::integer_sequence<int, LANE...>) {
    return __builtin_shufflevector(even, odd, (FROM + LANE / 2 + LANE % 2 * LANES)...);
}

inline Lanes exponential(Lanes x) {
    // Cody and Waite's reduction to |r| <= ln 2 / 2, then the series; relative error below 2e-7. Below -87: 0.
    const Lanes magic = everywhere(12582912.f);
    const Whole tiny = x < -87.f;
    x = tiny ? everywhere(-87.f) : x;
    const Whole huge = x > 88.f;
    x = huge ? everywhere(88.f) : x;
    const Lanes n = (x * 1.44269504f + magic) - magic;
    const Lanes r = fused(n, everywhere(2.12194440e-4f), fused(n, everywhere(-0.693359375f), x));
    Lanes p = everywhere(1.f / 720);
    for (const float next : {1.f / 120, 1.f / 24, 1.f / 6, 0.5f, 1.f, 1.f}) p = fused(p, r, everywhere(next));
    const Whole power = (__builtin_convertvector(n, Whole) + 127) << 23;
    Lanes scale;
    std::memcpy(&scale, &power, sizeof scale);
    return tiny ? Lanes{} : p * scale;
}

// How numbers are stored. `pair` reads BLOCK of them as two vectors; `slot` says where a number must lie for that.

struct Bf16 {
    typedef uint16_t Stored;

    static void pair(const Stored* from, Lanes& even, Lanes& odd) {
        Bits raw;
        std::memcpy(&raw, from, sizeof raw);
        const Bits low = raw << 16, high = raw & 0xffff0000u;
        std::memcpy(&even, &low, sizeof low);
        std::memcpy(&odd, &high, sizeof high);
    }

    static float one(Stored value) {
        const uint32_t raw = uint32_t(value) << 16;
        float found;
        std::memcpy(&found, &raw, sizeof found);
        return found;
    }

    static Stored rounded(float value) {  // to nearest, ties to even
        uint32_t raw;
        std::memcpy(&raw, &value, sizeof raw);
        return Stored((raw + 0x7fff + ((raw >> 16) & 1)) >> 16);
    }

    static int slot(int number) { return number < LANES ? 2 * number : 2 * (number - LANES) + 1; }

    static void in_order(Lanes even, Lanes odd, float* to) {
        store(to, interleaved<0>(even, odd, Numbered()));
        store(to + LANES, interleaved<LANES / 2>(even, odd, Numbered()));
    }
};

struct Fp32 {
    typedef float Stored;

    static void pair(const Stored* from, Lanes& first, Lanes& second) {
        first = load(from);
        second = load(from + LANES);
    }

    static float one(Stored value) { return value; }
    static Stored rounded(float value) { return value; }
    static int slot(int number) { return number; }

    static void in_order(Lanes first, Lanes second, float* to) {
        store(to, first);
        store(to + LANES, second);
    }
};

// Weights alone, each row with a scale of its own.
struct Int8 {
    typedef int8_t Stored;
    typedef int8_t Bytes __attribute__((vector_size(LANES)));

    static Lanes lanes(const Stored* from) {
#if defined(DRAFTRANK_WIDE)
        return (Lanes)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)from)));
#elif defined(__AVX2__)
        return (Lanes)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)from)));
#else
        Bytes raw;
        std::memcpy(&raw, from, sizeof raw);
        return __builtin_convertvector(__builtin_convertvector(raw, Whole), Lanes);
#endif
    }

    static void pair(const Stored* from, Lanes& first, Lanes& second) {
        first = lanes(from);
        second = lanes(from + LANES);
    }

    static int slot(int number) { return number; }
};

// ---------------------------------------------------------------------------------------------- products

// Functions of 1, 2, … tokens (or queries), which are written out for each.
template <template <int> class Function, int... BEFORE>
constexpr auto by_count(std::integer_sequence<int, BEFORE...>) {
    return std::array{&Function<BEFORE + 1>::run...};
}

// Calls the functions of few tokens until all are done, with as equal parts as there can be.
template <int MOST, class Call>
inline void in_passes(int tokens, Call call) {
    const int passes = (tokens + MOST - 1) / MOST;
    for (int pass = 0, done = 0; pass < passes; ++pass) {
        const int now = (tokens - done + passes - pass - 1) / (passes - pass);
        call(done, now);
        done += now;
    }
}

// Weights in panels of some rows: of each, first what all its rows multiply the first STEP inputs with, then the next.
// Missing rows and inputs are zeros.

// Multiplied in fp32. More blocks of rows, more sums at a time: those of one token alone wait for each other.
template <class Kind, int BLOCKS = 1>
struct Widened {
    typedef typename Kind::Stored Stored;
    typedef float Read;
    static constexpr int ROWS = BLOCKS * BLOCK, STEP = 1, MAX_TOKENS = MAX_SUMS;

    static int slot(int row, int) { return row / BLOCK * BLOCK + Kind::slot(row % BLOCK); }
    static void ready(const float* from, int64_t count, Read* to) { std::copy(from, from + count, to); }

    // One panel times TOKENS vectors of `steps` inputs: to[token · stride + row].
    template <int TOKENS>
    struct Panel {
        // Blocks of rows at a time: of several tokens as many as have room for their sums beside weights and an input.
        static constexpr int together() {
            int blocks = BLOCKS;
            while (TOKENS > 1 && blocks > 1 && 2 * blocks * (TOKENS + 1) >= REGISTERS) blocks /= 2;
            return blocks;
        }

        static void run(
            const Stored* panel, const float* scales, int64_t steps, const Read* x, float* to, int64_t stride
        ) {
            constexpr int PARTS = 2 * together();
            for (int row = 0; row < ROWS; row += PARTS * LANES) {
                Lanes sums[TOKENS][PARTS] = {};
                const Stored* stored = panel + row;
                for (int64_t i = 0; i < steps; ++i, stored += ROWS) {
                    __builtin_prefetch(stored + AHEAD / sizeof(Stored));
                    Lanes weights[PARTS];
                    DRAFTRANK_UNROLL for (int part = 0; part < PARTS; part += 2)
                        Kind::pair(stored + part * LANES, weights[part], weights[part + 1]);
                    DRAFTRANK_UNROLL for (int t = 0; t < TOKENS; ++t) {
                        const Lanes input = everywhere(x[t * steps + i]);
                        DRAFTRANK_UNROLL for (int part = 0; part < PARTS; ++part)
                            sums[t][part] = fused(weights[part], input, sums[t][part]);
                    }
                }
                DRAFTRANK_UNROLL for (int t = 0; t < TOKENS; ++t)
                    DRAFTRANK_UNROLL for (int part = 0; part < PARTS; ++part) {
                        const Lanes sum = sums[t][part];
                        const int at = row + part * LANES;
                        store(to + t * stride + at, scales ? sum * load(scales + at) : sum);
                    }
            }
        }
    };
};
typedef Widened<Int8, 64 / BLOCK> Int8Weights;

#if defined(DRAFTRANK_PAIRS)
// Bf16 weights times inputs that are rounded to bf16.
struct Pairs {
    typedef uint16_t Stored;
    typedef uint16_t Read;
    static constexpr int ROWS = 32, STEP = 2, MAX_TOKENS = MAX_SUMS;

    static int slot(int row, int input) { return row * STEP + input; }

    static void ready(const float* from, int64_t count, Read* to) {
        int64_t i = 0;
        for (; i + 16 <= count; i += 16)
            _mm256_storeu_si256((__m256i*)(to + i), (__m256i)_mm512_cvtneps_pbh(_mm512_loadu_ps(from + i)));
        for (; i < count; ++i) to[i] = Bf16::rounded(from[i]);
        if (count % STEP) to[count] = 0;
    }

    template <int TOKENS>
    struct Panel {
        static void run(
            const Stored* panel, const float*, int64_t steps, const Read* x, float* to, int64_t stride
        ) {
            __m512 sums[TOKENS][2] = {};
            for (int64_t i = 0; i < steps; ++i, panel += ROWS * STEP) {
                if constexpr (TOKENS > 6) {  // with fewer the processor itself looks ahead far enough
                    __builtin_prefetch(panel + AHEAD / sizeof(Stored), 0, 2);
                    __builtin_prefetch(panel + AHEAD / sizeof(Stored) + ROWS, 0, 2);
                }
                const __m512bh first = (__m512bh)_mm512_loadu_si512(panel);
                const __m512bh second = (__m512bh)_mm512_loadu_si512(panel + ROWS);
                DRAFTRANK_UNROLL for (int t = 0; t < TOKENS; ++t) {
                    int32_t both;
                    std::memcpy(&both, x + (t * steps + i) * STEP, sizeof both);
                    const __m512bh input = (__m512bh)_mm512_set1_epi32(both);
                    sums[t][0] = _mm512_dpbf16_ps(sums[t][0], first, input);
                    sums[t][1] = _mm512_dpbf16_ps(sums[t][1], second, input);
                }
            }
            DRAFTRANK_UNROLL for (int t = 0; t < TOKENS; ++t)
                for (int half = 0; half < 2; ++half) _mm512_storeu_ps(to + t * stride + half * 16, sums[t][half]);
        }
    };
};
typedef Pairs Bf16Keys;
#else
typedef Widened<Bf16> Bf16Keys;
#endif

#if defined(DRAFTRANK_TILES)
// The same by AMX, of up to 32 tokens at a time: tiles of 16 tokens and of 16 rows, 32 inputs each. A token's sums do not
// depend on the other rows of its tile.
struct Tiles {
    typedef uint16_t Stored;
    typedef uint16_t Read;
    static constexpr int SIDE = 16, ROWS = 2 * SIDE, STEP = 32, MAX_TOKENS = 2 * SIDE;
    static constexpr int64_t TILE = SIDE * STEP, LINE = 64;  // numbers of a tile; bytes of one of its lines

    static int slot(int row, int input) {
        return int(row / SIDE * TILE) + input / 2 * (2 * SIDE) + row % SIDE * 2 + input % 2;
    }

    static void ready(const float* from, int64_t count, Read* to) {
        Pairs::ready(from, count, to);
        std::fill(to + count, to + (count + STEP - 1) / STEP * STEP, Read(0));
    }

    // What `ldtilecfg` reads: lines of 64 bytes, and how many of them each tile has.
    struct alignas(64) Sizes {
        uint8_t palette = 1, start = 0, reserved[14] = {};
        uint16_t bytes[16] = {};
        uint8_t lines[16] = {};

        Sizes(int first, int rest) {
            for (const int tile : {0, 1, 4}) set(tile, first);
            for (const int tile : {2, 3, 5}) set(tile, rest);
            for (const int tile : {6, 7}) set(tile, SIDE);
        }

        void set(int tile, int count) {
            bytes[tile] = count ? LINE : 0;
            lines[tile] = uint8_t(count);
        }
    };

    template <int TOKENS>
    struct Panel {
        static void run(
            const Stored* panel, const float*, int64_t steps, const Read* x, float* to, int64_t stride
        ) {
            static const Sizes sizes(std::min(TOKENS, SIDE), std::max(TOKENS - SIDE, 0));
            const int64_t length = steps * STEP, across = length * sizeof(Read), below = stride * sizeof(float);
            __asm__ volatile("" ::: "memory");  // the intrinsics do not say what they read
            _tile_loadconfig(&sizes);
            _tile_zero(0);
            _tile_zero(1);
            if constexpr (TOKENS > SIDE) {
                _tile_zero(2);
                _tile_zero(3);
            }
            for (int64_t i = 0; i < steps; ++i, panel += 2 * TILE) {
                for (int64_t line = 0; line < 2 * SIDE; ++line)
                    __builtin_prefetch(panel + (AHEAD + line * LINE) / int64_t(sizeof(Stored)));
                _tile_loadd(6, panel, LINE);
                _tile_loadd(7, panel + TILE, LINE);
                _tile_loadd(4, x + i * STEP, across);
                _tile_dpbf16ps(0, 4, 6);
                _tile_dpbf16ps(1, 4, 7);
                if constexpr (TOKENS > SIDE) {
                    _tile_loadd(5, x + SIDE * length + i * STEP, across);
                    _tile_dpbf16ps(2, 5, 6);
                    _tile_dpbf16ps(3, 5, 7);
                }
            }
            _tile_stored(0, to, below);
            _tile_stored(1, to + SIDE, below);
            if constexpr (TOKENS > SIDE) {
                _tile_stored(2, to + SIDE * stride, below);
                _tile_stored(3, to + SIDE * stride + SIDE, below);
            }
            _tile_release();
            __asm__ volatile("" ::: "memory");
        }
    };
};
typedef Tiles Bf16Weights;
#else
typedef Bf16Keys Bf16Weights;
#endif

constexpr int64_t parts(int64_t count, int64_t size) { return (count + size - 1) / size; }

// Of a ready vector: the inputs in whole steps.
template <class Weights>
constexpr int64_t length_of(int64_t inputs) {
    return parts(inputs, Weights::STEP) * Weights::STEP;
}

// Where of a packed matrix a number lies.
template <class Weights>
inline int64_t offset(int64_t row, int64_t input, int64_t inputs) {
    constexpr int ROWS = Weights::ROWS, STEP = Weights::STEP;
    return row / ROWS * ROWS * length_of<Weights>(inputs) + input / STEP * (ROWS * STEP) +
           Weights::slot(int(row % ROWS), int(input % STEP));
}

// A matrix in panels, and what each row is multiplied with, for whole panels; null: nothing. Of blocks, their type.
struct Matrix {
    const void* stored;
    const float* scales;
    int32_t type;
};

// Panels `from` to `end` of a matrix [outputs, inputs] times ready vectors: to[token · stride + row].
template <class Weights>
void multiply(
    Matrix matrix, int64_t outputs, int64_t inputs, const typename Weights::Read* x, int tokens, int64_t from,
    int64_t end, float* to, int64_t stride
) {
    constexpr int ROWS = Weights::ROWS, MOST = Weights::MAX_TOKENS;
    static constexpr auto BY_TOKENS = by_count<Weights::template Panel>(std::make_integer_sequence<int, MOST>());
    const int64_t steps = parts(inputs, Weights::STEP), length = length_of<Weights>(inputs);
    float whole[MOST * ROWS];
    for (int64_t panel = from; panel < end; ++panel) {
        const int64_t row = panel * ROWS;
        const auto* stored = static_cast<const typename Weights::Stored*>(matrix.stored) + row * length;
        const float* scales = matrix.scales ? matrix.scales + row : nullptr;
        in_passes<MOST>(tokens, [&](int done, int now) {
            if (row + ROWS <= outputs) {
                BY_TOKENS[now - 1](stored, scales, steps, x + done * length, to + done * stride + row, stride);
                return;
            }
            BY_TOKENS[now - 1](stored, scales, steps, x + done * length, whole, ROWS);
            for (int t = 0; t < now; ++t)
                std::copy(whole + t * ROWS, whole + t * ROWS + outputs - row, to + (done + t) * stride + row);
        });
    }
}

template <class Weights>
int64_t packed_bytes(int64_t outputs, int64_t inputs) {
    return parts(outputs, Weights::ROWS) * Weights::ROWS * length_of<Weights>(inputs) * sizeof(typename Weights::Stored);
}

template <class Weights>
void packed(const void* matrix, int64_t outputs, int64_t inputs, void* to) {
    const auto* from = static_cast<const typename Weights::Stored*>(matrix);
    auto* into = static_cast<typename Weights::Stored*>(to);
    std::memset(to, 0, size_t(packed_bytes<Weights>(outputs, inputs)));
#pragma omp parallel for
    for (int64_t row = 0; row < outputs; ++row)
        for (int64_t i = 0; i < inputs; ++i) into[offset<Weights>(row, i, inputs)] = from[row * inputs + i];
}

}  // namespace

#include "gguf_blocks.h"

namespace {

// ---------------------------------------------------------------------------------------------- the rest of a layer

float inverse_root_mean_square(const float* x, int count, float epsilon) {
    Lanes squares = {};
    int i = 0;
    for (; i + LANES <= count; i += LANES) {
        const Lanes part = load(x + i);
        squares = fused(part, part, squares);
    }
    float sum = total(squares);
    for (; i < count; ++i) sum += x[i] * x[i];
    return 1.f / std::sqrt(sum / count + epsilon);
}

void weighted(const float* x, float factor, const float* weight, int count, float* to) {
    int i = 0;
    for (; i + LANES <= count; i += LANES) store(to + i, load(x + i) * factor * load(weight + i));
    for (; i < count; ++i) to[i] = x[i] * factor * weight[i];
}

void normed(const float* x, const float* weight, int count, float epsilon, float* to) {
    weighted(x, inverse_root_mean_square(x, count, epsilon), weight, count, to);
}

inline Lanes sigmoid(Lanes x) { return 1.f / (1.f + exponential(-x)); }

// cap · tanh(x / cap)
inline Lanes capped(Lanes x, float cap) { return cap * (2.f * sigmoid(x * (2.f / cap)) - 1.f); }

inline Lanes activated(Lanes x, int gelu) {
    if (!gelu) return x * sigmoid(x);  // SiLU
    return x * sigmoid(1.595769122f * (x + 0.044715f * x * x * x));  // GELU by tanh
}

// One thread's part, from `from` to `to`, of `count` things.
struct Share {
    int64_t from, to;
    Share(int64_t count, int thread, int threads) : from(count * thread / threads), to(count * (thread + 1) / threads) {}
};

}  // namespace

extern "C" {

// All matrices [outputs, inputs] in one type: 0 fp32, 1 bf16, 2 int8, 3 blocks of a GGUF file. Norms in fp32, with what they add
// to their weight. Keys and values are held in bf16 beside weights in bf16 and blocks, else in fp32; keys as weights are, since
// queries multiply them.
struct Shape {
    int32_t hidden, query_heads, kv_heads, head_size;
    int32_t rotary;  // how many first dimensions of a head are rotated
    int32_t feed_forward, gelu, weights;
    float epsilon;
    float input_scale;  // what the first layer's input is multiplied with
    int32_t paired;     // whether each row of the input is an embedding and a state, as an EAGLE-3 head reads them
    int32_t norm_before_residual;  // whether what such a head's layer adds to is the normed state
};

struct Linear {
    Matrix matrix;
    const float* bias;  // null: none
};

// Norms: null where there is none.
struct Layer {
    const float* embedding_norm;            // of an EAGLE-3 head's layer, whose attention reads both
    const float* attention_norm;
    Linear queries, keys, values, attention_output;
    const float *query_norm, *key_norm;     // [head size], or [heads · head size] where `joint_norms`
    const float *attention_output_norm, *feed_forward_norm;
    Linear gate, up, feed_forward_output;
    const float* feed_forward_output_norm;
    int32_t joint_norms;                    // whether all heads of a token are normed together
    float scale;                            // what scores are multiplied with
    float score_cap;                        // which scores are softcapped at; 0: none
    float residual_scale;                   // what attention and the feed-forward network give is multiplied with
    void *cached_keys, *cached_values;      // [kv heads, capacity, head size], keys in panels, values in `Rows` of some kind
    int64_t capacity, kind;                 // a capacity of whole panels
    float* output;  // [tokens, hidden]: where the layer's output is wanted too; null: nowhere
};

// What layers of one kind of attention see and how they are rotated, of a forward's tokens.
struct Kind {
    const float *cosine, *sine;  // [tokens, rotary]
    const int64_t* position;     // for each token, how many stand before it
    const int64_t* first;        // for each token, the first position that it sees
    const uint64_t* ancestors;         // for each token, which of up to 64 positions from the root on it sees
};

// The same of all positions.
struct Positions {
    const float *cosine, *sine;  // [positions, rotary]
    int64_t window;              // how many last positions are seen; 0: all
    int64_t count;               // of positions
};

struct Typed {
    Matrix matrix;
    int32_t weights;  // its type, as `Shape` numbers them
    int64_t outputs;
};

// What stands around a decoder's layers.
struct Ends {
    const void* embedding;  // [rows, hidden], row after row, or blocks in panels
    int64_t rows;           // token ids are smaller
    int32_t embedded;       // its type, as `Shape` numbers them: not int8
    int32_t block_type;     // of an embedding in blocks
    float scale;            // what embeddings are multiplied with, and then rounded to their type
    const float* norm;
    Typed thin;             // of a low-rank head, what comes before `head`; no outputs: there is none
    Typed head;
    float logit_divisor;    // what logits are divided by,
    float logit_cap;        // and then softcapped at; 0: not
    const int64_t* token_ids;  // of the head's outputs; null: their numbers
};

}  // extern "C"

namespace {

// Numbers on a boundary of cache lines: vectors that cross one are read at half the speed.
template <class Number>
struct Aligned {
    typedef Number value_type;
    Number* allocate(size_t count) { return static_cast<Number*>(::operator new(count * sizeof(Number), BOUNDARY)); }
    void deallocate(Number* at, size_t) { ::operator delete(at, BOUNDARY); }
    bool operator==(const Aligned&) const { return true; }
    bool operator!=(const Aligned&) const { return false; }
};

template <class Number>
using Numbers = std::vector<Number, Aligned<Number>>;
typedef Numbers<float> Floats;

struct Buffers {
    Floats made, attended, gate, up, out;
};

template <class Inputs, class Queries>
struct Own {
    Floats hidden, normed, scores;
    Numbers<Inputs> x;
    Numbers<Queries> queries;
};

// Of a token's heads, one after the other, that of a number: normed if that is asked for, with all of them (`joint`) or by
// itself, rotated, times `factor`.
void rotated(
    const float* heads, int number, int count, const float* norm, bool joint, const Shape& s, const float* cosine,
    const float* sine, float factor, float* to
) {
    const int size = s.head_size, end = s.rotary, half = end / 2;
    const float* x = heads + number * size;
    float scaled[MAX_HEAD_SIZE];
    if (norm && joint) {
        const float even = inverse_root_mean_square(heads, count * size, s.epsilon);
        weighted(x, even, norm + number * size, size, scaled);
        x = scaled;
    } else if (norm) {
        normed(x, norm, size, s.epsilon, scaled);
        x = scaled;
    }
    for (int d = 0; d < half; ++d) to[d] = (x[d] * cosine[d] + x[d + half] * sine[d]) * factor;
    for (int d = half; d < end; ++d) to[d] = (x[d] * cosine[d] + x[d - half] * sine[d]) * factor;
    for (int d = end; d < size; ++d) to[d] = x[d] * factor;
}

// Bytes of values that all queries read before the next ones: they stay in the nearest cache.
constexpr int64_t NEAR = 16 << 10;

// Held values and their weighted sums. `add` gives those of some queries, whose weights [queries, stride] are of the positions
// from one on at which a panel begins: all tokens see `before` of them, and then each its ancestors in the tree; other weights are
// zeros. `token` says whose a query is. `outs` get the sums times `factors`.
template <class Number>
struct Rows {
    typedef typename Number::Stored Stored;

    static int64_t offset(int64_t position, int d, int size) { return position * size + d; }
    static Stored rounded(float value) { return Number::rounded(value); }

    template <int QUERIES>
    struct Sums {
        static void run(
            const Stored* values, int64_t count, int size, const float* weights, int64_t stride, const float* factors,
            float* const* outs
        ) {
            Lanes kept[MAX_HEAD_SIZE / BLOCK][QUERIES][2];  // of all positions before `from`
            const int blocks = size / BLOCK;
            const int64_t few = NEAR / (size * sizeof(Stored));
            for (int64_t from = 0; from < count; from += few) {
                const int64_t end = std::min(count, from + few);
                for (int block = 0; block < blocks; ++block) {
                    Lanes sums[QUERIES][2];
                    DRAFTRANK_UNROLL for (int q = 0; q < QUERIES; ++q)
                        DRAFTRANK_UNROLL for (int part = 0; part < 2; ++part)
                            sums[q][part] = from ? kept[block][q][part] : Lanes{};
                    for (int64_t j = from; j < end; ++j) {
                        Lanes a, b;
                        Number::pair(values + j * size + block * BLOCK, a, b);
                        DRAFTRANK_UNROLL for (int q = 0; q < QUERIES; ++q) {
                            const Lanes weight = everywhere(weights[q * stride + j]);
                            sums[q][0] = fused(weight, a, sums[q][0]);
                            sums[q][1] = fused(weight, b, sums[q][1]);
                        }
                    }
                    DRAFTRANK_UNROLL for (int q = 0; q < QUERIES; ++q)
                        DRAFTRANK_UNROLL for (int part = 0; part < 2; ++part) kept[block][q][part] = sums[q][part];
                }
            }
            for (int block = 0; block < blocks; ++block)
                for (int q = 0; q < QUERIES; ++q)
                    Number::in_order(
                        kept[block][q][0] * factors[q], kept[block][q][1] * factors[q], outs[q] + block * BLOCK
                    );
            for (int d = blocks * BLOCK; d < size; ++d)
                for (int q = 0; q < QUERIES; ++q) {
                    float sum = 0;
                    for (int64_t j = 0; j < count; ++j)
                        sum = fused(weights[q * stride + j], Number::one(values[j * size + d]), sum);
                    outs[q][d] = sum * factors[q];
                }
        }
    };

    template <class Token>
    static void add(
        const Stored* values, int64_t, int64_t seen, int size, const Kind&, Token, int queries, const float* weights,
        int64_t stride, const float* factors, float* const* outs
    ) {
        static constexpr auto BY_QUERIES = by_count<Sums>(std::make_integer_sequence<int, MAX_SUMS>());
        in_passes<MAX_SUMS>(queries, [&](int done, int now) {
            BY_QUERIES[now - 1](values, seen, size, weights + done * stride, stride, &factors[done], &outs[done]);
        });
    }
};

#if defined(DRAFTRANK_PAIRS)
// Of two positions together, times weights that are rounded to bf16. Which two go together depends on their positions alone,
// wherever in a tree they lie: where that is not in a row, what a token sees of the tree is copied together first.
struct PairedRows {
    typedef uint16_t Stored;

    static int64_t offset(int64_t position, int d, int size) { return (position / 2 * size + d) * 2 + position % 2; }
    static Stored rounded(float value) { return Bf16::rounded(value); }

    template <int QUERIES>
    struct Sums {
        // Dimensions from `d` on, some at a time; gives the first one left.
        template <int PARTS>
        static int add(
            const Stored* values, int64_t pairs, int size, const Stored* weights, int64_t stride, float* to, int d
        ) {
            for (; d + PARTS * 16 <= size; d += PARTS * 16) {
                __m512 sums[QUERIES][PARTS];
                DRAFTRANK_UNROLL for (int q = 0; q < QUERIES; ++q)
                    DRAFTRANK_UNROLL for (int part = 0; part < PARTS; ++part)
                        sums[q][part] = _mm512_loadu_ps(to + q * size + d + part * 16);
                for (int64_t i = 0; i < pairs; ++i) {
                    __m512bh rows[PARTS];
                    DRAFTRANK_UNROLL for (int part = 0; part < PARTS; ++part)
                        rows[part] = (__m512bh)_mm512_loadu_si512(values + (i * size + d + part * 16) * 2);
                    DRAFTRANK_UNROLL for (int q = 0; q < QUERIES; ++q) {
                        int32_t both;
                        std::memcpy(&both, weights + q * stride + 2 * i, sizeof both);
                        const __m512bh weight = (__m512bh)_mm512_set1_epi32(both);
                        DRAFTRANK_UNROLL for (int part = 0; part < PARTS; ++part)
                            sums[q][part] = _mm512_dpbf16_ps(sums[q][part], rows[part], weight);
                    }
                }
                DRAFTRANK_UNROLL for (int q = 0; q < QUERIES; ++q)
                    DRAFTRANK_UNROLL for (int part = 0; part < PARTS; ++part)
                        _mm512_storeu_ps(to + q * size + d + part * 16, sums[q][part]);
            }
            return d;
        }

        static void run(const Stored* values, int64_t pairs, int size, const Stored* weights, int64_t stride, float* to) {
            const int64_t few = NEAR / (2 * size * int64_t(sizeof(Stored)));
            for (; pairs > 0; pairs -= few, values += few * 2 * size, weights += 2 * few) {
                const int64_t now = std::min(pairs, few);
                int d = 0;
                if constexpr (QUERIES * 4 <= REGISTERS - 8) d = add<4>(values, now, size, weights, stride, to, d);
                d = add<2>(values, now, size, weights, stride, to, d);
                d = add<1>(values, now, size, weights, stride, to, d);
                for (; d < size; ++d)
                    for (int q = 0; q < QUERIES; ++q)
                        for (int64_t j = 0; j < 2 * now; ++j)
                            to[q * size + d] = fused(
                                Bf16::one(weights[q * stride + j]), Bf16::one(values[offset(j, d, size)]), to[q * size + d]
                            );
            }
        }
    };

    template <class Token>
    static void add(
        const Stored* values, int64_t before, int64_t seen, int size, const Kind& kind, Token token, int queries,
        const float* weights, int64_t stride, const float* factors, float* const* outs
    ) {
        static thread_local Numbers<Stored> rounded, near;
        static thread_local Floats sums;
        rounded.resize(size_t(queries) * stride);
        Pairs::ready(weights, queries * stride, rounded.data());
        sums.assign(size_t(queries) * size, 0.f);
        bool in_a_row = true;
        for (int q = 0; q < queries; ++q) {
            const uint64_t ancestors = kind.ancestors[token(q)];
            in_a_row = in_a_row && !(ancestors & (ancestors + 1));
        }
        const int64_t pairs = in_a_row ? parts(seen, 2) : before / 2;
        static constexpr auto BY_QUERIES = by_count<Sums>(std::make_integer_sequence<int, MAX_SUMS>());
        in_passes<MAX_SUMS>(queries, [&](int done, int now) {
            BY_QUERIES[now - 1](
                values, pairs, size, rounded.data() + done * stride, stride, sums.data() + done * size
            );
        });
        constexpr int MAX_NEAR = 66;  // one that lies before the tree, its 64 nodes, and nothing
        near.resize(size_t(MAX_NEAR) * size);
        for (int from = 0, end = 0; from < queries && !in_a_row; from = end) {
            for (end = from; end < queries && token(end) == token(from); ++end) {}
            const uint64_t ancestors = kind.ancestors[token(from)];
            int64_t at[MAX_NEAR];
            int count = 0;
            // The first of its ancestors goes with the last one before the tree, or, where that lies outside the window, with the
            // root, which then does too.
            if ((kind.position[token(from)] + 1 - __builtin_popcountll(ancestors)) % 2) at[count++] = before - (ancestors & 1);
            for (uint64_t left = ancestors; left; left &= left - 1) at[count++] = before + __builtin_ctzll(left);
            const bool alone = count % 2;
            if (alone) at[count++] = before;  // times nothing
            for (int i = 0; i < count; i += 2)
                for (int d = 0; d < size; ++d) {
                    near[(i / 2 * size + d) * 2] = values[offset(at[i], d, size)];
                    near[(i / 2 * size + d) * 2 + 1] = values[offset(at[i + 1], d, size)];
                }
            for (int q = from; q < end; ++q) {
                Stored its_weights[MAX_NEAR];
                for (int i = 0; i < count; ++i) its_weights[i] = rounded[q * stride + at[i]];
                if (alone) its_weights[count - 1] = 0;
                Sums<1>::run(near.data(), count / 2, size, its_weights, 0, sums.data() + q * size);
            }
        }
        for (int q = 0; q < queries; ++q)
            for (int d = 0; d < size; ++d) outs[q][d] = sums[q * size + d] * factors[q];
    }
};
typedef PairedRows Bf16Rows;
#else
typedef Rows<Bf16> Bf16Rows;
#endif

template <class Keys, class Values, class Own>
void attend(
    const Shape& s, const Layer& layer, const Kind& kind, int tokens, int64_t root, int64_t end, Share share,
    Buffers& all, Own& own
) {
    const int size = s.head_size, group = s.query_heads / s.kv_heads, per_head = group * tokens;
    const int width = (s.query_heads + 2 * s.kv_heads) * size, count = int(share.to - share.from);
    if (count <= 0) return;
    own.queries.resize(size_t(count) * size);
    int64_t base = root;
    for (int t = 0; t < tokens; ++t) base = std::min(base, kind.first[t]);
    base = base / Keys::ROWS * Keys::ROWS;  // whole panels, in which a position's lane is always the same
    const int64_t seen = end - base, panels = parts(seen, Keys::ROWS), stride = panels * Keys::ROWS;
    own.scores.resize(size_t(count) * stride);
    std::vector<float> factors(count);
    std::vector<float*> outs(count);
    for (int64_t begin = share.from; begin < share.to;) {
        const int64_t head = begin / per_head, stop = std::min(share.to, (head + 1) * per_head);
        const int queries = int(stop - begin);
        const int64_t held = (head * layer.capacity + base) * size;
        const auto* keys = static_cast<const typename Keys::Stored*>(layer.cached_keys) + held;
        const auto* values = static_cast<const typename Values::Stored*>(layer.cached_values) + held;
        float* scores = own.scores.data();
        for (int q = 0; q < queries; ++q) {
            const int64_t query = begin + q - head * per_head;
            const int t = int(query / group), number = int(head * group + query % group);
            float one[MAX_HEAD_SIZE];
            rotated(
                all.made.data() + int64_t(t) * width, number, s.query_heads, layer.query_norm, layer.joint_norms, s,
                kind.cosine + t * s.rotary, kind.sine + t * s.rotary, layer.scale, one
            );
            Keys::ready(one, size, own.queries.data() + q * size);
            outs[q] = all.attended.data() + (int64_t(t) * s.query_heads + number) * size;
        }
        multiply<Keys>({keys, nullptr, 0}, stride, size, own.queries.data(), queries, 0, panels, scores, stride);
        for (int64_t i = 0; layer.score_cap > 0 && i < queries * stride; i += LANES)
            store(scores + i, capped(load(scores + i), layer.score_cap));
        for (int q = 0; q < queries; ++q) {
            const int t = int((begin + q - head * per_head) / group);
            float* mine = scores + q * stride;
            for (int64_t j = 0; j < kind.first[t] - base; ++j) mine[j] = -INFINITY;
            for (int64_t j = root; j < end; ++j)
                if (!(kind.ancestors[t] >> (j - root) & 1)) mine[j - base] = -INFINITY;
            for (int64_t j = seen; j < stride; ++j) mine[j] = -INFINITY;
            Lanes most = load(mine);
            for (int64_t j = LANES; j < stride; j += LANES) {
                const Lanes next = load(mine + j);
                most = next > most ? next : most;
            }
            float highest = most[0];
            for (int lane = 1; lane < LANES; ++lane) highest = std::max(highest, float(most[lane]));
            // A weight's lane is that of its token's position, wherever in the tree the token lies: all that a token
            // sees in the tree are the last ones before it.
            float sums[LANES] = {};
            Lanes before = {};
            const int64_t whole = (root - base) / LANES * LANES;
            for (int64_t j = 0; j < whole; j += LANES) {
                const Lanes weights = exponential(load(mine + j) - highest);
                store(mine + j, weights);
                before += weights;
            }
            for (int64_t j = whole; j < stride; j += LANES) store(mine + j, exponential(load(mine + j) - highest));
            store(sums, before);
            for (int64_t j = whole; j < root - base; ++j) sums[j % LANES] += mine[j];
            int64_t position = kind.position[t] + 1 - __builtin_popcountll(kind.ancestors[t]);
            for (uint64_t left = kind.ancestors[t]; left; left &= left - 1)
                sums[position++ % LANES] += mine[root - base + __builtin_ctzll(left)];
            factors[q] = 1.f / total(load(sums));
        }
        const auto token = [&](int q) { return int((begin + q - head * per_head) / group); };
        Values::add(
            values, root - base, seen, size, kind, token, queries, scores, stride, factors.data(), outs.data()
        );
        begin = stop;
    }
}

template <class Weights, class Keys, class Values>
void forward(
    const Shape& s, const Layer* layers, int depth, const Kind* kinds, const float* input, float* output, int tokens,
    int64_t start, int64_t root, int threads
) {
    const int hidden = s.hidden, size = s.head_size, channels = s.feed_forward;
    const int asked = s.query_heads * size, shared = s.kv_heads * size, width = asked + 2 * shared;
    static thread_local Buffers kept;
    Buffers& all = kept;
    all.made.resize(size_t(tokens) * width);
    all.attended.resize(size_t(tokens) * asked);
    all.gate.resize(size_t(tokens) * channels);
    all.up.resize(size_t(tokens) * channels);
    all.out.resize(size_t(tokens) * hidden);
#pragma omp parallel num_threads(threads)
    {
        const int thread = omp_get_thread_num(), count = omp_get_num_threads();
        static thread_local Own<typename Weights::Read, typename Keys::Read> mine;
        auto& own = mine;
        const int ahead = s.paired ? hidden : 0, wide = hidden + ahead;  // the embedding stands before the state
        own.hidden.resize(size_t(tokens) * hidden);
        for (int t = 0; t < tokens; ++t)
            std::copy_n(input + int64_t(t) * wide + ahead, hidden, own.hidden.data() + int64_t(t) * hidden);
        if (s.input_scale != 1)
            for (float& x : own.hidden) x *= s.input_scale;
        own.normed.resize(size_t(std::max(wide, 1)));
        own.x.resize(size_t(tokens) * length_of<Weights>(std::max({wide, asked, channels})));
        const auto read = [&](const float* from, int64_t count, int token) {
            Weights::ready(from, count, own.x.data() + token * length_of<Weights>(count));
        };
        const auto read_normed = [&](const float* norm) {
            for (int t = 0; t < tokens; ++t) {
                const float* from = own.hidden.data() + int64_t(t) * hidden;
                if (norm) {
                    normed(from, norm, hidden, s.epsilon, own.normed.data());
                    from = own.normed.data();
                }
                read(from, hidden, t);
            }
        };
        const auto read_pairs = [&](const Layer& layer) {
            for (int t = 0; t < tokens; ++t) {
                float *state = own.hidden.data() + int64_t(t) * hidden, *both = own.normed.data();
                normed(input + int64_t(t) * wide, layer.embedding_norm, hidden, s.epsilon, both);
                normed(state, layer.attention_norm, hidden, s.epsilon, both + hidden);
                if (s.norm_before_residual) std::copy_n(both + hidden, hidden, state);
                read(both, wide, t);
            }
        };
        const auto product = [&](const Linear& of, int64_t inputs, int64_t outputs, float* to, int64_t stride) {
            const Share panels(parts(outputs, Weights::ROWS), thread, count);
            multiply<Weights>(of.matrix, outputs, inputs, own.x.data(), tokens, panels.from, panels.to, to, stride);
            const int64_t end = std::min(panels.to * Weights::ROWS, outputs);
            for (int t = 0; of.bias && t < tokens; ++t)
                for (int64_t row = panels.from * Weights::ROWS; row < end; ++row) to[t * stride + row] += of.bias[row];
        };
        const auto add = [&](const float* norm, float scale) {
            for (int t = 0; t < tokens; ++t) {
                const float* more = all.out.data() + int64_t(t) * hidden;
                if (norm) {
                    normed(more, norm, hidden, s.epsilon, own.normed.data());
                    more = own.normed.data();
                }
                float* to = own.hidden.data() + int64_t(t) * hidden;
                for (int d = 0; d < hidden; ++d) to[d] += scale * more[d];
            }
        };
        for (int number = 0; number < depth; ++number) {
            const Layer& layer = layers[number];
            const Kind& kind = kinds[layer.kind];
            const int read_wide = layer.embedding_norm ? wide : hidden;
            if (layer.embedding_norm)
                read_pairs(layer);
            else
                read_normed(layer.attention_norm);
            product(layer.queries, read_wide, asked, all.made.data(), width);
            product(layer.keys, read_wide, shared, all.made.data() + asked, width);
            product(layer.values, read_wide, shared, all.made.data() + asked + shared, width);
#pragma omp barrier
            const Share slots(int64_t(s.kv_heads) * tokens, thread, count);
            for (int64_t slot = slots.from; slot < slots.to; ++slot) {
                const int64_t head = slot / tokens, t = slot % tokens;
                const int64_t held = head * layer.capacity * size;
                auto* keys = static_cast<typename Keys::Stored*>(layer.cached_keys) + held;
                auto* values = static_cast<typename Values::Stored*>(layer.cached_values) + held;
                const float* made = all.made.data() + t * width + asked;
                const float* value = made + shared + head * size;
                float rotated_key[MAX_HEAD_SIZE];
                rotated(
                    made, int(head), s.kv_heads, layer.key_norm, layer.joint_norms, s, kind.cosine + t * s.rotary,
                    kind.sine + t * s.rotary, 1.f, rotated_key
                );
                for (int d = 0; d < size; ++d) {
                    keys[offset<Keys>(start + t, d, size)] = Values::rounded(rotated_key[d]);
                    values[Values::offset(start + t, d, size)] = Values::rounded(value[d]);
                }
            }
#pragma omp barrier
            const Share queries(int64_t(s.query_heads) * tokens, thread, count);
            attend<Keys, Values>(s, layer, kind, tokens, root, start + tokens, queries, all, own);
#pragma omp barrier
            for (int t = 0; t < tokens; ++t) read(all.attended.data() + int64_t(t) * asked, asked, t);
            product(layer.attention_output, asked, hidden, all.out.data(), hidden);
#pragma omp barrier
            add(layer.attention_output_norm, layer.residual_scale);
            read_normed(layer.feed_forward_norm);
            product(layer.gate, hidden, channels, all.gate.data(), channels);
            product(layer.up, hidden, channels, all.up.data(), channels);
            const Share made(parts(channels, Weights::ROWS), thread, count);  // by this thread
            const int64_t end = std::min<int64_t>(made.to * Weights::ROWS, channels);
            for (int t = 0; t < tokens; ++t) {
                float* gate = all.gate.data() + int64_t(t) * channels;
                const float* up = all.up.data() + int64_t(t) * channels;
                int64_t c = made.from * Weights::ROWS;
                for (; c + LANES <= end; c += LANES)
                    store(gate + c, activated(load(gate + c), s.gelu) * load(up + c));
                for (; c < end; ++c) gate[c] = activated(everywhere(gate[c]), s.gelu)[0] * up[c];
            }
#pragma omp barrier
            for (int t = 0; t < tokens; ++t) read(all.gate.data() + int64_t(t) * channels, channels, t);
            product(layer.feed_forward_output, channels, hidden, all.out.data(), hidden);
#pragma omp barrier
            add(layer.feed_forward_output_norm, layer.residual_scale);
            if (layer.output && thread == 0)
                std::copy(own.hidden.begin(), own.hidden.begin() + int64_t(tokens) * hidden, layer.output);
        }
        if (thread == 0) std::copy(own.hidden.begin(), own.hidden.begin() + int64_t(tokens) * hidden, output);
    }
}

template <class Keys, class Values>
void keep(const Shape& s, const Layer* layers, int depth, int64_t start, const int64_t* path, int count) {
    const int size = s.head_size;
    for (int number = 0; number < depth; ++number)
        for (int head = 0; head < s.kv_heads; ++head) {
            const int64_t held = head * layers[number].capacity * size;
            auto* keys = static_cast<typename Keys::Stored*>(layers[number].cached_keys) + held;
            auto* values = static_cast<typename Values::Stored*>(layers[number].cached_values) + held;
            for (int to = 0; to < count; ++to) {
                if (path[to] == to) continue;
                const int64_t from = start + path[to], into = start + to;
                for (int d = 0; d < size; ++d) {
                    keys[offset<Keys>(into, d, size)] = keys[offset<Keys>(from, d, size)];
                    values[Values::offset(into, d, size)] = values[Values::offset(from, d, size)];
                }
            }
        }
}

template <class Weights>
void product(Matrix matrix, int64_t outputs, int64_t inputs, const float* x, int tokens, float* to, int threads) {
    static thread_local Numbers<typename Weights::Read> kept;
    Numbers<typename Weights::Read>& ready = kept;
    const int64_t length = length_of<Weights>(inputs);
    ready.resize(size_t(tokens) * length);
    for (int t = 0; t < tokens; ++t) Weights::ready(x + t * inputs, inputs, ready.data() + t * length);
    const typename Weights::Read* vectors = ready.data();
#pragma omp parallel num_threads(threads)
    {
        const Share panels(parts(outputs, Weights::ROWS), omp_get_thread_num(), omp_get_num_threads());
        multiply<Weights>(matrix, outputs, inputs, vectors, tokens, panels.from, panels.to, to, outputs);
    }
}

void any_product(const Typed& of, int64_t inputs, const float* x, int tokens, float* to, int threads) {
    static constexpr decltype(&product<Bf16Weights>) BY_WEIGHTS[] = {
        product<Widened<Fp32>>, product<Bf16Weights>, product<Int8Weights>, product<Blocks>
    };
    BY_WEIGHTS[of.weights](of.matrix, of.outputs, inputs, x, tokens, to, threads);
}

void any_forward(
    const Shape& s, const Layer* layers, int depth, const Kind* kinds, const float* input, float* output, int tokens,
    int64_t start, int64_t root, int threads
) {
    typedef Widened<Fp32> Whole;
    typedef Rows<Fp32> Plain;
    static constexpr decltype(&forward<Whole, Whole, Plain>) BY_WEIGHTS[] = {
        forward<Whole, Whole, Plain>, forward<Bf16Weights, Bf16Keys, Bf16Rows>, forward<Int8Weights, Whole, Plain>,
        forward<Blocks, Bf16Keys, Bf16Rows>
    };
    BY_WEIGHTS[s.weights](s, layers, depth, kinds, input, output, tokens, start, root, threads);
}

template <class Stored>
void embed(const Ends& ends, int64_t token, int hidden, float* to) {
    const auto* from = static_cast<const typename Stored::Stored*>(ends.embedding) + token * hidden;
    for (int d = 0; d < hidden; ++d) to[d] = Stored::one(Stored::rounded(ends.scale * Stored::one(from[d])));
}

// Of an embedding in blocks; nothing is rounded.
void embed_row(const Ends& ends, int64_t token, int hidden, float* to) {
    by_type(ends.block_type, [&](auto format) {
        Blocks::row<decltype(format)>(static_cast<const uint8_t*>(ends.embedding), hidden, token, to);
    });
    for (int d = 0; d < hidden; ++d) to[d] *= ends.scale;
}

// Logits [count, outputs] of final states.
void logits_of(const Ends& ends, int hidden, const float* states, int count, float* logits, int threads) {
    static thread_local Floats thin;
    const int64_t narrow = ends.thin.outputs, all = count * ends.head.outputs;
    thin.resize(size_t(count) * narrow);
    if (narrow) any_product(ends.thin, hidden, states, count, thin.data(), threads);
    any_product(ends.head, narrow ? narrow : hidden, narrow ? thin.data() : states, count, logits, threads);
    const float divisor = ends.logit_divisor, cap = ends.logit_cap;
    if (divisor == 1 && !cap) return;
    const auto changed = [=](Lanes x) { return cap ? capped(x / divisor, cap) : x / divisor; };
#pragma omp parallel for num_threads(threads)
    for (int64_t i = 0; i < all / LANES; ++i) store(logits + i * LANES, changed(load(logits + i * LANES)));
    for (int64_t i = all / LANES * LANES; i < all; ++i) logits[i] = changed(everywhere(logits[i]))[0];
}

// The `most` most likely of some logits, the first of equals first, and how likely each is.
void likeliest(const float* logits, int64_t count, int most, int64_t* tokens, float* shares) {
    int found = 0;
    for (int64_t i = 0; i < count; ++i) {
        if (found == most && !(logits[i] > logits[tokens[most - 1]])) continue;
        int rank = found < most ? found++ : most - 1;
        for (; rank && logits[i] > logits[tokens[rank - 1]]; --rank) tokens[rank] = tokens[rank - 1];
        tokens[rank] = i;
    }
    const float highest = logits[tokens[0]];
    Lanes sums = {};
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES) sums += exponential(load(logits + i) - highest);
    float sum = total(sums);
    for (; i < count; ++i) sum += std::exp(logits[i] - highest);
    for (int rank = 0; rank < most; ++rank) shares[rank] = std::exp(logits[tokens[rank]] - highest) / sum;
}

// From token ids and, for an EAGLE-3 head, the states [added, hidden] beside them to the final states and to logits [wanted, outputs], both
// of the last `wanted`: the first rows of `states` become theirs. Those of a head are its layer's outputs, not normed.
void step(
    const Shape& s, const Layer* layers, int depth, const Kind* kinds, const Ends& ends, const int64_t* tokens, int added,
    float* states, int64_t start, int64_t root, int wanted, float* logits, int threads
) {
    const int hidden = s.hidden;
    static thread_local Floats read, out, final;
    const int wide = s.paired ? 2 * hidden : hidden;
    read.resize(size_t(added) * wide);
    out.resize(size_t(added) * hidden);
    static constexpr decltype(&embed_row) embeds[] = {embed<Fp32>, embed<Bf16>, nullptr, embed_row};
    for (int t = 0; t < added; ++t) {
        float* embedded = read.data() + int64_t(t) * wide;
        embeds[ends.embedded](ends, tokens[t], hidden, embedded);
        if (s.paired) std::copy_n(states + int64_t(t) * hidden, hidden, embedded + hidden);
    }
    any_forward(s, layers, depth, kinds, read.data(), out.data(), added, start, root, threads);
    final.resize(size_t(wanted) * hidden);
    for (int row = 0; row < wanted; ++row)
        normed(
            out.data() + int64_t(added - wanted + row) * hidden, ends.norm, hidden, s.epsilon,
            final.data() + int64_t(row) * hidden
        );
    std::copy_n(s.paired ? out.data() + int64_t(added - wanted) * hidden : final.data(), int64_t(wanted) * hidden, states);
    logits_of(ends, hidden, final.data(), wanted, logits, threads);
}

int64_t token_of(const Ends& ends, int64_t output) { return ends.token_ids ? ends.token_ids[output] : output; }

// What the last tokens of a tree at `root` see, by the depths of its nodes and by which nodes each sees.
struct Sight {
    std::vector<int64_t> position, first;
    std::vector<uint64_t> ancestors;
    std::vector<float> cosine, sine;
    std::vector<Kind> kinds;

    Sight(
        const Positions* tables, int count, int size, int64_t root, const std::vector<int>& depths,
        const std::vector<uint64_t>& seen, int tokens
    )
        : position(tokens), first(size_t(count) * tokens), ancestors(size_t(count) * tokens),
          cosine(size_t(count) * tokens * size), sine(cosine.size()) {
        const size_t before = depths.size() - tokens;
        for (int t = 0; t < tokens; ++t) position[t] = root + depths[before + t];
        for (int number = 0; number < count; ++number) {
            const Positions& of = tables[number];
            const size_t mine = size_t(number) * tokens;
            for (int t = 0; t < tokens; ++t) {
                const int64_t farthest = of.window ? std::max<int64_t>(0, position[t] - of.window + 1) : 0;
                first[mine + t] = farthest;
                ancestors[mine + t] = seen[before + t];
                for (size_t node = 0; node < depths.size(); ++node)
                    if (root + depths[node] < farthest) ancestors[mine + t] &= ~(uint64_t(1) << node);
                std::copy_n(of.cosine + position[t] * size, size, &cosine[(mine + t) * size]);
                std::copy_n(of.sine + position[t] * size, size, &sine[(mine + t) * size]);
            }
            kinds.push_back({&cosine[mine * size], &sine[mine * size], position.data(), &first[mine], &ancestors[mine]});
        }
    }

    // The same of a tree by the parent index of each node, or, without, of a chain.
    static Sight of(
        const Positions* tables, int count, int size, int64_t root, const int64_t* parents, int nodes, int tokens
    ) {
        std::vector<int> depths(nodes);
        std::vector<uint64_t> seen(nodes);
        for (int node = 0; node < nodes; ++node) {
            const int64_t parent = parents ? parents[node] : node - 1;
            depths[node] = node ? depths[parent] + 1 : 0;
            seen[node] = (node ? seen[parent] : 0) | uint64_t(1) << node;
        }
        return Sight(tables, count, size, root, depths, seen, tokens);
    }
};

}  // namespace

extern "C" {

// A token that may be proposed.
struct Candidate {
    int64_t token, parent;  // of those told, the one before it; -1: the context's last token
    double path;            // probability of it and of all before it
    int64_t draft_index;    // in the draft's tree, once it was read; 0: it was not
};

}  // extern "C"

namespace {

constexpr int MAX_TREE_TOKENS = 64;

// What is wrong with what a function was told; it has then touched nothing. `library.py` knows them by these numbers.
constexpr int UNKNOWN_TOKEN = -1, NO_ROOM = -2, BAD_TREE = -3;

// Whether `added` tokens may be read at the positions from `start` on, as the last of a tree of `nodes`, and as many again
// as `more` behind them; 0: they may.
int fault_of(
    const Layer* layers, int depth, const Positions* tables, int kinds, int added, int64_t start, const int64_t* parents,
    int nodes, int more
) {
    if (added < 1 || nodes < added || nodes > MAX_TREE_TOKENS || start + added < nodes) return BAD_TREE;
    for (int node = 1; parents && node < nodes; ++node)
        if (parents[node] < 0 || parents[node] >= node) return BAD_TREE;
    const int64_t end = start + added + more;
    if (start < 0 || more < 0) return NO_ROOM;
    for (int number = 0; number < depth; ++number)
        if (end > layers[number].capacity) return NO_ROOM;
    for (int number = 0; number < kinds; ++number)
        if (end > tables[number].count) return NO_ROOM;
    return 0;
}

int fault_of(const Ends& ends, const int64_t* tokens, int64_t count) {
    const auto unknown = [&](int64_t token) { return token < 0 || token >= ends.rows; };
    return std::any_of(tokens, tokens + count, unknown) ? UNKNOWN_TOKEN : 0;
}

}  // namespace

extern "C" {

// Reads `added` vectors [added, hidden] at the positions from `start` on, writes their keys and values there, and gives the
// states after the last layer. They are a chain or, where `parents` tells of `nodes` which one each goes on from, earlier
// ones, the last of that tree. Gives 0, or a fault.
int draftrank_forward(
    const Shape* shape, const Layer* layers, int depth, const Positions* tables, int kinds, const float* input, int added,
    int64_t start, const int64_t* parents, int nodes, float* output, int threads
) {
    if (const int fault = fault_of(layers, depth, tables, kinds, added, start, parents, nodes, 0)) return fault;
    const int64_t root = start + added - nodes;
    const Sight sight = Sight::of(tables, kinds, shape->rotary, root, parents, nodes, added);
    any_forward(*shape, layers, depth, sight.kinds.data(), input, output, added, start, root, threads);
    return 0;
}

// The same from token ids to the logits [wanted, outputs] of the last `wanted`; for `states` see `step`.
int draftrank_read(
    const Shape* shape, const Layer* layers, int depth, const Positions* tables, int kinds, const Ends* ends,
    const int64_t* tokens, int added, float* states, int64_t start, const int64_t* parents, int nodes, int wanted,
    float* logits, int threads
) {
    if (const int fault = fault_of(layers, depth, tables, kinds, added, start, parents, nodes, 0)) return fault;
    if (const int fault = fault_of(*ends, tokens, added)) return fault;
    if (wanted < 0 || wanted > added) return BAD_TREE;
    const int64_t root = start + added - nodes;
    const Sight sight = Sight::of(tables, kinds, shape->rotary, root, parents, nodes, added);
    step(*shape, layers, depth, sight.kinds.data(), *ends, tokens, added, states, start, root, wanted, logits, threads);
    return 0;
}

// Reads `added` token ids behind `start` positions, at most 64, and then what it chooses itself: up to `count` tokens, each
// the most likely one, the last where it is less likely than `stop_below`. Gives their number, or a fault.
//
// `states` are, for an EAGLE-3 head, what is read beside the tokens, [tokens, hidden]; beside a choice it is the state that it was chosen
// from. The last of these is left in the first row.
int draftrank_chain(
    const Shape* shape, const Layer* layers, int depth, const Positions* tables, int kinds, const Ends* ends,
    const int64_t* tokens, int added, float* states, int64_t start, int count, float stop_below, int64_t* chosen, int threads
) {
    if (const int fault = fault_of(layers, depth, tables, kinds, added, start, nullptr, added, count - 1)) return fault;
    static thread_local Floats logits;
    logits.resize(ends->head.outputs);
    for (int made = 0;; start += added, added = 1) {
        const int fault = draftrank_read(
            shape, layers, depth, tables, kinds, ends, made ? chosen + made - 1 : tokens, added, states, start, nullptr, added,
            1, logits.data(), threads
        );
        if (fault) return fault;
        int64_t found = 0;
        float share = 0;
        likeliest(logits.data(), ends->head.outputs, 1, &found, &share);
        chosen[made++] = token_of(*ends, found);
        if (made == count || share < stop_below) return made;
    }
}

// Reads `added` token ids behind `start` positions, at most 64, and then a tree of its own choices, level by level, each of them
// one forward: of all tokens looked at, `candidates` are the up to `count` most probable, the most probable first. `most` are
// looked at behind a token; a level's first one, and others of a path from `branch_above` on; it goes on behind the first
// `expanded` of a path from `stop_below` on (negative: behind the first one and all others). Gives the number of candidates, or a
// fault, and, in `read`, those of forwards and of positions. For `states` see `step`.
int draftrank_branch(
    const Shape* shape, const Layer* layers, int depth, const Positions* tables, int kinds, const Ends* ends,
    const int64_t* tokens, int added, float* states, int64_t start, int count, double stop_below, double branch_above,
    int most, int expanded, Candidate* candidates, int64_t* read, int threads
) {
    if (const int fault = fault_of(layers, depth, tables, kinds, added, start, nullptr, added, MAX_TREE_TOKENS - 1)) return fault;
    if (const int fault = fault_of(*ends, tokens, added)) return fault;
    if (count < 1 || expanded < 1 || most < 1 || most > ends->head.outputs) return BAD_TREE;
    const int hidden = shape->hidden, size = shape->rotary;
    std::vector<Candidate> all, level;  // parents by their numbers in `all`
    std::vector<size_t> found, behind, now;
    std::vector<int> depths{0};
    std::vector<uint64_t> seen{1};
    std::vector<float> of_nodes, beside;
    std::vector<int64_t> likely(size_t(expanded) * most), next;
    std::vector<float> shares(likely.size());
    const int64_t root = start + added - 1;
    static thread_local Floats logits;
    logits.resize(size_t(expanded) * ends->head.outputs);
    draftrank_read(
        shape, layers, depth, tables, kinds, ends, tokens, added, states, start, nullptr, added, 1, logits.data(), threads
    );
    of_nodes.assign(states, states + hidden);
    int64_t forwards = 1;
    for (size_t rows = 1;; ++forwards) {
        level.clear();
        for (size_t row = 0; row < rows; ++row) {
            const int64_t parent = forwards == 1 ? -1 : int64_t(behind[row]);
            likeliest(logits.data() + row * ends->head.outputs, ends->head.outputs, most, likely.data(), shares.data());
            for (int rank = 0; rank < most; ++rank)
                level.push_back(
                    {token_of(*ends, likely[rank]), parent,
                     double(shares[rank]) * (parent < 0 ? 1.0 : all[parent].path), 0}
                );
        }
        const auto more_probable = [](const Candidate& a, const Candidate& b) { return a.path > b.path; };
        std::stable_sort(level.begin(), level.end(), more_probable);
        now.clear();
        for (size_t i = 0; i < level.size(); ++i) {
            if (i && level[i].path < branch_above) continue;
            now.push_back(all.size());
            all.push_back(level[i]);
        }
        found.insert(found.end(), now.begin(), now.end());
        std::stable_sort(found.begin(), found.end(), [&](size_t a, size_t b) { return all[a].path > all[b].path; });
        if (found.size() > size_t(count)) found.resize(count);
        behind.clear();
        for (const size_t one : now) {
            const bool on = stop_below < 0 ? one == now[0] || all[one].path >= branch_above : all[one].path >= stop_below;
            if (on && behind.size() < size_t(expanded) && std::count(found.begin(), found.end(), one))
                behind.push_back(one);
        }
        if (forwards == count || behind.empty() || depths.size() + behind.size() > MAX_TREE_TOKENS) break;
        next.clear();
        beside.clear();
        const int64_t first = root + int64_t(depths.size());
        for (const size_t one : behind) {
            const int64_t parent = all[one].parent < 0 ? 0 : all[all[one].parent].draft_index;
            all[one].draft_index = int64_t(depths.size());
            depths.push_back(depths[parent] + 1);
            seen.push_back(seen[parent] | uint64_t(1) << all[one].draft_index);
            next.push_back(all[one].token);
            beside.insert(beside.end(), &of_nodes[parent * hidden], &of_nodes[parent * hidden] + hidden);
        }
        if (const int fault = fault_of(*ends, next.data(), int64_t(next.size()))) return fault;
        rows = behind.size();
        const Sight sight(tables, kinds, size, root, depths, seen, int(rows));
        step(
            *shape, layers, depth, sight.kinds.data(), *ends, next.data(), int(rows), beside.data(), first, root,
            int(rows), logits.data(), threads
        );
        of_nodes.insert(of_nodes.end(), beside.begin(), beside.end());
    }
    std::copy_n(of_nodes.begin(), hidden, states);
    for (size_t i = 0; i < found.size(); ++i) {
        candidates[i] = all[found[i]];
        const int64_t parent = candidates[i].parent;
        if (parent >= 0) candidates[i].parent = std::find(found.begin(), found.end(), size_t(parent)) - found.begin();
    }
    read[0] = forwards;
    read[1] = added + int64_t(depths.size()) - 1;
    return int(found.size());
}

// Logits [count, outputs] of final states.
void draftrank_logits(
    const Shape* shape, const Ends* ends, const float* states, int count, float* logits, int threads
) {
    logits_of(*ends, shape->hidden, states, count, logits, threads);
}

// Vectors [count, size], normed.
void draftrank_normed(const float* x, const float* weight, int64_t count, int size, float epsilon, float* to) {
    for (int64_t t = 0; t < count; ++t) normed(x + t * size, weight, size, epsilon, to + t * size);
}

// Moves some of the positions behind `start`, an ascending `path` counted from there, together: the first comes to
// `start`. Gives 0, or a fault.
int draftrank_keep(
    const Shape* shape, const Layer* layers, int depth, int64_t start, const int64_t* path, int count
) {
    for (int to = 0; to < count; ++to)
        if (path[to] < (to ? path[to - 1] + 1 : 0)) return BAD_TREE;
    for (int number = 0; number < depth && count > 0; ++number)
        if (start < 0 || start + path[count - 1] >= layers[number].capacity) return NO_ROOM;
    static constexpr decltype(&keep<Bf16Keys, Bf16Rows>) BY_WEIGHTS[] = {
        keep<Widened<Fp32>, Rows<Fp32>>, keep<Bf16Keys, Bf16Rows>, keep<Widened<Fp32>, Rows<Fp32>>, keep<Bf16Keys, Bf16Rows>
    };
    BY_WEIGHTS[shape->weights](*shape, layers, depth, start, path, count);
    return 0;
}

// Bytes of a packed matrix [outputs, inputs]; `type` is that of blocks.
int64_t draftrank_packed_bytes(int weights, int type, int64_t outputs, int64_t inputs) {
    static constexpr decltype(&packed_bytes<Bf16Weights>) BY_WEIGHTS[] = {
        packed_bytes<Widened<Fp32>>, packed_bytes<Bf16Weights>, packed_bytes<Int8Weights>
    };
    if (weights < 3) return BY_WEIGHTS[weights](outputs, inputs);
    int64_t found = 0;
    by_type(type, [&](auto format) { found = Blocks::bytes<decltype(format)>(outputs, inputs); });
    return found;
}

// Packs a matrix [outputs, inputs] that lies row after row, into whole panels.
void draftrank_pack(int weights, int type, const void* matrix, int64_t outputs, int64_t inputs, void* to) {
    static constexpr decltype(&packed<Bf16Weights>) BY_WEIGHTS[] = {
        packed<Widened<Fp32>>, packed<Bf16Weights>, packed<Int8Weights>
    };
    if (weights < 3) return BY_WEIGHTS[weights](matrix, outputs, inputs, to);
    by_type(type, [&](auto format) {
        Blocks::pack<decltype(format)>(static_cast<const uint8_t*>(matrix), outputs, inputs, static_cast<uint8_t*>(to));
    });
}

// A packed matrix times vectors [tokens, inputs], to [tokens, outputs].
void draftrank_product(const Typed* of, int64_t inputs, const float* x, int tokens, float* to, int threads) {
    any_product(*of, inputs, x, tokens, to, threads);
}

}  // extern "C"

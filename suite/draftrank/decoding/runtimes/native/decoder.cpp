// The layers of a small decoder over a few tokens, in one call.
//
// A forward of a few tokens is bound by reading the weights, so they are read once, as they lie in memory, for all
// tokens together. Every sum is made in the same order however many tokens are fed: a token's results do not depend
// on how many others came with it, to the last bit.
//
// Threads divide rows of matrices and queries of attention among themselves. Each has the residual stream of all
// tokens for itself: adding to it and norming it twice costs less than waiting for each other.

#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <new>
#include <vector>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

// Sums stay in registers only where the loops over them are written out.
#define DRAFTRANK_UNROLL _Pragma("GCC unroll 16")

namespace {

constexpr int LANES = 8;
constexpr int BLOCK = 2 * LANES;
constexpr int AHEAD = 4096;  // bytes; the processor alone does not fetch the weights while it multiplies
constexpr std::align_val_t BOUNDARY{64};
constexpr int MOST_AT_ONCE = 12;  // tokens whose sums fit into registers

typedef float Lanes __attribute__((vector_size(4 * LANES)));
typedef int32_t Whole __attribute__((vector_size(4 * LANES)));
typedef uint32_t Bits __attribute__((vector_size(4 * LANES)));

inline Lanes load(const float* from) {
    Lanes found;
    std::memcpy(&found, from, sizeof found);
    return found;
}

inline void store(float* to, Lanes values) { std::memcpy(to, &values, sizeof values); }

// a · b + c, said and not left to the compiler: it decides for each loop anew whether the two are one rounding or two.
inline Lanes fused(Lanes a, Lanes b, Lanes c) {
#if defined(__AVX2__) && defined(__FMA__)
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

inline float total(Lanes v) {
    v += __builtin_shufflevector(v, v, 4, 5, 6, 7, 0, 1, 2, 3);
    v += __builtin_shufflevector(v, v, 2, 3, 0, 1, 6, 7, 4, 5);
    return v[0] + v[1];
}

// The totals of two, in the same order of additions, for little more than one costs.
inline void totals(Lanes a, Lanes b, float& of_a, float& of_b) {
    Lanes both = __builtin_shufflevector(a, b, 0, 1, 2, 3, 8, 9, 10, 11) +
                 __builtin_shufflevector(a, b, 4, 5, 6, 7, 12, 13, 14, 15);
    both += __builtin_shufflevector(both, both, 2, 3, 0, 1, 6, 7, 4, 5);
    both += __builtin_shufflevector(both, both, 1, 0, 3, 2, 5, 4, 7, 6);
    of_a = both[0];
    of_b = both[4];
}

inline Lanes exponential(Lanes x) {
    // Cody and Waite's reduction to |r| <= ln 2 / 2, then the series; relative error below 2e-7. Below -87: 0.
    const Lanes magic = Lanes{} + 12582912.f;
    const Whole tiny = x < -87.f;
    x = tiny ? Lanes{} - 87.f : x;
    const Whole huge = x > 88.f;
    x = huge ? Lanes{} + 88.f : x;
    const Lanes n = (x * 1.44269504f + magic) - magic;
    const Lanes r = fused(n, Lanes{} + 2.12194440e-4f, fused(n, Lanes{} - 0.693359375f, x));
    Lanes p = Lanes{} + 1.f / 720;
    for (const float next : {1.f / 120, 1.f / 24, 1.f / 6, 0.5f, 1.f, 1.f}) p = fused(p, r, Lanes{} + next);
    const Whole power = (__builtin_convertvector(n, Whole) + 127) << 23;
    Lanes scale;
    std::memcpy(&scale, &power, sizeof scale);
    return tiny ? Lanes{} : p * scale;
}

// How weights, keys and values are stored. `pair` reads BLOCK values as two vectors; `arrange` gives what they are
// multiplied with the same order.

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

    static void arrange(const float* from, Lanes& even, Lanes& odd) {
        const Lanes a = load(from), b = load(from + LANES);
        even = __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14);
        odd = __builtin_shufflevector(a, b, 1, 3, 5, 7, 9, 11, 13, 15);
    }

    static void in_order(Lanes even, Lanes odd, float* to) {
        store(to, __builtin_shufflevector(even, odd, 0, 8, 1, 9, 2, 10, 3, 11));
        store(to + LANES, __builtin_shufflevector(even, odd, 4, 12, 5, 13, 6, 14, 7, 15));
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
    static void arrange(const float* from, Lanes& first, Lanes& second) { pair(from, first, second); }

    static void in_order(Lanes first, Lanes second, float* to) {
        store(to, first);
        store(to + LANES, second);
    }
};

// Weights only, each row with a scale of its own.
struct Int8 {
    typedef int8_t Stored;
    typedef int8_t Bytes __attribute__((vector_size(LANES)));

    static Lanes lanes(const Stored* from) {
#if defined(__AVX2__)
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

    static float one(Stored value) { return value; }
    static void arrange(const float* from, Lanes& first, Lanes& second) { Fp32::pair(from, first, second); }
};

template <class Kind>
void arranged(const float* from, int count, float* to) {
    int i = 0;
    for (; i + BLOCK <= count; i += BLOCK) {
        Lanes first, second;
        Kind::arrange(from + i, first, second);
        store(to + i, first);
        store(to + i + LANES, second);
    }
    for (; i < count; ++i) to[i] = from[i];
}

// ---------------------------------------------------------------------------------------------- products

// ROWS rows of a matrix from `row` on times TOKENS arranged vectors, each `inputs` long: to[token · stride + row].
template <class Kind, int ROWS, int TOKENS>
inline void tile(
    const typename Kind::Stored* weight, const float* scales, int64_t inputs, const float* x, int64_t row, float* to,
    int64_t stride
) {
    const typename Kind::Stored* rows[ROWS];
    DRAFTRANK_UNROLL for (int r = 0; r < ROWS; ++r) rows[r] = weight + (row + r) * inputs;
    Lanes sums[ROWS][TOKENS] = {};
    int64_t i = 0;
    for (; i + BLOCK <= inputs; i += BLOCK) {
        DRAFTRANK_UNROLL for (int r = 0; r < ROWS; ++r) __builtin_prefetch(rows[r] + i + AHEAD / sizeof(*weight));
        Lanes first[ROWS], second[ROWS];
        DRAFTRANK_UNROLL for (int r = 0; r < ROWS; ++r) Kind::pair(rows[r] + i, first[r], second[r]);
        DRAFTRANK_UNROLL for (int t = 0; t < TOKENS; ++t) {
            const Lanes a = load(x + t * inputs + i);
            DRAFTRANK_UNROLL for (int r = 0; r < ROWS; ++r) sums[r][t] = fused(first[r], a, sums[r][t]);
        }
        DRAFTRANK_UNROLL for (int t = 0; t < TOKENS; ++t) {
            const Lanes b = load(x + t * inputs + i + LANES);
            DRAFTRANK_UNROLL for (int r = 0; r < ROWS; ++r) sums[r][t] = fused(second[r], b, sums[r][t]);
        }
    }
    float found[ROWS * TOKENS];
    const Lanes* flat = &sums[0][0];
    DRAFTRANK_UNROLL for (int n = 0; n + 1 < ROWS * TOKENS; n += 2)
        totals(flat[n], flat[n + 1], found[n], found[n + 1]);
    if (ROWS * TOKENS % 2) found[ROWS * TOKENS - 1] = total(flat[ROWS * TOKENS - 1]);
    DRAFTRANK_UNROLL for (int r = 0; r < ROWS; ++r)
        DRAFTRANK_UNROLL for (int t = 0; t < TOKENS; ++t) {
            float sum = found[r * TOKENS + t];
            for (int64_t j = i; j < inputs; ++j) sum = fused(Kind::one(rows[r][j]), x[t * inputs + j], sum);
            to[t * stride + row + r] = scales ? sum * scales[row + r] : sum;
        }
}

constexpr int rows_at_once(int tokens) { return tokens <= 6 ? 2 : 1; }  // as the registers have room

template <class Kind, int TOKENS>
void tiles(
    const typename Kind::Stored* weight, const float* scales, int64_t inputs, const float* x, int64_t from,
    int64_t end, float* to, int64_t stride
) {
    constexpr int ROWS = rows_at_once(TOKENS);
    int64_t row = from;
    for (; row + ROWS <= end; row += ROWS) tile<Kind, ROWS, TOKENS>(weight, scales, inputs, x, row, to, stride);
    if constexpr (ROWS > 1)
        for (; row < end; ++row) tile<Kind, 1, TOKENS>(weight, scales, inputs, x, row, to, stride);
}

// What is stored, and what each row is multiplied with; null: nothing.
struct Matrix {
    const void* stored;
    const float* scales;
};

// Rows `from` to `end` of a matrix [.., inputs] times arranged vectors [tokens, inputs]: to[token · stride + row].
template <class Kind>
void multiply(
    Matrix matrix, int64_t inputs, const float* x, int tokens, int64_t from, int64_t end, float* to, int64_t stride
) {
    typedef const typename Kind::Stored Number;
    typedef void (*Tiles)(Number*, const float*, int64_t, const float*, int64_t, int64_t, float*, int64_t);
    static constexpr Tiles BY_TOKENS[] = {
        tiles<Kind, 1>, tiles<Kind, 2>, tiles<Kind, 3>, tiles<Kind, 4>,  tiles<Kind, 5>,  tiles<Kind, 6>,
        tiles<Kind, 7>, tiles<Kind, 8>, tiles<Kind, 9>, tiles<Kind, 10>, tiles<Kind, 11>, tiles<Kind, 12>,
    };
    const int passes = (tokens + MOST_AT_ONCE - 1) / MOST_AT_ONCE;
    const int64_t few = passes == 1 ? end - from : 16;  // rows that stay near while all tokens pass
    for (int64_t begin = from; begin < end; begin += few)
        for (int pass = 0, done = 0; pass < passes; ++pass) {
            const int now = (tokens - done + passes - pass - 1) / (passes - pass);
            BY_TOKENS[now - 1](
                static_cast<Number*>(matrix.stored), matrix.scales, inputs, x + done * inputs, begin,
                std::min(begin + few, end), to + done * stride, stride
            );
            done += now;
        }
}

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

void normed(const float* x, const float* weight, int count, float epsilon, float* to) {
    const float factor = inverse_root_mean_square(x, count, epsilon);
    int i = 0;
    for (; i + LANES <= count; i += LANES) store(to + i, load(x + i) * factor * load(weight + i));
    for (; i < count; ++i) to[i] = x[i] * factor * weight[i];
}

inline Lanes sigmoid(Lanes x) { return 1.f / (1.f + exponential(-x)); }

inline Lanes activated(Lanes x, int gelu) {
    if (!gelu) return x * sigmoid(x);  // SiLU
    return x * sigmoid(1.595769122f * (x + 0.044715f * x * x * x));  // GELU by tanh
}

// One thread's part, from `from` to `to`, of `count` things that are divided in units of `unit`.
struct Share {
    int64_t from, to;
    Share(int64_t count, int64_t unit, int thread, int threads) {
        const int64_t units = (count + unit - 1) / unit;
        from = std::min(units * thread / threads * unit, count);
        to = std::min(units * (thread + 1) / threads * unit, count);
    }
};

}  // namespace

extern "C" {

// All matrices [outputs, inputs], row after row, in one type: 0 fp32, 1 bf16, 2 int8. Norms in fp32, with what they add
// to their weight. Keys and values are held in bf16 beside weights in bf16, else in fp32.
struct Shape {
    int32_t hidden, query_heads, shared_heads, head_size, feed_forward, gelu, weights;
    float epsilon, scale;
};

struct Layer {
    const float* attention_norm;
    Matrix queries, keys, values, attention_output;
    const float *query_norm, *key_norm, *attention_output_norm;  // null: none
    const float* feed_forward_norm;
    Matrix gate, up, feed_forward_output;
    const float* feed_forward_output_norm;  // null: none
    void *held_keys, *held_values;          // [shared heads, capacity, head size]
    int64_t capacity, kind;
    float* output;  // [tokens, hidden]: where the layer's output is wanted too; null: nowhere
};

// What layers of one kind of attention see and how they are rotated.
struct Kind {
    const float *cosine, *sine;  // [tokens, head size]
    const int64_t* position;     // for each token, how many stand before it
    const int64_t* first;        // for each token, the first position that it sees
    const uint64_t* kin;         // for each token, which of up to 64 positions from the root on it sees
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

typedef std::vector<float, Aligned<float>> Floats;

struct Buffers {
    Floats made, attended, gate, up, out;
};

struct Own {
    Floats hidden, normed, x, queries, scores;
};

// A head's vector, normed if that is asked for, rotated, times `factor`.
void rotated(
    const float* x, const float* norm, const Shape& s, const float* cosine, const float* sine, float factor, float* to
) {
    const int size = s.head_size, half = size / 2;
    float scaled[512];
    if (norm) {
        normed(x, norm, size, s.epsilon, scaled);
        x = scaled;
    }
    for (int d = 0; d < half; ++d) to[d] = (x[d] * cosine[d] + x[d + half] * sine[d]) * factor;
    for (int d = half; d < size; ++d) to[d] = (x[d] * cosine[d] + x[d - half] * sine[d]) * factor;
}

// Weighted sums of values [.., size] from position `from` to `to`, for QUERIES queries.
template <class Stored, int QUERIES>
void weighted(
    const typename Stored::Stored* values, int size, const float* weights, int64_t stride, int64_t from, int64_t to,
    const float* factors, float* const* outs
) {
    int d = 0;
    for (; d + BLOCK <= size; d += BLOCK) {
        Lanes sums[QUERIES][2] = {};
        for (int64_t j = from; j < to; ++j) {
            Lanes a, b;
            Stored::pair(values + j * size + d, a, b);
            DRAFTRANK_UNROLL for (int q = 0; q < QUERIES; ++q) {
                const Lanes weight = Lanes{} + weights[q * stride + j - from];
                sums[q][0] = fused(weight, a, sums[q][0]);
                sums[q][1] = fused(weight, b, sums[q][1]);
            }
        }
        DRAFTRANK_UNROLL for (int q = 0; q < QUERIES; ++q)
            Stored::in_order(sums[q][0] * factors[q], sums[q][1] * factors[q], outs[q] + d);
    }
    for (; d < size; ++d)
        for (int q = 0; q < QUERIES; ++q) {
            float sum = 0;
            for (int64_t j = from; j < to; ++j)
                sum = fused(weights[q * stride + j - from], Stored::one(values[j * size + d]), sum);
            outs[q][d] = sum * factors[q];
        }
}

template <class Stored>
void attend(
    const Shape& s, const Layer& layer, const Kind& kind, int tokens, int64_t root, int64_t end, Share share,
    Buffers& all, Own& own
) {
    typedef typename Stored::Stored Number;
    const int size = s.head_size, group = s.query_heads / s.shared_heads, per_head = group * tokens;
    const int width = (s.query_heads + 2 * s.shared_heads) * size, count = int(share.to - share.from);
    if (count <= 0) return;
    own.queries.resize(size_t(count + 1) * size);
    int64_t base = root;
    for (int t = 0; t < tokens; ++t) base = std::min(base, kind.first[t]);
    base = base / LANES * LANES;  // so that a position's lane is always the same
    const int64_t seen = end - base, stride = (seen + LANES - 1) / LANES * LANES;
    own.scores.resize(size_t(count) * stride);
    std::vector<float> factors(count);
    std::vector<float*> outs(count);
    float* one = own.queries.data() + size_t(count) * size;
    for (int64_t begin = share.from; begin < share.to;) {
        const int64_t head = begin / per_head, stop = std::min(share.to, (head + 1) * per_head);
        const int queries = int(stop - begin);
        const auto* keys = static_cast<const Number*>(layer.held_keys) + head * layer.capacity * size;
        const auto* values = static_cast<const Number*>(layer.held_values) + head * layer.capacity * size;
        float* scores = own.scores.data();
        for (int q = 0; q < queries; ++q) {
            const int64_t place = begin + q - head * per_head;
            const int t = int(place / group), number = int(head * group + place % group);
            rotated(
                all.made.data() + int64_t(t) * width + number * size, layer.query_norm, s, kind.cosine + t * size,
                kind.sine + t * size, s.scale, one
            );
            arranged<Stored>(one, size, own.queries.data() + q * size);
            outs[q] = all.attended.data() + (int64_t(t) * s.query_heads + number) * size;
        }
        multiply<Stored>({keys + base * size, nullptr}, size, own.queries.data(), queries, 0, seen, scores, stride);
        for (int q = 0; q < queries; ++q) {
            const int t = int((begin + q - head * per_head) / group);
            float* mine = scores + q * stride;
            for (int64_t j = 0; j < kind.first[t] - base; ++j) mine[j] = -INFINITY;
            for (int64_t j = root; j < end; ++j)
                if (!(kind.kin[t] >> (j - root) & 1)) mine[j - base] = -INFINITY;
            for (int64_t j = seen; j < stride; ++j) mine[j] = -INFINITY;
            Lanes most = load(mine);
            for (int64_t j = LANES; j < stride; j += LANES) {
                const Lanes next = load(mine + j);
                most = next > most ? next : most;
            }
            float highest = most[0];
            for (int lane = 1; lane < LANES; ++lane) highest = std::max(highest, float(most[lane]));
            for (int64_t j = 0; j < stride; j += LANES) store(mine + j, exponential(load(mine + j) - highest));
            // A weight's lane is that of its token's position, wherever in the tree the token lies: all that a token
            // sees in the tree are the last ones before it.
            float sums[LANES] = {};
            Lanes before = {};
            const int64_t whole = (root - base) / LANES * LANES;
            for (int64_t j = 0; j < whole; j += LANES) before += load(mine + j);
            store(sums, before);
            for (int64_t j = whole; j < root - base; ++j) sums[j % LANES] += mine[j];
            int64_t position = kind.position[t] + 1 - __builtin_popcountll(kind.kin[t]);
            for (uint64_t left = kind.kin[t]; left; left &= left - 1)
                sums[position++ % LANES] += mine[root - base + __builtin_ctzll(left)];
            factors[q] = 1.f / total(load(sums));
        }
        typedef void (*Weighted)(
            const Number*, int, const float*, int64_t, int64_t, int64_t, const float*, float* const*
        );
        static constexpr Weighted BY_QUERIES[] = {weighted<Stored, 1>, weighted<Stored, 2>, weighted<Stored, 3>,
                                                  weighted<Stored, 4>, weighted<Stored, 5>, weighted<Stored, 6>};
        for (int q = 0; q < queries; q += 6)
            BY_QUERIES[std::min(queries - q, 6) - 1](
                values, size, scores + q * stride, stride, base, end, &factors[q], &outs[q]
            );
        begin = stop;
    }
}

template <class Weights, class Held>
void forward(
    const Shape& s, const Layer* layers, int depth, const Kind* kinds, const float* input, float* output, int tokens,
    int64_t start, int64_t root, int threads
) {
    typedef typename Held::Stored Number;
    const int hidden = s.hidden, size = s.head_size, fed = s.feed_forward;
    const int asked = s.query_heads * size, shared = s.shared_heads * size, width = asked + 2 * shared;
    static thread_local Buffers kept;
    Buffers& all = kept;
    all.made.resize(size_t(tokens) * width);
    all.attended.resize(size_t(tokens) * asked);
    all.gate.resize(size_t(tokens) * fed);
    all.up.resize(size_t(tokens) * fed);
    all.out.resize(size_t(tokens) * hidden);
#pragma omp parallel num_threads(threads)
    {
        const int thread = omp_get_thread_num(), count = omp_get_num_threads();
        static thread_local Own mine;
        Own& own = mine;
        own.hidden.assign(input, input + size_t(tokens) * hidden);
        own.normed.resize(size_t(std::max(hidden, 1)));
        own.x.resize(size_t(tokens) * std::max({hidden, asked, fed}));
        const auto read_normed = [&](const float* norm) {
            for (int t = 0; t < tokens; ++t) {
                normed(own.hidden.data() + int64_t(t) * hidden, norm, hidden, s.epsilon, own.normed.data());
                arranged<Weights>(own.normed.data(), hidden, own.x.data() + int64_t(t) * hidden);
            }
        };
        const auto product = [&](Matrix matrix, int64_t inputs, int64_t outputs, float* to, int64_t stride) {
            const Share rows(outputs, BLOCK, thread, count);
            multiply<Weights>(matrix, inputs, own.x.data(), tokens, rows.from, rows.to, to, stride);
        };
        const auto add = [&](const float* norm) {
            for (int t = 0; t < tokens; ++t) {
                const float* more = all.out.data() + int64_t(t) * hidden;
                if (norm) {
                    normed(more, norm, hidden, s.epsilon, own.normed.data());
                    more = own.normed.data();
                }
                float* to = own.hidden.data() + int64_t(t) * hidden;
                for (int d = 0; d < hidden; ++d) to[d] += more[d];
            }
        };
        for (int number = 0; number < depth; ++number) {
            const Layer& layer = layers[number];
            const Kind& kind = kinds[layer.kind];
            read_normed(layer.attention_norm);
            product(layer.queries, hidden, asked, all.made.data(), width);
            product(layer.keys, hidden, shared, all.made.data() + asked, width);
            product(layer.values, hidden, shared, all.made.data() + asked + shared, width);
#pragma omp barrier
            const Share places(int64_t(s.shared_heads) * tokens, 1, thread, count);
            for (int64_t place = places.from; place < places.to; ++place) {
                const int64_t head = place / tokens, t = place % tokens;
                const int64_t at = (head * layer.capacity + start + t) * size;
                const float* key = all.made.data() + t * width + asked + head * size;
                float turned[512];
                rotated(key, layer.key_norm, s, kind.cosine + t * size, kind.sine + t * size, 1.f, turned);
                for (int d = 0; d < size; ++d) {
                    static_cast<Number*>(layer.held_keys)[at + d] = Held::rounded(turned[d]);
                    static_cast<Number*>(layer.held_values)[at + d] = Held::rounded(key[shared + d]);
                }
            }
#pragma omp barrier
            const Share queries(int64_t(s.query_heads) * tokens, 1, thread, count);
            attend<Held>(s, layer, kind, tokens, root, start + tokens, queries, all, own);
#pragma omp barrier
            for (int t = 0; t < tokens; ++t)
                arranged<Weights>(all.attended.data() + int64_t(t) * asked, asked, own.x.data() + int64_t(t) * asked);
            product(layer.attention_output, asked, hidden, all.out.data(), hidden);
#pragma omp barrier
            add(layer.attention_output_norm);
            read_normed(layer.feed_forward_norm);
            product(layer.gate, hidden, fed, all.gate.data(), fed);
            product(layer.up, hidden, fed, all.up.data(), fed);
            const Share channels(fed, BLOCK, thread, count);
            for (int t = 0; t < tokens; ++t) {
                float* gate = all.gate.data() + int64_t(t) * fed;
                const float* up = all.up.data() + int64_t(t) * fed;
                int64_t c = channels.from;
                for (; c + LANES <= channels.to; c += LANES)
                    store(gate + c, activated(load(gate + c), s.gelu) * load(up + c));
                for (; c < channels.to; ++c) gate[c] = activated(Lanes{} + gate[c], s.gelu)[0] * up[c];
            }
#pragma omp barrier
            for (int t = 0; t < tokens; ++t)
                arranged<Weights>(all.gate.data() + int64_t(t) * fed, fed, own.x.data() + int64_t(t) * fed);
            product(layer.feed_forward_output, fed, hidden, all.out.data(), hidden);
#pragma omp barrier
            add(layer.feed_forward_output_norm);
            if (layer.output && thread == 0)
                std::copy(own.hidden.begin(), own.hidden.begin() + int64_t(tokens) * hidden, layer.output);
        }
        if (thread == 0) std::copy(own.hidden.begin(), own.hidden.begin() + int64_t(tokens) * hidden, output);
    }
}

template <class Stored>
void product(Matrix matrix, int64_t outputs, int64_t inputs, const float* x, int tokens, float* to, int threads) {
    static thread_local Floats kept;
    Floats& ready = kept;
    ready.resize(size_t(tokens) * inputs);
    for (int t = 0; t < tokens; ++t) arranged<Stored>(x + t * inputs, int(inputs), ready.data() + t * inputs);
    const float* vectors = ready.data();
#pragma omp parallel num_threads(threads)
    {
        const Share rows(outputs, BLOCK, omp_get_thread_num(), omp_get_num_threads());
        multiply<Stored>(matrix, inputs, vectors, tokens, rows.from, rows.to, to, outputs);
    }
}

}  // namespace

extern "C" {

// Reads `tokens` vectors [tokens, hidden] at the positions from `start` on, writes their keys and values there, and
// gives the states after the last layer. Positions from `root` on are a tree or a chain, see `Kind`.
void draftrank_forward(
    const Shape* shape, const Layer* layers, int depth, const Kind* kinds, const float* input, float* output,
    int tokens, int64_t start, int64_t root, int threads
) {
    static constexpr decltype(&forward<Fp32, Fp32>) BY_WEIGHTS[] = {
        forward<Fp32, Fp32>, forward<Bf16, Bf16>, forward<Int8, Fp32>
    };
    BY_WEIGHTS[shape->weights](
        *shape, layers, depth, kinds, input, output, tokens, start, root, threads
    );
}

// Moves some of the positions behind `start`, ascending `places` counted from there, together: the first comes to
// `start`.
void draftrank_keep(
    const Layer* layers, int depth, int shared_heads, int64_t bytes, int64_t start, const int64_t* places, int count
) {
    for (int number = 0; number < depth; ++number)
        for (void* held : {layers[number].held_keys, layers[number].held_values})
            for (int head = 0; head < shared_heads; ++head) {
                char* first = static_cast<char*>(held) + (head * layers[number].capacity + start) * bytes;
                for (int to = 0; to < count; ++to)
                    if (places[to] != to) std::memmove(first + to * bytes, first + places[to] * bytes, bytes);
            }
}

// A matrix [outputs, inputs] times vectors [tokens, inputs], to [tokens, outputs].
void draftrank_product(
    const Matrix* matrix, int weights, int64_t outputs, int64_t inputs, const float* x, int tokens, float* to,
    int threads
) {
    static constexpr decltype(&product<Fp32>) BY_WEIGHTS[] = {product<Fp32>, product<Bf16>, product<Int8>};
    BY_WEIGHTS[weights](*matrix, outputs, inputs, x, tokens, to, threads);
}

}  // extern "C"

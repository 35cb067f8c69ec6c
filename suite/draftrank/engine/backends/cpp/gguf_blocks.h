// Products with matrices in the blocks of a GGUF file; a part of `decoder.cpp`, which includes it where all it needs stands.
//
// A block is some small whole numbers of a row, and factors that they share. A panel holds the same bits of 32 rows in another
// order: of each block of inputs first the numbers of all rows, then their factors. A product sums a group's numbers times
// their inputs, and then multiplies by the group's factor: no weight is rounded, and none is written to memory.

namespace {

constexpr int GROUP = 32, PANEL = 32;  // inputs whose numbers are read at a time; rows
#if defined(DRAFTRANK_PAIRS)
constexpr bool IN_PAIRS = true;
#else
constexpr bool IN_PAIRS = false;
#endif

// As files number them (`ggml_type` of llama.cpp).
enum BlockType {
    F32 = 0, F16 = 1, Q4_0 = 2, Q4_1 = 3, Q5_0 = 6, Q5_1 = 7, Q8_0 = 8, Q4_K = 12, Q5_K = 13, Q6_K = 14, BF16 = 30
};

// Fp16 to fp32.
inline Lanes halves(const uint8_t* from) {
#if defined(DRAFTRANK_WIDE)
    return (Lanes)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)from));
#elif defined(__AVX2__) && defined(__F16C__)
    return (Lanes)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)from));
#else
    Lanes found;
    for (int lane = 0; lane < LANES; ++lane) {
        uint16_t raw;
        std::memcpy(&raw, from + 2 * lane, sizeof raw);
        const uint32_t magnitude = uint32_t(raw & 0x7fff) << 13;
        float value;
        std::memcpy(&value, &magnitude, sizeof value);
        value *= 0x1p112f;  // the bias of the exponent
        uint32_t bits;
        std::memcpy(&bits, &value, sizeof bits);
        bits |= uint32_t(raw & 0x8000) << 16 | ((raw & 0x7c00) == 0x7c00 ? 0x7f800000u : 0);
        std::memcpy(&value, &bits, sizeof value);
        found[lane] = value;
    }
    return found;
#endif
}

inline Bits words(const uint8_t* from) {
    Bits found;
    std::memcpy(&found, from, sizeof found);
    return found;
}

inline Lanes real(Bits whole) { return __builtin_convertvector((Whole)whole, Lanes); }

// Factors of a block of INPUTS inputs, BYTES of each row: `read` gives those of LANES rows, for each GROUP / SCALES inputs a scale
// and, where there is a MINIMUM, for each group what is added to every number's product with its scale. `FIELDS` tells how they
// lie in the file's block: how many numbers of how many bytes each.

struct NoFactors {
    static constexpr int INPUTS = GROUP, BYTES = 0, SCALES = 1;
    static constexpr bool MINIMUM = false;
    static void read(const uint8_t*, int, Lanes* scales, Lanes*) { scales[0] = everywhere(1.f); }
};

struct OneScale {
    static constexpr int INPUTS = GROUP, BYTES = 2, SCALES = 1;
    static constexpr bool MINIMUM = false;
    static constexpr int FIELDS[][2] = {{1, 2}};
    static void read(const uint8_t* from, int row, Lanes* scales, Lanes*) { scales[0] = halves(from + 2 * row); }
};

struct ScaleAndMinimum {
    static constexpr int INPUTS = GROUP, BYTES = 4, SCALES = 1;
    static constexpr bool MINIMUM = true;
    static constexpr int FIELDS[][2] = {{2, 2}};
    static void read(const uint8_t* from, int row, Lanes* scales, Lanes* minima) {
        scales[0] = halves(from + 2 * row);
        minima[0] = halves(from + 2 * (PANEL + row));
    }
};

// Eight scales and eight minima of 6 bits, in three words, times a scale each. The first two words have the numbers of groups 0
// to 3 and, above them, the upper 2 bits of those of groups 4 to 7, whose other bits are in the third.
struct SixBits {
    static constexpr int INPUTS = 8 * GROUP, BYTES = 16, SCALES = 1;
    static constexpr bool MINIMUM = true;
    static constexpr int FIELDS[][2] = {{2, 2}, {3, 4}};
    static void read(const uint8_t* from, int row, Lanes* scales, Lanes* minima) {
        const Lanes scale = halves(from + 2 * row), minimum = -halves(from + 2 * (PANEL + row));
        const uint8_t* sixths = from + 4 * (PANEL + row);
        const Bits low = words(sixths), high = words(sixths + 4 * PANEL), rest = words(sixths + 8 * PANEL);
        DRAFTRANK_UNROLL for (int g = 0; g < 4; ++g) {
            scales[g] = scale * real(low >> uint32_t(8 * g) & 63);
            minima[g] = minimum * real(high >> uint32_t(8 * g) & 63);
            scales[g + 4] = scale * real((rest >> uint32_t(8 * g) & 15) | (low >> uint32_t(8 * g + 2) & 48));
            minima[g + 4] = minimum * real((rest >> uint32_t(8 * g + 4) & 15) | (high >> uint32_t(8 * g + 2) & 48));
        }
    }
};

// Sixteen scales of 8 bits, with a sign, times one.
struct SixteenScales {
    static constexpr int INPUTS = 8 * GROUP, BYTES = 18, SCALES = 2;
    static constexpr bool MINIMUM = false;
    static constexpr int FIELDS[][2] = {{16, 1}, {1, 2}};
    static void read(const uint8_t* from, int row, Lanes* scales, Lanes*) {
        const Lanes scale = halves(from + 16 * PANEL + 2 * row);
        DRAFTRANK_UNROLL for (int g = 0; g < 16; ++g)
            scales[g] = scale * Int8::lanes((const int8_t*)from + g * PANEL + row);
    }
};

// Kinds of numbers, BITS of each input: `inputs` gives those of a group's inputs and of LANES rows, in fp32, and `pairs` the same as
// pairs of bf16 for two inputs, where they are whole numbers that bf16 has.

// BITS from 4 to 6, of whole numbers from -BELOW on. A word has four bits of eight inputs of a row: of every pair of inputs the
// first in its lower half and the second in its upper half. What is left of five or six bits follows in the same way.
template <int BITS_, int BELOW>
struct PackedNumbers {
    static constexpr int BITS = BITS_, MORE = BITS - 4, PAIRS_OF_A_WORD = MORE ? 16 / MORE : 16;
    static constexpr bool PAIRED = true;

    // In the lowest bits of both halves of each word the numbers of a pair; above them other bits.
    template <int PAIR>
    static Bits pair(const Bits* four, const Bits* more) {
        Bits found = four[PAIR / 4] >> PAIR % 4 * 4;
        if constexpr (MORE > 0) {
            constexpr int AT = PAIR % PAIRS_OF_A_WORD * MORE;
            constexpr uint32_t MASK = ((1 << MORE) - 1) * 0x00100010u;
            const Bits top = AT < 4 ? more[PAIR / PAIRS_OF_A_WORD] << (AT < 4 ? 4 - AT : 0)
                                    : more[PAIR / PAIRS_OF_A_WORD] >> (AT < 4 ? 0 : AT - 4);
#if defined(DRAFTRANK_WIDE)
            const __m512i mask = _mm512_set1_epi32(MASK);
            found = (Bits)_mm512_ternarylogic_epi32(mask, (__m512i)top, (__m512i)found, 0xca);  // mask ? top : found
#else
            found = (found & ~MASK) | (top & MASK);
#endif
        }
        return found;
    }

    struct Words {
        Bits four[4], more[MORE ? MORE : 1];

        Words(const uint8_t* group, int row) {
            DRAFTRANK_UNROLL for (int i = 0; i < 4; ++i) four[i] = words(group + (i * PANEL + row) * 4);
            DRAFTRANK_UNROLL for (int i = 0; i < MORE; ++i) more[i] = words(group + ((4 + i) * PANEL + row) * 4);
        }
    };

    template <int... PAIR>
    static void inputs(const Words& from, Lanes* to, std::integer_sequence<int, PAIR...>) {
        constexpr uint32_t ALL = (1 << BITS) - 1;
        const auto lanes = [](Bits number) { return real(BELOW ? (number & ALL) - uint32_t(BELOW) : number & ALL); };
        ((to[2 * PAIR] = lanes(pair<PAIR>(from.four, from.more)),
          to[2 * PAIR + 1] = lanes(pair<PAIR>(from.four, from.more) >> 16)),
         ...);
    }

    static void inputs(const uint8_t* group, int row, Lanes* to) {
        inputs(Words(group, row), to, std::make_integer_sequence<int, GROUP / 2>());
    }

#if defined(DRAFTRANK_PAIRS)
    // The numbers in bf16.
    struct Table {
        alignas(64) uint16_t values[64] = {};

        constexpr Table() {
            for (int i = 0; i < 64; ++i) {
                const int number = i % (1 << BITS) - BELOW, size = number < 0 ? -number : number;
                int exponent = 0;
                while (size >> (exponent + 1)) ++exponent;
                const int bits = (127 + exponent) << 7 | ((size << (7 - exponent)) & 127);
                values[i] = uint16_t(size ? (number < 0 ? 0x8000 : 0) | bits : 0);
            }
        }
    };

    template <int... PAIR>
    static void pairs(const Words& from, __m512bh* to, std::integer_sequence<int, PAIR...>) {
        static constexpr Table table;
        const __m512i low = _mm512_load_si512(table.values), high = _mm512_load_si512(table.values + 32);
        const auto found = [&](Bits number) {
            if constexpr (BITS == 6) return (__m512bh)_mm512_permutex2var_epi16(low, (__m512i)number, high);
            else return (__m512bh)_mm512_permutexvar_epi16((__m512i)number, low);
        };
        ((to[PAIR] = found(pair<PAIR>(from.four, from.more))), ...);
    }

    static void pairs(const uint8_t* group, int row, __m512bh* to) {
        pairs(Words(group, row), to, std::make_integer_sequence<int, GROUP / 2>());
    }
#endif

    // The numbers of a group's inputs, each as far as BITS go, into the panel.
    static void pack(const uint8_t* numbers, int row, uint8_t* group) {
        uint32_t packed[BITS] = {};
        for (int i = 0; i < GROUP; ++i) {
            const int pair = i / 2, half = i % 2 * 16;
            packed[pair / 4] |= uint32_t(numbers[i] & 15) << (half + pair % 4 * 4);
            if (MORE) packed[4 + pair / PAIRS_OF_A_WORD] |= uint32_t(numbers[i] >> 4) << (half + pair % PAIRS_OF_A_WORD * MORE);
        }
        for (int i = 0; i < BITS; ++i) std::memcpy(group + (i * PANEL + row) * 4, &packed[i], 4);
    }
};

// Eight bits with a sign: of each input those of all rows.
struct Int8Numbers {
    static constexpr int BITS = 8;
    static constexpr bool PAIRED = true;

    static void inputs(const uint8_t* group, int row, Lanes* to) {
        DRAFTRANK_UNROLL for (int i = 0; i < GROUP; ++i) to[i] = Int8::lanes((const int8_t*)group + i * PANEL + row);
    }

#if defined(DRAFTRANK_PAIRS)
    static void pairs(const uint8_t* group, int row, __m512bh* to) {
        DRAFTRANK_UNROLL for (int i = 0; i < GROUP; i += 2) {
            const auto* from = (const int8_t*)group + i * PANEL + row;
            to[i / 2] = (__m512bh)((Bits)Int8::lanes(from) >> 16 | (Bits)Int8::lanes(from + PANEL));  // rounds nothing
        }
    }
#endif

    static void pack(const uint8_t* numbers, int row, uint8_t* group) {
        for (int i = 0; i < GROUP; ++i) group[i * PANEL + row] = numbers[i];
    }
};

// Bf16: of every pair of inputs those of all rows.
struct Bf16Numbers {
    static constexpr int BITS = 16;
    static constexpr bool PAIRED = true;

    static void inputs(const uint8_t* group, int row, Lanes* to) {
        DRAFTRANK_UNROLL for (int i = 0; i < GROUP; i += 2)
            Bf16::pair((const uint16_t*)group + i * PANEL + 2 * row, to[i], to[i + 1]);
    }

#if defined(DRAFTRANK_PAIRS)
    static void pairs(const uint8_t* group, int row, __m512bh* to) {
        DRAFTRANK_UNROLL for (int i = 0; i < GROUP / 2; ++i)
            to[i] = (__m512bh)_mm512_loadu_si512(group + (i * PANEL + row) * 4);
    }
#endif

    static void pack(const uint8_t* numbers, int row, uint8_t* group) {
        for (int i = 0; i < GROUP; ++i) std::memcpy(group + (i / 2 * PANEL + row) * 4 + i % 2 * 2, numbers + 2 * i, 2);
    }
};

// Fp16 and fp32: of each input those of all rows.
template <int BITS_>
struct FloatNumbers {
    static constexpr int BITS = BITS_, BYTES = BITS / 8;
    static constexpr bool PAIRED = false;

    static void inputs(const uint8_t* group, int row, Lanes* to) {
        DRAFTRANK_UNROLL for (int i = 0; i < GROUP; ++i) {
            const uint8_t* from = group + (i * PANEL + row) * BYTES;
            if constexpr (BITS == 16) to[i] = halves(from);
            else to[i] = (Lanes)words(from);
        }
    }

    static void pack(const uint8_t* numbers, int row, uint8_t* group) {
        for (int i = 0; i < GROUP; ++i) std::memcpy(group + (i * PANEL + row) * BYTES, numbers + i * BYTES, BYTES);
    }
};

// A block of the file, of one row: where its factors lie and how its numbers do, `numbers` to a byte each.

// 16 bytes with 4 bits of two inputs, 16 inputs apart, and for a fifth bit before them those of all 32.
template <int FACTORS_, bool FIFTH>
struct Block32 {
    static constexpr int FACTORS = 0, BYTES = FACTORS_ + 4 * FIFTH + GROUP / 2;

    static void numbers(const uint8_t* block, uint8_t* to) {
        const uint8_t* low = block + FACTORS_ + 4 * FIFTH;
        uint32_t fifth = 0;
        if (FIFTH) std::memcpy(&fifth, block + FACTORS_, sizeof fifth);
        for (int i = 0; i < GROUP; ++i)
            to[i] = uint8_t((low[i % 16] >> i / 16 * 4 & 15) | (fifth >> i & 1) << 4);
    }
};

struct Block32OfBytes {
    static constexpr int FACTORS = 0, BYTES = 2 + GROUP;
    static void numbers(const uint8_t* block, uint8_t* to) { std::copy_n(block + 2, GROUP, to); }
};

// 256 inputs: bytes with 4 bits of two inputs, APART inputs apart, and for a fifth bit before them bytes with those of eight.
template <bool FIFTH>
struct Block256 {
    static constexpr int FACTORS = 0, BYTES = 16 + 32 * FIFTH + 128;

    static void numbers(const uint8_t* block, uint8_t* to) {
        const uint8_t *fifth = block + 16, *low = block + 16 + 32 * FIFTH;
        for (int i = 0; i < 256; ++i) {
            const int group = i / 32, at = i % 32;
            to[i] = uint8_t(low[group / 2 * 32 + at] >> group % 2 * 4 & 15);
            if (FIFTH) to[i] |= uint8_t((fifth[at] >> group & 1) << 4);
        }
    }
};

struct Block256OfSix {
    static constexpr int FACTORS = 192, BYTES = 210;

    static void numbers(const uint8_t* block, uint8_t* to) {
        for (int i = 0; i < 256; ++i) {
            const int half = i / 128, at = i % 128;
            to[i] = uint8_t(
                (block[half * 64 + at % 64] >> at / 64 * 4 & 15) | (block[128 + half * 32 + at % 32] >> at / 32 * 2 & 3) << 4
            );
        }
    }
};

template <int SIZE>
struct Unpacked {
    static constexpr int FACTORS = 0, BYTES = SIZE * GROUP;
};

template <class File_, class Numbers_, class Factors_>
struct Format {
    typedef File_ File;
    typedef Numbers_ Numbers;
    typedef Factors_ Factors;
    static constexpr int INPUTS = Factors::INPUTS, GROUPS = INPUTS / GROUP;
    static constexpr int GROUP_BYTES = PANEL * GROUP * Numbers::BITS / 8;                     // of a panel's numbers
    static constexpr int BYTES = GROUPS * GROUP_BYTES + PANEL * Factors::BYTES;               // of a panel's block
    static_assert(BYTES == PANEL * File::BYTES, "a panel has the bits of its rows' blocks");
};

// Calls a function with the format of a type's number.
template <class Call>
inline auto by_type(int type, Call call) {
    switch (type) {
        case F16: return call(Format<Unpacked<2>, FloatNumbers<16>, NoFactors>());
        case BF16: return call(Format<Unpacked<2>, Bf16Numbers, NoFactors>());
        case Q4_0: return call(Format<Block32<2, false>, PackedNumbers<4, 8>, OneScale>());
        case Q4_1: return call(Format<Block32<4, false>, PackedNumbers<4, 0>, ScaleAndMinimum>());
        case Q5_0: return call(Format<Block32<2, true>, PackedNumbers<5, 16>, OneScale>());
        case Q5_1: return call(Format<Block32<4, true>, PackedNumbers<5, 0>, ScaleAndMinimum>());
        case Q8_0: return call(Format<Block32OfBytes, Int8Numbers, OneScale>());
        case Q4_K: return call(Format<Block256<false>, PackedNumbers<4, 0>, SixBits>());
        case Q5_K: return call(Format<Block256<true>, PackedNumbers<5, 0>, SixBits>());
        case Q6_K: return call(Format<Block256OfSix, PackedNumbers<6, 32>, SixteenScales>());
        default: return call(Format<Unpacked<4>, FloatNumbers<32>, NoFactors>());
    }
}

// What products with blocks read of a vector: its numbers in fp32, the sums of its groups, and, where the processor multiplies
// pairs, its numbers in bf16, whose sums the former then are.
struct Blocks {
    typedef float Read;
    static constexpr int ROWS = PANEL, MAX_TOKENS = 32;

    // Where they begin, in fp32 numbers.
    struct Layout {
        int64_t groups, sums, pairs, end;

        explicit Layout(int64_t inputs)
            : groups(parts(inputs, GROUP)), sums(groups * GROUP), pairs(sums + parts(groups, 16) * 16), end(pairs) {
#if defined(DRAFTRANK_PAIRS)
            end += groups * GROUP / 2;
#endif
        }
    };

    static void ready(const float* from, int64_t count, Read* to) {
        const Layout layout(count);
        std::copy(from, from + count, to);
        std::fill(to + count, to + layout.sums, 0.f);
#if defined(DRAFTRANK_PAIRS)
        auto* rounded = reinterpret_cast<uint16_t*>(to + layout.pairs);
        Pairs::ready(to, layout.sums, rounded);
#endif
        for (int64_t group = 0; group < layout.groups; ++group) {
            Lanes sum = {};
            for (int i = 0; i < GROUP; i += BLOCK) {
                Lanes first, second;
#if defined(DRAFTRANK_PAIRS)
                Bf16::pair(rounded + group * GROUP + i, first, second);
#else
                Fp32::pair(to + group * GROUP + i, first, second);
#endif
                sum += first + second;
            }
            to[layout.sums + group] = total(sum);
        }
    }

    // Adds a group's products to the sums [tokens, PANEL], of LANES rows from one on. Each half of the group has a sum of its own:
    // one would wait for itself.
    template <class Of>
    struct Add {
        static constexpr int HALF = GROUP / 2, SCALES = Of::Factors::SCALES;

        static Lanes scaled(Lanes first, Lanes second, const Lanes* scales, Lanes sum) {
            if constexpr (SCALES == 2) return fused(scales[1], second, fused(scales[0], first, sum));
            else return fused(scales[0], first + second, sum);
        }

        template <int TOKENS>
        static void in_lanes(
            const Lanes* numbers, const Lanes* scales, Lanes minimum, const float* x, const float* x_sum, int64_t length,
            float* sums
        ) {
            Lanes first[TOKENS] = {}, second[TOKENS] = {};
            for (int i = 0; i < HALF; ++i)
                DRAFTRANK_UNROLL for (int t = 0; t < TOKENS; ++t) {
                    first[t] = fused(numbers[i], everywhere(x[t * length + i]), first[t]);
                    second[t] = fused(numbers[HALF + i], everywhere(x[t * length + HALF + i]), second[t]);
                }
            DRAFTRANK_UNROLL for (int t = 0; t < TOKENS; ++t) {
                Lanes sum = scaled(first[t], second[t], scales, load(sums + t * PANEL));
                if constexpr (Of::Factors::MINIMUM) sum = fused(minimum, everywhere(x_sum[t * length]), sum);
                store(sums + t * PANEL, sum);
            }
        }

#if defined(DRAFTRANK_PAIRS)
        static void in_pairs(
            const __m512bh* pairs, const Lanes* scales, Lanes minimum, const uint16_t* x, const float* x_sum, float* sums
        ) {
            __m512 halves[2] = {};
            DRAFTRANK_UNROLL for (int i = 0; i < HALF / 2; ++i)
                DRAFTRANK_UNROLL for (int half = 0; half < 2; ++half) {
                    int32_t both;
                    std::memcpy(&both, x + half * HALF + 2 * i, sizeof both);
                    const __m512bh input = (__m512bh)_mm512_set1_epi32(both);
                    halves[half] = _mm512_dpbf16_ps(halves[half], pairs[half * HALF / 2 + i], input);
                }
            Lanes sum = scaled((Lanes)halves[0], (Lanes)halves[1], scales, load(sums));
            if constexpr (Of::Factors::MINIMUM) sum = fused(minimum, everywhere(*x_sum), sum);
            store(sums, sum);
        }
#endif

        static void run(
            const uint8_t* group, int row, const Lanes* scales, Lanes minimum, const float* x, const Layout& layout,
            int64_t number, int tokens, float* sums
        ) {
            const int64_t length = layout.end;
            const float *read = x + number * GROUP, *x_sum = x + layout.sums + number;
            if constexpr (IN_PAIRS && Of::Numbers::PAIRED) {
#if defined(DRAFTRANK_PAIRS)
                __m512bh pairs[GROUP / 2];
                Of::Numbers::pairs(group, row, pairs);
                const auto* rounded = reinterpret_cast<const uint16_t*>(x + layout.pairs) + number * GROUP;
                for (int t = 0; t < tokens; ++t)
                    in_pairs(
                        pairs, scales, minimum, rounded + 2 * t * length, x_sum + t * length, sums + t * PANEL
                    );
#endif
            } else {
                Lanes numbers[GROUP];
                Of::Numbers::inputs(group, row, numbers);
                int t = 0;
                const auto add = [&](auto count) {
                    constexpr int COUNT = decltype(count)::value;
                    for (; t + COUNT <= tokens; t += COUNT)
                        in_lanes<COUNT>(
                            numbers, scales, minimum, read + t * length, x_sum + t * length, length, sums + t * PANEL
                        );
                };
                add(std::integral_constant<int, 4>());
                add(std::integral_constant<int, 2>());
                add(std::integral_constant<int, 1>());
            }
        }
    };

    // One panel times vectors, to sums [tokens, PANEL].
    template <class Of>
    static void multiply(
        const uint8_t* panel, const float* x, const Layout& layout, int tokens, float* sums
    ) {
        constexpr int GROUPS = Of::GROUPS, SCALES = Of::Factors::SCALES;
        std::fill(sums, sums + tokens * PANEL, 0.f);
        for (int64_t number = 0; number < layout.groups; number += GROUPS, panel += Of::BYTES) {
            for (int line = 0; line < Of::BYTES; line += 64) __builtin_prefetch(panel + AHEAD + line);
            for (int row = 0; row < PANEL; row += LANES) {
                Lanes scales[GROUPS * SCALES], minima[GROUPS] = {};
                Of::Factors::read(panel + GROUPS * Of::GROUP_BYTES, row, scales, minima);
                for (int g = 0; g < GROUPS; ++g)
                    Add<Of>::run(
                        panel + g * Of::GROUP_BYTES, row, scales + g * SCALES, minima[g], x, layout, number + g, tokens,
                        sums + row
                    );
            }
        }
    }

    // A row of a packed matrix, in fp32.
    template <class Of>
    static void row(const uint8_t* stored, int64_t inputs, int64_t number, float* to) {
        constexpr int GROUPS = Of::GROUPS, SCALES = Of::Factors::SCALES;
        const int64_t groups = parts(inputs, GROUP);
        const int first = int(number % PANEL / LANES * LANES), lane = int(number % LANES);
        const uint8_t* panel = stored + number / PANEL * (groups / GROUPS) * Of::BYTES;
        for (int64_t group = 0; group < groups; group += GROUPS, panel += Of::BYTES) {
            Lanes scales[GROUPS * SCALES], minima[GROUPS] = {}, numbers[GROUP];
            Of::Factors::read(panel + GROUPS * Of::GROUP_BYTES, first, scales, minima);
            for (int g = 0; g < GROUPS; ++g) {
                Of::Numbers::inputs(panel + g * Of::GROUP_BYTES, first, numbers);
                const int64_t begin = (group + g) * GROUP;
                for (int i = 0; i < GROUP && begin + i < inputs; ++i) {
                    const float scale = scales[g * SCALES + i * SCALES / GROUP][lane];
                    to[begin + i] = fused(numbers[i][lane], scale, minima[g][lane]);
                }
            }
        }
    }

    template <class Of>
    static int64_t bytes(int64_t outputs, int64_t inputs) {
        return parts(outputs, PANEL) * parts(inputs, Of::INPUTS) * Of::BYTES;
    }

    // A matrix that lies as in a file, row after row, into whole panels.
    template <class Of>
    static void pack(const uint8_t* matrix, int64_t outputs, int64_t inputs, uint8_t* to) {
        constexpr int GROUPS = Of::GROUPS;
        const int64_t blocks = parts(inputs, Of::INPUTS);
        std::memset(to, 0, size_t(bytes<Of>(outputs, inputs)));
#pragma omp parallel for
        for (int64_t row = 0; row < outputs; ++row)
            for (int64_t number = 0; number < blocks; ++number) {
                const int lane = int(row % PANEL);
                uint8_t* panel = to + (row / PANEL * blocks + number) * Of::BYTES;
                if constexpr (Of::Factors::BYTES == 0) {  // whose rows may be of any length
                    constexpr int SIZE = Of::Numbers::BITS / 8;
                    uint8_t numbers[GROUP * SIZE] = {};
                    const int64_t begin = number * GROUP, count = std::min<int64_t>(GROUP, inputs - begin);
                    std::memcpy(numbers, matrix + (row * inputs + begin) * SIZE, size_t(count * SIZE));
                    Of::Numbers::pack(numbers, lane, panel);
                } else {
                    const uint8_t* block = matrix + (row * blocks + number) * Of::File::BYTES;
                    uint8_t numbers[Of::INPUTS];
                    Of::File::numbers(block, numbers);
                    for (int g = 0; g < GROUPS; ++g) Of::Numbers::pack(numbers + g * GROUP, lane, panel + g * Of::GROUP_BYTES);
                    const uint8_t* from = block + Of::File::FACTORS;
                    uint8_t* into = panel + GROUPS * Of::GROUP_BYTES;
                    for (const auto& [count, size] : Of::Factors::FIELDS)
                        for (int i = 0; i < count; ++i, from += size, into += PANEL * size)
                            std::memcpy(into + lane * size, from, size_t(size));
                }
            }
    }
};

template <>
inline int64_t length_of<Blocks>(int64_t inputs) {
    return Blocks::Layout(inputs).end;
}

template <>
inline void multiply<Blocks>(
    Matrix matrix, int64_t outputs, int64_t inputs, const float* x, int tokens, int64_t from, int64_t end, float* to,
    int64_t stride
) {
    const Blocks::Layout layout(inputs);
    by_type(matrix.type, [&](auto format) {
        typedef decltype(format) Of;
        alignas(64) float sums[Blocks::MAX_TOKENS * PANEL];
        for (int64_t panel = from; panel < end; ++panel) {
            const auto* stored = static_cast<const uint8_t*>(matrix.stored) + panel * (layout.groups / Of::GROUPS) * Of::BYTES;
            const int64_t row = panel * PANEL, rows = std::min<int64_t>(PANEL, outputs - row);
            in_passes<Blocks::MAX_TOKENS>(tokens, [&](int done, int now) {
                Blocks::multiply<Of>(stored, x + done * layout.end, layout, now, sums);
                for (int t = 0; t < now; ++t) std::copy_n(sums + t * PANEL, rows, to + (done + t) * stride + row);
            });
        }
    });
}

}  // namespace

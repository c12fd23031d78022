// A vector of floats, a vector of integers, and the operations of the kernels on them.
//
// kernels.cpp is compiled once for each instruction set below, with that set's compiler flags, which
// select the section of this file. A kernel is written once, with the names of `portable`.
//
//     LANES        floats in a vector; a lane holds one row of the weights
//     WIDTH        most columns of one call of a kernel: more would spill registers
//     QUERIES      most queries of one call that computes scores
//     BYTE_OFFSET  added to 8-bit weights, so that they suit `dot_bytes`
//     run<BITS>    number of `dot` calls before an `end` without overflow; the first one begins a partial sum
//     DOTS_OF_BFLOATS  defined if one instruction multiplies and adds pairs of bfloat16
//     SCALED_PAIRS  defined if partial sums are pairs of 16 bits, which `end` multiplies by scales as it adds them
//     TILES        defined if one instruction multiplies 8 bytes of two rows with those of two columns
#pragma once
#include <cstdint>
#include <cstring>
#include <initializer_list>
#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

// Instruction sets must not share any code, not even through the linker.
namespace {

#define INLINE static inline __attribute__((always_inline))

using u8 = uint8_t;
using i8 = int8_t;
using u16 = uint16_t;
using i16 = int16_t;
using u32 = uint32_t;

template <class T>
INLINE T read(const void * from) {
    T value;
    memcpy(&value, from, sizeof value);
    return value;
}

#if defined(__AVX2__)
// Weights are streamed: prefetch this far ahead, into the second-level cache.
INLINE void fetch(const void * at) { _mm_prefetch((const char *) at + 4096, _MM_HINT_T1); }
INLINE void ask_for(const void * at) { _mm_prefetch((const char *) at, _MM_HINT_T1); }
INLINE float half(u16 x) { return _cvtsh_ss(x); }
#elif defined(__aarch64__)
INLINE void fetch(const void * at) { __builtin_prefetch((const char *) at + 4096, 0, 2); }
INLINE void ask_for(const void * at) { __builtin_prefetch(at, 0, 3); }
INLINE float half(u16 x) { return vgetq_lane_f32(vcvt_f32_f16(vreinterpret_f16_u16(vdup_n_u16(x))), 0); }
#else
INLINE void fetch(const void *) {}
INLINE void ask_for(const void *) {}
INLINE float half(u16 x) {
    const u32 magnitude = (u32) (x & 0x7fff) << 13, sign = (u32) (x & 0x8000) << 16;
    // Exponents are rebiased by a multiplication, which also normalises denormal numbers.
    float value = read<float>(&magnitude) * 0x1p112f;
    if ((x & 0x7c00) == 0x7c00) {
        const u32 special = magnitude | 0x7f800000;
        value = read<float>(&special);
    }
    const u32 bits = read<u32>(&value) | sign;
    return read<float>(&bits);
}
#endif

#if defined(__AVX512VNNI__)

constexpr int LANES = 16, WIDTH = 12, QUERIES = 6, BYTE_OFFSET = 128;
template <int BITS>
constexpr int run = 8;
using F = __m512;
using I = __m512i;

INLINE F zero() { return _mm512_setzero_ps(); }
INLINE F all(float x) { return _mm512_set1_ps(x); }
INLINE F load(const float * p) { return _mm512_loadu_ps(p); }
INLINE void store(float * p, F a) { _mm512_storeu_ps(p, a); }
INLINE F halves(const void * p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *) p)); }
INLINE F bfloats(const void * p) {
    const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *) p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}
INLINE F add(F a, F b) { return _mm512_add_ps(a, b); }
INLINE F sub(F a, F b) { return _mm512_sub_ps(a, b); }
INLINE F mul(F a, F b) { return _mm512_mul_ps(a, b); }
INLINE F div(F a, F b) { return _mm512_div_ps(a, b); }
INLINE F max(F a, F b) { return _mm512_max_ps(a, b); }
INLINE F min(F a, F b) { return _mm512_min_ps(a, b); }
INLINE F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
INLINE F fnma(F a, F b, F c) { return _mm512_fnmadd_ps(a, b, c); }
// In a register: compilers would read it from memory at each use.
INLINE F held(F a) {
    asm("" : "+v"(a));
    return a;
}
INLINE float largest(F a) { return _mm512_reduce_max_ps(a); }
INLINE float sum(F a) { return _mm512_reduce_add_ps(a); }
INLINE F unless(F x, F bad, F y) { return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, bad, _CMP_NEQ_UQ), y); }
// Lane i of vector j becomes lane j of vector i.
INLINE void transpose(F * v) {
    F w[LANES];
    for (int i = 0; i < LANES; i += 2) {  // pairs of lanes
        w[i] = _mm512_unpacklo_ps(v[i], v[i + 1]);
        w[i + 1] = _mm512_unpackhi_ps(v[i], v[i + 1]);
    }
    for (int i = 0; i < LANES; i += 4)  // quarters
        for (int j = 0; j < 2; ++j) {
            const __m512d a = _mm512_castps_pd(w[i + j]), b = _mm512_castps_pd(w[i + j + 2]);
            v[i + 2 * j] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, b));
            v[i + 2 * j + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, b));
        }
    for (int i = 0; i < 4; ++i)  // the quarters of four vectors
        for (int j = 0; j < 2; ++j) {
            w[8 * j + i] = _mm512_shuffle_f32x4(v[8 * j + i], v[8 * j + 4 + i], 0x88);
            w[8 * j + 4 + i] = _mm512_shuffle_f32x4(v[8 * j + i], v[8 * j + 4 + i], 0xdd);
        }
    for (int i = 0; i < 8; ++i) {
        v[i] = _mm512_shuffle_f32x4(w[i], w[8 + i], 0x88);
        v[8 + i] = _mm512_shuffle_f32x4(w[i], w[8 + i], 0xdd);
    }
}

INLINE I load(const u8 * p) { return _mm512_load_si512(p); }
INLINE I all(int x) { return _mm512_set1_epi32(x); }
template <int SHIFT>
INLINE I shifted(const int * p) {
    return _mm512_slli_epi32(_mm512_set1_epi32(*p), SHIFT);
}
INLINE I magnitudes(F a) { return _mm512_and_si512(_mm512_castps_si512(a), _mm512_set1_epi32(0x7fffffff)); }
INLINE I max(I a, I b) { return _mm512_max_epi32(a, b); }
INLINE int largest(I a) { return _mm512_reduce_max_epi32(a); }
INLINE I to_int(F a) { return _mm512_cvtps_epi32(a); }
INLINE F to_float(I a) { return _mm512_cvtepi32_ps(a); }
INLINE F power(I n) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(n, all(127)), 23)); }
INLINE I bytes(const u8 * p) { return _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *) p)); }
INLINE I bytes(const i8 * p) { return _mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *) p)); }
INLINE int store(i8 * p, I a) {
    _mm_storeu_si128((__m128i *) p, _mm512_cvtepi32_epi8(a));
    return _mm512_reduce_add_epi32(a);
}
INLINE F even(I pairs) { return _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16)); }
INLINE F odd(I pairs) { return _mm512_castsi512_ps(_mm512_and_si512(pairs, all((int) 0xffff0000))); }

INLINE I low(I a) { return _mm512_and_si512(a, _mm512_set1_epi8(15)); }
INLINE I high(I a) { return _mm512_and_si512(_mm512_srli_epi16(a, 4), _mm512_set1_epi8(15)); }
template <int EXTRA, int AT>
INLINE I insert(I nibbles, I plane) {
    constexpr int LEFT = AT < 4 ? 4 - AT : 0, RIGHT = AT > 4 ? AT - 4 : 0;
    const I bits = RIGHT ? _mm512_srli_epi16(plane, RIGHT) : _mm512_slli_epi16(plane, LEFT);
    constexpr int NIBBLES_OR_BITS_AND_MASK = 0xf8;
    return _mm512_ternarylogic_epi32(nibbles, bits, _mm512_set1_epi8((char) (EXTRA == 1 ? 0x10 : 0x30)),
                                     NIBBLES_OR_BITS_AND_MASK);
}
INLINE I lookup(const u8 * table, I at) {
    return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *) table)), at);
}

// In assembly, because compilers use a register and an instruction for each broadcast.
template <bool FIRST>
INLINE I dot(I a, I w, const i8 * x) {
    asm("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(a) : "v"(w), "m"(*(const int *) x));
    return a;
}
template <bool FIRST>
INLINE I dot_bytes(I a, I w, const i8 * x) {
    return dot<FIRST>(a, w, x);
}
INLINE I end(I, I a) { return a; }
INLINE I dot_pairs(I a, const u8 * w, const i16 * x) {
    const I wide = _mm512_cvtepu8_epi16(_mm256_load_si256((const __m256i *) w));
    asm("vpdpwssd %2%{1to16%}, %1, %0" : "+v"(a) : "v"(wide), "m"(*(const int *) x));
    return a;
}

#if defined(__AVX512BF16__)
#define INSTRUCTION_SET avx512bf16
#define DOTS_OF_BFLOATS
INLINE F dot_bfloats(F a, I w, const u16 * x) {
    asm("vdpbf16ps %2%{1to16%}, %1, %0" : "+v"(a) : "v"(w), "m"(*(const int *) x));
    return a;
}
// 32 floats, rounded to the nearest.
INLINE void store_bfloats(u16 * p, const float * x) {
    _mm512_storeu_si512(p, (I) _mm512_cvtne2ps_pbh(load(x + 16), load(x)));
}
#else
#define INSTRUCTION_SET avx512
#endif

#elif defined(__AVX2__)

constexpr int LANES = 8, WIDTH = 6, QUERIES = 2;
using F = __m256;
using I = __m256i;

INLINE F zero() { return _mm256_setzero_ps(); }
INLINE F all(float x) { return _mm256_set1_ps(x); }
INLINE F load(const float * p) { return _mm256_loadu_ps(p); }
INLINE void store(float * p, F a) { _mm256_storeu_ps(p, a); }
INLINE F halves(const void * p) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *) p)); }
INLINE F bfloats(const void * p) {
    const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *) p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
}
INLINE F add(F a, F b) { return _mm256_add_ps(a, b); }
INLINE F sub(F a, F b) { return _mm256_sub_ps(a, b); }
INLINE F mul(F a, F b) { return _mm256_mul_ps(a, b); }
INLINE F div(F a, F b) { return _mm256_div_ps(a, b); }
INLINE F max(F a, F b) { return _mm256_max_ps(a, b); }
INLINE F min(F a, F b) { return _mm256_min_ps(a, b); }
INLINE F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
INLINE F fnma(F a, F b, F c) { return _mm256_fnmadd_ps(a, b, c); }
INLINE F held(F a) {
    asm("" : "+x"(a));
    return a;
}
INLINE float largest(F a) {
    __m128 m = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    m = _mm_max_ps(m, _mm_movehl_ps(m, m));
    return _mm_cvtss_f32(_mm_max_ss(m, _mm_movehdup_ps(m)));
}
INLINE float sum(F a) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}
INLINE F unless(F x, F bad, F y) { return _mm256_and_ps(_mm256_cmp_ps(x, bad, _CMP_NEQ_UQ), y); }
INLINE void transpose(F * v) {
    F w[LANES];
    for (int i = 0; i < LANES; i += 2) {
        w[i] = _mm256_unpacklo_ps(v[i], v[i + 1]);
        w[i + 1] = _mm256_unpackhi_ps(v[i], v[i + 1]);
    }
    for (int i = 0; i < LANES; i += 4)
        for (int j = 0; j < 2; ++j) {
            v[i + 2 * j] = _mm256_shuffle_ps(w[i + j], w[i + j + 2], 0x44);
            v[i + 2 * j + 1] = _mm256_shuffle_ps(w[i + j], w[i + j + 2], 0xee);
        }
    for (int i = 0; i < 4; ++i) {
        w[i] = _mm256_permute2f128_ps(v[i], v[4 + i], 0x20);
        w[4 + i] = _mm256_permute2f128_ps(v[i], v[4 + i], 0x31);
    }
    for (int i = 0; i < LANES; ++i) v[i] = w[i];
}

INLINE I load(const u8 * p) { return _mm256_load_si256((const __m256i *) p); }
INLINE I all(int x) { return _mm256_set1_epi32(x); }
template <int SHIFT>
INLINE I shifted(const int * p) {
    return _mm256_slli_epi32(_mm256_set1_epi32(*p), SHIFT);
}
INLINE I magnitudes(F a) { return _mm256_and_si256(_mm256_castps_si256(a), _mm256_set1_epi32(0x7fffffff)); }
INLINE I max(I a, I b) { return _mm256_max_epi32(a, b); }
INLINE int largest(I a) {
    __m128i m = _mm_max_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
    m = _mm_max_epi32(m, _mm_shuffle_epi32(m, 0x4e));
    return _mm_cvtsi128_si32(_mm_max_epi32(m, _mm_shuffle_epi32(m, 0xb1)));
}
INLINE I to_int(F a) { return _mm256_cvtps_epi32(a); }
INLINE F to_float(I a) { return _mm256_cvtepi32_ps(a); }
INLINE F power(I n) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(n, all(127)), 23)); }
INLINE I bytes(const u8 * p) { return _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *) p)); }
INLINE I bytes(const i8 * p) { return _mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *) p)); }
INLINE int store(i8 * p, I a) {
    __m128i low = _mm256_castsi256_si128(a), high = _mm256_extracti128_si256(a, 1), s = _mm_add_epi32(low, high);
    low = _mm_packs_epi32(low, high);
    _mm_storel_epi64((__m128i *) p, _mm_packs_epi16(low, low));
    s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(s, _mm_shuffle_epi32(s, 0xb1)));
}
INLINE F even(I pairs) { return _mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16)); }
INLINE F odd(I pairs) { return _mm256_castsi256_ps(_mm256_and_si256(pairs, all((int) 0xffff0000))); }

INLINE I low(I a) { return _mm256_and_si256(a, _mm256_set1_epi8(15)); }
INLINE I high(I a) { return _mm256_and_si256(_mm256_srli_epi16(a, 4), _mm256_set1_epi8(15)); }
template <int EXTRA, int AT>
INLINE I insert(I nibbles, I plane) {
    constexpr int LEFT = AT < 4 ? 4 - AT : 0, RIGHT = AT > 4 ? AT - 4 : 0;
    const I bits = RIGHT ? _mm256_srli_epi16(plane, RIGHT) : _mm256_slli_epi16(plane, LEFT);
    return _mm256_or_si256(nibbles, _mm256_and_si256(bits, _mm256_set1_epi8((char) (EXTRA == 1 ? 0x10 : 0x30))));
}
INLINE I lookup(const u8 * table, I at) {
    return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *) table)), at);
}
INLINE I dot_pairs(I a, const u8 * w, const i16 * x) {
    const I wide = _mm256_cvtepu8_epi16(_mm_load_si128((const __m128i *) w));
    return _mm256_add_epi32(a, _mm256_madd_epi16(wide, all(read<int>(x))));
}

#if defined(__AVXVNNI__)
#define INSTRUCTION_SET avxvnni
constexpr int BYTE_OFFSET = 128;
template <int BITS>
constexpr int run = 8;
template <bool FIRST>
INLINE I dot(I a, I w, const i8 * x) {
    return _mm256_dpbusd_avx_epi32(a, w, all(read<int>(x)));
}
template <bool FIRST>
INLINE I dot_bytes(I a, I w, const i8 * x) {
    return dot<FIRST>(a, w, x);
}
INLINE I end(I, I a) { return a; }
#else
#define INSTRUCTION_SET avx2
#define SCALED_PAIRS
constexpr int BYTE_OFFSET = 0;
// Sums of two products in 16 bits: 2 * 127 * (2^BITS - 1) of 2^15 each time.
template <int BITS>
constexpr int run = BITS == 4   ? 8
                    : BITS == 5 ? 4
                    : BITS == 6 ? 2
                                : 1;
// In assembly, because GCC otherwise computes all products first, and runs out of registers.
template <bool FIRST>
INLINE I add_16(I a, I b) {
    if constexpr (FIRST) asm("" : "=x"(a) : "0"(b));
    else asm("vpaddw %1, %0, %0" : "+x"(a) : "x"(b));
    return a;
}
template <bool FIRST>
INLINE I dot(I a, I w, const i8 * x) {
    return add_16<FIRST>(a, _mm256_maddubs_epi16(w, all(read<int>(x))));
}
template <bool FIRST>
INLINE I dot_bytes(I a, I w, const i8 * x) {
    return add_16<FIRST>(a, _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(all(read<int>(x)), w)));
}
INLINE I end(I before, I a, I scales) { return _mm256_add_epi32(before, _mm256_madd_epi16(a, scales)); }
INLINE I end(I before, I a) { return end(before, a, _mm256_set1_epi16(1)); }
// The scales of all rows in 16 bits, each twice; or those of two blocks, in turn.
INLINE I in_turn(const i8 * first, const i8 * second) {
    const __m128i a = _mm_loadl_epi64((const __m128i *) first), b = _mm_loadl_epi64((const __m128i *) second);
    return _mm256_cvtepi8_epi16(_mm_unpacklo_epi8(a, b));
}
INLINE I dot_pairs(I a, I pairs, const i16 * x) {
    return _mm256_add_epi32(a, _mm256_madd_epi16(pairs, all(read<int>(x))));
}
template <int TIMES>
INLINE I doubled(I a) {
    return _mm256_slli_epi32(a, TIMES);
}
#endif

#elif defined(__ARM_FEATURE_DOTPROD)

constexpr int LANES = 4, WIDTH = 8, QUERIES = 2, BYTE_OFFSET = 0;
template <int BITS>
constexpr int run = 8;
using F = float32x4_t;
using I = int32x4_t;

INLINE F zero() { return vdupq_n_f32(0); }
INLINE F all(float x) { return vdupq_n_f32(x); }
INLINE F load(const float * p) { return vld1q_f32(p); }
INLINE void store(float * p, F a) { vst1q_f32(p, a); }
INLINE F halves(const void * p) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16((const u16 *) p))); }
INLINE F bfloats(const void * p) { return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16((const u16 *) p), 16)); }
INLINE F add(F a, F b) { return vaddq_f32(a, b); }
INLINE F sub(F a, F b) { return vsubq_f32(a, b); }
INLINE F mul(F a, F b) { return vmulq_f32(a, b); }
INLINE F div(F a, F b) { return vdivq_f32(a, b); }
INLINE F max(F a, F b) { return vmaxq_f32(a, b); }
INLINE F min(F a, F b) { return vminq_f32(a, b); }
INLINE F fma(F a, F b, F c) { return vfmaq_f32(c, a, b); }
INLINE F fnma(F a, F b, F c) { return vfmsq_f32(c, a, b); }
INLINE F held(F a) { return a; }
INLINE float largest(F a) { return vmaxvq_f32(a); }
INLINE float sum(F a) { return vaddvq_f32(a); }
INLINE F unless(F x, F bad, F y) {
    return vreinterpretq_f32_u32(vbicq_u32(vreinterpretq_u32_f32(y), vceqq_f32(x, bad)));
}
INLINE void transpose(F * v) {
    const float32x4x2_t a = vtrnq_f32(v[0], v[1]), b = vtrnq_f32(v[2], v[3]);
    v[0] = vcombine_f32(vget_low_f32(a.val[0]), vget_low_f32(b.val[0]));
    v[1] = vcombine_f32(vget_low_f32(a.val[1]), vget_low_f32(b.val[1]));
    v[2] = vcombine_f32(vget_high_f32(a.val[0]), vget_high_f32(b.val[0]));
    v[3] = vcombine_f32(vget_high_f32(a.val[1]), vget_high_f32(b.val[1]));
}

INLINE I load(const u8 * p) { return vreinterpretq_s32_u8(vld1q_u8(p)); }
INLINE I all(int x) { return vdupq_n_s32(x); }
template <int SHIFT>
INLINE I shifted(const int * p) {
    return vshlq_n_s32(vdupq_n_s32(*p), SHIFT);
}
INLINE I magnitudes(F a) { return vandq_s32(vreinterpretq_s32_f32(a), vdupq_n_s32(0x7fffffff)); }
INLINE I max(I a, I b) { return vmaxq_s32(a, b); }
INLINE int largest(I a) { return vmaxvq_s32(a); }
INLINE I to_int(F a) { return vcvtnq_s32_f32(a); }
INLINE F to_float(I a) { return vcvtq_f32_s32(a); }
INLINE F power(I n) { return vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(n, all(127)), 23)); }
INLINE I bytes(const u8 * p) {
    const uint8x8_t four = vreinterpret_u8_u32(vdup_n_u32(read<u32>(p)));
    return vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(vmovl_u8(four))));
}
INLINE I bytes(const i8 * p) {
    const int8x8_t four = vreinterpret_s8_u32(vdup_n_u32(read<u32>(p)));
    return vmovl_s16(vget_low_s16(vmovl_s8(four)));
}
INLINE int store(i8 * p, I a) {
    for (int i = 0; i < LANES; ++i) p[i] = (i8) a[i];
    return vaddvq_s32(a);
}
INLINE F even(I pairs) { return vreinterpretq_f32_s32(vshlq_n_s32(pairs, 16)); }
INLINE F odd(I pairs) { return vreinterpretq_f32_s32(vandq_s32(pairs, all((int) 0xffff0000))); }

INLINE I low(I a) { return vreinterpretq_s32_u8(vandq_u8(vreinterpretq_u8_s32(a), vdupq_n_u8(15))); }
INLINE I high(I a) { return vreinterpretq_s32_u8(vshrq_n_u8(vreinterpretq_u8_s32(a), 4)); }
template <int EXTRA, int AT>
INLINE I insert(I nibbles, I plane) {
    const uint8x16_t all_bits = vreinterpretq_u8_s32(plane);
    const uint8x16_t bits = vshlq_u8(all_bits, vdupq_n_s8(4 - AT));
    const uint8x16_t mask = vdupq_n_u8(EXTRA == 1 ? 0x10 : 0x30);
    return vorrq_s32(nibbles, vreinterpretq_s32_u8(vandq_u8(bits, mask)));
}
INLINE I lookup(const u8 * table, I at) {
    return vreinterpretq_s32_u8(vqtbl1q_u8(vld1q_u8(table), vreinterpretq_u8_s32(at)));
}
template <bool FIRST>
INLINE I dot(I a, I w, const i8 * x) {
    return vdotq_s32(a, vreinterpretq_s8_s32(w), vreinterpretq_s8_s32(all(read<int>(x))));
}
template <bool FIRST>
INLINE I dot_bytes(I a, I w, const i8 * x) {
    return dot<FIRST>(a, w, x);
}
INLINE I end(I, I a) { return a; }
INLINE I dot_pairs(I a, const u8 * w, const i16 * x) {
    const int16x8_t wide = vreinterpretq_s16_u16(vmovl_u8(vld1_u8(w)));
    const int16x8_t pairs = vreinterpretq_s16_s32(all(read<int>(x)));
    const int32x4_t first = vmull_s16(vget_low_s16(wide), vget_low_s16(pairs));
    return vaddq_s32(a, vpaddq_s32(first, vmull_high_s16(wide, pairs)));
}

#if defined(__ARM_FEATURE_MATMUL_INT8)
#define INSTRUCTION_SET i8mm
#define TILES
// a: sums [row][column]. w: 8 weights of each row; x, y: 8 activations of each column.
INLINE I dot_tile(I a, I w, const i8 * x, const i8 * y) {
    return vmmlaq_s32(a, vreinterpretq_s8_s32(w), vcombine_s8(vld1_s8(x), vld1_s8(y)));
}
// One column of two tiles, which have all rows.
INLINE I first_column(I a, I b) { return vuzp1q_s32(a, b); }
INLINE I second_column(I a, I b) { return vuzp2q_s32(a, b); }
INLINE I add(I a, I b) { return vaddq_s32(a, b); }
#else
#define INSTRUCTION_SET dotprod
#endif

#else

// The reference, for any processor.
#define INSTRUCTION_SET portable
constexpr int LANES = 4, WIDTH = 1, QUERIES = 1, BYTE_OFFSET = 0;
template <int BITS>
constexpr int run = 8;
struct F {
    float at[LANES];
};
struct I {
    int at[LANES];
};
#define EACH for (int i = 0; i < LANES; ++i)
#define MAKE(TYPE, EXPRESSION) \
    TYPE r; \
    EACH r.at[i] = EXPRESSION; \
    return r

INLINE float bits_of(u32 x) { return read<float>(&x); }
INLINE u32 bits_of(float x) { return read<u32>(&x); }
INLINE int word(const u8 * b) { return read<int>(b); }
INLINE const u8 * octets(const I & a, int lane) { return (const u8 *) (a.at + lane); }

INLINE F all(float x) { MAKE(F, x); }
INLINE F zero() { return all(0.f); }
INLINE F load(const float * p) { MAKE(F, p[i]); }
INLINE void store(float * p, F a) { EACH p[i] = a.at[i]; }
INLINE F halves(const void * p) { MAKE(F, half(read<u16>((const u8 *) p + 2 * i))); }
INLINE F bfloats(const void * p) { MAKE(F, bits_of((u32) read<u16>((const u8 *) p + 2 * i) << 16)); }
INLINE F add(F a, F b) { MAKE(F, a.at[i] + b.at[i]); }
INLINE F sub(F a, F b) { MAKE(F, a.at[i] - b.at[i]); }
INLINE F mul(F a, F b) { MAKE(F, a.at[i] * b.at[i]); }
INLINE F div(F a, F b) { MAKE(F, a.at[i] / b.at[i]); }
INLINE F max(F a, F b) { MAKE(F, a.at[i] > b.at[i] ? a.at[i] : b.at[i]); }
INLINE F min(F a, F b) { MAKE(F, a.at[i] < b.at[i] ? a.at[i] : b.at[i]); }
INLINE F fma(F a, F b, F c) { MAKE(F, a.at[i] * b.at[i] + c.at[i]); }
INLINE F fnma(F a, F b, F c) { MAKE(F, c.at[i] - a.at[i] * b.at[i]); }
INLINE F held(F a) { return a; }
INLINE float largest(F a) {
    float m = a.at[0];
    EACH m = a.at[i] > m ? a.at[i] : m;
    return m;
}
INLINE float sum(F a) {
    float s = 0;
    EACH s += a.at[i];
    return s;
}
INLINE F unless(F x, F bad, F y) { MAKE(F, x.at[i] == bad.at[i] ? 0.f : y.at[i]); }
INLINE void transpose(F * v) {
    for (int j = 0; j < LANES; ++j)
        for (int i = 0; i < j; ++i) {
            const float saved = v[j].at[i];
            v[j].at[i] = v[i].at[j];
            v[i].at[j] = saved;
        }
}

INLINE I load(const u8 * p) { MAKE(I, word(p + 4 * i)); }
INLINE I all(int x) { MAKE(I, x); }
template <int SHIFT>
INLINE I shifted(const int * p) {
    return all(*p * (1 << SHIFT));
}
INLINE I magnitudes(F a) { MAKE(I, (int) (bits_of(a.at[i]) & 0x7fffffff)); }
INLINE I max(I a, I b) { MAKE(I, a.at[i] > b.at[i] ? a.at[i] : b.at[i]); }
INLINE int largest(I a) {
    int m = a.at[0];
    EACH m = a.at[i] > m ? a.at[i] : m;
    return m;
}
INLINE int nearest(float x) {
    if (!(x > -2e9f && x < 2e9f)) return INT32_MIN;  // as processor instructions do
    const float down = __builtin_floorf(x), rest = x - down;
    const int n = (int) down;
    return rest > 0.5f || (rest == 0.5f && n % 2) ? n + 1 : n;
}
INLINE I to_int(F a) { MAKE(I, nearest(a.at[i])); }
INLINE F to_float(I a) { MAKE(F, (float) a.at[i]); }
INLINE F power(I n) { MAKE(F, bits_of((u32) (n.at[i] + 127) << 23)); }
INLINE I bytes(const u8 * p) { MAKE(I, p[i]); }
INLINE I bytes(const i8 * p) { MAKE(I, p[i]); }
INLINE int store(i8 * p, I a) {
    u32 s = 0;
    EACH {
        p[i] = (i8) a.at[i];
        s += (u32) a.at[i];
    }
    return (int) s;
}
INLINE F even(I pairs) { MAKE(F, bits_of((u32) pairs.at[i] << 16)); }
INLINE F odd(I pairs) { MAKE(F, bits_of((u32) pairs.at[i] & 0xffff0000)); }

INLINE I low(I a) { MAKE(I, a.at[i] & 0x0f0f0f0f); }
INLINE I high(I a) { MAKE(I, (int) ((u32) a.at[i] >> 4 & 0x0f0f0f0f)); }
template <int EXTRA, int AT>
INLINE I insert(I nibbles, I plane) {
    const u32 mask = (EXTRA == 1 ? 1 : 3) * 0x01010101u;
    MAKE(I, (int) ((u32) nibbles.at[i] | ((u32) plane.at[i] >> AT & mask) << 4));
}
INLINE I lookup(const u8 * table, I at) {
    I r;
    EACH {
        u8 found[4];
        for (int j = 0; j < 4; ++j) found[j] = table[octets(at, i)[j]];
        r.at[i] = word(found);
    }
    return r;
}
template <bool FIRST>
INLINE I dot(I a, I w, const i8 * x) {
    EACH for (int j = 0; j < 4; ++j) a.at[i] += octets(w, i)[j] * x[j];
    return a;
}
template <bool FIRST>
INLINE I dot_bytes(I a, I w, const i8 * x) {
    EACH for (int j = 0; j < 4; ++j) a.at[i] += (i8) octets(w, i)[j] * x[j];
    return a;
}
INLINE I end(I, I a) { return a; }
INLINE I dot_pairs(I a, const u8 * w, const i16 * x) {
    EACH a.at[i] += w[2 * i] * x[0] + w[2 * i + 1] * x[1];
    return a;
}
#undef MAKE
#undef EACH
#endif
}  // namespace

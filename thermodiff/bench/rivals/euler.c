/* The limit: Euler-Maruyama paths of dx = (a x - b x^3) dt + amplitude dW / sqrt(dt), as a C programmer would write them for
 * speed.
 *
 * The algorithm is that of thermodiff, so the states are the same for the same key (to rounding): blocks of 256 paths, the
 * normals from Philox 4x32-10 with counter (path low word, path high word, step / 4, PURPOSE), four of them per counter by
 * Box and Muller.  All loops over lanes are free of branches and of calls, so that the compiler vectorises them.
 *
 *     cc -O3 -march=native -ffast-math -shared -fPIC euler.c -lm
 *
 * -ffast-math reassociates: nothing here adds a large number in order to round, except where the bits of the sum are used.
 */
#include <math.h>
#include <stdint.h>
#include <string.h>

#define LANES 256
#define PURPOSE 3 /* path noise, see thermodiff/kernels/philox.py */
#define LOW 0xFFFFFFFFull
#define LINE __attribute__((aligned(64)))

static inline double from_bits(uint64_t bits)
{
    double value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static inline uint64_t to_bits(double value)
{
    uint64_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

/* Ten rounds; 32-bit words travel in 64-bit lanes, beside the doubles that they become. */
static inline void philox(uint64_t c[4], uint64_t k0, uint64_t k1)
{
    for (int round = 0; round < 10; round++) {
        uint64_t p0 = 0xD2511F53ull * c[0], p1 = 0xCD9E8D57ull * c[2];
        uint64_t n0 = (p1 >> 32) ^ c[1] ^ k0, n2 = (p0 >> 32) ^ c[3] ^ k1;
        c[0] = n0;
        c[1] = p1 & LOW;
        c[2] = n2;
        c[3] = p0 & LOW;
        k0 = (k0 + 0x9E3779B9ull) & LOW;
        k1 = (k1 + 0xBB67AE85ull) & LOW;
    }
}

/* (word + 1/2) / 2^32, by way of the bits of 2^52 + word. */
static inline double uniform(uint64_t word)
{
    return (from_bits(word | 0x4330000000000000ull) - 4503599627370495.5) * (1.0 / 4294967296.0);
}

/* log of a normal positive number: fdlibm's scheme, x = 2^k z with sqrt(1/2) <= z < sqrt(2). */
static inline double log_normal(double x)
{
    uint64_t bits = to_bits(x);
    uint64_t shifted = (bits - 0x3FE6A09E667F3BCDull + 0x8000000000000000ull) >> 52; /* k + 2048 */
    double z = from_bits(bits - ((shifted - 2048) << 52));
    double k = from_bits(0x4330000000000000ull | shifted) - (4503599627370496.0 + 2048.0);
    double f = z - 1.0, s = f / (2.0 + f), w = s * s, v = w * w;
    double odd = v * (2.857142874366239149e-01 + w * 2.222219843214978396e-01
                      + v * (1.818357216161805012e-01 + w * 1.531383769920937332e-01 + v * 1.479819860511658591e-01));
    double r = w * (6.666666666666735130e-01 + w * 3.999999999940941908e-01 + odd);
    double half = 0.5 * f * f;
    return k * 0.6931471803691238 - ((half - (s * (half + r) + k * 1.9082149292705877e-10)) - f);
}

/* sin and cos of u turns, 0 <= u < 1: Taylor polynomials on an eighth of a turn, then quadrants. */
static inline void sincos_turns(double u, double *sine, double *cosine)
{
    double quarter = rint(4.0 * u), a = (4.0 * u - quarter) * 1.5707963267948966, w = a * a, v = w * w;
    double s = a + a * w * ((-1.0 / 6 + w * (1.0 / 120)) + v * ((-1.0 / 5040 + w * (1.0 / 362880))
             + v * (-1.0 / 39916800 + w * (1.0 / 6227020800.0) - v * (1.0 / 1307674368000.0))));
    double c = 1.0 + w * (((-0.5 + w * (1.0 / 24)) + v * (-1.0 / 720 + w * (1.0 / 40320)))
             + v * v * ((-1.0 / 3628800 + w * (1.0 / 479001600)) + v * (-1.0 / 87178291200.0 + w * (1.0 / 20922789888000.0))));
    uint64_t n = to_bits(quarter + 6755399441055744.0); /* the low bits hold the integer */
    double one = (n & 1) ? c : s, other = (n & 1) ? s : c;
    *sine = (n & 2) ? -one : one;
    *cosine = ((n + 1) & 2) ? -other : other;
}

/* The normals of steps 4 group ... 4 group + 3 of the LANES paths from `path` on. */
static void fill(double normals[4][LANES], uint64_t path, uint64_t group, uint64_t k0, uint64_t k1)
{
    double *r0 = normals[0], *r1 = normals[1], *r2 = normals[2], *r3 = normals[3];
    uint64_t low = path & LOW, high = path >> 32;
    for (int lane = 0; lane < LANES; lane++) {
        uint64_t c[4] = {low + (uint64_t)lane, high, group & LOW, PURPOSE};
        philox(c, k0, k1);
        r0[lane] = uniform(c[0]);
        r1[lane] = uniform(c[1]);
        r2[lane] = uniform(c[2]);
        r3[lane] = uniform(c[3]);
    }
    for (int lane = 0; lane < LANES; lane++) {
        double s, c, radius = sqrt(-2.0 * log_normal(r0[lane]));
        sincos_turns(r1[lane], &s, &c);
        r0[lane] = radius * c;
        r1[lane] = radius * s;
        radius = sqrt(-2.0 * log_normal(r2[lane]));
        sincos_turns(r3[lane], &s, &c);
        r2[lane] = radius * c;
        r3[lane] = radius * s;
    }
}

/* Carry x[0 ... n - 1] through `steps` steps; amplitude = sqrt(2 D dt).  k0, k1: the key. */
void euler_double_well(double *x, long n, long steps, double dt, double a, double b, double amplitude, uint32_t k0,
                       uint32_t k1)
{
    double y[LANES] LINE, normals[4][LANES] LINE;
    for (long path = 0; path < n; path += LANES) {
        long width = n - path < LANES ? n - path : LANES;
        memset(y, 0, sizeof y);
        memcpy(y, x + path, (size_t)width * sizeof *x);
        for (long step = 0; step < steps; step++) {
            if (step % 4 == 0)
                fill(normals, (uint64_t)path, (uint64_t)(step / 4), k0, k1);
            const double *z = normals[step % 4];
            for (int lane = 0; lane < LANES; lane++)
                y[lane] += dt * (a * y[lane] - b * y[lane] * y[lane] * y[lane]) + amplitude * z[lane];
        }
        memcpy(x + path, y, (size_t)width * sizeof *x);
    }
}

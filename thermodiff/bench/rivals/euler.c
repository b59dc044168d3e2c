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

/* -2 log((word + 1/2) / 2^32) to 2e-11: word + 1/2 = 2^k z with sqrt(1/2) <= z < sqrt(2), and a short series of artanh. */
static inline double squared_radius(uint64_t word)
{
    uint64_t shifted = to_bits(from_bits(word | 0x4330000000000000ull) - 4503599627370495.5) - 0x3FD6A09E667F3BCDull;
    double z = from_bits((shifted & 0xFFFFFFFFFFFFFull) + 0x3FE6A09E667F3BCDull);
    double k = from_bits((shifted >> 52) | 0x4330000000000000ull) - (4503599627370496.0 + 33.0);
    double s = (z - 1.0) / (z + 1.0), w = s * s;
    double series = -4.000000000093501 + w * (-1.3333332701041565 + w * (-0.800011960401524
                    + w * (-0.5705075731168903 + w * -0.47524989986781635)));
    return s * series - k * 1.3862943611198906;
}

#define UNIT 9.313225746154785e-10 /* 2^-30 */

/* A point on the unit circle to 2e-12: an eighth of a turn to both sides of the x axis, a sign of x, an exchange. */
static inline void direction(uint64_t word, double *first, double *second)
{
    double f = UNIT * (from_bits((word & 0x3FFFFFFF) | 0x4330000000000001ull) - (4503599627370496.0 + 536870912.0));
    double w = f * f;
    double y = f * (1.570796326757612 + w * (-0.6459640945212768 + w * (0.07969255932297749
               + w * (-0.004681141460910373 + w * 0.0001579844687692953))));
    double x = 0.9999999999999445 + w * (-1.233700550120178 + w * (0.2536695071543066 + w * (-0.02086346800898955
               + w * (0.0009191617677869262 + w * -2.4851012689476965e-05))));
    x = from_bits(to_bits(x) ^ ((word << 32) & 0x8000000000000000ull));
    int swap = (word & 0x40000000) != 0;
    *first = swap ? y : x;
    *second = swap ? x : y;
}

/* The normals of steps 4 group ... 4 group + 3 of the LANES paths from `path` on. */
static void fill(double normals[4][LANES], uint64_t path, uint64_t group, uint64_t k0, uint64_t k1)
{
    double *r0 = normals[0], *r1 = normals[1], *r2 = normals[2], *r3 = normals[3];
    uint64_t low = path & LOW, high = path >> 32;
    for (int lane = 0; lane < LANES; lane++) {
        uint64_t c[4] = {low + (uint64_t)lane, high, group & LOW, PURPOSE};
        philox(c, k0, k1);
        r0[lane] = from_bits(c[0]);
        r1[lane] = from_bits(c[1]);
        r2[lane] = from_bits(c[2]);
        r3[lane] = from_bits(c[3]);
    }
    for (int lane = 0; lane < LANES; lane++) {
        double radius = sqrt(squared_radius(to_bits(r0[lane]))), x, y;
        direction(to_bits(r1[lane]), &x, &y);
        r0[lane] = radius * x;
        r1[lane] = radius * y;
    }
    for (int lane = 0; lane < LANES; lane++) {
        double radius = sqrt(squared_radius(to_bits(r2[lane]))), x, y;
        direction(to_bits(r3[lane]), &x, &y);
        r2[lane] = radius * x;
        r3[lane] = radius * y;
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

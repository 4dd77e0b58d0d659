/* The same steps as lnsim's one-sample SGD, by hand in C: the floor that bench/floor.py measures
   the simulator against.  Reads nothing, prints nanoseconds a step of each repetition.

   reduced: W transposed, (r, 24), the update and the next product in one pass, AVX2 and FMA by hand.
   dense:   W : (m, r), plain loops, for the compiler to vectorise (-Ofast -march=native). */
#include <immintrin.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

enum { PADDED = 24, VECTORS = 6 };

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + 1e-9 * t.tv_nsec;
}

static double uniform(void) { return 2.0 * rand() / RAND_MAX - 1.0; }

static long sample(uint64_t word, long n) { return (long)(((word >> 32) * (uint64_t)n) >> 32); }

__attribute__((noinline)) static void reduced(double *W, double *a, const double *X,
                                              const double *y, const uint64_t *words, long steps,
                                              long n, long r, double lr, double sigma) {
    double u[PADDED] __attribute__((aligned(32))) = {0};
    long i = sample(words[0], n);
    for (int k = 0; k < PADDED; k++)
        for (long j = 0; j < r; j++) u[k] += W[j * PADDED + k] * X[i * r + j];
    for (long t = 0; t < steps; t++) {
        double noise = (words[t] & 1) ? sigma : -sigma;
        __m256d even = _mm256_setzero_pd(), odd = even, p[VECTORS], sum[VECTORS];
        for (int k = 0; k < VECTORS; k += 2) {
            even = _mm256_fmadd_pd(_mm256_load_pd(a + 4 * k), _mm256_load_pd(u + 4 * k), even);
            odd = _mm256_fmadd_pd(_mm256_load_pd(a + 4 * k + 4), _mm256_load_pd(u + 4 * k + 4), odd);
        }
        even = _mm256_add_pd(even, odd);
        __m128d half = _mm_add_pd(_mm256_castpd256_pd128(even), _mm256_extractf128_pd(even, 1));
        double f = _mm_cvtsd_f64(half) + _mm_cvtsd_f64(_mm_unpackhi_pd(half, half));
        double c = -lr * (f - y[i] - noise);
        const double *x = X + i * r;
        if (t + 1 < steps) i = sample(words[t + 1], n);
        const double *next = X + i * r;
        __m256d factor = _mm256_set1_pd(c);
        for (int k = 0; k < VECTORS; k++) {
            __m256d old = _mm256_load_pd(a + 4 * k);
            p[k] = _mm256_mul_pd(factor, old);
            _mm256_store_pd(a + 4 * k, _mm256_fmadd_pd(factor, _mm256_load_pd(u + 4 * k), old));
            sum[k] = _mm256_setzero_pd();
        }
        double *row = W;
        for (long j = 0; j < r; j++, row += PADDED) {
            __m256d xj = _mm256_broadcast_sd(x + j), nj = _mm256_broadcast_sd(next + j);
#pragma GCC unroll 6
            for (int k = 0; k < VECTORS; k++) {
                __m256d w = _mm256_fmadd_pd(p[k], xj, _mm256_load_pd(row + 4 * k));
                _mm256_store_pd(row + 4 * k, w);
                sum[k] = _mm256_fmadd_pd(w, nj, sum[k]);
            }
        }
        for (int k = 0; k < VECTORS; k++) _mm256_store_pd(u + 4 * k, sum[k]);
    }
}

__attribute__((noinline)) static void dense(double *restrict W, double *restrict a,
                                            const double *restrict X, const double *restrict y,
                                            const uint64_t *words, long steps, long n, long r,
                                            long m, double lr, double sigma,
                                            double *restrict u) {
    for (long t = 0; t < steps; t++) {
        long i = sample(words[t], n);
        const double *x = X + i * r;
        double f = 0.0;
        for (long k = 0; k < m; k++) {
            double total = 0.0;
            for (long j = 0; j < r; j++) total += W[k * r + j] * x[j];
            u[k] = total;
            f += a[k] * total;
        }
        double c = -lr * (f - y[i] - ((words[t] & 1) ? sigma : -sigma));
        for (long k = 0; k < m; k++) {
            double step = c * a[k];
            for (long j = 0; j < r; j++) W[k * r + j] += step * x[j];
            a[k] += c * u[k];
        }
    }
}

int main(int argc, char **argv) {
    long n = 200, r = 20, wide = argc > 1, m = wide ? 1000 : PADDED, steps = wide ? 10000 : 400000;
    double *W = aligned_alloc(64, m * r * 8), *a = aligned_alloc(64, m * 8), *u = malloc(m * 8);
    double *X = aligned_alloc(64, n * r * 8), *y = malloc(n * 8);
    uint64_t *words = malloc(steps * 8);
    for (long i = 0; i < n * r; i++) X[i] = 1.7 * uniform();
    for (long i = 0; i < n; i++) y[i] = X[i * r];
    for (long t = 0; t < steps; t++) words[t] = ((uint64_t)rand() << 33) ^ (uint64_t)rand();
    for (int repetition = 0; repetition < 7; repetition++) {
        for (long k = 0; k < m * r; k++) W[k] = 0.3 * uniform();
        for (long k = 0; k < m; k++) a[k] = 0.05 * uniform();
        double start = now();
        if (wide) dense(W, a, X, y, words, steps, n, r, m, 1e-3, 4.0, u);
        else reduced(W, a, X, y, words, steps, n, r, 1e-3, 4.0);
        printf("%.2f\n", (now() - start) / steps * 1e9);
    }
    return a[0] != a[0];
}

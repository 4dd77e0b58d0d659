/* The same steps as lnsim's SGD of other models, by hand in C: the floor that bench/floor_models.py
   measures the simulator against.  Plain loops, one sample a step, weights as lnsim keeps them, room
   on the stack.  The words of the random stream are ready; what a word draws is worked out here. */
#include <math.h>
#include <stdint.h>

enum { MOST = 256 };

static long sample(uint64_t word, long n) { return (long)(((word >> 32) * (uint64_t)n) >> 32); }

/* Writes W x, W : (rows, columns). */
static void product(const double *restrict W, const double *restrict x, double *restrict out,
                    long rows, long columns) {
    for (long k = 0; k < rows; k++) {
        double total = 0.0;
        for (long j = 0; j < columns; j++) total += W[k * columns + j] * x[j];
        out[k] = total;
    }
}

/* Writes W^T g. */
static void transposed(const double *restrict W, const double *restrict g, double *restrict out,
                       long rows, long columns) {
    for (long j = 0; j < columns; j++) out[j] = 0.0;
    for (long k = 0; k < rows; k++)
        for (long j = 0; j < columns; j++) out[j] += g[k] * W[k * columns + j];
}

/* W += scale g x^T. */
static void update(double *restrict W, const double *restrict g, const double *restrict x,
                   double scale, long rows, long columns) {
    for (long k = 0; k < rows; k++) {
        double slope = scale * g[k];
        for (long j = 0; j < columns; j++) W[k * columns + j] += slope * x[j];
    }
}

/* Two layers W : (p, r), A : (C, p), one after the other in theta.  Squared loss on Y : (n, C) with
   a sign of label noise for every output, or, where `labels` are given, softmax and cross-entropy
   with the label flipped to another class with probability tau; then a step takes two words. */
void two_layer(double *restrict theta, const double *restrict X, const double *restrict Y,
               const int64_t *restrict labels, const uint64_t *restrict words, long steps, long n,
               long r, long p, long C, double lr, double sigma, double tau) {
    double *W = theta, *A = theta + p * r, h[MOST], f[MOST], back[MOST];
    uint64_t flips = (uint64_t)(tau * 4294967296.0);
    for (long t = 0; t < steps; t++) {
        long i = sample(words[labels ? 2 * t : t], n);
        const double *x = X + i * r;
        product(W, x, h, p, r);
        product(A, h, f, C, p);
        if (labels) {
            uint64_t word = words[2 * t + 1];
            long label = labels[i];
            if ((word & 0xFFFFFFFF) < flips) {
                long other = sample(word, C - 1);
                label = other + (other >= label);
            }
            double top = f[0], total = 0.0;
            for (long c = 1; c < C; c++) top = f[c] > top ? f[c] : top;
            for (long c = 0; c < C; c++) total += f[c] = exp(f[c] - top);
            for (long c = 0; c < C; c++) f[c] /= total;
            f[label] -= 1.0;
        } else {
            for (long c = 0; c < C; c++)
                f[c] -= Y[i * C + c] + ((words[t] >> c & 1) ? sigma : -sigma);
        }
        transposed(A, f, back, C, p);
        update(A, f, h, -lr, C, p);
        update(W, back, x, -lr, p, r);
    }
}

/* beta = u v, u and v : (d,) one after the other in theta; squared loss with label noise. */
void diagonal(double *restrict theta, const double *restrict X, const double *restrict y,
              const uint64_t *restrict words, long steps, long n, long d, double lr, double sigma) {
    for (long t = 0; t < steps; t++) {
        long i = sample(words[t], n);
        const double *x = X + i * d;
        double f = 0.0;
        for (long j = 0; j < d; j++) f += theta[j] * theta[d + j] * x[j];
        double c = -lr * (f - y[i] - ((words[t] & 1) ? sigma : -sigma));
        for (long j = 0; j < d; j++) {
            double u = theta[j], v = theta[d + j];
            theta[j] += c * x[j] * v;
            theta[d + j] += c * x[j] * u;
        }
    }
}

/* Three layers (m, m), one after another in theta; squared loss on Y : (n, m). */
void deep(double *restrict theta, const double *restrict X, const double *restrict Y,
          const uint64_t *restrict words, long steps, long n, long m, double lr) {
    double *W1 = theta, *W2 = theta + m * m, *W3 = theta + 2 * m * m;
    double h1[MOST], h2[MOST], g3[MOST], g2[MOST], g1[MOST];
    for (long t = 0; t < steps; t++) {
        long i = sample(words[t], n);
        const double *x = X + i * m;
        product(W1, x, h1, m, m);
        product(W2, h1, h2, m, m);
        product(W3, h2, g3, m, m);
        for (long c = 0; c < m; c++) g3[c] -= Y[i * m + c];
        transposed(W3, g3, g2, m, m);
        update(W3, g3, h2, -lr, m, m);
        transposed(W2, g2, g1, m, m);
        update(W2, g2, h1, -lr, m, m);
        update(W1, g1, x, -lr, m, m);
    }
}

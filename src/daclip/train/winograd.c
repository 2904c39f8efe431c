/* The transforms of winograd.py: tiles of a map to planes of points, and back, for all channels.

A map is batch x height x width x channels, planes are 36 x tiles x channels, `plane` numbers apart; tiles go
along columns, then rows, then the batch. */

#include <stddef.h>

#ifdef __AVX512F__
#define LANES 16
#else
#define LANES 8
#endif
#define SIDE 6 /* of a tile of points */
#define STEP 4 /* from tile to tile */
#define INLINE static inline __attribute__((always_inline))

typedef ptrdiff_t whole;
typedef float lanes __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef struct {
    whole batch, height, width, channels, first, rows, columns, plane;
} shape;

/* ---- one line of a tile: values of a polynomial at 0, 1, -1, 2, -2 and infinity, and the transposed of that */

typedef void line(const lanes *, lanes *);

/* Values at 1, -1, 2 and -2, from their even and odd parts. */
INLINE void both_signs(lanes even, lanes odd, lanes even2, lanes odd2, lanes *p) {
    p[1] = even + odd;
    p[2] = even - odd;
    p[3] = even2 + odd2;
    p[4] = even2 - odd2;
}

INLINE void of_map(const lanes *d, lanes *p) {
    lanes even = d[4] - 4 * d[2], odd = d[3] - 4 * d[1], even2 = d[4] - d[2], odd2 = 2 * (d[3] - d[1]);
    p[0] = 4 * d[0] - 5 * d[2] + d[4];
    both_signs(even, odd, even2, odd2, p);
    p[5] = 4 * d[1] - 5 * d[3] + d[5];
}

INLINE void of_kernel(const lanes *w, lanes *p) {
    lanes even = (w[0] + w[2]) * (-1.f / 6), odd = w[1] * (-1.f / 6);
    lanes even2 = (w[0] + 4 * w[2]) * (1.f / 24), odd2 = w[1] * (1.f / 12);
    p[0] = w[0] * (1.f / 4);
    both_signs(even, odd, even2, odd2, p);
    p[5] = w[2];
}

INLINE void of_change(const lanes *y, lanes *p) {
    lanes even = y[0] + y[2], odd = y[1] + y[3], even2 = y[0] + 4 * y[2], odd2 = 2 * y[1] + 8 * y[3];
    p[0] = y[0];
    both_signs(even, odd, even2, odd2, p);
    p[5] = y[3];
}

INLINE void to_result(const lanes *p, lanes *y) {
    lanes even = p[1] + p[2], odd = p[1] - p[2], even2 = p[3] + p[4], odd2 = p[3] - p[4];
    y[0] = p[0] + even + even2;
    y[1] = odd + 2 * odd2;
    y[2] = even + 4 * even2;
    y[3] = odd + 8 * odd2 + p[5];
}

INLINE void to_gradient(const lanes *p, lanes *w) {
    lanes even = (p[1] + p[2]) * (-1.f / 6), odd = (p[2] - p[1]) * (1.f / 6);
    lanes even2 = (p[3] + p[4]) * (1.f / 24), odd2 = (p[3] - p[4]) * (1.f / 12);
    w[0] = p[0] * (1.f / 4) + even + even2;
    w[1] = odd + odd2;
    w[2] = even + 4 * even2 + p[5];
}

/* ---- a tile, and all tiles of some rows */

/* The last lanes overlap those before where channels are no multiple of them; they must not be fewer. */
INLINE void tile(int in, int out, line f, float **from, float **to, whole channels) {
    for (whole first = 0; first < channels; first += LANES) {
        whole c = first + LANES <= channels ? first : channels - LANES;
        lanes t[SIDE], half[SIDE][SIDE], u[SIDE];
        for (int j = 0; j < in; j++) {
            for (int i = 0; i < in; i++) t[i] = *(const lanes *)(from[i * in + j] + c);
            f(t, u);
            for (int i = 0; i < out; i++) half[i][j] = u[i];
        }
        for (int i = 0; i < out; i++) {
            f(half[i], u);
            for (int j = 0; j < out; j++) *(lanes *)(to[i * out + j] + c) = u[j];
        }
    }
}

/* Addresses of side x side places of a map from row y and column x on; of `nothing` outside. */
INLINE void places(int side, float *map, float *nothing, shape s, whole b, whole y, whole x, float **found) {
    for (whole i = y; i < y + side; i++)
        for (whole j = x; j < x + side; j++) {
            int is_inside = i >= 0 && i < s.height && j >= 0 && j < s.width;
            *found++ = is_inside ? map + ((b * s.height + i) * s.width + j) * s.channels : nothing;
        }
}

/* side x side places of each tile to its points, or back; the first lies `rim` rows and columns before the tile. */
INLINE void tiles(int side, int rim, line f, int back, float *map, float *planes, shape s, int threads) {
    whole count = s.batch * s.rows * s.columns;
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (whole n = 0; n < count; n++) {
        float nothing[s.channels];
        float *of_map[SIDE * SIDE], *points[SIDE * SIDE];
        whole x = n % s.columns, y = s.first + n / s.columns % s.rows, b = n / s.columns / s.rows;
        for (whole c = 0; c < s.channels; c++) nothing[c] = 0;
        places(side, map, nothing, s, b, y * STEP - rim, x * STEP - rim, of_map);
        for (int k = 0; k < SIDE * SIDE; k++) points[k] = planes + k * s.plane + n * s.channels;
        if (back)
            tile(SIDE, side, f, points, of_map, s.channels);
        else
            tile(side, SIDE, f, of_map, points, s.channels);
    }
}

#define TRANSFORM(name, side, rim, back)                              \
    void name##_tiles(float *map, float *planes, shape s, int threads) { \
        tiles(side, rim, name, back, map, planes, s, threads);           \
    }

TRANSFORM(of_map, 6, 1, 0)
TRANSFORM(of_kernel, 3, 0, 0)
TRANSFORM(of_change, 4, 0, 0)
TRANSFORM(to_result, 4, 0, 1)
TRANSFORM(to_gradient, 3, 0, 1)

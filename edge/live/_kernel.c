/* out = base + values * factors, in one pass over memory: the arithmetic of a patch.

   The same operations in the same order as rws.edge.live.kernel has in NumPy, so that both give the same bits: compile
   with -ffp-contract=off, or a fused multiply-add would round once instead of twice. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>

/* Where the C library can choose at run time, the loops are compiled for newer processors too. */
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__)
#define FOR_EACH_PROCESSOR __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define FOR_EACH_PROCESSOR
#endif

/* Short blocks are repeated until the innermost loop is this long. */
#define STRIP 256

#define MULTIPLY_ADD(name, type)                                                                                       \
    FOR_EACH_PROCESSOR static void name(const float *base, const type *values, const float *factors, float *out,       \
                                        int64_t outer, int64_t run, int64_t block) {                                   \
        if (run == 1) {                                                                                                \
            block *= outer, outer = 1;                                                                                 \
        }                                                                                                              \
        if (block == 1) {                                                                                              \
            for (int64_t o = 0; o < outer; o++, base += run, values += run, out += run) {                              \
                for (int64_t r = 0; r < run; r++) {                                                                    \
                    out[r] = base[r] + (float)values[r] * factors[o];                                                  \
                }                                                                                                      \
            }                                                                                                          \
            return;                                                                                                    \
        }                                                                                                              \
        float repeated[STRIP];                                                                                         \
        const int64_t repeats = block > STRIP ? 1 : run < STRIP / block ? run : STRIP / block;                         \
        const int64_t length = repeats * block, total = run * block;                                                   \
        for (int64_t o = 0; o < outer; o++, factors += block) {                                                        \
            const float *strip = factors;                                                                              \
            if (repeats > 1) {                                                                                         \
                for (int64_t r = 0; r < repeats; r++) {                                                                \
                    for (int64_t b = 0; b < block; b++) {                                                              \
                        repeated[r * block + b] = factors[b];                                                          \
                    }                                                                                                  \
                }                                                                                                      \
                strip = repeated;                                                                                      \
            }                                                                                                          \
            for (int64_t done = 0; done < total; done += length) {                                                     \
                const int64_t count = total - done < length ? total - done : length;                                   \
                for (int64_t i = 0; i < count; i++) {                                                                  \
                    out[i] = base[i] + (float)values[i] * strip[i];                                                    \
                }                                                                                                      \
                base += count, values += count, out += count;                                                          \
            }                                                                                                          \
        }                                                                                                              \
    }

MULTIPLY_ADD(multiply_add_int8, int8_t)
MULTIPLY_ADD(multiply_add_int16, int16_t)

static PyObject *multiply_add(PyObject *self, PyObject *args) {
    Py_buffer base, values, factors, out, pieces;
    if (!PyArg_ParseTuple(args, "y*y*y*w*y*", &base, &values, &factors, &out, &pieces)) {
        return NULL;
    }
    const int64_t count = out.len / (int64_t)sizeof(float);
    const int64_t known = factors.len / (int64_t)sizeof(float);
    const int64_t rows = pieces.len / (5 * (int64_t)sizeof(int64_t));
    const int64_t *row = pieces.buf;
    int valid = base.len == out.len && (values.len == count || values.len == 2 * count);
    for (int64_t i = 0; i < rows && valid; i++) {
        const int64_t *p = row + 5 * i;
        valid = p[0] >= 0 && p[1] >= 0 && p[2] >= 0 && p[3] >= 0 && p[4] >= 1 && p[0] + p[2] * p[3] * p[4] <= count &&
                p[1] + p[2] * p[4] <= known;
    }
    for (int64_t i = 0; i < rows && valid; i++) {
        const int64_t *p = row + 5 * i;
        const float *from = (const float *)base.buf + p[0], *factor = (const float *)factors.buf + p[1];
        float *to = (float *)out.buf + p[0];
        if (values.len == count) {
            multiply_add_int8(from, (const int8_t *)values.buf + p[0], factor, to, p[2], p[3], p[4]);
        } else {
            multiply_add_int16(from, (const int16_t *)values.buf + p[0], factor, to, p[2], p[3], p[4]);
        }
    }
    PyBuffer_Release(&base);
    PyBuffer_Release(&values);
    PyBuffer_Release(&factors);
    PyBuffer_Release(&out);
    PyBuffer_Release(&pieces);
    if (!valid) {
        PyErr_SetString(PyExc_ValueError, "multiply_add: sizes do not fit");
        return NULL;
    }
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"multiply_add", multiply_add, METH_VARARGS, "See rws.edge.live.kernel."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_kernel", NULL, -1, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__kernel(void) { return PyModule_Create(&module); }

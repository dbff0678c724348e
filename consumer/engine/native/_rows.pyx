"""Facts about many records at once: `consumer.engine.native.plain`, compiled."""

from cpython cimport array
from cpython.list cimport PyList_GET_ITEM, PyList_GET_SIZE
from cpython.object cimport PyObject
from cpython.tuple cimport PyTuple_GET_ITEM
from libc.math cimport INFINITY
from libc.stdint cimport int64_t

import array as python_array

include "constants.pxi"
include "_records.pxi"

cdef array.array COLUMN = python_array.array("q")


def sizes_of(list records):
    """See `consumer.engine.native.plain.sizes_of`."""
    cdef Py_ssize_t place, size, rows = PyList_GET_SIZE(records)
    cdef array.array sizes = array.clone(COLUMN, rows, zero=False)
    cdef object headers
    for place in range(rows):
        record = record_at(records, place)
        headers = <object> PyTuple_GET_ITEM(record, RECORD_HEADERS)
        size = length(<object> PyTuple_GET_ITEM(record, RECORD_KEY)) + length(<object> PyTuple_GET_ITEM(record, RECORD_VALUE))
        sizes.data.as_longlongs[place] = size + size_of_headers(headers) if headers else size
    return sizes


def offsets_of(list records):
    """See `consumer.engine.native.plain.offsets_of`."""
    cdef Py_ssize_t place, rows = PyList_GET_SIZE(records)
    cdef array.array offsets = array.clone(COLUMN, rows, zero=False)
    for place in range(rows):
        offsets.data.as_longlongs[place] = <object> PyTuple_GET_ITEM(record_at(records, place), RECORD_OFFSET)
    return offsets


def rising(array.array offsets):
    """See `consumer.engine.native.plain.rising`."""
    cdef Py_ssize_t place
    if offsets.ob_descr.typecode != c'q':
        raise TypeError("not a column of offsets")
    for place in range(1, len(offsets)):
        if offsets.data.as_longlongs[place] <= offsets.data.as_longlongs[place - 1]:
            return False
    return True


def count_ages(array.array times, double now, array.array bounds, array.array counts):
    """See `consumer.engine.native.plain.count_ages`."""
    cdef Py_ssize_t place, bucket = 0, past = 0, buckets = len(bounds)
    cdef int64_t total = 0, time
    cdef double age
    cdef const double* bound
    if (
        times.ob_descr.typecode != c'q' or bounds.ob_descr.typecode != c'd' or counts.ob_descr.typecode != c'q'
        or buckets == 0 or buckets != len(counts) or bounds.data.as_doubles[buckets - 1] != INFINITY
    ):
        raise TypeError("not columns of times, bounds and counts")
    bound = bounds.data.as_doubles
    for place in range(len(times)):
        time = times.data.as_longlongs[place]
        age = now - time
        # The fast path: it is in the bucket of the one before it, or near that one.
        while age > bound[bucket]:
            bucket += 1
        while bucket > 0 and age <= bound[bucket - 1]:
            bucket -= 1
        counts.data.as_longlongs[bucket] += 1
        if time < now:
            past += 1
            total += time
    return past, total


cdef inline object record_at(list records, Py_ssize_t place):
    record = <object> PyList_GET_ITEM(records, place)
    if type(record) is not Record:  # the fields are read by position, so it must be a record
        raise TypeError("not a record")
    return record

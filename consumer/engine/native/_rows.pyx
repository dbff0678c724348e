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


cdef enum:
    FEW = 32  # kinds and currencies that are added up at once


def sum_values(array.array values, const unsigned char[::1] kinds, Py_ssize_t first, Py_ssize_t end):
    """See `consumer.engine.native.plain.sum_values`."""
    cdef int64_t keys[FEW]
    cdef int64_t counts[FEW]
    cdef int64_t sums[FEW]
    cdef int few = 0, at
    cdef int64_t value, key
    cdef Py_ssize_t place
    cdef dict found = {}
    if values.ob_descr.typecode != c'q' or not 0 <= first <= end <= min(len(values), kinds.shape[0]):
        raise TypeError("not columns with these rows")
    for place in range(first, end):
        value = values.data.as_longlongs[place]
        if value == 0:
            continue
        key = <int64_t> kinds[place] << CURRENCY_BITS | value & (1 << CURRENCY_BITS) - 1
        for at in range(few):
            if keys[at] == key:
                break
        else:
            if few == FEW:
                enter(found, keys, counts, sums, few)
                few = 0
            at = few
            few += 1
            keys[at], counts[at], sums[at] = key, 0, 0
        counts[at] += 1
        sums[at] += value >> CURRENCY_BITS
    enter(found, keys, counts, sums, few)
    return found


cdef int enter(dict found, int64_t* keys, int64_t* counts, int64_t* sums, int few) except -1:
    """Add these counts and sums to what was found."""
    cdef int at
    for at in range(few):
        count, total = found.get(keys[at], (0, 0))
        found[keys[at]] = count + counts[at], total + sums[at]
    return 0


cdef inline object record_at(list records, Py_ssize_t place):
    record = <object> PyList_GET_ITEM(records, place)
    if type(record) is not Record:  # the fields are read by position, so it must be a record
        raise TypeError("not a record")
    return record

# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False, cdivision=True
"""Reads the values of one record into a tuple, one slot each: the part of `consumer.core.fused` that pays in C.

Theory of operation. A `Program` is a list of operations made from a plan (`consumer.core.slots`), in the order of the
bytes. `Program.read` runs it over a record and gives the tuple, from which `_events` converts. What is
rare (maps, unions, decimals, records that stand in several places) is a call of the Python function that reads it.

The promises are those of `consumer.core.avro_reading`: no byte beyond the end is looked at, nothing is allocated because
a length was claimed, a loop over a claimed count consumes at least one byte a round (`avro_bounds` sees to that), and
only what that module takes is taken. Whatever is wrong raises, and the record is read again by the two steps, whose
verdict counts. Recursion is two levels deep: items, and what is converted in them; what nests deeper is a call.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from cpython.ref cimport Py_DECREF, Py_INCREF
from cpython.tuple cimport PyTuple_New, PyTuple_SET_ITEM
from cpython.unicode cimport PyUnicode_DecodeUTF8
from libc.stdint cimport INT64_MIN, int64_t, uint8_t, uint64_t

cdef extern from "Python.h":
    double PyFloat_Unpack8(const char* data, int little_endian) except? -1.0

cdef enum:
    TEXT = 0
    OPTIONAL = 1
    LONG = 2
    INT = 3
    BOOLEAN = 4
    ENUM = 5
    TEXTS = 6
    ITEMS = 7
    CALL = 8
    BYTES = 9
    OVER = 10
    MAKE = 11
    DOUBLE = 12
    TEXT_MAP = 13
    CONVERT = 14

cdef class Program:
    """The operations; `width`: how many slots they fill.

    Of an operation: `slots`, of OPTIONAL those that null fills, of ITEMS the fields of an item; `behind`, of both the
    operations that belong to it; `extra`, of ENUM the symbols, None for one without a place, of CALL, MAKE and CONVERT
    the function.
    """

    def __cinit__(self, list operations, int width):
        self.kept = operations  # what `extra` points to lives as long
        self.count = <int> len(operations)
        self.width = width
        self.operations = <Operation*> PyMem_Malloc(max(1, self.count) * sizeof(Operation))
        if self.operations == NULL:
            raise MemoryError
        for at, (code, slot, slots, behind, null_byte, value_byte, extra) in enumerate(operations):
            self.operations[at] = Operation(
                code, slot, slots, behind, null_byte, value_byte, <void*> extra
            )

    def __dealloc__(self):
        PyMem_Free(self.operations)

    cdef tuple read(self, bytes data, Py_ssize_t at):
        """The slots of the record whose datum begins at `at` and ends where `data` ends; raises what avro_reading
        raises."""
        cdef Py_ssize_t end = PyBytes_GET_SIZE(data)
        if at < 0 or at > end:
            raise IndexError("the datum begins beyond the end")
        cdef tuple slots = PyTuple_New(self.width)
        run(self, 0, self.count, data, <const uint8_t*> PyBytes_AS_STRING(data), end, &at, slots, 0)
        if at != end:
            raise ValueError("bytes are left over")
        return slots


cdef inline int64_t number(const uint8_t* data, Py_ssize_t end, Py_ssize_t* at) except? -77:
    """A zig-zag number of at most 64 bits."""
    cdef uint64_t bits = 0
    cdef int shift = 0
    cdef uint8_t byte
    while True:
        if at[0] >= end:
            raise IndexError("the data end inside a number")
        byte = data[at[0]]
        at[0] += 1
        if shift == 63 and byte > 1:
            raise ValueError("a long has at most 64 bits")
        bits |= (<uint64_t> (byte & 127)) << shift
        if byte < 128:
            return <int64_t> (bits >> 1) ^ -(<int64_t> (bits & 1))
        shift += 7


cdef inline Py_ssize_t length(const uint8_t* data, Py_ssize_t end, Py_ssize_t* at) except -1:
    """How many bytes follow; they are there."""
    cdef int64_t count = number(data, end, at)
    if count < 0 or count > end - at[0]:
        raise ValueError("a length beyond the end")
    return <Py_ssize_t> count


cdef inline int64_t block(const uint8_t* data, Py_ssize_t end, Py_ssize_t* at) except -1:
    """How many items follow; a negative count is followed by the block's size."""
    cdef int64_t count = number(data, end, at)
    if count >= 0:
        return count
    if count == INT64_MIN or number(data, end, at) < 0:
        raise ValueError("a negative length")
    return -count


cdef inline object text(const uint8_t* data, Py_ssize_t end, Py_ssize_t* at):
    cdef Py_ssize_t size = length(data, end, at)
    cdef Py_ssize_t start = at[0]
    at[0] += size
    return PyUnicode_DecodeUTF8(<const char*> data + start, size, NULL)


cdef inline void put(tuple slots, int slot, object value):
    Py_INCREF(value)
    PyTuple_SET_ITEM(slots, slot, value)


cdef object texts(const uint8_t* data, Py_ssize_t end, Py_ssize_t* at):
    cdef list found = []
    cdef int64_t left = block(data, end, at)
    while left:
        while left:
            found.append(text(data, end, at))
            left -= 1
        left = block(data, end, at)
    return found


cdef dict text_map(const uint8_t* data, Py_ssize_t end, Py_ssize_t* at):
    cdef dict found = {}
    cdef int64_t left = block(data, end, at)
    while left:
        while left:
            key = text(data, end, at)
            found[key] = text(data, end, at)
            left -= 1
        left = block(data, end, at)
    return found


cdef object double_number(const uint8_t* data, Py_ssize_t end, Py_ssize_t* at):
    """Eight bytes, little-endian."""
    if end - at[0] < 8:
        raise IndexError("the data end inside a double")
    at[0] += 8
    return PyFloat_Unpack8(<const char*> data + at[0] - 8, 1)


cdef int convert(tuple slots, int slot, object function) except -1:
    """Put what `function` makes of what is in a slot in its place."""
    read = slots[slot]
    value = function(read)
    Py_INCREF(value)
    PyTuple_SET_ITEM(slots, slot, value)
    Py_DECREF(read)  # the tuple's reference
    return 0


cdef object items(
    Program program, int first, int stop, int width, int base, bytes whole, const uint8_t* data, Py_ssize_t end,
    Py_ssize_t* at,
):
    cdef list found = []
    cdef tuple item
    cdef int64_t left = block(data, end, at)
    while left:
        while left:
            item = PyTuple_New(width)
            run(program, first, stop, whole, data, end, at, item, base)
            found.append(item)
            left -= 1
        left = block(data, end, at)
    return found


cdef object symbol(tuple symbols, const uint8_t* data, Py_ssize_t end, Py_ssize_t* at):
    cdef int64_t index = number(data, end, at)
    if index < 0 or index >= len(symbols):
        raise ValueError("a symbol that the enum does not have")
    found = symbols[index]
    if found is None:
        raise ValueError("a symbol that our enum lacks")
    return found


cdef object call(object function, bytes whole, Py_ssize_t end, Py_ssize_t* at):
    cdef Py_ssize_t after
    value, after = function(whole, at[0])
    if after < at[0] or after > end:
        raise IndexError("the data end inside a value")
    at[0] = after
    return value


cdef int run(
    Program program, int first, int stop, bytes whole, const uint8_t* data, Py_ssize_t end, Py_ssize_t* at,
    tuple slots, int base,
) except -1:
    """Run the operations from `first` to before `stop`; slot `base` is the tuple's first."""
    cdef Operation* each
    cdef int64_t value
    cdef Py_ssize_t size
    cdef int one, where = first
    while where < stop:
        each = &program.operations[where]
        where += 1
        if each.code == OPTIONAL:
            if at[0] >= end:
                raise IndexError("the data end before a union")
            if data[at[0]] == each.null_byte:
                at[0] += 1
                for one in range(each.slots):
                    put(slots, each.slot - base + one, None)
                where += each.behind
            elif data[at[0]] == each.value_byte:
                at[0] += 1
            else:
                raise ValueError("a union's branch that it does not have")
        elif each.code == TEXT:
            put(slots, each.slot - base, text(data, end, at))
        elif each.code == LONG:
            put(slots, each.slot - base, number(data, end, at))
        elif each.code == INT:
            value = number(data, end, at)
            if value > 0x7FFFFFFF or value < -0x80000000LL:
                raise ValueError("an int has at most 32 bits")
            put(slots, each.slot - base, value)
        elif each.code == BOOLEAN:
            if at[0] >= end or data[at[0]] > 1:
                raise ValueError("a boolean is 0 or 1")
            put(slots, each.slot - base, data[at[0]] == 1)
            at[0] += 1
        elif each.code == ENUM:
            put(slots, each.slot - base, symbol(<tuple> each.extra, data, end, at))
        elif each.code == TEXTS:
            put(slots, each.slot - base, texts(data, end, at))
        elif each.code == ITEMS:
            put(slots, each.slot - base, items(
                program, where, where + each.behind, each.slots, each.slot + 1, whole, data, end, at
            ))
            where += each.behind
        elif each.code == CALL:
            put(slots, each.slot - base, call(<object> each.extra, whole, end, at))
        elif each.code == DOUBLE:
            put(slots, each.slot - base, double_number(data, end, at))
        elif each.code == TEXT_MAP:
            put(slots, each.slot - base, text_map(data, end, at))
        elif each.code == CONVERT:
            run(program, where, where + each.behind, whole, data, end, at, slots, base)
            convert(slots, each.slot - base, <object> each.extra)
            where += each.behind
        elif each.code == MAKE:
            put(slots, each.slot - base, (<object> each.extra)())
        else:
            size = length(data, end, at)
            if each.code == BYTES:
                put(slots, each.slot - base, PyBytes_FromStringAndSize(<const char*> data + at[0], size))
            else:
                put(slots, each.slot - base, None)
            at[0] += size
    return 0

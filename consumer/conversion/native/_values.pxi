"""Reads the values of a record as Python objects, or only checks them: one function does both (`build`).

Theory of operation. Each function reads one value from a `Datum` and moves its position behind that value. `_slots`
says what they promise; `consumer.avro.reading` and `plan` have the same functions in Python.
"""

# -- numbers, lengths and text


cdef inline int64_t number(Datum* datum) except? -77:
    """Read a zig-zag number of at most 64 bits."""
    cdef uint64_t bits = 0
    cdef int shift = 0
    cdef uint8_t byte
    while True:
        if datum.at >= datum.end:
            raise IndexError("the data end inside a number")
        byte = datum.data[datum.at]
        datum.at += 1
        if shift == 63 and byte > 1:
            raise ValueError("a long has at most 64 bits")
        bits |= (<uint64_t> (byte & 127)) << shift
        if byte < 128:
            return <int64_t> (bits >> 1) ^ -(<int64_t> (bits & 1))
        shift += 7


cdef inline int64_t short_number(Datum* datum) except? -77:
    """Read a zig-zag number of at most 32 bits."""
    cdef int64_t value = number(datum)
    if value > 0x7FFFFFFF or value < -0x80000000LL:
        raise ValueError("an int has at most 32 bits")
    return value


cdef inline const uint8_t* taken(Datum* datum, Py_ssize_t size) except NULL:
    """Move past this many bytes and return where they begin. Raises if the data end before."""
    if size > datum.end - datum.at:
        raise IndexError("the data end inside a value")
    datum.at += size
    return datum.data + datum.at - size


cdef inline Py_ssize_t length(Datum* datum) except -1:
    """Read how many bytes follow. Raises if the data end before."""
    cdef int64_t count = number(datum)
    if count < 0 or count > datum.end - datum.at:
        raise ValueError("a length beyond the end")
    return <Py_ssize_t> count


cdef inline int64_t block(Datum* datum) except -1:
    """Read how many items follow; after a negative count comes the block's size."""
    cdef int64_t count = number(datum)
    if count >= 0:
        return count
    if count == INT64_MIN or number(datum) < 0:
        raise ValueError("a negative length")
    return -count


cdef inline bint truth(Datum* datum) except? -1:
    cdef const uint8_t* byte = taken(datum, 1)
    if byte[0] > 1:
        raise ValueError("a boolean is 0 or 1")
    return byte[0]


cdef inline bint is_there(const Operation* optional, Datum* datum) except? -1:
    """Read the branch of an optional; return whether it is the one with a value."""
    cdef const uint8_t* byte = taken(datum, 1)
    if byte[0] == optional.value_byte:
        return True
    if byte[0] != optional.null_byte:
        raise ValueError("a union's branch that it does not have")
    return False


cdef inline bint is_ascii(const uint8_t* start, Py_ssize_t size) noexcept:
    cdef uint8_t found = 0
    cdef Py_ssize_t at
    for at in range(size):
        found |= start[at]
    return found < 128


cdef inline object text(Datum* datum, bint kept):
    cdef Py_ssize_t size = length(datum)
    cdef const uint8_t* start = taken(datum, size)
    # Text must be UTF-8 even if the mapping does not ask for it. ASCII always is.
    if kept or not is_ascii(start, size):
        return PyUnicode_DecodeUTF8(<const char*> start, size, NULL)
    return None


cdef inline object symbol(tuple symbols, Datum* datum):
    cdef int64_t index = number(datum)
    if index < 0 or index >= len(symbols):
        raise ValueError("a symbol that the enum does not have")
    found = symbols[index]
    if found is None:
        raise ValueError("a symbol that our enum lacks")
    return found


cdef object call(object function, Datum* datum):
    cdef Py_ssize_t after
    value, after = function(<object> datum.whole, datum.at)
    if after < datum.at or after > datum.end:
        raise IndexError("the data end inside a value")
    datum.at = after
    return value


cdef int branch(Reader program, int where, Datum* datum) except -1:
    """Read the branch of a union, and return the index of its operation."""
    cdef int64_t index = number(datum)
    cdef int chosen = where + 1
    if index < 0 or index >= program.operations[where].slots:
        raise ValueError("a union's branch that it does not have")
    for _ in range(index):
        chosen += 1 + program.operations[chosen].behind
    return chosen


# -- decimals


cdef int64_t unscaled(const uint8_t* start, Py_ssize_t size) noexcept:
    """Return the number in at most eight bytes of big-endian two's complement."""
    cdef uint64_t bits = <uint64_t> -1 if size > 0 and start[0] > 127 else 0
    cdef Py_ssize_t at
    for at in range(size):
        bits = bits << 8 | start[at]
    return <int64_t> bits


cdef int64_t small(const Operation* decimal, const uint8_t* start, Py_ssize_t size) except? -77:
    """Return the digits of a decimal of at most eight bytes."""
    cdef int64_t value = unscaled(start, size), bound
    if decimal.slots <= MAX_DIGITS:
        bound = POWERS[decimal.slots]
        if value <= -bound or value >= bound:
            raise ValueError("more digits than the decimal's precision")
    return value


cdef inline Py_ssize_t raw_size(const Operation* raw, Datum* datum) except -1:
    """Return how many bytes a decimal has: the size of a fixed, or the length that is read before the bytes."""
    return raw.slots if raw.code == CODE_FIXED else length(datum)


cdef object decimal_number(const Operation* decimal, Datum* datum, bint kept):
    cdef Py_ssize_t size = raw_size(decimal + 1, datum)
    cdef const uint8_t* start = taken(datum, size)
    cdef int64_t digits
    # Too large for a number of C: Python's reader converts it.
    if size > 8:
        return (<object> decimal.extra)(PyBytes_FromStringAndSize(<const char*> start, size))
    digits = small(decimal, start, size)
    if not kept:
        return None
    return decimal_of(digits, decimal.null_byte)


cdef object decimal_of(int64_t digits, int scale):
    return Decimal(PyUnicode_FromFormat("%lldE-%d", <long long> digits, scale))


# -- values with parts, and `build` for all; with `kept` False a value is checked in the same way, and not made


cdef list array(Reader program, int item, Datum* datum, bint kept):
    cdef list found = [] if kept else None
    cdef int64_t left = block(datum)
    while left:
        while left:
            if kept and len(found) == MAX_ITEMS:
                raise ValueError("an array of more items than are kept")
            value = build(program, item, datum, kept)
            if kept:
                found.append(value)
            left -= 1
        left = block(datum)
    return found


cdef dict mapped(Reader program, int where, Datum* datum, bint kept):
    cdef object keys = <object> program.operations[where].extra
    cdef dict found = {} if kept else None
    cdef int64_t left = block(datum)
    while left:
        while left:
            key = text(datum, kept)
            if kept and (keys is None or key in keys):
                found[key] = build(program, where + 1, datum, True)
            else:
                build(program, where + 1, datum, False)
            left -= 1
        left = block(datum)
    return found


cdef dict record(Reader program, int where, Datum* datum, bint kept):
    cdef tuple names = <tuple> program.operations[where].extra
    cdef dict found = {} if kept else None
    cdef int field = where + 1, stop = field + program.operations[where].behind
    cdef Py_ssize_t named = 0
    while field < stop:
        if not kept or program.operations[field].slot < 0:
            build(program, field, datum, False)
        else:
            found[names[named]] = build(program, field, datum, True)
            named += 1
        field += 1 + program.operations[field].behind
    return found


cdef object build(Reader program, int where, Datum* datum, bint kept):
    """Read the value of the operation at `where` and of those that belong to it; make it only if it is `kept`."""
    cdef const Operation* each = &program.operations[where]
    while each.code == CODE_OPTIONAL:
        if not is_there(each, datum):
            return None
        where += 1
        each = &program.operations[where]
    if each.code == CODE_TEXT:
        return text(datum, kept)
    if each.code == CODE_LONG:
        return number(datum)
    if each.code == CODE_INT:
        return short_number(datum)
    if each.code == CODE_BOOLEAN:
        return truth(datum)
    if each.code == CODE_ENUM:
        return symbol(<tuple> each.extra, datum)
    if each.code == CODE_ARRAY:
        return array(program, where + 1, datum, kept)
    if each.code == CODE_MAP:
        return mapped(program, where, datum, kept)
    if each.code == CODE_RECORD:
        return record(program, where, datum, kept)
    if each.code == CODE_UNION:
        return build(program, branch(program, where, datum), datum, kept)
    if each.code == CODE_CONVERT:  # made in any case, since the function may refuse it
        return (<object> each.extra)(build(program, where + 1, datum, True))
    return build_rare(each, datum, kept)


cdef object build_rare(const Operation* each, Datum* datum, bint kept):
    cdef Py_ssize_t size
    cdef const uint8_t* start
    if each.code == CODE_DECIMAL:
        return decimal_number(each, datum, kept)
    if each.code == CODE_DOUBLE:
        return PyFloat_Unpack8(<const char*> taken(datum, 8), 1)
    if each.code == CODE_FLOAT:
        return PyFloat_Unpack4(<const char*> taken(datum, 4), 1)
    if each.code == CODE_BYTES or each.code == CODE_FIXED:
        size = raw_size(each, datum)
        start = taken(datum, size)
        return PyBytes_FromStringAndSize(<const char*> start, size) if kept else None
    if each.code == CODE_NULL_VALUE:
        return None
    if each.code == CODE_MAKE:
        return (<object> each.extra)()
    return call(<object> each.extra, datum)

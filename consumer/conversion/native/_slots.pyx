# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False, cdivision=True
"""Reads the values of one record, each into a slot: the part of `consumer.conversion.reading` that pays in C.

Theory of operation. A `Program` is a list of operations made from a plan (`consumer.conversion.layout`), in the order of the
bytes. `Program.read` runs it over a record and fills its slots, from which `_events` converts. There are three ways to
take a value: `run` puts it into its slot, `build` makes the object that the functions of `consumer.avro.reading` would make, and
`pass_over` only looks whether it is one, since nobody asks for it: it refuses what `build` would refuse.

Most values never become objects: ASCII text stays where it is, in the bytes of the record, and a slot says where; a
number is a number. `thing` makes the object of a slot for whoever wants one. So slots are valid while the record's bytes
are there and until the next `read`; what had to be made an object is held by the program until then, or `forget`.

The promises are those of `consumer.avro.reading`: no byte beyond the end is looked at, nothing is allocated because
a length was claimed, a loop over a claimed count consumes at least one byte a round (`schema.require_bounded` sees to that), and
only what that module takes is taken. Whatever is wrong raises, and the record is read again by the two steps, whose
verdict counts. Recursion is as deep as the program is nested, which `layout.MOST_NESTED` bounds; what nests deeper, or
holds itself, is a call of the Python function that reads it.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.mem cimport PyMem_Free, PyMem_Malloc, PyMem_Realloc
from cpython.object cimport PyObject
from cpython.unicode cimport PyUnicode_DecodeUTF8
from libc.stdint cimport INT64_MIN, int64_t, uint8_t, uint64_t

from decimal import Decimal as decimal_type

cdef extern from "Python.h":
    double PyFloat_Unpack4(const char* data, int little_endian) except? -1.0
    double PyFloat_Unpack8(const char* data, int little_endian) except? -1.0
    object PyUnicode_FromFormat(const char* format, ...)

include "codes.pxi"

cdef enum:
    MOST_DIGITS = 18  # of a decimal that is looked at here: any number of so many digits is a long
    MOST_ITEMS = 10_000  # as in consumer.avro.reading, which says why
    USUAL_ITEM_SLOTS = 1024  # whose room is kept from record to record

cdef object Decimal = decimal_type

cdef int64_t POWERS[MOST_DIGITS + 1]
POWERS[0] = 1
for _digits in range(MOST_DIGITS):
    POWERS[_digits + 1] = POWERS[_digits] * 10


cdef struct Datum:
    # The bytes of a record, where they end, and how far they are read.
    const uint8_t* data
    Py_ssize_t end
    Py_ssize_t at
    void* whole


cdef class Program:
    """The operations; `width`: how many slots they fill.

    Of an operation: `slot`, where its value goes, below 0 where nobody asks for it; `behind`, how many operations
    belong to it; `slots`, of OPTIONAL those that null fills, of ITEMS how many an item has, of FIXED its bytes, of
    DECIMAL its precision, of UNION its branches; `null_byte` and `value_byte`, of OPTIONAL, and of ITEMS that may be
    null, how the branches are spelled; `null_byte`, of DECIMAL the scale; `extra`, of ENUM the symbols, None for one
    without a place, of RECORD the names of the fields that are asked for, of MAP the keys, None for all, of CALL, MAKE,
    CONVERT and DECIMAL the function.
    """

    def __cinit__(self, list operations, int width):
        self.kept = operations  # what `extra` points to lives as long
        self.held = []
        self.count = <int> len(operations)
        self.width = width
        self.item_width = 0
        self.item_slots = NULL
        self.used = self.room = 0
        self.operations = <Operation*> PyMem_Malloc(max(1, self.count) * sizeof(Operation))
        self.slots = <Slot*> PyMem_Malloc(max(1, width) * sizeof(Slot))
        if self.operations == NULL or self.slots == NULL:
            raise MemoryError
        for at, (code, slot, slots, behind, null_byte, value_byte, extra) in enumerate(operations):
            self.operations[at] = Operation(
                code, slot, slots, behind, null_byte, value_byte, <void*> extra
            )
            if code == CODE_ITEMS:
                self.item_width = slots

    def __dealloc__(self):
        PyMem_Free(self.operations)
        PyMem_Free(self.slots)
        PyMem_Free(self.item_slots)

    cdef int read(self, bytes data, Py_ssize_t at) except -1:
        """Fill the slots from the record whose datum begins at `at` and ends where `data` ends; raises what
        `consumer.avro.reading` raises."""
        cdef Datum datum
        datum.data, datum.end = <const uint8_t*> PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data)
        datum.at, datum.whole = at, <void*> data
        if at < 0 or at > datum.end:
            raise IndexError("the datum begins beyond the end")
        if self.held:
            self.held.clear()
        self.used = 0
        run(self, 0, self.count, &datum, self.slots)
        if datum.at != datum.end:
            raise ValueError("bytes are left over")
        return 0

    cdef Slot* new_item(self) except NULL:
        """The slots of one more item. Those of other items may move."""
        cdef Py_ssize_t room
        cdef Slot* slots
        if self.used + self.item_width > self.room or self.item_slots == NULL:
            room = 2 * (self.used + self.item_width) + 16
            slots = <Slot*> PyMem_Realloc(self.item_slots, room * sizeof(Slot))
            if slots == NULL:
                raise MemoryError
            self.item_slots, self.room = slots, room
        self.used += self.item_width
        return self.item_slots + self.used - self.item_width

    cdef void forget(self) noexcept:
        """Let go of what the last record was made into, and of the room that only a giant one needs."""
        self.held.clear()
        if self.room > USUAL_ITEM_SLOTS:
            PyMem_Free(self.item_slots)
            self.item_slots = NULL
            self.room = self.used = 0


cdef object thing(const Slot* slot):
    """The object that a slot stands for."""
    if slot.kind == ASCII_TEXT:
        return PyUnicode_DecodeUTF8(<const char*> slot.text, slot.size, NULL)
    if slot.kind == OBJECT:
        return <object> slot.object
    if slot.kind == NUMBER:
        return slot.number
    if slot.kind == TRUTH:
        return slot.number == 1
    if slot.kind == ONE_TEXT:
        return [PyUnicode_DecodeUTF8(<const char*> slot.text, slot.size, NULL)]
    if slot.kind == ITEM_SLOTS:
        raise TypeError("items are taken by themselves")
    return None


# -- what values are made of


cdef inline int64_t number(Datum* datum) except? -77:
    """A zig-zag number of at most 64 bits."""
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
    """A zig-zag number of at most 32 bits."""
    cdef int64_t value = number(datum)
    if value > 0x7FFFFFFF or value < -0x80000000LL:
        raise ValueError("an int has at most 32 bits")
    return value


cdef inline const uint8_t* taken(Datum* datum, Py_ssize_t size) except NULL:
    """So many bytes, which have to be there."""
    if size > datum.end - datum.at:
        raise IndexError("the data end inside a value")
    datum.at += size
    return datum.data + datum.at - size


cdef inline Py_ssize_t length(Datum* datum) except -1:
    """How many bytes follow; they are there."""
    cdef int64_t count = number(datum)
    if count < 0 or count > datum.end - datum.at:
        raise ValueError("a length beyond the end")
    return <Py_ssize_t> count


cdef inline int64_t block(Datum* datum) except -1:
    """How many items follow; a negative count is followed by the block's size."""
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
    """Which branch of an optional it is: that of a value, or that of null."""
    cdef const uint8_t* byte = taken(datum, 1)
    if byte[0] == optional.value_byte:
        return True
    if byte[0] != optional.null_byte:
        raise ValueError("a union's branch that it does not have")
    return False


cdef inline object text(Datum* datum):
    cdef Py_ssize_t size = length(datum)
    cdef const uint8_t* start = datum.data + datum.at
    datum.at += size
    return PyUnicode_DecodeUTF8(<const char*> start, size, NULL)


cdef inline bint is_ascii(const uint8_t* start, Py_ssize_t size) noexcept:
    cdef uint8_t found = 0
    cdef Py_ssize_t at
    for at in range(size):
        found |= start[at]
    return found < 128


cdef inline int pass_over_text(Datum* datum) except -1:
    """Text has to be UTF-8 though nobody reads it."""
    cdef Py_ssize_t size = length(datum)
    cdef const uint8_t* start = taken(datum, size)
    if not is_ascii(start, size):
        PyUnicode_DecodeUTF8(<const char*> start, size, NULL)
    return 0


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


cdef int branch(Program program, int where, Datum* datum) except -1:
    """The operation of the branch that a union has here."""
    cdef int64_t index = number(datum)
    cdef int chosen = where + 1
    if index < 0 or index >= program.operations[where].slots:
        raise ValueError("a union's branch that it does not have")
    for _ in range(index):
        chosen += 1 + program.operations[chosen].behind
    return chosen


# -- decimals


cdef int64_t unscaled(const uint8_t* start, Py_ssize_t size) noexcept:
    """Big-endian two's complement of at most eight bytes."""
    cdef uint64_t bits = <uint64_t> -1 if size > 0 and start[0] > 127 else 0
    cdef Py_ssize_t at
    for at in range(size):
        bits = bits << 8 | start[at]
    return <int64_t> bits


cdef int64_t small(const Operation* decimal, const uint8_t* start, Py_ssize_t size) except? -77:
    """The digits of a decimal of at most eight bytes."""
    cdef int64_t value = unscaled(start, size), bound
    if decimal.slots <= MOST_DIGITS:
        bound = POWERS[decimal.slots]
        if value <= -bound or value >= bound:
            raise ValueError("more digits than the decimal's precision")
    return value


cdef inline Py_ssize_t raw_size(const Operation* raw, Datum* datum) except -1:
    """Of bytes, or of a fixed."""
    return raw.slots if raw.code == CODE_FIXED else length(datum)


cdef object decimal_number(const Operation* decimal, Datum* datum):
    cdef Py_ssize_t size = raw_size(decimal + 1, datum)
    cdef const uint8_t* start = taken(datum, size)
    if size > 8:
        return (<object> decimal.extra)(PyBytes_FromStringAndSize(<const char*> start, size))
    return Decimal(PyUnicode_FromFormat("%lldE-%d", <long long> small(decimal, start, size), decimal.null_byte))


cdef int pass_over_decimal(const Operation* decimal, Datum* datum) except -1:
    cdef Py_ssize_t size = raw_size(decimal + 1, datum)
    cdef const uint8_t* start = taken(datum, size)
    if size > 8:
        (<object> decimal.extra)(PyBytes_FromStringAndSize(<const char*> start, size))
    else:
        small(decimal, start, size)
    return 0


# -- values that are asked for


cdef list array(Program program, int item, Datum* datum):
    cdef list found = []
    cdef int64_t left = block(datum)
    while left:
        while left:
            if len(found) == MOST_ITEMS:
                raise ValueError("an array of more items than are kept")
            found.append(build(program, item, datum))
            left -= 1
        left = block(datum)
    return found


cdef dict mapped(Program program, int where, Datum* datum):
    cdef object keys = <object> program.operations[where].extra
    cdef dict found = {}
    cdef int64_t left = block(datum)
    while left:
        while left:
            key = text(datum)
            if keys is None or key in keys:
                found[key] = build(program, where + 1, datum)
            else:
                pass_over(program, where + 1, datum)
            left -= 1
        left = block(datum)
    return found


cdef dict record(Program program, int where, Datum* datum):
    cdef tuple names = <tuple> program.operations[where].extra
    cdef dict found = {}
    cdef int field = where + 1, stop = field + program.operations[where].behind
    cdef Py_ssize_t named = 0
    while field < stop:
        if program.operations[field].slot < 0:
            pass_over(program, field, datum)
        else:
            found[names[named]] = build(program, field, datum)
            named += 1
        field += 1 + program.operations[field].behind
    return found


cdef object build(Program program, int where, Datum* datum):
    """The value of the operation at `where` and of those that belong to it."""
    cdef const Operation* each = &program.operations[where]
    while each.code == CODE_OPTIONAL:
        if not is_there(each, datum):
            return None
        where += 1
        each = &program.operations[where]
    if each.code == CODE_TEXT:
        return text(datum)
    if each.code == CODE_LONG:
        return number(datum)
    if each.code == CODE_INT:
        return short_number(datum)
    if each.code == CODE_BOOLEAN:
        return truth(datum)
    if each.code == CODE_ENUM:
        return symbol(<tuple> each.extra, datum)
    if each.code == CODE_ARRAY:
        return array(program, where + 1, datum)
    if each.code == CODE_MAP:
        return mapped(program, where, datum)
    if each.code == CODE_RECORD:
        return record(program, where, datum)
    if each.code == CODE_UNION:
        return build(program, branch(program, where, datum), datum)
    if each.code == CODE_CONVERT:
        return (<object> each.extra)(build(program, where + 1, datum))
    return build_rare(each, datum)


cdef object build_rare(const Operation* each, Datum* datum):
    cdef Py_ssize_t size
    if each.code == CODE_DECIMAL:
        return decimal_number(each, datum)
    if each.code == CODE_DOUBLE:
        return PyFloat_Unpack8(<const char*> taken(datum, 8), 1)
    if each.code == CODE_FLOAT:
        return PyFloat_Unpack4(<const char*> taken(datum, 4), 1)
    if each.code == CODE_BYTES or each.code == CODE_FIXED:
        size = raw_size(each, datum)
        return PyBytes_FromStringAndSize(<const char*> taken(datum, size), size)
    if each.code == CODE_NULL_VALUE:
        return None
    if each.code == CODE_MAKE:
        return (<object> each.extra)()
    return call(<object> each.extra, datum)


# -- values that nobody asks for


cdef int pass_over_blocks(Program program, int item, bint keys, Datum* datum) except -1:
    """An array or a map."""
    cdef int64_t left = block(datum)
    while left:
        while left:
            if keys:
                pass_over_text(datum)
            pass_over(program, item, datum)
            left -= 1
        left = block(datum)
    return 0


cdef int pass_over_record(Program program, int where, Datum* datum) except -1:
    cdef int field = where + 1, stop = field + program.operations[where].behind
    while field < stop:
        pass_over(program, field, datum)
        field += 1 + program.operations[field].behind
    return 0


cdef int pass_over(Program program, int where, Datum* datum) except -1:
    """As `build`, without making anything."""
    cdef const Operation* each = &program.operations[where]
    while each.code == CODE_OPTIONAL:
        if not is_there(each, datum):
            return 0
        where += 1
        each = &program.operations[where]
    if each.code == CODE_TEXT:
        return pass_over_text(datum)
    if each.code == CODE_LONG:
        number(datum)
    elif each.code == CODE_INT:
        short_number(datum)
    elif each.code == CODE_BOOLEAN:
        truth(datum)
    elif each.code == CODE_ENUM:
        symbol(<tuple> each.extra, datum)
    elif each.code == CODE_ARRAY:
        pass_over_blocks(program, where + 1, False, datum)
    elif each.code == CODE_MAP:
        pass_over_blocks(program, where + 1, True, datum)
    elif each.code == CODE_RECORD:
        pass_over_record(program, where, datum)
    elif each.code == CODE_UNION:
        pass_over(program, branch(program, where, datum), datum)
    elif each.code == CODE_DECIMAL:
        pass_over_decimal(each, datum)
    elif each.code == CODE_DOUBLE:
        taken(datum, 8)
    elif each.code == CODE_FLOAT:
        taken(datum, 4)
    elif each.code == CODE_BYTES or each.code == CODE_FIXED:
        taken(datum, raw_size(each, datum))
    elif each.code != CODE_NULL_VALUE:  # a function may refuse what it is given
        build(program, where, datum)
    return 0


# -- slots


cdef inline int put(Program program, Slot* slot, object value) except -1:
    """An object into a slot."""
    if value is None:
        slot.kind = NOTHING
        return 0
    program.held.append(value)
    slot.kind, slot.object = OBJECT, <PyObject*> value
    return 0


cdef inline void put_number(Slot* slot, Kind kind, int64_t number) noexcept:
    slot.kind, slot.number = kind, number


cdef inline int put_text(Program program, Slot* slot, Datum* datum) except -1:
    cdef Py_ssize_t size = length(datum)
    cdef const uint8_t* start = taken(datum, size)
    if is_ascii(start, size):
        slot.kind, slot.text, slot.size = ASCII_TEXT, start, size
        return 0
    return put(program, slot, PyUnicode_DecodeUTF8(<const char*> start, size, NULL))


cdef int put_array(Program program, int where, Slot* slot, Datum* datum) except -1:
    """An array, which is often one of a single text."""
    cdef Py_ssize_t begun = datum.at, size
    cdef const uint8_t* start
    if program.operations[where + 1].code == CODE_TEXT and block(datum) == 1:
        size = length(datum)
        start = taken(datum, size)
        if block(datum) == 0 and is_ascii(start, size):
            slot.kind, slot.text, slot.size = ONE_TEXT, start, size
            return 0
    datum.at = begun
    return put(program, slot, array(program, where + 1, datum))


cdef int put_items(Program program, int where, Slot* slot, Datum* datum) except -1:
    """Of each item its slots, one item after the other."""
    cdef const Operation* each = &program.operations[where]
    cdef Py_ssize_t first = program.used, count = 0, seen = 0
    cdef int64_t left = block(datum)
    while left:
        while left:
            left -= 1
            seen += 1
            if seen > MOST_ITEMS:
                raise ValueError("an array of more items than are kept")
            if each.null_byte != each.value_byte and not is_there(each, datum):
                continue  # null, which is as if it were not there
            run(program, where + 1, where + 1 + each.behind, datum, program.new_item())
            count += 1
        left = block(datum)
    slot.kind, slot.size, slot.number = ITEM_SLOTS, count, first
    return 0


cdef int run(Program program, int first, int stop, Datum* datum, Slot* slots) except -1:
    """Run the operations from `first` to before `stop`."""
    cdef const Operation* each
    cdef int one, where = first
    while where < stop:
        each = &program.operations[where]
        if each.slot < 0:
            pass_over(program, where, datum)
            where += each.behind
        elif each.code == CODE_OPTIONAL:  # a value, or all fields of a record; its operations come next
            if not is_there(each, datum):
                for one in range(each.slots):
                    slots[each.slot + one].kind = NOTHING
                where += each.behind
        elif each.code == CODE_TEXT:
            put_text(program, slots + each.slot, datum)
        elif each.code == CODE_LONG:
            put_number(slots + each.slot, NUMBER, number(datum))
        elif each.code == CODE_INT:
            put_number(slots + each.slot, NUMBER, short_number(datum))
        elif each.code == CODE_BOOLEAN:
            put_number(slots + each.slot, TRUTH, truth(datum))
        else:
            if each.code == CODE_ITEMS:
                put_items(program, where, slots + each.slot, datum)
            elif each.code == CODE_ARRAY:
                put_array(program, where, slots + each.slot, datum)
            else:
                put(program, slots + each.slot, build(program, where, datum))
            where += each.behind
        where += 1
    return 0

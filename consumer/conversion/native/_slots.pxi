"""Reads the values of one record, each into a slot: the compiled reading of Avro.

Theory of operation. A `Reader` holds the operations of a plan (`consumer.conversion.layout`), in the order of the
bytes. `Reader.read` runs them over a record and fills the slots, which `_events` converts. A value is read in one of
two ways: `run` puts it into its slot, and `build` makes the object that `consumer.avro.plan` would make. A value that
the mapping does not ask for is not kept: `build` only checks that it is valid, and refuses what the plan would refuse.

Most values never become objects. The record is copied to a place with padding after it (`_text`; a large one is read
where it is). ASCII text stays there, and its slot points to it; a number is kept as a number. `thing` makes the object
of a slot when it is needed. So slots are valid as long as the record's bytes exist and until the next `read`. The
reader holds the objects that it had to make until then, or until `forget`.

It keeps the promises of `consumer.avro.reading`: it uses no byte beyond the end, allocates no memory for a claimed
length alone, consumes at least one byte in each round of a loop over a claimed count (`schema.require_bounded` refuses
other schemas), and accepts only what that module accepts. Any error raises; then the two steps read the record again,
and their verdict counts. Recursion is as deep as the program is nested, which `layout.MAX_NESTED` bounds; a value that
nests deeper, or holds itself, is read by a call of the Python function.
"""

cdef extern from "Python.h":
    double PyFloat_Unpack4(const char* data, int little_endian) except? -1.0
    double PyFloat_Unpack8(const char* data, int little_endian) except? -1.0
    object PyUnicode_FromFormat(const char* format, ...)

cdef enum:
    MAX_DIGITS = 18  # of a decimal that is read here: every number of that many digits fits into 64 bits
    CANONICAL_ITEM_SLOTS = 1024  # the room for these is kept from record to record
    MAX_COPIED = 1 << 16  # bytes: a larger record is read where it is, without padding

cdef int64_t POWERS[MAX_DIGITS + 1]
POWERS[0] = 1
for _digits in range(MAX_DIGITS):
    POWERS[_digits + 1] = POWERS[_digits] * 10


cdef struct Operation:
    int code
    int slot
    int slots
    int behind
    int null_byte
    int value_byte
    bint is_optional_text  # `run` reads it and the text after it in one step
    void* extra


cdef enum Kind:
    NOTHING     # null
    ASCII_TEXT  # `text`, `size` bytes of the record, padded (`_text`)
    NUMBER      # `number`
    DECIMAL     # `number`, whose last `size` digits are behind the point
    TRUTH       # `number`, 0 or 1
    OBJECT      # `object`
    ONE_TEXT    # an array of one short plain text; the rest as for ASCII_TEXT
    NO_VALUES   # an empty array
    ITEM_SLOTS  # `size` items; the slots of the first begin at `number` of the program's `item_slots`


cdef struct Slot:
    Kind kind
    bint plain  # of ASCII_TEXT and ONE_TEXT: nothing in it needs escaping in JSON
    Py_ssize_t size
    int64_t number
    const uint8_t* text
    PyObject* object


cdef struct Datum:
    # The bytes of a record, where they end, and how far they are read.
    const uint8_t* data
    Py_ssize_t end
    Py_ssize_t at
    void* whole


@cython.final
cdef class Reader:
    """Reads records by these operations, which fill `width` slots.

    An operation has these fields:

    - `slot`: where its value goes; below 0 if the mapping does not ask for it.
    - `behind`: how many of the following operations belong to it.
    - `slots`: OPTIONAL: how many slots null fills. ITEMS: how many slots an item has. FIXED: its bytes. DECIMAL: its
      precision. UNION: its branches. KEYS: how many keys.
    - `null_byte`, `value_byte`: OPTIONAL, and ITEMS whose items may be null: the bytes of the two branches. DECIMAL:
      `null_byte` is the scale.
    - `extra`: ENUM: the symbols, None for one that our enum lacks. RECORD: the names of the fields that are kept. MAP:
      the keys that are kept, None for all. KEYS: the keys as bytes. CALL, MAKE, CONVERT and DECIMAL: the function.
    """

    cdef Operation* operations
    cdef int count
    cdef int width
    cdef list kept
    cdef Slot* slots
    cdef Slot* item_slots
    cdef Py_ssize_t used
    cdef Py_ssize_t room
    cdef int item_width
    cdef list held
    cdef uint8_t* copy  # of the record that is read, padded
    cdef const uint8_t* safe  # how far the padding of a text may reach

    def __cinit__(self, list operations, int width):
        self.kept = operations  # keeps alive what `extra` points to
        self.held = []
        self.count = <int> len(operations)
        self.width = width
        self.item_width = 0
        self.item_slots = NULL
        self.used = self.room = 0
        self.operations = <Operation*> PyMem_Malloc(max(1, self.count) * sizeof(Operation))
        self.slots = <Slot*> PyMem_Malloc(max(1, width) * sizeof(Slot))
        self.copy = <uint8_t*> PyMem_Malloc(MAX_COPIED + PADDING)
        if self.operations == NULL or self.slots == NULL or self.copy == NULL:
            raise MemoryError
        for at, (code, slot, slots, behind, null_byte, value_byte, extra) in enumerate(operations):
            self.operations[at] = Operation(
                code, slot, slots, behind, null_byte, value_byte, False, <void*> extra
            )
            if at and code == CODE_TEXT and slot >= 0 and self.operations[at - 1].behind == 1:
                self.operations[at - 1].is_optional_text = self.operations[at - 1].code == CODE_OPTIONAL
            if code == CODE_ITEMS:
                self.item_width = slots

    def __dealloc__(self):
        PyMem_Free(self.operations)
        PyMem_Free(self.slots)
        PyMem_Free(self.item_slots)
        PyMem_Free(self.copy)

    cdef int read(self, bytes data, Py_ssize_t at) except -1:
        """Fill the slots from the datum that begins at `at` and ends with `data`; raises what `consumer.avro.reading`
        raises."""
        cdef Datum datum
        cdef Py_ssize_t size = PyBytes_GET_SIZE(data)
        datum.data, datum.end, datum.at, datum.whole = <const uint8_t*> PyBytes_AS_STRING(data), size, at, <void*> data
        self.safe = datum.data + size
        if size <= MAX_COPIED:
            memcpy(self.copy, datum.data, size)
            memset(self.copy + size, 0, PADDING)
            datum.data, self.safe = self.copy, self.copy + size + PADDING
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
        """Return the slots of one more item. The slots of other items may move in memory."""
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
        """Free the objects of the last record, and the room that only a giant record needs."""
        self.held.clear()
        if self.room > CANONICAL_ITEM_SLOTS:
            PyMem_Free(self.item_slots)
            self.item_slots = NULL
            self.room = self.used = 0


cdef object thing(const Slot* slot):
    """Return the value of a slot as a Python object."""
    if slot.kind == ASCII_TEXT:
        return PyUnicode_DecodeUTF8(<const char*> slot.text, slot.size, NULL)
    if slot.kind == OBJECT:
        return <object> slot.object
    if slot.kind == NUMBER:
        return slot.number
    if slot.kind == DECIMAL:
        return decimal_of(slot.number, <int> slot.size)
    if slot.kind == TRUTH:
        return slot.number == 1
    if slot.kind == ONE_TEXT:
        return [PyUnicode_DecodeUTF8(<const char*> slot.text, slot.size, NULL)]
    if slot.kind == NO_VALUES:
        return []
    if slot.kind == ITEM_SLOTS:
        raise TypeError("items are taken by themselves")
    return None


# -- values into slots


cdef inline int put(Reader program, Slot* slot, object value) except -1:
    """Put an object into a slot, and hold it."""
    if value is None:
        slot.kind = NOTHING
        return 0
    program.held.append(value)
    slot.kind, slot.object = OBJECT, <PyObject*> value
    return 0


cdef inline void put_number(Slot* slot, Kind kind, int64_t number) noexcept:
    slot.kind, slot.number = kind, number


cdef inline int put_text(Reader program, Slot* slot, const uint8_t* start, Py_ssize_t size) except -1:
    if program.safe - start - size >= PADDING:
        slot.plain = is_plain(start, size)
        if slot.plain or is_ascii(start, size):
            slot.kind, slot.text, slot.size = ASCII_TEXT, start, size
            return 0
    return put(program, slot, PyUnicode_DecodeUTF8(<const char*> start, size, NULL))


cdef inline int put_symbol(Slot* slot, tuple symbols, Datum* datum) except -1:
    """Read a symbol. It lives as long as the program, so nothing else has to hold it."""
    found = symbol(symbols, datum)
    slot.kind, slot.object = OBJECT, <PyObject*> found
    return 0


cdef int put_decimal(Reader program, const Operation* decimal, Slot* slot, Datum* datum) except -1:
    """Read a decimal. One that fits into 64 bits stays a number until a rule needs it as an object."""
    cdef Py_ssize_t begun = datum.at, size = raw_size(decimal + 1, datum)
    cdef const uint8_t* start = taken(datum, size)
    if size > 8 or decimal.null_byte > MAX_DIGITS:
        datum.at = begun
        return put(program, slot, decimal_number(decimal, datum, True))
    slot.kind, slot.number, slot.size = DECIMAL, small(decimal, start, size), decimal.null_byte
    return 0


cdef int put_keys(Reader program, int where, Slot* slots, Datum* datum) except -1:
    """Read the values of a map's keys that are asked for, each into its slot. If a key comes twice, the last counts."""
    cdef const Operation* each = &program.operations[where]
    cdef tuple keys = <tuple> each.extra
    cdef const uint8_t* start
    cdef Py_ssize_t size
    cdef int at
    cdef int64_t left = block(datum)
    for at in range(each.slots):
        slots[at].kind = NOTHING
    while left:
        while left:
            left -= 1
            size = length(datum)
            start = taken(datum, size)
            if not is_ascii(start, size):  # it has to be UTF-8 even where the mapping does not ask for it
                PyUnicode_DecodeUTF8(<const char*> start, size, NULL)
            for at in range(each.slots):
                key = <bytes> keys[at]
                if PyBytes_GET_SIZE(key) == size and memcmp(PyBytes_AS_STRING(key), start, size) == 0:
                    run(program, where + 1, where + 1 + each.behind, datum, slots + at)
                    break
            else:
                build(program, where + 1, datum, False)
        left = block(datum)
    return 0


cdef int put_items(Reader program, int where, Slot* slot, Datum* datum) except -1:
    """Read the items one after the other, each into slots of its own."""
    cdef const Operation* each = &program.operations[where]
    cdef Py_ssize_t first = program.used, count = 0, seen = 0
    cdef int64_t left = block(datum)
    while left:
        while left:
            left -= 1
            seen += 1
            if seen > MAX_ITEMS:
                raise ValueError("an array of more items than are kept")
            if each.null_byte != each.value_byte and not is_there(each, datum):
                continue  # an item that is null is no item
            run(program, where + 1, where + 1 + each.behind, datum, program.new_item())
            count += 1
        left = block(datum)
    slot.kind, slot.size, slot.number = ITEM_SLOTS, count, first
    return 0


cdef inline bint is_one_text(Reader program, const Operation* array, const uint8_t* at, const uint8_t* limit) noexcept:
    """Return whether this is an array of one short plain text: a count of 1, its length, its bytes, a count of 0."""
    if limit - at < 3 or at[0] != 2 or at[1] & 0x81 or array[1].code != CODE_TEXT:
        return False
    if at[1] >> 1 > limit - at - 3 or at[2 + (at[1] >> 1)] or program.safe - at < 2 + (at[1] >> 1) + PADDING:
        return False
    return is_plain(at + 2, at[1] >> 1)


cdef int run(Reader program, int first, int stop, Datum* datum, Slot* slots) except -1:
    """Run the operations from `first` to before `stop`.

    Short texts and numbers are read here, with the position in a local variable: most of a record's time is spent here.
    """
    cdef const Operation* each = program.operations + first
    cdef const Operation* end = program.operations + stop
    cdef const uint8_t* at = datum.data + datum.at
    cdef const uint8_t* limit = datum.data + datum.end
    cdef Slot* slot
    cdef Py_ssize_t size
    cdef int one, chosen
    while each < end:
        slot = slots + each.slot
        if each.is_optional_text:
            if limit - at >= 2 and at[0] == each.value_byte and not at[1] & 0x81 and at[1] >> 1 <= limit - at - 2:
                # A byte of which the first and the last bit are 0 is a length from 0 to 63.
                put_text(program, slot, at + 2, at[1] >> 1)
                at += 2 + (at[1] >> 1)
                each += 2
                continue
            if at < limit and at[0] == each.null_byte:
                slot.kind = NOTHING
                at += 1
                each += 2
                continue
        elif each.code == CODE_INT and each.slot >= 0 and at < limit and at[0] < 128:
            put_number(slot, NUMBER, (at[0] >> 1) ^ -(at[0] & 1))
            at += 1
            each += 1
            continue
        elif each.code == CODE_ARRAY and each.slot >= 0 and at < limit and at[0] == 0:
            slot.kind = NO_VALUES
            at += 1
            each += 1 + each.behind
            continue
        elif each.code == CODE_ARRAY and each.slot >= 0 and is_one_text(program, each, at, limit):
            slot.kind, slot.text, slot.size, slot.plain = ONE_TEXT, at + 2, at[1] >> 1, True
            at += 3 + slot.size
            each += 1 + each.behind
            continue
        datum.at = at - datum.data
        if each.slot < 0:
            build(program, each - program.operations, datum, False)
            each += each.behind
        elif each.code == CODE_OPTIONAL:  # a value, or all fields of a record; its operations come next
            if not is_there(each, datum):
                for one in range(each.slots):
                    slot[one].kind = NOTHING
                each += each.behind
        elif each.code == CODE_TEXT:
            size = length(datum)
            put_text(program, slot, taken(datum, size), size)
        elif each.code == CODE_LONG:
            put_number(slot, NUMBER, number(datum))
        elif each.code == CODE_INT:
            put_number(slot, NUMBER, short_number(datum))
        elif each.code == CODE_BOOLEAN:
            put_number(slot, TRUTH, truth(datum))
        elif each.code == CODE_ENUM:
            put_symbol(slot, <tuple> each.extra, datum)
        else:
            if each.code == CODE_ITEMS:
                put_items(program, each - program.operations, slot, datum)
            elif each.code == CODE_DECIMAL:
                put_decimal(program, each, slot, datum)
            elif each.code == CODE_KEYS:
                put_keys(program, each - program.operations, slot, datum)
            elif each.code == CODE_UNION:
                chosen = branch(program, each - program.operations, datum)
                run(program, chosen, chosen + 1 + program.operations[chosen].behind, datum, slot)
            else:
                put(program, slot, build(program, each - program.operations, datum, True))
            each += each.behind
        each += 1
        at = datum.data + datum.at
    datum.at = at - datum.data
    return 0

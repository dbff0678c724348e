"""Receipts as records: `consumer.adapters.receipts.encoding.ReceiptEncoder.plain`, compiled.

Theory of operation. What the rows of one `Receipts` have in common is written once. Ids, value and currency are found
in the event's JSON: a name in it has a colon behind it, and a quote before and behind itself, and a quote within a text
is escaped. No two objects of an event have fields of these names. What is escaped, does not fit into a receipt, or
names its schema in a header is left to Python.
"""

from cpython cimport array
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromFormat, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.unicode cimport PyUnicode_AsUTF8AndSize
from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memchr, memcmp, memcpy

from consumer.avro.decode import SCHEMA_ID_HEADER

include "constants.pxi"

cdef enum:
    EVENT_ID, SOURCE, VALUE, CURRENCY, ORDER_ID, FIELDS
    LONGEST = 15  # bytes of a name with its quotes, at most

cdef const char* NAMES[FIELDS]
cdef Py_ssize_t SIZES[FIELDS]
NAMES[:] = [b'"event_id"', b'"action_source"', b'"value"', b'"currency"', b'"order_id"']
SIZES[:] = [10, 15, 7, 10, 10]

cdef struct Text:
    Py_ssize_t size  # beyond MAX_RECEIPT_BYTES: it does not fit
    char data[MAX_RECEIPT_BYTES]

cdef struct Part:
    const char* data  # NULL: there is none
    Py_ssize_t size


def encode(receipts, plain, schema_of, read_ids, bytes key, bytes head, bytes answer, bytes last):
    """Return the records of these receipts. `plain` makes one of them in Python, `schema_of` names a record's schema,
    `read_ids` reads the ids of a record that became no event.
    `key`: the keys up to the offset; `head`, `answer` and `last`: the values up to the offset, from the request's id to
    the attempts, and from the mapping on."""
    cdef list made = [], records = receipts.records
    cdef array.array ends = receipts.ends, times = receipts.times
    cdef object record, kind, value, kinds = receipts.kinds_there, numbers = receipts.kind_numbers
    cdef object topic = receipts.topic, partition = receipts.partition
    cdef tuple headers
    cdef bytes known = b"", page = receipts.text
    cdef Part body = Part(PyBytes_AS_STRING(page), 0)
    cdef Text schema, text
    cdef Part found[FIELDS]
    cdef int64_t offset, end = receipts.begin
    cdef Py_ssize_t row
    if not len(ends) == len(times) == len(records) or (len(ends) and ends[-1] - end > len(page)):
        raise ValueError("columns of receipts that do not fit each other")
    for row in range(len(records)):
        record, body.data = records[row], body.data + body.size
        body.size, end = ends.data.as_longlongs[row] - end, ends.data.as_longlongs[row]
        value, headers = (<tuple> record)[RECORD_VALUE], (<tuple> record)[RECORD_HEADERS]
        text.size, offset = 0, (<tuple> record)[RECORD_OFFSET]
        if value is not None and not names_schema(headers) and (not body.size or find(body, found)):
            if not known or not (<bytes> value).startswith(known):
                known = (<bytes> value)[: 18 if value[:1] == b"\3" else 10 if value[:1] == b"\xc3" else 5]
                schema.size = 0
                optional(&schema, schema_of(record))
            put(&text, head)
            number(&text, offset)
            if body.size:
                kind = kinds[numbers[row]]
                optional(&text, (<tuple> kind)[KIND_ACCOUNT])
                optional(&text, (<tuple> kind)[KIND_NAME])
                part(&text, found[EVENT_ID])
                part(&text, found[ORDER_ID])
                raw(&text, b"\2", 1)
                number(&text, times.data.as_longlongs[row] * 1000)
                part(&text, found[SOURCE])
                part(&text, found[VALUE])
                part(&text, found[CURRENCY])
            else:  # no account and no name; the ids; and none of the four that follow
                event_id, order_id = read_ids(record, topic, partition)
                raw(&text, b"\0\0", 2)
                optional(&text, event_id)
                optional(&text, order_id)
                raw(&text, b"\0\0\0\0", 4)
            put(&text, answer)
            raw(&text, schema.data, schema.size)
            put(&text, last)
        if not 0 < text.size <= MAX_RECEIPT_BYTES:
            made.append(plain(receipts, row))
            continue
        made.append({
            "key": PyBytes_FromFormat("%s%zd]", PyBytes_AS_STRING(key), <Py_ssize_t> offset),
            "value": PyBytes_FromStringAndSize(text.data, text.size),
        })
    return made


cdef bint names_schema(tuple headers) except -1:
    for name, _ in headers:
        if name == SCHEMA_ID_HEADER:
            return True
    return False


cdef bint find(Part body, Part* found) noexcept:
    """Find the fields in the JSON of an event; return False if one of them cannot be taken as it is."""
    # Behind the first name, so that what stands before a colon is as long as any name.
    cdef const char* at = body.data + LONGEST
    cdef const char* end = body.data + body.size
    cdef int field
    for field in range(FIELDS):
        found[field].data = NULL
    at = scan(at, end, found, EVENT_ID, VALUE)
    if at == NULL or found[EVENT_ID].data == NULL or found[SOURCE].data == NULL:
        return False
    # Only `custom_data` has the others, and an event has few objects: so most of it is passed over.
    while at < end:
        at = <const char*> memchr(at, c"{", end - at)
        if at == NULL:
            return True
        at += 1
        if memcmp(at - 15, b'"custom_data":{', 15) == 0:
            return scan(at, end, found, VALUE, FIELDS) != NULL
    return True


cdef const char* scan(const char* at, const char* end, Part* found, int first, int last) noexcept:
    """Find the fields from `first` to before `last`; return where the search ended, or NULL if the text of one is
    escaped or is no text."""
    cdef int field, missing = last - first
    cdef const char* quote
    while missing and at < end:
        at = <const char*> memchr(at, c":", end - at)
        if at == NULL:
            return end
        for field in range(first, last):
            if memcmp(at - SIZES[field], NAMES[field], SIZES[field]) == 0:
                quote = <const char*> memchr(at + 2, c'"', end - at - 2) if at[1] == c'"' else NULL
                if quote == NULL or memchr(at, c"\\", quote - at) != NULL:
                    return NULL
                found[field].data, found[field].size = at + 2, quote - at - 2
                missing -= 1
        at += 1
    return at


cdef inline void raw(Text* text, const char* data, Py_ssize_t size) noexcept:
    if text.size + size <= MAX_RECEIPT_BYTES:
        memcpy(text.data + text.size, data, size)
    text.size += size


cdef inline void put(Text* text, bytes data) noexcept:
    raw(text, PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data))


cdef inline void number(Text* text, int64_t value) noexcept:
    """Write a number as Avro does: seven bits in a byte, the sign last."""
    cdef uint64_t left = (<uint64_t> value << 1) ^ <uint64_t> (value >> 63)
    cdef char byte
    while True:
        byte = <char> (left & 0x7F | (0x80 if left > 0x7F else 0))
        raw(text, &byte, 1)
        left >>= 7
        if not left:
            break


cdef inline int optional(Text* text, str value) except -1:
    cdef Part whole = Part(NULL, 0)
    if value is not None:
        whole.data = PyUnicode_AsUTF8AndSize(value, &whole.size)
    part(text, whole)
    return 0


cdef inline void part(Text* text, Part found) noexcept:
    raw(text, b"\0" if found.data == NULL else b"\2", 1)
    if found.data != NULL:
        number(text, found.size)
        raw(text, found.data, found.size)

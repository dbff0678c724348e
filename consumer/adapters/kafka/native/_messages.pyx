"""From a run of the client's messages to records: `consumer.adapters.kafka.native.plain.gather`, compiled.

Theory of operation. A message keeps its fields in a C structure that is not a public part of the client, so its layout
is checked: the import of this module makes messages with known fields, and if a field is not where the structure below
has it, `gather` is the plain one. (The pointer to headers as the client received them, in C, cannot be
set in this way. Only this pointer fits between two fields that were found, and it is only compared with NULL.)
"""

from cpython.list cimport PyList_GET_SIZE
from cpython.object cimport PyObject
from cpython.ref cimport Py_INCREF
from cpython.tuple cimport PyTuple_SET_ITEM
from libc.stdint cimport int16_t, int32_t, int64_t

from confluent_kafka import KafkaError, Message

from consumer.adapters.kafka.native import plain
from consumer.adapters.kafka.native.plain import headers_of
include "constants.pxi"
include "consumer/engine/native/_records.pxi"

cdef extern from *:
    """
    typedef struct {
        PyObject_HEAD
        PyObject *topic;
        PyObject *value;
        PyObject *key;
        PyObject *headers;
        void *c_headers;
        PyObject *error;
        int32_t partition;
        int64_t offset;
        int32_t leader_epoch;
        int64_t timestamp;
        int timestamp_kind;
        int64_t latency;
        int16_t delivery_count;
    } ClientMessage;

    static PyObject *new_tuple(PyObject *type, Py_ssize_t size) {
        return ((PyTypeObject *) type)->tp_alloc((PyTypeObject *) type, size);
    }
    """
    ctypedef struct ClientMessage:
        PyObject *topic
        PyObject *value
        PyObject *key
        PyObject *headers
        void *c_headers
        PyObject *error
        int32_t partition
        int64_t offset
        int32_t leader_epoch
        int64_t timestamp
        int timestamp_kind
    # What `tuple.__new__(type, …)` does in the end, without making a tuple of the fields first.
    object new_tuple(object type, Py_ssize_t size)

cdef object ClientType = Message
cdef tuple NO_HEADERS = ()
cdef enum:
    TIMESTAMP_NOT_AVAILABLE = 0


def gather(list messages, Py_ssize_t at, list records, Py_ssize_t maximum):
    """See `consumer.adapters.kafka.native.plain.gather`."""
    cdef ClientMessage *first = as_client(messages[at])
    cdef ClientMessage *one
    cdef Py_ssize_t size = 0
    cdef int64_t before = -1, stamp, last_stamp = -1
    cdef object timestamp = -1, message, key, value, record
    cdef tuple headers
    while at < PyList_GET_SIZE(messages):
        message = messages[at]
        one = as_client(message)
        if is_error(one) or one.offset <= before or not alike(one, first):
            break
        before = one.offset
        stamp = -1 if one.timestamp_kind == TIMESTAMP_NOT_AVAILABLE else one.timestamp
        if stamp != last_stamp:  # the records of a batch often have the same timestamp
            timestamp, last_stamp = stamp, stamp
        headers = NO_HEADERS
        if one.headers != NULL or one.c_headers != NULL:
            headers = headers_of(message)
            if headers:
                size += size_of_headers(headers)
        key = None if one.key == NULL else <object> one.key
        value = None if one.value == NULL else <object> one.value
        size += length(key) + length(value)
        record = new_tuple(Record, RECORD_FIELDS)
        put(record, RECORD_OFFSET, one.offset)
        put(record, RECORD_TIMESTAMP, timestamp)
        put(record, RECORD_KEY, key)
        put(record, RECORD_VALUE, value)
        put(record, RECORD_HEADERS, headers)
        records.append(record)
        at += 1
        if size >= maximum:
            break
    return at, size


cdef ClientMessage *as_client(object message) except NULL:
    if type(message) is not ClientType:
        raise TypeError("not a message of the client")
    return <ClientMessage *> message


cdef inline bint is_error(ClientMessage *one):
    return one.error != NULL and <object> one.error is not None


cdef inline bint alike(ClientMessage *one, ClientMessage *other) except -1:
    return (
        one.partition == other.partition
        and one.leader_epoch == other.leader_epoch
        and (one.topic == other.topic or same(one.topic, other.topic))
    )


cdef inline bint same(PyObject *one, PyObject *other) except -1:
    return one != NULL and other != NULL and <object> one == <object> other


cdef inline void put(object record, Py_ssize_t place, object value):
    Py_INCREF(value)  # PyTuple_SET_ITEM takes over a reference
    PyTuple_SET_ITEM(record, place, value)


cdef bint is_as_expected(
    object topic, object key, object value, object headers, object error, int32_t partition, int64_t offset,
    int kind, int64_t timestamp, int32_t leader_epoch,
):
    """Return whether a message made of these values has each of them where the structure says."""
    try:
        made = Message(topic, partition, offset, key, value, headers, error, (kind, timestamp), 0.5, leader_epoch)
    except TypeError:  # it has other fields
        return False
    cdef ClientMessage *one = <ClientMessage *> made
    return (
        one.topic == <PyObject *> topic
        and one.key == <PyObject *> key
        and one.value == <PyObject *> value
        and (one.headers == NULL if headers is None else one.headers == <PyObject *> headers)
        and one.c_headers == NULL
        and (one.error == NULL or one.error == <PyObject *> error)
        and is_error(one) == (error is not None)
        and one.partition == partition
        and one.offset == offset
        and one.timestamp_kind == kind
        and one.timestamp == timestamp
        and one.leader_epoch == leader_epoch
    )


if (
    Message.__basicsize__ != sizeof(ClientMessage)
    or not is_as_expected("a", b"key", b"value", [("name", b"it")], None, 3, 1 << 40, 1, 1 << 41, 5)
    or not is_as_expected("b", b"other", b"", None, KafkaError(1), 1 << 20, 7, 2, 11, 1 << 21)
):
    gather = plain.gather

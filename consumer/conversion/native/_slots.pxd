from cpython.object cimport PyObject
from libc.stdint cimport int64_t, uint8_t


cdef struct Operation:
    int code
    int slot
    int slots
    int behind
    int null_byte
    int value_byte
    void* extra


cdef enum Kind:
    NOTHING     # null
    ASCII_TEXT  # `text`, `size` bytes of the record
    NUMBER      # `number`
    TRUTH       # `number`, 0 or 1
    OBJECT      # `object`
    ONE_TEXT    # an array of one ASCII text, as ASCII_TEXT
    ITEM_SLOTS  # `size` items; the slots of the first begin at `number` of the program's `item_slots`


cdef struct Slot:
    Kind kind
    Py_ssize_t size
    int64_t number
    const uint8_t* text
    PyObject* object


cdef class Program:
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
    cdef int read(self, bytes data, Py_ssize_t at) except -1
    cdef Slot* new_item(self) except NULL
    cdef void forget(self) noexcept


cdef object thing(const Slot* slot)

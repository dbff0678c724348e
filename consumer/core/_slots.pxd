from libc.stdint cimport uint8_t


cdef struct Operation:
    int code
    int slot
    int slots
    int behind
    int null_byte
    int value_byte
    void* extra


cdef class Program:
    cdef Operation* operations
    cdef int count
    cdef int width
    cdef list kept
    cdef tuple read(self, bytes data, Py_ssize_t at)

"""Records and the size of what they hold, for the modules that read or make them in C."""

from cpython.bytes cimport PyBytes_CheckExact, PyBytes_GET_SIZE

from consumer.engine.model import Record as PythonRecord
from consumer.engine.native.plain import size_of_headers

cdef object Record = PythonRecord


cdef inline Py_ssize_t length(object text) except -1:
    """Return the bytes of a key or a value; None has none."""
    if PyBytes_CheckExact(text):
        return PyBytes_GET_SIZE(text)
    return 0 if text is None else len(text)

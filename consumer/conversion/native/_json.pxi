"""Writes JSON into a buffer, the same bytes as orjson: text and numbers here, the rest by orjson.

Theory of operation. A comma follows every member and element; `close` replaces the last comma by the bracket.
Text in which nothing needs escaping is copied as UTF-8. A loop over its bytes finds that out; compilers vectorise it.
A lone surrogate has no UTF-8 and raises UnicodeEncodeError.
"""

import orjson

cdef object dumps = orjson.dumps

cdef enum:
    NUMBER_ROOM = 24
    MAX_KEPT = 1 << 20  # bytes that `clear` keeps; an event has 1 KB, seldom 10, and a block has up to 256 events


cdef inline bint needs_escaping(const unsigned char* data, Py_ssize_t size) noexcept:
    cdef unsigned char found = 0
    cdef Py_ssize_t at
    for at in range(size):
        found |= (data[at] < 0x20) | (data[at] == 0x22) | (data[at] == 0x5C)
    return found != 0


@cython.final
cdef class Page:
    """A buffer that grows and is used again for every event; `clear` frees the room that only a giant event needed."""

    cdef char* data
    cdef Py_ssize_t size
    cdef Py_ssize_t room
    cdef bytearray within  # the column that is written to; None: the page's own buffer

    def __cinit__(self):
        self.data = NULL
        self.size = self.room = 0

    def __dealloc__(self):
        if self.within is None:
            PyMem_Free(self.data)

    cdef int begin(self, bytearray column, Py_ssize_t likely) except -1:
        """From now on write at the end of `column`; `likely`: about how many bytes. The page must be empty."""
        self.within, self.size, self.room = column, PyByteArray_GET_SIZE(column), 0
        # A little more than expected is mostly enough. Unused room stays in the column (`engine.block.Block`).
        return self.resize(self.size + likely + likely // 32)

    cdef int end(self) except -1:
        """Cut the column to what was written, and stop writing into it."""
        column, size = self.within, self.size
        self.within, self.data, self.size, self.room = None, NULL, 0, 0
        if column is not None:
            PyByteArray_Resize(column, size)
        return 0

    cdef inline int reserve(self, Py_ssize_t more) except -1:
        """Make room for this many more bytes and the padding after them (`_text`)."""
        return self.grow(more) if self.size + more > self.room else 0

    cdef int grow(self, Py_ssize_t more) except -1:
        cdef Py_ssize_t room = self.size + more
        return self.resize(room + room // 2 + 1024)

    cdef int resize(self, Py_ssize_t room) except -1:
        cdef char* data
        if self.within is not None:
            PyByteArray_Resize(self.within, room + PADDING)
            data = PyByteArray_AS_STRING(self.within)
        else:
            data = <char*> PyMem_Realloc(self.data, room + PADDING)
            if data == NULL:
                raise MemoryError
        self.data, self.room = data, room
        return 0

    cdef inline int raw(self, const char* data, Py_ssize_t size) except -1:
        """Write these bytes."""
        self.reserve(size)
        if size:  # an empty page's `data` may be NULL: undefined for `memcpy`, whatever the size
            memcpy(self.data + self.size, data, size)
            self.size += size
        return 0

    cdef inline int put(self, bytes data) except -1:
        """Write these bytes."""
        return self.raw(PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data))

    cdef int value(self, object value) except -1:
        """Write a value and a comma. Raises the errors of orjson."""
        cdef Py_ssize_t begun
        if type(value) is str:
            return self.text(value)
        if type(value) is list:
            self.raw(b"[", 1)
            begun = self.size
            for one in <list> value:
                self.value(one)
            return self.close(begun, c"]")
        self.put(dumps(value))
        return self.raw(",", 1)

    cdef inline int number(self, long long number) except -1:
        """Write a number and a comma."""
        cdef char digits[NUMBER_ROOM]
        cdef int at = NUMBER_ROOM - 1
        # The lowest number has no positive counterpart among signed ones; as unsigned the result is right.
        cdef unsigned long long left = -<unsigned long long> number if number < 0 else <unsigned long long> number
        digits[at] = c","
        while True:
            at -= 1
            digits[at] = 48 + left % 10
            left //= 10
            if left == 0:
                break
        if number < 0:
            at -= 1
            digits[at] = c"-"
        return self.raw(digits + at, NUMBER_ROOM - at)

    cdef int text(self, str value) except -1:
        """Write text and a comma. Raises `UnicodeEncodeError`."""
        cdef Py_ssize_t size = 0
        cdef const char* data = PyUnicode_AsUTF8AndSize(value, &size)
        if needs_escaping(<const unsigned char*> data, size):
            self.put(dumps(value))
            return self.raw(",", 1)
        self.raw(b'"', 1)
        self.raw(data, size)
        return self.raw(b'",', 2)

    cdef inline int quoted(self, const char* data, Py_ssize_t size) except -1:
        """Write padded, plain text between quotes, and a comma."""
        cdef char* into
        self.reserve(size + 3)
        into = self.data + self.size
        into[0] = c'"'
        copy_padded(into + 1, data, size)
        into[size + 1], into[size + 2] = c'"', c","
        self.size += size + 3
        return 0

    cdef inline int close(self, Py_ssize_t begun, char bracket) except -1:
        """End the object or array whose content began at `begun`, and write a comma."""
        if self.size > begun:
            self.data[self.size - 1] = bracket
        else:
            self.raw(&bracket, 1)
        return self.raw(",", 1)

    cdef inline int close_or_drop(self, Py_ssize_t before, Py_ssize_t begun, char bracket) except -1:
        """End the object or array, or go back to `before` if nothing was written into it."""
        if self.size > begun:
            return self.close(begun, bracket)
        self.size = before
        return 0

    cdef bytes taken(self):
        """Return all that was written, and empty the page."""
        written = PyBytes_FromStringAndSize(self.data, self.size)
        self.size = 0
        return written

    cdef void clear(self) noexcept:
        """Empty the page."""
        self.size = 0
        if self.room > MAX_KEPT:
            PyMem_Free(self.data)
            self.data, self.room = NULL, 0


def written(value):
    """A value's JSON: for the property test."""
    cdef Page page = Page()
    page.value(value)
    page.size -= 1  # without the comma
    return page.taken()

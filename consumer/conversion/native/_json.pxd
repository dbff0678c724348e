cdef class Page:
    cdef char* data
    cdef Py_ssize_t size
    cdef Py_ssize_t room
    cdef int reserve(self, Py_ssize_t more) except -1
    cdef int raw(self, const char* data, Py_ssize_t size) except -1
    cdef int put(self, bytes data) except -1
    cdef int value(self, object value) except -1
    cdef int number(self, long long number) except -1
    cdef int array(self, list values) except -1
    cdef int text(self, str value) except -1
    cdef int ascii(self, const char* data, Py_ssize_t size) except -1
    cdef int quoted(self, const char* data, Py_ssize_t size) except -1
    cdef int close(self, Py_ssize_t begun, char bracket) except -1
    cdef bytes taken(self)
    cdef void clear(self) noexcept

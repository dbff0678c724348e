cdef object usual_text(int kind, object value)
cdef bint passes_as_text(int kind, const unsigned char* text, Py_ssize_t size) noexcept
cdef int put_usual_digest(int kind, object value, char* into) except -1
cdef int put_usual_digest_of(int kind, const unsigned char* text, Py_ssize_t size, char* into) except -1
cdef Py_ssize_t usual_click_id(const unsigned char* text, Py_ssize_t size, Py_ssize_t* begun) noexcept
cdef bint may_be_crawler(const unsigned char* text, Py_ssize_t size) noexcept

cdef bint is_usual(int kind, object value)
cdef int put_usual_digest(int kind, object value, char* into) except -1

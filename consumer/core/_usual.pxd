cdef enum:
    USUAL_TEXT = 9

cdef object usual_text(int kind, object value)
cdef int put_usual_digest(int kind, object value, char* into) except -1
